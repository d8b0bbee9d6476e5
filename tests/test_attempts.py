"""Attempts at runs that other processes may be computing, on runs that only count or add (see toy_runs.py)."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
from toy_runs import Sum, computed, toy_store, value_of

from fetal_utils import attempts, runs
from fetal_utils.epochs import run_epochs
from fetal_utils.leases import Lease
from fetal_utils.records import name_folder
from fetal_utils.runs import RunsFailedError
from fetal_utils.settings import Settings

HOLDER = """
import sys, time
from fetal_utils.leases import Lease
assert Lease(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def store(tmp_path):
    return toy_store(tmp_path)


def unfinished(store, settings):
    return store.folder(settings).with_suffix(".partial")


def lease_of(store, settings):
    store.folder(settings).parent.mkdir(parents=True, exist_ok=True)
    return Lease(store.folder(settings).with_suffix(".lease"))


def taken_by_another(store, settings):
    """A run's lease in other hands than the store's."""
    lease = lease_of(store, settings)
    assert lease.acquire()
    return lease


@pytest.fixture
def while_waiting(monkeypatch):
    """Functions to call one by one when the store next waits; it is an error to wait more often."""
    calls = []
    monkeypatch.setattr(attempts, "time", SimpleNamespace(sleep=lambda seconds: calls.pop(0)()))
    return calls


@dataclass(frozen=True, kw_only=True)
class Count(Settings):
    """Epochs whose loss is their number; ``counted.txt`` tells which were really trained."""

    kind: ClassVar[str] = "count"
    n_epochs: int

    def compute(self, work):
        def train_epoch(epoch):
            with (work.store.results_dir / "counted.txt").open("a") as file:
                file.write(f"{epoch + 1}\n")
            return {"loss": epoch + 1.0}

        run_epochs(work, train_epoch, n_epochs=self.n_epochs, parts={}, desc="count")


def counted(store):
    return [int(line) for line in (store.results_dir / "counted.txt").read_text().split()]


# --- what another process computes ---


def test_a_run_in_other_hands_is_put_off_with_what_starts_from_it_and_taken_when_it_is_free(
    store, while_waiting, capsys
):
    held = Sum(term=1)
    lease = taken_by_another(store, held)
    while_waiting.append(lease.release)
    store.get([held, Sum(term=2), Sum(term=10, start=held), Sum(term=3)])
    assert computed(store) == [2, 3, 1, 10]
    assert while_waiting == []


def test_whoever_waits_says_once_for_whom_and_since_when(store, while_waiting, capsys):
    held = Sum(term=1)
    lease = taken_by_another(store, held)
    unfinished(store, held).mkdir()
    (unfinished(store, held) / "settings.json").write_text(json.dumps({"started": "2024-05-06T07:08:09+00:00"}))
    while_waiting.extend([lambda: None, lambda: None, lease.release])
    store.get([held])
    said = [line for line in capsys.readouterr().out.splitlines() if "waiting" in line]
    owner = f"{lease.path.parent.owner()}@{socket.gethostname()}, pid {os.getpid()}"
    name = f"sum {store.folder(held).name}"
    assert said == [f"run {name} is being computed by {owner}, since 2024-05-06T07:08:09+00:00; waiting for it"]


def test_what_the_other_process_finishes_is_not_computed_again(store, while_waiting):
    held = Sum(term=1)
    lease = taken_by_another(store, held)

    def finish():
        lease.release()
        toy_store(store.results_dir).get([held])

    while_waiting.append(finish)
    store.get([held, Sum(term=2)])
    assert computed(store) == [2, 1]


def test_a_run_whose_owner_is_killed_is_taken_up(store, while_waiting):
    held = Sum(term=1)
    path = lease_of(store, held).path
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"

        def kill():
            holder.kill()
            holder.wait()

        while_waiting.append(kill)
        store.get([held])
    finally:
        holder.kill()
        holder.communicate()
    assert computed(store) == [1]
    assert not path.exists()


def test_a_single_run_as_a_worker_computes_it_is_waited_for_too(store, while_waiting):
    lease = taken_by_another(store, Sum(term=1))
    while_waiting.append(lease.release)
    assert store.compute(Sum(term=1)) == ""
    assert value_of(store, Sum(term=1)) == 1


def test_leases_are_released_when_runs_end_well_or_badly(store):
    with pytest.raises(RunsFailedError):
        store.get([Sum(term=1), Sum(term=2, broken=True)])
    assert list(store.results_dir.rglob("*.lease")) == []


# --- a lease that is lost ---


def test_a_training_that_lost_its_lease_stops_before_it_writes_and_goes_on_from_its_last_epoch(
    store, while_waiting, capsys
):
    settings = Count(n_epochs=4)
    path = lease_of(store, settings).path
    in_other_hands = []

    def lose(_, log):
        if len(log) == 2 and not in_other_hands:
            path.unlink()
            in_other_hands.append(taken_by_another(store, settings))

    def other_gives_up():
        assert len((unfinished(store, settings) / "log.csv").read_text().splitlines()) == 1 + 2
        in_other_hands[0].release()

    while_waiting.append(other_gives_up)
    (run,) = store.get([settings], watch=lose)
    assert counted(store) == [1, 2, 3, 3, 4]  # the third was trained but not kept
    assert run.log["loss"].tolist() == [1, 2, 3, 4]
    assert "has taken over" in capsys.readouterr().out


def test_whoever_comes_back_to_a_run_that_another_has_finished_takes_the_others(store, while_waiting):
    settings = Count(n_epochs=3)
    path = lease_of(store, settings).path

    def overtaken(_, log):
        if len(log) == 1:
            path.unlink()
            toy_store(store.results_dir).get([settings])

    while_waiting.append(lambda: None)
    (run,) = store.get([settings], watch=overtaken)
    assert counted(store) == [1, 2, 3, 2]
    assert run.log["loss"].tolist() == [1, 2, 3]
    assert [path.name for path in run.folder.parent.iterdir()] == [run.folder.name]


def test_a_run_that_lost_its_lease_at_its_end_gets_neither_record_nor_name(store, while_waiting, monkeypatch):
    settings = Sum(term=1)
    path = lease_of(store, settings).path
    compute = Sum.compute
    in_other_hands = []

    def lost(self, work):
        compute(self, work)
        if not in_other_hands:
            path.unlink()
            in_other_hands.append(taken_by_another(store, settings))

    def look():
        assert not store.has(settings)
        assert not (unfinished(store, settings) / "record.json").exists()
        in_other_hands[0].release()

    monkeypatch.setattr(Sum, "compute", lost)
    while_waiting.append(look)
    store.get([settings])
    assert computed(store) == [1, 1]


def test_an_error_after_the_lease_was_lost_is_no_failure_of_the_run(store, while_waiting, monkeypatch, capsys):
    settings = Sum(term=1)
    path = lease_of(store, settings).path
    compute = Sum.compute

    def overtaken(self, work):
        monkeypatch.setattr(Sum, "compute", compute)
        path.unlink()
        toy_store(store.results_dir).get([settings])  # the folder has moved
        compute(self, work)

    monkeypatch.setattr(Sum, "compute", overtaken)
    while_waiting.append(lambda: None)
    store.get([settings])
    assert not unfinished(store, settings).exists()
    assert "lost" in capsys.readouterr().out


# --- what an unfinished run's folder says ---


def test_an_unfinished_folder_names_its_settings_and_who_computes_them_from_the_start(store, monkeypatch):
    seen = {}

    def look(self, work):
        seen.update(json.loads((work.folder / "settings.json").read_text()))
        seen["files"] = sorted(path.name for path in work.folder.iterdir())

    monkeypatch.setattr(Sum, "compute", look)
    (run,) = store.get([Sum(term=4)])
    assert seen["files"] == ["settings.json"]
    assert {name: seen[name] for name in store.identity(Sum(term=4))} == store.identity(Sum(term=4))
    assert (seen["host"], seen["pid"], seen["device"]) == (socket.gethostname(), os.getpid(), "cpu")
    assert not (run.folder / "settings.json").exists()  # its record says the same and more


def test_the_traceback_of_an_earlier_attempt_goes_when_the_next_begins(store, monkeypatch):
    settings = Sum(term=4, broken=True)
    for _ in range(2):
        with pytest.raises(RunsFailedError):
            store.get([settings])
        assert (unfinished(store, settings) / "traceback.txt").exists()

    def look(self, work):
        assert not (work.folder / "traceback.txt").exists()

    monkeypatch.setattr(Sum, "compute", look)
    store.get([settings])


def test_a_run_killed_before_its_folder_got_its_name_is_not_computed_again(store, monkeypatch):
    def killed(*folders):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "name_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            store.get([Sum(term=4)])
    assert not store.has(Sum(term=4))
    assert runs.name_folder is name_folder
    store.get([Sum(term=4)])
    assert computed(store) == [4]
    assert value_of(store, Sum(term=4)) == 4


def test_a_record_names_the_host(store):
    (run,) = store.get([Sum(term=1)])
    assert run.record["host"] == socket.gethostname()


def test_a_finished_folder_that_lost_its_record_is_named_before_anything_is_computed(store):
    (run,) = store.get([Sum(term=1)])
    (run.folder / "record.json").unlink()
    with pytest.raises(RunsFailedError, match=f"{run.folder.name} is there without its record.json; delete it"):
        store.get([Sum(term=1)])
    assert computed(store) == [1]


def test_a_broken_record_is_an_error_that_says_what_to_do(store):
    (run,) = store.get([Sum(term=1)])
    for content in ("", '{"settings": ', "[1]", "\xff"):
        (run.folder / "record.json").write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=f"{run.folder.name}.record.json is broken .*; delete that folder"):
            toy_store(store.results_dir).get([Sum(term=1)])
