"""How many processes of this machine compute runs."""

import os

import pytest
import torch
from toy_runs import Sum, toy_store

from fetal_utils.encoders import Features, initial_weights
from fetal_utils.workforce import (
    PROCESS_GIB,
    QUICK_PIXELS,
    WORTH_PIXELS,
    Machine,
    Workforce,
    asked_processes,
    choose_workforce,
    open_processes,
    this_machine,
    visible_gpus,
    worthwhile,
)

LARGE = Machine(n_cores=16, free_gib=100)
WORTH_RUNS = WORTH_PIXELS // QUICK_PIXELS  # without a network


class Counted:
    """As much of a data set as the budgets of these runs read: images of 32 px enough to make each worth a process."""

    metadata = range(WORTH_PIXELS // 32**2 + 1)


def slow_runs(n):
    """Runs with a network, none of which waits for another."""
    return [
        Features(source=initial_weights(backbone="test_resnet", init="random", seed=i), image_size=32) for i in range(n)
    ]


def quick_runs(n):
    return [Sum(term=i) for i in range(n)]


def choose(runs, machine, **options):
    return choose_workforce(runs, Counted(), machine=machine, **options)


@pytest.mark.parametrize(
    ("n_cores", "n_processes", "n_threads"), [(1, 1, 1), (2, 1, 2), (7, 1, 7), (8, 2, 4), (64, 16, 4)]
)
def test_without_gpus_a_process_for_every_four_cores_and_one_below_eight(n_cores, n_processes, n_threads):
    machine = Machine(n_cores=n_cores, free_gib=1000)
    assert choose(slow_runs(100), machine) == Workforce(n_processes, n_threads)


def test_a_process_that_memory_has_no_room_for_is_not_started_and_the_others_take_its_cores():
    assert choose(slow_runs(9), Machine(16, free_gib=2.5 * PROCESS_GIB)) == Workforce(2, 8)
    assert choose(slow_runs(9), Machine(16, free_gib=0.5 * PROCESS_GIB)) == Workforce(1, 16)


def test_there_are_no_more_processes_than_runs_that_go_at_the_same_time():
    assert choose(slow_runs(3), LARGE) == Workforce(3, 5)
    chain = [Sum(term=0)]
    for term in range(1, 100):
        chain.append(Sum(term=term, start=chain[-1]))
    assert choose(chain, LARGE).n_processes == 1
    assert choose([], LARGE).n_processes == 1


def test_quick_runs_are_worth_a_process_only_in_numbers():
    assert worthwhile(quick_runs(2 * WORTH_RUNS - 1), Counted(), n_most=9) == 1
    assert worthwhile(quick_runs(2 * WORTH_RUNS), Counted(), n_most=9) == 2
    assert worthwhile(quick_runs(WORTH_RUNS) + slow_runs(2), Counted(), n_most=9) == 3
    assert worthwhile(quick_runs(9 * WORTH_RUNS), Counted(), n_most=4) == 4


def test_runs_of_a_few_images_are_worth_no_process():
    class Few:
        metadata = range(100)

    assert worthwhile(slow_runs(20), Few(), n_most=9) == 0
    assert choose_workforce(slow_runs(20), Few(), machine=LARGE) == Workforce(1, 16)


def test_every_gpu_has_a_process_of_its_own_that_sees_no_other():
    workforce = choose(slow_runs(9), Machine(16, free_gib=1.0, gpus=("4", "6", "7")))
    assert workforce == Workforce(3, 5, ("4", "6", "7"))
    assert workforce.environments() == [{"CUDA_VISIBLE_DEVICES": name} for name in ("4", "6", "7")]


def test_two_runs_take_two_of_eight_gpus():
    assert choose(slow_runs(2), Machine(16, 100, tuple("01234567"))).gpus == ("0", "1")


def test_processes_that_are_asked_for_are_started_whatever_the_machine_has():
    small = Machine(n_cores=2, free_gib=1.0)
    assert choose(slow_runs(9), small, n_asked=3) == Workforce(3, 1)
    assert choose(slow_runs(9), Machine(4, 1.0, ("0", "1")), n_asked=3).gpus == ("0", "1", "0")
    assert choose(slow_runs(9), LARGE, n_asked=1) == Workforce(1, 16)


def test_the_gpus_are_those_that_this_process_was_given(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f2a")
    assert visible_gpus(2) == ("3", "GPU-8f2a")
    assert visible_gpus(0) == ()


def test_gpus_count_only_where_the_device_leaves_open_which(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        "fetal_utils.workforce.pick_device", lambda device: torch.device(device.replace("auto", "cuda"))
    )
    assert len(this_machine("auto").gpus) == len(this_machine("cuda").gpus) == 4
    assert this_machine("cuda:1").gpus == this_machine("cpu").gpus == ()


def test_this_machine_has_the_cores_that_this_process_may_use():
    machine = this_machine("cpu")
    assert 1 <= machine.n_cores <= os.cpu_count()
    assert 0 < machine.free_gib < 1e5


def test_what_a_notebook_says_about_where_to_compute():
    assert asked_processes("") == 0
    assert asked_processes("local:12") == 12
    assert asked_processes("tcp://10.0.0.1:8786") is None
    for text in ("local", "local:0", "local:two", "local:-1"):
        with pytest.raises(ValueError, match="local:2"):
            asked_processes(text)


def test_each_process_has_its_own_environment_and_the_threads_of_the_workforce_and_none_is_left_behind(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of this process, or of an earlier workforce
    before = dict(os.environ)
    from distributed import Client

    with (
        open_processes(Workforce(2, 3, gpus=("5", "7"))) as address,
        Client(address, set_as_default=False) as client,
    ):
        seen = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], os.getpid()))
    gpus, threads, processes = zip(*seen.values(), strict=True)
    assert (sorted(gpus), set(threads)) == (["5", "7"], {"3"})
    assert dict(os.environ) == before
    assert len({*processes, os.getpid()}) == 3


def test_two_processes_give_what_one_gives(tmp_path):
    wanted = [Sum(term=term, start=Sum(term=1)) for term in range(2, 10)]
    here, there = toy_store(tmp_path / "here"), toy_store(tmp_path / "there")
    runs_here, runs_there = here.get(wanted), there.get(wanted, scheduler="local:2")
    assert [run.record["facts"] for run in runs_here] == [run.record["facts"] for run in runs_there]


def test_processes_are_not_started_for_runs_that_are_watched_or_quick(monkeypatch, tmp_path):
    monkeypatch.setattr("fetal_utils.cluster.this_machine", lambda device: LARGE)
    monkeypatch.setattr("fetal_utils.cluster.open_processes", lambda workforce: pytest.fail("processes were started"))
    store = toy_store(tmp_path)
    store.get(quick_runs(WORTH_RUNS))
    store.get([Sum(term=100 + i) for i in range(3 * WORTH_RUNS)], watch=lambda settings, log: None)
    assert len({*store.missing(quick_runs(WORTH_RUNS))}) == 0


def test_a_machine_with_cores_to_spare_starts_processes_of_its_own_accord(monkeypatch, tmp_path):
    monkeypatch.setattr("fetal_utils.cluster.this_machine", lambda device: LARGE)
    started = []

    def refuse(workforce):
        started.append(workforce)
        raise RuntimeError("enough seen")

    monkeypatch.setattr("fetal_utils.cluster.open_processes", refuse)
    with pytest.raises(RuntimeError, match="enough seen"):
        toy_store(tmp_path).get([Sum(term=i) for i in range(3 * WORTH_RUNS)])
    assert started == [Workforce(3, 5)]
