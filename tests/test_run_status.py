"""How the runs of a folder stand, on runs that only add numbers (see toy_runs.py) and folders made by hand."""

import json
import os
import socket

import pandas as pd
import pytest
from toy_runs import Sum, toy_store

from fetal_utils.leases import Lease
from fetal_utils.run_status import COLUMNS, run_status
from fetal_utils.runs import RunsFailedError

SETTINGS = {"kind": "fine_tune", "task": "planes", "strategy": "imagenet", "label_fraction": 0.1, "draw": 2, "seed": 1}


@pytest.fixture
def store(tmp_path):
    return toy_store(tmp_path)


def unfinished_run(results_dir, key="0123", *, log="epoch,seconds,loss\n1,2.5,0.7\n2,4.5,0.6\n", **files):
    """A folder as a killed fine-tuning leaves it."""
    folder = results_dir / "runs" / "fine_tune" / f"{key}.partial"
    folder.mkdir(parents=True)
    started = {"settings": SETTINGS, "device": "cuda", "host": "node7", "pid": 12, "started": "2024-05-06T07:08:09"}
    (folder / "settings.json").write_text(json.dumps(started))
    (folder / "log.csv").write_text(log)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_a_folder_without_runs_gives_an_empty_table_with_all_columns(tmp_path):
    table = run_status(tmp_path / "none")
    assert tuple(table.columns) == COLUMNS
    assert table.empty


def test_a_finished_run_is_done_with_its_seconds_and_where_it_was_computed(store):
    (run,) = store.get([Sum(term=1)])
    (row,) = run_status(store.results_dir).to_dict("records")
    assert (row["kind"], row["key"], row["state"]) == ("sum", run.folder.name, "done")
    assert row["seconds"] == run.record["seconds"]
    assert row["where"] == f"cpu on {socket.gethostname()}"
    assert (row["reason"], row["folder"]) == ("", str(run.folder))
    assert pd.isna(row["epochs"])  # of a kind without any


def test_a_record_from_before_hosts_were_kept_has_its_device_alone(store):
    (run,) = store.get([Sum(term=1)])
    record = {name: value for name, value in run.record.items() if name != "host"}
    (run.folder / "record.json").write_text(json.dumps(record))
    assert run_status(store.results_dir)["where"].tolist() == ["cpu"]


def test_a_failed_run_has_the_last_line_of_its_traceback(store):
    with pytest.raises(RunsFailedError):
        store.get([Sum(term=3, broken=True)])
    (row,) = run_status(store.results_dir).to_dict("records")
    assert (row["state"], row["reason"]) == ("failed", "RuntimeError: term 3 is broken")
    assert row["where"] == f"cpu on {socket.gethostname()}"


def test_a_killed_run_is_interrupted_with_its_epochs_and_settings(tmp_path):
    folder = unfinished_run(tmp_path)
    (row,) = run_status(tmp_path).to_dict("records")
    assert row == {
        "kind": "fine_tune",
        "key": "0123",
        "state": "interrupted",
        "task": "planes",
        "strategy": "imagenet",
        "label_fraction": 0.1,
        "draw": 2,
        "seed": 1,
        "seconds": 4.5,
        "epochs": 2,
        "where": "cuda on node7",
        "reason": "",
        "folder": str(folder),
    }


def test_a_run_whose_lease_a_live_process_holds_is_running_there_whatever_came_before(tmp_path):
    folder = unfinished_run(tmp_path, traceback="ValueError: of an earlier attempt")
    lease = Lease(folder.with_suffix(".lease"))
    assert lease.acquire()
    (row,) = run_status(tmp_path).to_dict("records")
    assert (row["state"], row["reason"], row["epochs"]) == ("running", "", 2)
    assert row["where"] == f"{folder.owner()}@{socket.gethostname()}, pid {os.getpid()}"
    lease.release()
    assert run_status(tmp_path)["state"].tolist() == ["failed"]


@pytest.mark.parametrize("content", ["", '{"settings"', "[]"])
def test_a_broken_record_is_a_failure_and_no_crash(store, content):
    finished, broken = store.get([Sum(term=1), Sum(term=2)])
    (broken.folder / "record.json").write_text(content)
    table = run_status(store.results_dir).set_index("key")
    assert table.loc[finished.folder.name, "state"] == "done"
    assert table.loc[broken.folder.name, "state"] == "failed"
    assert "record.json is broken" in table.loc[broken.folder.name, "reason"]


def test_a_folder_without_its_record_is_a_failure(store):
    (run,) = store.get([Sum(term=1)])
    (run.folder / "record.json").unlink()
    (row,) = run_status(store.results_dir).to_dict("records")
    assert row["state"] == "failed"
    assert "record.json" in row["reason"]


@pytest.mark.parametrize("log", ["", "epoch,seconds\n", "\x00\x00\x00"])
def test_a_run_without_a_readable_log_has_no_seconds(tmp_path, log):
    unfinished_run(tmp_path, log=log)
    (row,) = run_status(tmp_path).to_dict("records")
    assert row["state"] == "interrupted"
    assert pd.isna(row["seconds"])


def test_a_probes_log_of_strengths_counts_no_epochs(tmp_path):
    unfinished_run(tmp_path, log="inverse_regularisation,val_macro_f1\n0.1,0.5\n1.0,0.6\n")
    assert run_status(tmp_path)["epochs"].isna().all()


def test_an_unfinished_folder_that_says_nothing_is_interrupted(tmp_path):
    (tmp_path / "runs" / "simclr" / "4567.partial").mkdir(parents=True)
    (row,) = run_status(tmp_path).to_dict("records")
    assert (row["kind"], row["key"], row["state"]) == ("simclr", "4567", "interrupted")


def test_looking_changes_nothing(store):
    store.get([Sum(term=1)])
    unfinished_run(store.results_dir, traceback="ValueError: no\n\n")
    before = {path: path.stat().st_mtime_ns for path in store.results_dir.rglob("*")}
    assert run_status(store.results_dir)["reason"].tolist() == ["ValueError: no", ""]
    assert {path: path.stat().st_mtime_ns for path in store.results_dir.rglob("*")} == before
