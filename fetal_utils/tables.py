"""The tables that a study leaves for others: written part by part by the notebooks, merged after each of them."""

import json
from pathlib import Path

import pandas as pd

from fetal_utils.environment import read_json, read_table, write_table
from fetal_utils.runs import RESULTS_VERSION

ARM, RUN = ("task", "protocol", "strategy", "label_fraction"), ("draw", "seed")
COUNTS, INTERVAL = ("n_images", "n_patients"), ("value", "low", "high")
JUDGED = ("low", "high", "n_pairs", "standard_error", "degrees", "p", "resolved", "under_trained")
OF_SIMCLR = ("pretraining_lr", "n_epochs", "temperature")
# of each table: the columns that say what a row is about, and those that hold what was found
TABLES = {
    "summary": (("task", "about", "name"), ("train", "development", "test", "total")),
    "baselines": (("task", "baseline"), ("accuracy", "balanced_accuracy", "macro_f1")),
    "metrics": ((*ARM, *RUN, "plane", "metric"), (*INTERVAL, *COUNTS, "key")),
    "label_efficiency": ((*ARM, "metric"), (*INTERVAL, *COUNTS, "n_pairs", "sd_over_pairs", "under_trained")),
    "comparisons": ((*ARM, "baseline", "metric"), ("difference", *JUDGED, *COUNTS, "verdict", "p_holm", "family")),
    "equivalence": ((*ARM, "baseline"), ("score", "n_equivalent", "low", "high", "reading", *COUNTS, "n_pairs")),
    "claim": (
        ("protocol", "strategy", "baseline", "matching", "label_fraction", "n_images", "scale"),
        ("difference_of_gains", "gain_brain_planes", "gain_planes", "primary", "verdict", *JUDGED),
    ),
    "robustness": (("variant", *ARM, "baseline", "metric"), ("difference", *JUDGED, *COUNTS)),
    "by_group": ((*ARM, "column", "group"), (*INTERVAL, *COUNTS, "n_classes", "n_train_images")),
    "costs": (ARM, ("views", "seconds", "n_runs", *COUNTS)),
    "trials": (
        (*ARM, *RUN, "setting", "backbone", "image_size"),
        ("lr", "n_views", *OF_SIMCLR, "development_macro_f1", *COUNTS, "views", "seconds", "chosen"),
    ),
    "cam_scores": (
        (*ARM, *RUN, "method", "map", "score", "plane"),
        (*INTERVAL, "difference", "difference_low", "difference_high", *COUNTS),
    ),
    "embedding_scores": (("task", "strategy", "method", "setting", "label", "score"), INTERVAL),
}
KINDS = ("linear_probe", "fine_tune", "dual_task", "simclr")
RUN_COLUMNS = ("task", "strategy", "label_fraction", *RUN, *COUNTS, "views", "seconds", "device", "data_key")


def check_parts(results_dir: str | Path, data_key: str) -> None:
    """Raise a ValueError if a results folder holds tables of other data or another version; for setup cells."""
    for path in sorted(Path(results_dir, "tables").glob("*.csv")):
        for key, version in read_table(path)[["data_key", "results_version"]].head(1).itertuples(index=False):
            if (key, version) != (data_key, RESULTS_VERSION):
                raise ValueError(
                    f"{path} is about data {key}, results version {version}, not {data_key}, {RESULTS_VERSION}: choose "
                    f"another results_dir for this data, or delete the folder {path.parent} (the runs stay)"
                )


def write_part(table: pd.DataFrame, results_dir: str | Path, name: str, part: str, *, data_key: str) -> Path:
    """Write a notebook's rows of a table as ``<results_dir>/tables/<name>.<part>.csv``; `merge_tables` joins the parts.

    ``part`` says which rows, such as the notebook and the task; of rows that stand in several parts, the last by name
    is kept. No row is fine. ValueError for an unknown table or missing columns, and as `check_parts`.
    """
    columns = [column for group in TABLES.get(name, ()) for column in group]
    missing = [column for column in columns if column not in table.columns] if len(table) else []
    if not columns or missing:
        raise ValueError(f"{name} of {part} lacks the columns {missing}; tables are {list(TABLES)}, expected {columns}")
    check_parts(results_dir, data_key)
    path = Path(results_dir, "tables", f"{name}.{part}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(table.reindex(columns=columns).assign(data_key=data_key, results_version=RESULTS_VERSION), path)
    return path


def read(results_dir: str | Path, name: str) -> pd.DataFrame:
    """A table from its parts, or as merged in a folder that keeps none; empty, with its columns, if it is not there."""
    about, values = TABLES[name]
    parts = sorted(Path(results_dir, "tables").glob(f"{name}.*.csv")) or [Path(results_dir, f"{name}.csv")]
    tables = [table for path in parts if path.exists() and len(table := read_table(path))]
    if not tables:
        return pd.DataFrame(columns=[*about, *values, "data_key", "results_version"])
    return pd.concat(tables, ignore_index=True).drop_duplicates(subset=list(about), keep="last", ignore_index=True)


def merge_tables(results_dir: str | Path) -> None:
    """Write each table whole, ``<results_dir>/<name>.csv``, and ``runs.csv``."""
    names = {path.name.split(".")[0] for path in Path(results_dir, "tables").glob("*.csv")}
    tables = {name: table for name in TABLES if name in names and len(table := read(results_dir, name))}
    if tables:
        data_key = next(iter(tables.values()))["data_key"].iloc[0]
        check_parts(results_dir, data_key)
        tables["runs"] = list_runs(results_dir, data_key)
    for name, table in tables.items():
        write_table(table, Path(results_dir, f"{name}.csv"))


def list_runs(results_dir: str | Path, data_key: str) -> pd.DataFrame:
    """The finished runs that the tables rest on: those of ``metrics.csv``, and the pretrainings that they need.

    A row per run of `KINDS`, of this data and version; ``key`` is the name of its folder.
    """
    judged, listed, rows = set(read(results_dir, "metrics")["key"]), [], []
    for kind in KINDS:  # pretrainings come last, when those that are needed are known
        for path in sorted(Path(results_dir, "runs", kind).glob("*/record.json")):
            folder, record = path.parent, read_json(path)
            same = (record.get("data_key"), record.get("results_version")) == (data_key, RESULTS_VERSION)
            settings = json.dumps(record["settings"])  # which stand inside those of the runs that need this one
            needed = folder.name in judged or any(settings in other for other in listed)
            if same and needed and not folder.suffix:
                listed.append(settings)
                known = record["settings"] | record["facts"] | record | {"views": record["facts"].get("views_seen")}
                rows.append({"kind": kind, "key": folder.name, **{name: known.get(name) for name in RUN_COLUMNS}})
    return pd.DataFrame(rows, columns=["kind", "key", *RUN_COLUMNS])
