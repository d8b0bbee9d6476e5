"""How the runs of a results folder stand: done, running, failed or interrupted; only looked at, nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fetal_utils.leases import live_owner
from fetal_utils.records import RECORD, SETTINGS, TRACEBACK, read_json

ABOUT = ("task", "strategy", "label_fraction", "draw", "seed")
COLUMNS = ("kind", "key", "state", *ABOUT, "seconds", "epochs", "where", "reason", "folder")
STATES = ("done", "running", "failed", "interrupted")


def run_status(results_dir: str | Path) -> pd.DataFrame:
    """One row for each run that was begun in a results folder.

    Parameters
    ----------
    results_dir : path

    Returns
    -------
    DataFrame
        Sorted by kind and key, with the columns ``kind``, ``key`` (the hash that names the folder), ``state`` (one of
        `STATES`), ``task, strategy, label_fraction, draw, seed`` as far as that kind has them, ``seconds`` (of all
        attempts so far), ``epochs`` (finished ones; none for a kind without), ``where`` (device and host, or the owner
        of a running one), ``reason`` (why a failed one did) and ``folder``. Empty without runs.

        A run is "running" while a live process holds its lease, "failed" if its last attempt left a traceback or its
        record is broken, and "interrupted" if it has neither: ask for it again and it goes on.
    """
    folders = [path for path in Path(results_dir, "runs").glob("*/*") if path.is_dir()]
    rows = [unfinished_run(path) if path.suffix == ".partial" else finished_run(path) for path in sorted(folders)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = dict.fromkeys(("draw", "seed", "epochs"), "Int64")
    return table.astype(whole | {"label_fraction": float, "seconds": float})


def finished_run(folder: Path) -> dict:
    """The row of a run whose folder has its final name."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError) as error:
        return row(folder, {}, state="failed", reason=str(error))
    return row(folder, record, state="done", seconds=record.get("seconds"))


def unfinished_run(folder: Path) -> dict:
    """The row of a run whose folder is not finished."""
    try:
        settings = read_json(folder / SETTINGS)
    except (OSError, ValueError):  # begun only just now, or by an older version
        settings = {}
    log = read_log(folder)
    seconds = log["seconds"].iloc[-1] if "seconds" in log and len(log) else None
    if owner := live_owner(folder.with_suffix(".lease")):
        return row(folder, settings, state="running", seconds=seconds, where=str(owner))
    if (folder / TRACEBACK).exists():
        return row(folder, settings, state="failed", seconds=seconds, reason=last_line(folder / TRACEBACK))
    return row(folder, settings, state="interrupted", seconds=seconds)


def row(folder: Path, identity: dict, **known) -> dict:
    """A run's row from what its folder says of it (its record or its settings), and what else is known."""
    settings = identity.get("settings") or {}
    place = [identity[name] for name in ("device", "host") if identity.get(name)]  # older records name no host
    log = read_log(folder)
    about = {
        "kind": folder.parent.name,
        "key": folder.stem,
        **{name: settings.get(name) for name in ABOUT},
        "epochs": len(log) if "epoch" in log else None,
        "where": " on ".join(place),
        "reason": "",
        "folder": str(folder),
    }
    return about | known


def read_log(folder: Path) -> pd.DataFrame:
    """A run's log so far; empty if it has none, or a broken one."""
    try:
        return pd.read_csv(folder / "log.csv")
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        return pd.DataFrame()


def last_line(path: Path) -> str:
    """The last line of a text that says something."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        return f"{path.name} can't be read ({error})"
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
