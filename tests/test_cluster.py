"""Graphs of tasks on Dask clusters of real processes of this machine (see cluster_tasks.py)."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import pytest
from cluster_tasks import Epochs, fit, noted, set_variable, task, unfit_where_told
from distributed import Client, LocalCluster
from toy_runs import toy_store

from fetal_utils.cluster import compute_graph, connect
from fetal_utils.environment import PROJECT_ROOT, StorageError

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def scheduler():
    """A scheduler with two workers, which are started again when a task has killed them, however long that takes."""
    behaviour = {"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "600s"}
    with (
        dask.config.set(behaviour),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=None, dashboard_address=":0") as local,
    ):
        yield local.scheduler_address


def compute(folder, graph, *, scheduler, check=fit, done=lambda name: None):
    """`compute_graph` of ``name -> (names it needs, action)``."""
    dependencies = {name: needed for name, (needed, _) in graph.items()}
    arguments = {name: (str(folder), name, action) for name, (_, action) in graph.items()}
    return compute_graph(dependencies, task, arguments, scheduler=scheduler, check=check, done=done)


def wait_until(condition, *, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def test_each_name_comes_after_what_it_needs(scheduler, tmp_path):
    graph = {f"single{k}": ([], "wait 0.1") for k in range(4)}
    graph |= {"a": ([], ""), "b": (["a"], ""), "c": (["b"], ""), "d": (["c", "single3"], "")}
    ended = []
    assert compute(tmp_path, graph, scheduler=scheduler, done=ended.append) == {}
    began = noted(tmp_path)
    assert [name for name in began if name in "abcd"] == ["a", "b", "c", "d"]
    assert sorted(ended) == sorted(graph)


def test_what_fails_is_named_what_needs_it_is_not_tried_and_the_others_go_on(scheduler, tmp_path):
    graph = {"a": ([], "fail"), "b": (["a"], ""), "c": (["b"], ""), "d": ([], "raise"), "e": ([], "")}
    ended = []
    failures = compute(tmp_path, graph, scheduler=scheduler, done=ended.append)
    assert failures == {
        "a": "its own reason",
        "b": "needs a, which failed",
        "c": "needs b, which failed",
        "d": "RuntimeError: on purpose",
    }
    assert sorted(noted(tmp_path)) == ["a", "d", "e"]
    assert sorted(ended) == sorted(graph)


def test_a_worker_killed_in_an_epoch_of_a_run_costs_that_epoch(scheduler, tmp_path):
    (run,) = toy_store(tmp_path).get([Epochs(n_epochs=4, dies_in=3)], scheduler=scheduler)
    assert noted(tmp_path) == [f"epoch {epoch}" for epoch in (1, 2, 3, 3, 4)]
    assert list(run.log["epoch"]) == [1, 2, 3, 4]


def test_a_task_that_kills_every_worker_fails_with_the_reason_and_takes_no_other_with_it(scheduler, tmp_path):
    graph = {f"good{k}": ([], "wait 0.1") for k in range(6)} | {"fatal": ([], "die")}
    failures = compute(tmp_path, graph, scheduler=scheduler)
    assert list(failures) == ["fatal"]
    assert re.search(r"its worker died 2 times, last tcp://.*memory", failures["fatal"])
    assert noted(tmp_path).count("fatal") == 2
    assert set(noted(tmp_path)) == set(graph)
    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)  # both came back


def test_a_full_disk_stops_all_with_its_own_error(scheduler, tmp_path):
    graph = {"full": ([], "full disk")} | {f"later{k}": ([], "wait 0.2") for k in range(30)}
    with pytest.raises(StorageError, match="no space left"):
        compute(tmp_path, graph, scheduler=scheduler)
    assert len(noted(tmp_path)) < 30


def test_two_calls_for_the_same_names_do_not_take_each_others_answers(scheduler, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    graph, options = {"a": ([], "wait 1")}, {"scheduler": scheduler}
    calls = [threading.Thread(target=compute, args=(folder, graph), kwargs=options) for folder in folders]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert [noted(folder) for folder in folders] == [["a"], ["a"]]


def test_a_worker_that_can_not_take_part_is_named_before_work_starts(scheduler, tmp_path):
    with Client(scheduler, set_as_default=False) as client:
        first, _ = client.nthreads()
        client.run(set_variable, "TOY_DATA", "other", workers=[first])
        try:
            with pytest.raises(ConnectionError, match=f"1 of 2 workers .*worker {first}: reads other data"):
                compute(tmp_path, {"a": ([], "")}, scheduler=scheduler, check=unfit_where_told)
        finally:
            client.run(set_variable, "TOY_DATA", "")
    assert noted(tmp_path) == []


@pytest.fixture
def by_hand():
    """Start ``dask`` processes as the README does; all of them end with the test."""
    processes = []

    def begin(*command, **environment):
        path = os.pathsep.join([str(PROJECT_ROOT), str(TESTS)])
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + command[0], *command[1:]],
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def begin_scheduler(by_hand):
    """A scheduler of one's own and its address."""
    process = by_hand("dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard")
    for line in process.stderr:
        if match := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or its pipe would fill
            return process, match[1]
    raise AssertionError("the scheduler ended")


def begin_worker(by_hand, address, **environment):
    by_hand("dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", **environment)


def test_a_worker_that_joins_later_and_reads_other_data_is_sent_away(by_hand, tmp_path, capfd):
    _, address = begin_scheduler(by_hand)
    begin_worker(by_hand, address)
    graph = {f"task{k}": ([], "wait 60") for k in range(3)}

    def join_late():
        wait_until(lambda: noted(tmp_path))
        begin_worker(by_hand, address, TOY_DATA="other")
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2)
            wait_until(lambda: len(client.nthreads()) == 1)
        (tmp_path / "wake").touch()

    late = threading.Thread(target=join_late)
    late.start()
    assert compute(tmp_path, graph, scheduler=address, check=unfit_where_told) == {}
    late.join()
    assert sorted(noted(tmp_path)) == sorted(graph)
    assert re.search(r"worker tcp://\S+ reads other data; it is sent away", capfd.readouterr().out)


def test_a_lost_scheduler_is_one_clear_line(by_hand, tmp_path):
    process, address = begin_scheduler(by_hand)
    begin_worker(by_hand, address)

    def lose_scheduler():
        wait_until(lambda: noted(tmp_path))
        os.killpg(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=lose_scheduler)
    killer.start()
    with pytest.raises(ConnectionError, match=r"was lost .*ask for the same again to go on") as raised:
        compute(tmp_path, {"a": ([], "wait 600")}, scheduler=address)
    killer.join()
    assert "\n" not in str(raised.value)


def test_a_worker_without_this_package_is_named(by_hand, tmp_path):
    _, address = begin_scheduler(by_hand)
    (tmp_path / "decoy" / "fetal_utils").mkdir(parents=True)
    (tmp_path / "decoy" / "fetal_utils" / "__init__.py").write_text("")
    begin_worker(by_hand, address, PYTHONPATH=str(tmp_path / "decoy"))
    with pytest.raises(ConnectionError, match=r"1 of 1 workers can't compute: .*No module named"):
        compute(tmp_path, {"a": ([], "")}, scheduler=address)


def test_local_processes_speak_tls_and_have_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    graph = {f"task{k}": ([], "environment") for k in range(6)} | {"two": ([], "wait 1"), "one": ([], "wait 1")}
    assert compute(tmp_path, graph, scheduler="local:2") == {}
    with connect("local:1") as (client, _):
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
    seen = {line.partition(" sees ")[2] for line in noted(tmp_path) if "sees" in line}
    assert seen == {"GPU 5", "GPU 7"}
