"""The tables that a study leaves for others: written part by part, merged at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fetal_utils.evaluation import metrics_table
from fetal_utils.files import replace_file
from fetal_utils.records import read_json
from fetal_utils.runs import Run

METRICS_COLUMNS = (
    "task", "strategy", "protocol", "label_fraction", "n_images", "n_patients", "draw", "seed",
    "plane", "metric", "value", "low", "high",
)  # fmt: skip
COMPARISONS_COLUMNS = (
    "task", "protocol", "label_fraction", "strategy", "baseline", "metric", "difference", "low", "high", "resolved",
)  # fmt: skip
CAM_COLUMNS = (
    "task", "strategy", "protocol", "label_fraction", "seed", "method", "map", "plane", "score", "value", "low", "high",
    "n_images", "n_patients",
)  # fmt: skip
EMBEDDING_COLUMNS = ("task", "strategy", "method", "setting", "label", "score", "value", "low", "high")
RUN_SETTINGS = ("task", "strategy", "label_fraction", "draw", "seed")
RUN_FACTS = ("seconds", "peak_memory_mib", "device", "n_threads", "commit")
TABLES = {
    "metrics": METRICS_COLUMNS,
    "comparisons": COMPARISONS_COLUMNS,
    "cam_scores": CAM_COLUMNS,
    "embedding_scores": EMBEDDING_COLUMNS,
}


def metrics_of_run(run: Run, *, n_resamples: int = 1000) -> pd.DataFrame:
    """All metrics of a supervised run with their intervals, in the columns of ``metrics.csv``.

    The resamples of the test patients are the same for every run, so that runs are paired.
    """
    settings, facts = run.settings, run.record["facts"]
    rng = np.random.default_rng(0)
    table = metrics_table(run.predictions, facts["classes"], n_resamples=n_resamples, rng=rng)
    about = {
        "task": settings.task,
        "strategy": settings.strategy,
        "protocol": settings.protocol,
        "label_fraction": settings.label_fraction,
        "n_images": facts["n_images"],
        "n_patients": facts["n_patients"],
        "draw": settings.draw,
        "seed": settings.seed,
    }
    return table.assign(**about)[list(METRICS_COLUMNS)]


def write_part(table: pd.DataFrame, *, results_dir: str | Path, name: str, part: str) -> Path:
    """Write a notebook's rows of a table; `merge_tables` joins the parts.

    Parameters
    ----------
    table : DataFrame
        With at least the columns of that table.
    results_dir : path
    name : str
        A key of `TABLES`.
    part : str
        Says which rows, for example the notebook and the task.

    Returns
    -------
    Path
        ``<results_dir>/tables/<name>.<part>.csv``

    Raises
    ------
    ValueError
        If there is no such table, or columns of it are missing.
    """
    if name not in TABLES:
        raise ValueError(f"name={name!r}: expected one of {list(TABLES)}")
    missing = [column for column in TABLES[name] if column not in table.columns]
    if missing:
        raise ValueError(f"{name} of {part} lack the columns {missing}; expected {list(TABLES[name])}")
    path = Path(results_dir) / "tables" / f"{name}.{part}.csv"
    return write_table(table[list(TABLES[name])], path)


def write_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, whole or not at all, into a folder that is made if need be; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda beside: table.to_csv(beside, index=False))
    return path


def merge_tables(results_dir: str | Path) -> list[Path]:
    """Join the parts of each table into ``<results_dir>/<name>.csv``; of rows that stand twice the last is kept.

    A difference that 03 and 04 both state is so judged among all that 04 looks at, not among the two of 03.

    Returns
    -------
    list of Path
        The tables written; one without parts is not.
    """
    written = []
    for name, columns in TABLES.items():
        parts = sorted(Path(results_dir, "tables").glob(f"{name}.*.csv"))
        if parts:
            merged = pd.concat([pd.read_csv(part, keep_default_na=False, na_values=[""]) for part in parts])
            path = Path(results_dir) / f"{name}.csv"
            merged = merged.drop_duplicates(subset=key_columns(columns), keep="last")[list(columns)]
            replace_file(path, lambda beside, merged=merged: merged.to_csv(beside, index=False))
            written.append(path)
    return written


def list_runs(results_dir: str | Path) -> pd.DataFrame:
    """The finished runs of a results folder, with what made each.

    Returns
    -------
    DataFrame
        A row per run, sorted: ``kind``, ``key`` (name of its folder), the settings named in `RUN_SETTINGS` as far as
        that kind has them, and the facts of `RUN_FACTS`.
    """
    rows = []
    for path in sorted(Path(results_dir, "runs").glob("*/*/record.json")):
        try:
            record = read_json(path)
        except ValueError:  # broken: `fetal_utils.run_status` tells of it
            continue
        if path.parent.suffix == ".partial":  # about to get its name
            continue
        about = {"kind": path.parent.parent.name, "key": path.parent.name}
        about |= {name: record["settings"].get(name) for name in RUN_SETTINGS}
        rows.append(about | {name: record.get(name) for name in RUN_FACTS})
    return pd.DataFrame(rows, columns=["kind", "key", *RUN_SETTINGS, *RUN_FACTS])


def key_columns(columns: Sequence[str]) -> list[str]:
    """The columns that say what a row is about, without its values."""
    return [name for name in columns if name not in {"value", "difference", "low", "high", "resolved"}]
