import errno
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from toy_runs import Drift, Sum, ToyDataset, computed, end_epochs, files_of, forkserver, toy_store, unfinished, value_of

from fetal_utils import runs
from fetal_utils.environment import StorageError, code_key, terminate_as_interrupt
from fetal_utils.runs import RunsFailedError, Settings, run_status

A = Sum(term=1)
B = Sum(term=2, start=A)
C = Sum(term=4, start=B)
BROKEN = Sum(term=8, broken=True)


@pytest.fixture
def store(tmp_path):
    return toy_store(tmp_path)


def state_of(store, settings, column="state"):
    return run_status(store.results_dir).set_index("key")[column].get(store.folder(settings).name)


# --- what makes a run ---


def test_a_run_is_computed_once_after_what_it_needs_and_returned_whenever_asked_for(store):
    assert [value_of(store, run.settings) for run in store.get([C, A])] == [7, 1]
    assert computed(store) == [1, 2, 4]
    assert store.missing([C, B, A]) == []
    assert toy_store(store.results_dir).get([C])[0].record["facts"] == {"total": 7}
    assert computed(store) == [1, 2, 4]
    store.get([Sum(term=9, start=A), Sum(term=9, start=A)])
    assert computed(store) == [1, 2, 4, 9]
    assert {path.suffix for path in (store.results_dir / "runs" / "sum").iterdir()} == {""}


def test_a_finished_run_needs_no_start_any_more(store):
    store.get([B])
    shutil.rmtree(store.folder(A))
    assert store.missing([B]) == []
    assert store.missing([C, A]) == [C, A]


def test_a_run_of_other_settings_data_or_version_is_another_run(store, monkeypatch):
    folder = store.folder(A)
    others = [store.folder(replace(A, scale=2.0)), toy_store(store.results_dir, key="other").folder(A)]
    monkeypatch.setattr(runs, "RESULTS_VERSION", runs.RESULTS_VERSION + 1)
    assert len({folder, *others, store.folder(A)}) == 4


NOTEBOOK_CELL = """
from dataclasses import dataclass
from typing import ClassVar
from fetal_utils.runs import Settings

@dataclass(frozen=True, kw_only=True)
class Mine(Settings):
    kind: ClassVar[str] = "mine"
    rate: float
    steps: int
"""


def test_numbers_written_in_two_ways_make_one_run_also_in_a_class_of_a_notebook(store):
    cell = {"__name__": "__main__"}
    exec(NOTEBOOK_CELL, cell)
    mine = cell["Mine"]
    assert store.folder(Sum(term=1, scale=2)) == store.folder(Sum(term=1, scale=2.0))
    assert store.folder(mine(rate=1, steps=2)) == store.folder(mine(rate=1.0, steps=2))
    assert json.dumps(mine(rate=1, steps=True).to_dict()) == '{"kind": "mine", "rate": 1.0, "steps": 1}'
    for wrong in ({"rate": "fast", "steps": 2}, {"rate": 1.0, "steps": 2.5}, {"rate": None, "steps": 2}):
        with pytest.raises(TypeError, match=r"(rate|steps)=.*: expected (float|int)"):
            mine(**wrong)


@dataclass(frozen=True)
class FileByContent:
    path: str

    def to_dict(self):
        return {"content": Path(self.path).read_text()}


@dataclass(frozen=True, kw_only=True)
class FromFile(Settings):
    kind: ClassVar[str] = "from_file"
    start: FileByContent
    sizes: tuple[int, ...] = (1, 2)

    def compute(self, work):
        pass


def test_a_file_enters_the_key_and_the_record_by_its_content_and_not_by_its_path(store, tmp_path):
    paths = [tmp_path / name for name in ("one", "same", "other")]
    for path, content in zip(paths, ["weights", "weights", "others"], strict=True):
        path.write_text(content)
    one, same, other = (FromFile(start=FileByContent(str(path))) for path in paths)
    assert store.folder(one) == store.folder(same) != store.folder(other)
    store.get([one])
    assert store.open(one).record["settings"] == {"kind": "from_file", "start": {"content": "weights"}, "sizes": [1, 2]}


def test_a_record_says_what_made_a_run_and_nothing_of_folders(store):
    (run,) = store.get([B])
    record = run.record
    assert record["settings"] == B.to_dict()
    assert record["settings"]["start"] == A.to_dict()
    assert (record["data_key"], record["results_version"], record["device"]) == ("toy", runs.RESULTS_VERSION, "cpu")
    assert {"facts", "seconds", "host", "n_threads", "versions", "commit"} < set(record)
    assert str(store.results_dir) not in json.dumps(record)


def test_settings_that_cannot_be_computed_are_refused_before_anything_runs(store):
    with pytest.raises(ValueError, match="term=-1: expected 0 or more"):
        store.get([A, Sum(term=3, start=Sum(term=-1))])
    assert computed(store) == []


def test_a_record_that_is_broken_or_of_another_run_is_reported_with_its_file(store):
    store.get([A, B])
    for settings, text, reason in [(A, '{"settings": ', "is broken"), (B, "{}", "holds other settings")]:
        path = store.folder(settings) / "record.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path} {reason}"):
            store.get([settings])
    assert state_of(store, A) == "failed"
    assert str(store.folder(A) / "record.json") in state_of(store, A, "reason")
    with pytest.raises(FileNotFoundError, match="has not been computed"):
        store.open(C)


# --- failures ---


def test_a_run_that_fails_leaves_its_traceback_and_what_needs_it_says_so_and_the_others_go_on(store):
    follower, second = Sum(term=16, start=BROKEN), Sum(term=32, start=Sum(term=16, start=BROKEN))
    with pytest.raises(RunsFailedError) as error:
        store.get([second, A])
    lines = str(error.value).splitlines()
    assert lines == [
        "3 of 4 runs failed:",
        f"  {store.name(BROKEN)}: RuntimeError: term 8 is broken",
        f"  {store.name(follower)}: needs {store.name(BROKEN)}, which failed",
        f"  {store.name(second)}: needs {store.name(follower)}, which failed",
    ]
    assert 'raise RuntimeError(f"term' in (unfinished(store, BROKEN) / "traceback.txt").read_text()
    assert computed(store) == [8, 1]
    assert not store.folder(BROKEN).exists()
    assert not unfinished(store, follower).exists()
    assert state_of(store, BROKEN) == "failed"
    assert state_of(store, BROKEN, "reason") == "RuntimeError: term 8 is broken"
    with pytest.raises(RunsFailedError):  # whoever asks again has mended it, perhaps
        store.get([second])
    assert computed(store) == [8, 1, 8]


def test_hidden_folders_and_files_in_a_runs_folder_are_no_obstacle(store):
    """Jupyter leaves .ipynb_checkpoints wherever a file is opened, a killed process half-written files."""
    for folder in (unfinished(store, A), store.folder(A)):
        (folder / ".ipynb_checkpoints").mkdir(parents=True)
        (folder / ".ipynb_checkpoints" / "log-checkpoint.csv").write_text("")
    (unfinished(store, A) / ".record.json.12.partial").write_text("")
    (run,) = store.get([A])
    assert sorted(path.name for path in run.folder.iterdir()) == ["half.txt", "record.json", "value.txt"]


# --- runs without weights ---


def forget_weights(store, settings):
    (store.folder(settings) / "value.txt").unlink()


def test_a_run_without_weights_is_finished_for_tables_and_computed_again_only_where_they_are_needed(store):
    store.get([A, B])
    forget_weights(store, A)
    forget_weights(store, B)
    assert [run.record["facts"]["total"] for run in store.get([A, B])] == [1, 3]
    assert store.has(A)
    assert not store.has(A, weights=True)
    assert store.missing([C]) == [A, B, C]
    assert store.missing([A, B]) == []
    assert store.missing([A], weights=True) == [A]
    (run,) = store.get([A], weights=True)
    assert (run.folder / "value.txt").exists()
    assert computed(store) == [1, 2, 1]
    store.get([C])
    assert computed(store) == [1, 2, 1, 2, 4]
    assert value_of(store, C) == 7


def test_a_folder_without_weights_is_replaced_as_a_whole_also_if_that_is_cut_short(store, monkeypatch):
    store.get([A])
    forget_weights(store, A)
    (store.folder(A) / "predictions.csv").write_text("of the old run")
    rename = Path.replace

    def cut_short(path, target):
        if path.suffix == ".partial" and Path(target) == store.folder(A):
            assert not store.has(A)
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", cut_short)
    with pytest.raises(KeyboardInterrupt):
        store.get([A], weights=True)
    monkeypatch.undo()
    (run,) = store.get([A])
    assert computed(store) == [1, 1]  # and not a third time
    assert files_of(run.folder) == ["half.txt", "record.json", "value.txt"]
    assert [path.name for path in run.folder.parent.iterdir()] == [run.folder.name]


# --- several processes ---


def ask(results_dir, wanted, queue):
    """What another process does: ask a store of its own, and tell the totals or the error."""
    try:
        with terminate_as_interrupt():
            queue.put([run.record["facts"]["total"] for run in toy_store(results_dir).get(wanted)])
    except (RunsFailedError, KeyboardInterrupt) as error:
        queue.put(str(error))


@pytest.fixture
def start(tmp_path):
    """Starts processes that ask for runs; none is left."""
    context, started = forkserver(), []

    def begin(*wanted):
        queue = context.SimpleQueue()
        started.append(context.Process(target=ask, args=(tmp_path, wanted, queue)))
        started[-1].start()
        return started[-1], queue

    yield begin
    for process in started:
        process.kill()
        process.join()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


HELD = Sum(term=64, waits_for="go")


def test_a_second_process_does_other_runs_first_and_then_waits_for_the_one_that_is_computed(store, start):
    _, first = start(HELD)
    wait_for(lambda: state_of(store, HELD) == "running")
    _, second = start(Sum(term=5, start=HELD), A)
    wait_for(lambda: store.has(A))
    assert computed(store) == [64, 1]
    (store.results_dir / "go").touch()
    assert first.get() == [64]
    assert second.get() == [69, 1]
    assert computed(store) == [64, 1, 5]


def test_a_process_that_waits_takes_over_from_one_that_dies(store, start):
    process, _ = start(HELD)
    wait_for(lambda: computed(store) == [64])
    _, second = start(HELD)
    time.sleep(0.5)
    assert computed(store) == [64]
    process.kill()
    wait_for(lambda: computed(store) == [64, 64])
    (store.results_dir / "go").touch()
    assert second.get() == [64]


def test_a_failure_is_not_tried_again_by_who_waited_for_it(store, start):
    failing = replace(HELD, broken=True)
    _, first = start(failing)
    wait_for(lambda: computed(store) == [64])
    _, second = start(failing, A)
    wait_for(lambda: store.has(A))
    (store.results_dir / "go").touch()
    for queue in (first, second):
        assert f"1 of {1 + (queue is second)} runs failed:\n  {store.name(failing)}: RuntimeError" in queue.get()
    assert computed(store) == [64, 1]


def test_many_processes_that_want_the_same_runs_compute_each_once(store, start):
    wanted = [Sum(term=term, start=A) for term in range(100, 120)]
    queues = [start(*wanted)[1] for _ in range(4)]
    assert [queue.get() for queue in queues] == [[term + 1 for term in range(100, 120)]] * 4
    assert sorted(computed(store)) == [1, *range(100, 120)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_one_line_on_how_to_go_on(store, start, number):
    process, queue = start(A, HELD)
    wait_for(lambda: computed(store) == [1, 64])
    os.kill(process.pid, number)
    assert queue.get() == (
        "interrupted; 1 of 2 runs are finished, and of the others the epochs that ended. Run the same again to go on"
    )
    process.join()
    assert [state_of(store, settings) for settings in (A, HELD)] == ["done", "interrupted"]
    (store.results_dir / "go").touch()
    store.get([A, HELD])
    assert computed(store) == [1, 64, 64]


def test_processes_of_this_machine_compute_runs_as_one_does(store):
    wanted = [C, Sum(term=16, start=BROKEN), *(Sum(term=term) for term in range(100, 104))]
    with pytest.raises(RunsFailedError, match=f"needs {store.name(BROKEN)}, which failed"):
        store.get(wanted, scheduler="local:2")
    assert value_of(store, C) == 7
    assert sorted(computed(store)) == [1, 2, 4, 8, *range(100, 104)]


def test_a_worker_of_other_code_data_or_folders_is_told_why_it_cannot_take_part(store):
    def obstacle(folder=store.results_dir, key="toy", code=None):
        return runs.find_obstacle(folder, ToyDataset(), key, code or code_key())

    assert obstacle() == ""
    assert "has other code" in obstacle(code="0123456789ab")
    assert f"does not see the results folder {store.results_dir / 'none'}" in obstacle(store.results_dir / "none")
    assert "has other images" in obstacle(key="other")


# --- disks ---


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = mount("-t", "tmpfs", "-o", f"size={2**23}", "tmpfs", folder)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small disk ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


LARGE = Drift(width=256)  # 256 KiB of weights, a checkpoint of 768


@pytest.mark.parametrize("room_kib", [200, 900, 1700])  # for no checkpoint, for one, for a run
def test_a_full_disk_stops_with_the_reason_and_there_being_room_the_same_call_goes_on(small_disk, tmp_path, room_kib):
    store = toy_store(small_disk)
    store.get([A])
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room_kib * 1024))
    with pytest.raises(StorageError, match=r"can't be written: No space left on device\. Make room.*same again"):
        store.get([A, LARGE, replace(LARGE, seed=1), B])
    assert computed(store) == [1]  # what comes after would have failed alike
    stopped = next(run for run in (LARGE, replace(LARGE, seed=1)) if not store.has(run))
    assert state_of(store, stopped) == "interrupted"
    assert set(files_of(unfinished(store, stopped))) <= {"attempt.json", "log.csv", "checkpoint.pt"}
    ballast.unlink()
    others = toy_store(tmp_path / "other").get([LARGE, replace(LARGE, seed=1)])
    for run, other in zip(store.get([LARGE, replace(LARGE, seed=1)]), others, strict=True):
        assert run.weights.read_bytes() == other.weights.read_bytes()


def test_a_read_only_folder_is_found_before_the_first_run_and_what_is_there_is_still_read(small_disk, monkeypatch):
    store = toy_store(small_disk)
    store.get([A])
    end_epochs(monkeypatch, {1: KeyboardInterrupt})
    with pytest.raises(KeyboardInterrupt):
        store.get([LARGE])
    (unfinished(store, LARGE).with_suffix(".lock")).touch()  # as a killed process leaves it
    assert mount("-o", "remount,ro", small_disk).returncode == 0
    with pytest.raises(StorageError, match="Read-only file system"):
        store.get([A, B])
    assert store.get([A])[0].record["facts"] == {"total": 1}
    assert run_status(small_disk)["state"].tolist() == ["interrupted", "done"]


def test_a_disk_that_refuses_a_checkpoint_stops_everything_and_leaves_nothing_half_written(store, monkeypatch):
    def refuse(state, path):
        Path(path).write_bytes(b"half a checkpoint")
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(StorageError, match=r"checkpoint.pt can't be written: Disk quota exceeded"):
        store.get([Drift(), A])
    monkeypatch.undo()
    assert files_of(store.results_dir) == ["attempt.json", "log.csv"]
    assert len(store.get([Drift(), A])) == 2


def test_status_counts_epochs_and_is_empty_before_the_first_run(store):
    assert run_status(store.results_dir).empty
    store.get([Drift()])
    row = run_status(store.results_dir).iloc[0]
    assert row[["kind", "state", "epochs", "seed", "data_key"]].tolist() == ["drift", "done", 3, 0, "toy"]
