"""The status of a study: counts of runs, what is not done and why, executed notebooks."""

import os
import socket
import sys
import types

import nbformat
import pandas as pd
import pytest

from fetal_utils.study import main
from fetal_utils.study_status import executed_notebooks, study_folders

COLUMNS = [
    "kind", "key", "state", "task", "strategy", "label_fraction", "draw", "seed", "seconds", "epochs", "where",
    "reason", "folder",
]  # fmt: skip


def run_row(kind, key, state, *, seconds=None, reason="", where="cpu, host", **settings):
    about = {"kind": kind, "key": key, "state": state, "seconds": seconds, "reason": reason, "where": where}
    return dict.fromkeys(COLUMNS) | about | settings


RUNS = [
    run_row("simclr", "a1", "done", seconds=100.25, epochs=12, seed=0),
    run_row("simclr", "a2", "running", where="me@host, process 7", epochs=3, seed=1),
    run_row("fine_tune", "b1", "done", seconds=10.0, task="planes", strategy="scratch", label_fraction=0.1),
    run_row("fine_tune", "b2", "done", seconds=12.5, task="planes", strategy="scratch", label_fraction=1.0),
    run_row("fine_tune", "b3", "failed", reason="FloatingPointError: diverged", task="planes", strategy="imagenet"),
    run_row("linear_probe", "c1", "interrupted", task="planes"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A results folder whose runs are `RUNS`."""
    monkeypatch.setitem(
        sys.modules,
        "fetal_utils.run_status",
        types.SimpleNamespace(run_status=lambda results_dir: pd.DataFrame(RUNS, columns=COLUMNS)),
    )
    (tmp_path / "runs").mkdir()
    return tmp_path


def write_copy(folder, name, *, duration=None, start="2026-11-23T12:00:05.123456+00:00", error=None):
    """An executed copy as papermill leaves it, with the error of its second cell."""
    cells = [nbformat.v4.new_code_cell("1", id="setup"), nbformat.v4.new_code_cell("2", id="train")]
    for cell in cells:
        cell.metadata["papermill"] = {"start_time": start}
    if error:
        cells[1].outputs = [nbformat.v4.new_output("error", ename=error[0], evalue=error[1], traceback=[])]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["papermill"] = {"start_time": start, "duration": duration}
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


def test_runs_are_counted_by_kind_and_state_with_their_seconds(folder, capsys):
    assert main(["status", "--results-dir", str(folder)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kind", "done", "running", "failed", "interrupted", "seconds"] in rows
    assert ["fine_tune", "2", "0", "1", "0", "22.5"] in rows
    assert ["simclr", "1", "1", "0", "0", "100.2"] in rows
    assert ["all", "3", "1", "1", "1", "122.7"] in rows


def test_runs_that_are_not_done_are_listed_with_where_and_why(folder, capsys):
    main(["status", "--results-dir", str(folder)])
    shown = capsys.readouterr().out
    (failed,) = [line for line in shown.splitlines() if "b3" in line]
    assert "FloatingPointError: diverged" in failed
    (running,) = [line for line in shown.splitlines() if "a2" in line]
    assert "me@host, process 7" in running
    assert not any(key in shown for key in ("a1", "b1", "b2"))
    assert "NaN" not in shown and "None" not in shown
    assert "no notebook executed yet" in shown


def test_executed_notebooks_have_a_state_their_seconds_and_the_reason_of_a_failure(tmp_path):
    gone = f"03.unfinished-{socket.gethostname()}-{2**22 + 1}"
    write_copy(tmp_path, "01", duration=12.34)
    write_copy(tmp_path, "02.planes.failed", duration=3.0, error=("ValueError", "first\nlast"))
    write_copy(tmp_path, "02.seeds1.failed", duration=3.0)
    write_copy(tmp_path, gone)
    write_copy(tmp_path, f"04.unfinished-{socket.gethostname()}-{os.getpid()}", start="2020-01-01T00:00:00+00:00")
    write_copy(tmp_path, "05.unfinished-another-machine-1")
    write_copy(tmp_path, "06.interrupted", duration=1.0)
    (tmp_path / "notebooks" / "07.ipynb").write_text("{half")
    table = executed_notebooks(tmp_path).set_index("notebook")
    assert table["state"].to_dict() == {
        "01": "done",
        "02.planes": "failed",
        "02.seeds1": "failed",
        "03": "interrupted",
        "04": "running",
        "05": "running",
        "06": "interrupted",
        "07": "done",
    }
    assert table.loc["01", ["seconds", "started", "reason"]].tolist() == [12.3, "2026-11-23 12:00:05", ""]
    assert table.loc["02.planes", "reason"] == "cell train: ValueError: first ... last"
    assert table.loc["02.seeds1", "reason"] == "cell train: its kernel died"
    assert table.loc["04", "seconds"] > 365 * 24 * 3600
    assert table.loc["07", "reason"].startswith("can't be read")


def test_folders_of_several_backbones_are_all_shown(folder, capsys):
    for name in ("resnet18", "resnet50"):
        (folder / name).mkdir()
        write_copy(folder / name, "01")
    assert study_folders(folder) == [folder, folder / "resnet18", folder / "resnet50"]
    assert main(["status", "--results-dir", str(folder)]) == 0
    assert capsys.readouterr().out.count(str(folder / "resnet")) == 2


def test_a_folder_without_a_study_is_named(tmp_path, capsys):
    assert main(["status", "--results-dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere holds no runs and no notebooks" in capsys.readouterr().err
