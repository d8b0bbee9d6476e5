"""Runs on a Dask cluster of this machine (see toy_runs.py)."""

import pytest
from distributed import LocalCluster
from toy_runs import Sum, computed, toy_store, value_of

from fetal_utils.runs import RunsFailedError


@pytest.fixture(scope="module")
def scheduler():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_runs_are_computed_by_workers_a_start_before_what_starts_from_it(scheduler, tmp_path):
    store = toy_store(tmp_path)
    chain = [Sum(term=1)]
    for term in (2, 3, 4):
        chain.append(Sum(term=term, start=chain[-1]))
    runs = store.get([chain[-1], chain[0]], scheduler=scheduler)
    assert computed(store) == [1, 2, 3, 4]
    assert [run.record["facts"]["total"] for run in runs] == [10, 1]


def test_what_exists_is_not_computed_again(scheduler, tmp_path):
    store = toy_store(tmp_path)
    store.get([Sum(term=5)])
    store.get([Sum(term=5), Sum(term=6, start=Sum(term=5))], scheduler=scheduler)
    assert computed(store) == [5, 6]
    assert value_of(store, Sum(term=6, start=Sum(term=5))) == 11


def test_a_failed_run_is_named_what_starts_from_it_is_not_tried_and_the_others_go_on(scheduler, tmp_path):
    store = toy_store(tmp_path)
    broken = Sum(term=1, broken=True)
    after, other = Sum(term=2, start=broken), Sum(term=3)
    with pytest.raises(RunsFailedError, match="2 of 3 runs failed") as raised:
        store.get([after, other], scheduler=scheduler)
    assert "term 1 is broken" in str(raised.value)
    assert "starts from a run that failed" in str(raised.value)
    assert store.has(other) and not store.has(after)
    assert sorted(computed(store)) == [1, 3]


def test_an_address_where_no_scheduler_answers_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConnectionError, match="dask scheduler"):
        toy_store(tmp_path).get([Sum(term=1)], scheduler="no-address")
