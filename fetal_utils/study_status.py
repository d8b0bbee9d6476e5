"""What a study has done so far: its runs and its executed notebooks, read from a results folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nbformat
import pandas as pd

from fetal_utils.executions import failure, is_being_written

STATES = ["done", "running", "failed", "interrupted"]
NOTEBOOK_COLUMNS = ["notebook", "state", "seconds", "started", "reason"]
RUN_COLUMNS = [
    "kind",
    "key",
    "state",
    "task",
    "strategy",
    "label_fraction",
    "draw",
    "seed",
    "epochs",
    "where",
    "reason",
]
MAX_ROWS = 40  # of runs that are not done; the folder has the others


def show_status(arguments: list[str]) -> int:
    """The command ``status``; 0, or 2 if there is no such folder."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.study status", description=__doc__)
    parser.add_argument("--results-dir", default="results/demo", help="as given to the study; default: results/demo")
    results_dir = Path(parser.parse_args(arguments).results_dir)
    folders = study_folders(results_dir)
    if not folders:
        print(f"error: {results_dir} holds no runs and no notebooks of a study; see --results-dir", file=sys.stderr)
        return 2
    for folder in folders:
        print(status_text(folder))
    return 0


def study_folders(results_dir: Path) -> list[Path]:
    """The folder and those in it, say of several backbones, that hold runs or executed notebooks of a study."""
    inside = sorted(path for path in results_dir.glob("*") if path.is_dir())
    return [path for path in [results_dir, *inside] if any((path / name).is_dir() for name in ("runs", "notebooks"))]


def status_text(folder: Path) -> str:
    """Counts of a folder's runs, those that are not done, and its executed notebooks."""
    from fetal_utils.run_status import run_status

    runs = run_status(folder)
    rest = runs.loc[runs["state"] != "done"].sort_values(["state", "kind"], ascending=[False, True])
    sections = [str(folder), to_text(count_states(runs)) if len(runs) else "no runs yet"]
    if len(rest):
        more = f"\n... and {len(rest) - MAX_ROWS} more" if len(rest) > MAX_ROWS else ""
        sections.append(to_text(rest[RUN_COLUMNS].head(MAX_ROWS)) + more)
    notebooks = executed_notebooks(folder)
    sections.append(to_text(notebooks) if len(notebooks) else "no notebook executed yet")
    return "\n\n".join(sections) + "\n"


def count_states(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind of run: how many are in which state, and the seconds that they took together."""
    counts = pd.crosstab(runs["kind"], runs["state"]).reindex(columns=STATES, fill_value=0)
    counts["seconds"] = runs.groupby("kind")["seconds"].sum().round(1)
    counts.loc["all"] = counts.sum()
    return counts.astype(dict.fromkeys(STATES, int)).rename_axis(index="kind", columns=None).reset_index()


def to_text(table: pd.DataFrame) -> str:
    """A table for the terminal; what is missing is left blank."""
    return table.astype(object).where(table.notna(), "").to_string(index=False)


def executed_notebooks(folder: Path) -> pd.DataFrame:
    """The executed copies of a results folder.

    Returns
    -------
    DataFrame
        `NOTEBOOK_COLUMNS`: the name, one of `STATES`, seconds of its execution, when it started (UTC), and for one that
        failed the cell and the error.
    """
    rows = [describe_copy(path) for path in sorted((folder / "notebooks").glob("*.ipynb"))]
    return pd.DataFrame(rows, columns=NOTEBOOK_COLUMNS)


def describe_copy(path: Path) -> dict:
    """A row of `executed_notebooks`."""
    name, state = state_of(path)
    try:
        about = nbformat.read(path, as_version=4).metadata.get("papermill", {})
        reason = failure(path, "its kernel died") if state == "failed" else ""
    except (OSError, json.JSONDecodeError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        about, reason = {}, f"can't be read: {type(error).__name__}"
    seconds = about.get("duration") or 0.0
    if state == "running" and about.get("start_time"):
        seconds = (pd.Timestamp.now("UTC") - pd.Timestamp(about["start_time"])).total_seconds()
    started = (about.get("start_time") or "")[:19].replace("T", " ")
    return {"notebook": name, "state": state, "seconds": round(seconds, 1), "started": started, "reason": reason}


def state_of(path: Path) -> tuple[str, str]:
    """Name and state of an executed copy, by the name of its file."""
    name, unfinished, _ = path.stem.partition(".unfinished-")
    if unfinished:
        return name, "running" if is_being_written(path) else "interrupted"
    for state in ("failed", "interrupted"):
        if path.stem.endswith(f".{state}"):
            return path.stem.removesuffix(f".{state}"), state
    return path.stem, "done"
