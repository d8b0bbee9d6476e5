"""The order in which runs are started."""

from toy_runs import Sum

from fetal_utils.agenda import Agenda, critical_path, width

A = Sum(term=1)
B = Sum(term=2, start=A)
C = Sum(term=3, start=B)
X = Sum(term=4)
Y = Sum(term=5, start=X)


def test_a_run_is_given_out_only_when_what_it_starts_from_is_finished():
    agenda = Agenda([A, B])
    assert (agenda.next(), agenda.next()) == (A, None)
    agenda.finish(A)
    assert (agenda.next(), agenda.next()) == (B, None)


def test_what_has_the_longest_chain_behind_it_comes_first_and_equals_come_as_given():
    lonely = [Sum(term=term) for term in (10, 11)]
    agenda = Agenda([*lonely, X, Y, A, B, C])
    assert [agenda.next() for _ in range(5)] == [A, X, *lonely, None]


def test_a_start_that_is_not_asked_for_is_taken_for_finished():
    assert Agenda([C]).next() == C


def test_its_length_counts_the_runs_that_were_not_given_out():
    agenda = Agenda([A, B, X])
    assert len(agenda) == 3
    run = agenda.next()
    assert len(agenda) == 2
    agenda.put_back(run)
    assert (len(agenda), agenda.next()) == (3, run)


def test_a_failed_run_strikes_off_all_that_start_from_it_once_and_leaves_the_others():
    both = Sum(term=6, start=C)
    agenda = Agenda([A, B, C, both, X, Y])
    assert agenda.next() == A
    assert agenda.fail(A) == [B, C, both]
    assert agenda.next() == X
    agenda.finish(X)
    assert (agenda.next(), len(agenda)) == (Y, 0)
    assert agenda.fail(Y) == []


def test_width_is_the_most_runs_that_can_go_at_the_same_time():
    assert width([]) == 0
    assert width([A, B, C]) == 1
    assert width([A, B, C, X, Y]) == 2
    assert width([A, *(Sum(term=term, start=A) for term in range(10, 17))]) == 7


def test_the_critical_path_is_the_chain_that_takes_longest():
    seconds = {A: 1.0, B: 2.0, C: 4.0, X: 3.0, Y: 5.0}
    assert critical_path(seconds) == [X, Y]
    assert critical_path(seconds | {C: 5.5}) == [A, B, C]
    assert critical_path({}) == []
