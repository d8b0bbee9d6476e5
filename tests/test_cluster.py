"""Runs on a Dask cluster of this machine (see toy_runs.py and cluster_runs.py)."""

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
from cluster_runs import Epochs, Fatal, FullDisk, Pause, PickyDataset, noted
from distributed import Client
from toy_runs import Sum, computed, toy_store, value_of

from fetal_utils.cluster import compute_on_cluster
from fetal_utils.environment import PROJECT_ROOT, progress_bar
from fetal_utils.files import StorageError
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.worker_checks import UnfitWorkerError
from fetal_utils.workforce import Workforce, open_processes

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def scheduler():
    """A scheduler with two workers, which are started again when a run has killed them, however long that takes."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), open_processes(Workforce(2, 1)) as address:
        yield address


def start(command, **environment):
    """A process of its own, at the head of its process group, with this repository and these tests to import."""
    path = os.pathsep.join([str(PROJECT_ROOT), str(TESTS)])
    variables = {"PYTHONPATH": path, **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        command,
        env={**variables, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(*processes):
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        process.stdout.close()


def wait_until(condition, *, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


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


def test_nothing_is_left_in_the_results_folder_but_the_runs(scheduler, tmp_path):
    toy_store(tmp_path).get([Sum(term=7)], scheduler=scheduler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["computed.txt", "runs"]


def test_a_failed_run_is_named_what_starts_from_it_is_not_tried_and_the_others_go_on(scheduler, tmp_path):
    store = toy_store(tmp_path)
    broken = Sum(term=1, broken=True)
    after, other = Sum(term=2, start=broken), Sum(term=3)
    last = Sum(term=4, start=after)
    with pytest.raises(RunsFailedError, match="3 of 4 runs failed") as raised:
        store.get([last, other], scheduler=scheduler)
    assert "RuntimeError: term 1 is broken" in str(raised.value)
    assert f"starts from {store.name(broken)}, which failed" in str(raised.value)
    assert f"starts from {store.name(after)}, which failed" in str(raised.value)
    assert store.has(other) and not store.has(after)
    assert sorted(computed(store)) == [1, 3]


def test_an_address_where_no_scheduler_answers_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConnectionError, match="dask scheduler"):
        toy_store(tmp_path).get([Sum(term=1)], scheduler="no-address")


def test_a_killed_worker_costs_its_run_the_epoch_it_was_in_and_no_other(scheduler, tmp_path):
    store = toy_store(tmp_path)
    (run,) = store.get([Epochs(n_epochs=5, dies_in=4)], scheduler=scheduler)
    assert noted(tmp_path) == [f"epoch {epoch}" for epoch in (1, 2, 3, 4, 4, 5)]
    assert list(run.log["epoch"]) == [1, 2, 3, 4, 5]


def test_a_run_that_kills_every_worker_fails_with_the_reason_and_takes_no_other_with_it(scheduler, tmp_path):
    store = toy_store(tmp_path)
    others = [Sum(term=term) for term in range(1, 9)]
    with pytest.raises(RunsFailedError, match="1 of 9 runs failed") as raised:
        store.get([*others[:4], Fatal(), *others[4:]], scheduler=scheduler)
    assert re.search(r"fatal \w+: its worker died 2 times, last tcp://.*memory", str(raised.value))
    assert noted(tmp_path) == ["fatal 0"] * 2
    assert sorted(computed(store)) == list(range(1, 9))
    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)  # both came back


def test_a_full_disk_stops_all_runs_with_its_own_error(scheduler, tmp_path):
    store = toy_store(tmp_path)
    later = [Pause(number=number, seconds=0.2) for number in range(50)]
    with pytest.raises(StorageError, match="no space left"):
        store.get([FullDisk(), *later], scheduler=scheduler)
    assert len(noted(tmp_path)) < 50


def test_the_bar_says_how_many_runs_of_which_kind_are_left(scheduler, tmp_path):
    store = toy_store(tmp_path)
    chain = [Sum(term=1), Sum(term=2, start=Sum(term=1))]
    chain.append(Sum(term=3, start=chain[-1]))
    texts = []
    with progress_bar(total=3, desc="runs", unit="run", show=False) as bar:
        bar.set_postfix_str = lambda text, refresh: texts.append(text)
        compute_on_cluster(store, chain, scheduler=scheduler, bar=bar)
    assert texts == ["left: 2 sum", "left: 1 sum", ""]


@pytest.fixture(scope="module")
def half_fit():
    """A scheduler with two workers, of which one has other data."""
    with open_processes(Workforce(2, 1, gpus=("toy", "other"))) as address:
        yield address


def picky_store(results_dir):
    return RunStore(results_dir, PickyDataset(), device="cpu", progress=False)


def test_a_worker_that_reads_other_data_is_named_before_work_starts(half_fit, tmp_path):
    reason = r"tcp://\S+ on \S+ reads other data as 'toy': its key is other, expected toy \(1 of 2 workers"
    with pytest.raises(UnfitWorkerError, match=reason):
        picky_store(tmp_path).get([Sum(term=1)], scheduler=half_fit)
    assert not (tmp_path / "runs").exists()


def test_a_worker_that_joins_later_and_reads_other_data_is_sent_away(half_fit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fetal_utils.cluster.check_workers", lambda client, site: None)  # as if it were not there yet
    store = picky_store(tmp_path)
    store.get([Sum(term=term) for term in range(8)], scheduler=half_fit)
    assert sorted(computed(store)) == list(range(8))
    assert capsys.readouterr().out.count("reads other data as 'toy'") == 1
    with Client(half_fit, set_as_default=False) as client:
        assert len(client.nthreads()) == 1


def test_another_version_of_a_package_is_a_warning_and_of_the_results_an_error(
    scheduler, tmp_path, monkeypatch, capsys
):
    store = toy_store(tmp_path)
    monkeypatch.setattr("fetal_utils.worker_checks.versions", lambda: {"torch": "0.1"})
    store.get([Sum(term=1)], scheduler=scheduler)
    assert re.search(r"warning: worker tcp://\S+ has torch \S+ and not 0.1", capsys.readouterr().err)
    monkeypatch.setattr("fetal_utils.runs.RESULTS_VERSION", -1)
    with pytest.raises(UnfitWorkerError, match="same commit"):
        store.get([Sum(term=2)], scheduler=scheduler)
    assert computed(store) == [1]


@pytest.fixture
def by_hand():
    """Scheduler and worker as the README starts them; their commands and the processes."""
    processes = []

    def begin(*command, **environment):
        processes.append(start(["dask", *command], **environment))
        return processes[-1]

    yield begin
    end(*processes)


def address_of(scheduler):
    """The address that a scheduler prints."""
    for line in scheduler.stdout:
        if match := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
            threading.Thread(target=scheduler.stdout.read, daemon=True).start()  # or its pipe would fill
            return match[1]
    raise AssertionError("the scheduler ended")


def readme_commands():
    """The commands of the README that start a scheduler and a worker, as lists of words."""
    lines = (PROJECT_ROOT / "README.md").read_text().splitlines()
    commands = [re.search(r"\.venv/bin/dask ((scheduler|worker) [^#]*)", line) for line in lines]
    return [command[1].split() for command in commands if command]


def test_the_commands_of_the_readme_make_a_cluster_whose_loss_is_an_error_that_the_same_call_makes_good(
    by_hand, tmp_path
):
    (scheduler_words, worker_words) = readme_commands()
    free_port = ["0" if word == "8786" else word for word in scheduler_words]
    scheduler = by_hand(*free_port, "--dashboard-address", ":0")
    address = address_of(scheduler)
    words = [address if word.startswith("tcp://") else "2" if word == "4" else word for word in worker_words]
    worker = by_hand(*words)
    store = toy_store(tmp_path)
    wanted = [Sum(term=1), Pause(number=1, seconds=1.0), Pause(number=2, seconds=600.0)]

    def lose_scheduler():
        wait_until(lambda: len(list((tmp_path / "runs").glob("*/*/record.json"))) == 2 and "pause 2" in noted(tmp_path))
        os.killpg(scheduler.pid, signal.SIGKILL)

    killer = threading.Thread(target=lose_scheduler)
    killer.start()
    with pytest.raises(ConnectionError, match=r"was lost .* 2 of 3 runs ended. Ask for the same again to go on"):
        store.get(wanted, scheduler=address)
    killer.join()
    end(worker)
    assert store.missing(wanted) == wanted[2:]


def test_a_worker_without_this_package_is_named(by_hand, tmp_path):
    scheduler = by_hand("scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard")
    address = address_of(scheduler)
    decoy = tmp_path / "decoy"
    (decoy / "fetal_utils").mkdir(parents=True)
    (decoy / "fetal_utils" / "__init__.py").write_text("")
    by_hand("worker", address, "--nthreads", "1", "--no-dashboard", PYTHONPATH=str(decoy))
    with pytest.raises(UnfitWorkerError, match=r"can't run this package's code .*same commit"):
        toy_store(tmp_path / "results").get([Sum(term=1)], scheduler=address)


INTERRUPTED = """
import sys
from cluster_runs import Pause
from toy_runs import toy_store

if __name__ == "__main__":
    wanted = [Pause(number=number, seconds=seconds) for number, seconds in enumerate([0.1, 600.0, 600.0, 600.0])]
    toy_store(sys.argv[1]).get(wanted, scheduler=sys.argv[2])
"""


def test_an_interrupted_call_cancels_what_no_worker_has_begun(scheduler, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    process = start([sys.executable, str(script), str(tmp_path), scheduler])
    try:
        wait_until(lambda: len(noted(tmp_path)) == 3)  # two workers: the first run is done, two are begun
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert "KeyboardInterrupt: interrupted" in output
        assert "1 of 4 runs ended. Ask for the same again to go on" in output
        (tmp_path / "wake").touch()
        toy_store(tmp_path / "next").get([Sum(term=1)], scheduler=scheduler)  # the workers are free again
        assert sorted(noted(tmp_path)) == ["pause 0", "pause 1", "pause 2"]
    finally:
        (tmp_path / "wake").touch()
        end(process)


def test_an_interrupt_ends_processes_of_this_machine_at_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED.replace("sys.argv[2]", "'local:2'"))
    process = start([sys.executable, str(script), str(tmp_path)])
    try:
        wait_until(lambda: len(noted(tmp_path)) == 3)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
        assert process.returncode != 0
    finally:
        end(process)
