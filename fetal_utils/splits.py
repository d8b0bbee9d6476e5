"""The table of images, and who trains, who chooses, who is tested, whose labels are used: patients are divided."""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fetal_utils.images import CSV_COLUMNS, CSV_NAME, IMAGE_DIR

SUBSETS = ("train", "development", "test")
N_ORDERS = 16  # random orders of the patients, the best of which makes the split
TOLERANCE = 0.25  # of the development share asked for: beyond it the data summary warns


def read_metadata(data_dir: str | Path, *, extra_columns: Sequence[str] = ()) -> pd.DataFrame:
    """The table of FETAL_PLANES_DB (Burgos-Artizzu et al. 2020, doi:10.5281/zenodo.3904280), tidy and checked.

    One row per image in the order of the file; columns ``image_name`` (no ``.png``), ``patient`` (int), ``plane``,
    ``brain_plane``, ``operator``, ``machine``, ``split`` ("train" or "test") and ``extra_columns`` (labels of tasks of
    one's own), as text; others are ignored. FileNotFoundError or ValueError name lines and columns that are wrong, and
    what to do.
    """
    path = Path(data_dir) / CSV_NAME
    if not path.is_file():
        where = f"data_dir is the folder of FETAL_PLANES_DB, with {IMAGE_DIR}/ beside that table"
        raise FileNotFoundError(f"{path} is missing; {where}, which is saved as 'CSV UTF-8', separated by ';'")
    raw = read_raw(path)
    # the published header ends in "Train " and every row in a space; copies exist without them
    names = {raw_name.strip(): tidy_name for raw_name, tidy_name in CSV_COLUMNS.items()}
    expected = [*names, *extra_columns]
    missing = [name for name in expected if name not in raw or f"{name}.1" in raw]  # pandas numbers a second
    if raw.empty or missing:
        raise ValueError(f"{path}: {len(raw)} rows, twice or missing {missing}; expected {';'.join(expected)}")
    table = raw[expected].rename(columns=names)
    table["image_name"] = table["image_name"].str.removesuffix(".png")
    check_values(path, table)
    table = table.assign(patient=table["patient"].astype(int), split=table["split"].map({"1": "train", "0": "test"}))
    return table.reset_index(drop=True)


def read_raw(path: Path) -> pd.DataFrame:
    """The CSV as text, by line of the file; spaces around values and empty lines are dropped."""
    options = {"dtype": str, "na_filter": False, "index_col": False, "skip_blank_lines": False}
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # of values without a name
            raw = pd.read_csv(path, sep=";", encoding="utf-8-sig", **options)
    except (ValueError, pd.errors.ParserWarning) as error:  # Excel on Windows writes cp1252
        remedy = "expected a header and as many values in each row, saved as 'CSV UTF-8', separated by ';'"
        raise ValueError(f"{path} can't be read: {error}; {remedy}") from None
    raw = raw.set_axis(raw.index + 2).rename(columns=str.strip).apply(lambda column: column.str.strip())
    return raw[(raw != "").any(axis=1)]


def check_values(path: Path, table: pd.DataFrame) -> None:
    """Raise a ValueError that names lines and columns whose values don't fit."""
    names = table["image_name"]
    n_splits = table.groupby(table["patient"].str.lstrip("0"))["split"].transform("nunique")
    rules = [
        ("image_name", names.str.fullmatch(r"[^/\\\0]+") & ~names.isin([".", ".."]), "a plain file name"),
        ("image_name", ~names.duplicated(keep=False), "each name once"),
        ("patient", table["patient"].str.fullmatch("[0-9]{1,15}"), "a whole number, 0 or more"),
        ("split", table["split"].isin(["0", "1"]), "1 (train) or 0 (test)"),
        ("patient", n_splits == 1, "a patient either in the training or in the test set"),
        *((name, table[name] != "", "some text") for name in ("plane", "brain_plane", "operator", "machine")),
    ]
    faults = sorted((line, name, expected) for name, fits, expected in rules for line in table.index[~fits])
    if faults:
        shown = [f"line {line}, {name} {table[name][line]!r}: expected {rule}" for line, name, rule in faults[:5]]
        raise ValueError(f"{path}: {len(faults)} values don't fit, {'; '.join(shown)}")


def write_metadata(table: pd.DataFrame, data_dir: str | Path) -> None:
    """Write a table of `read_metadata` as the archive does: ``;``, raw names, a space at the end of every row, LF."""
    raw = table[list(CSV_COLUMNS.values())].set_axis(list(CSV_COLUMNS), axis=1)
    raw = raw.assign(**{"Train ": raw["Train "].map({"train": "1 ", "test": "0 "})})
    raw.to_csv(Path(data_dir) / CSV_NAME, sep=";", index=False, lineterminator="\n")


def split_by_patient(
    metadata: pd.DataFrame,
    *,
    development_fraction: float,
    rng: np.random.Generator,
    label_columns: Sequence[str] = ("plane", "brain_plane"),
) -> pd.Series:
    """Take development patients from the official training patients; one of `SUBSETS` for every row of ``metadata``.

    In a random order, a patient is taken if the images taken, in all and of each label of ``label_columns``, thereby
    come nearer to their share, 0 < ``development_fraction`` <= 0.5; of several orders the nearest counts. No label
    loses its last training patient; a ValueError says if none can be taken.
    """
    if not 0 < development_fraction <= 0.5:
        raise ValueError(f"development_fraction={development_fraction}: expected more than 0 and at most 0.5")
    train = metadata[metadata["split"] == "train"]
    by_patient = pd.get_dummies(train[list(label_columns)].astype(str), dtype=int).groupby(train["patient"]).sum()
    counts, patients = by_patient.to_numpy(), by_patient.index.to_numpy()  # images, (n_patients, n_labels)
    total = counts.sum(axis=0)
    target = development_fraction * total

    def distance(taken: np.ndarray) -> float:
        off = taken - target  # chi-square of the labels' counts, and as much again for that of all images
        return float((off**2 / target).sum() + len(target) * off.sum() ** 2 / (len(label_columns) * target.sum()))

    best, chosen = math.inf, []
    for _ in range(N_ORDERS):
        taken, positions = np.zeros_like(total), []
        for position in rng.permutation(len(counts)):
            more = taken + counts[position]
            if (more < total).all() and distance(more) < distance(taken):
                taken = more
                positions.append(position)
        if positions and distance(taken) < best:
            best, chosen = distance(taken), positions
    if not chosen:
        reason = f"none of {len(counts)} training patients can be spared, each the only one of a label or too large"
        raise ValueError(f"development_fraction={development_fraction}: {reason}; add patients")
    return metadata["split"].mask(metadata["patient"].isin(patients[chosen]), "development")


def draw_labelled_subset(
    labels: Sequence, patients: Sequence[int], *, order: Sequence[int], fraction: float
) -> np.ndarray:
    """Positions of the images of a fraction of the patients, sorted, with every label; a larger holds all of a smaller.

    The first ``ceil(fraction * n_patients)`` patients of the order are taken. For a label that none of them has, the
    first patient in that order who has it is added.

    ``labels`` and ``patients``, shape (n_images,), are of each training image of a task, of whose patients the share
    0 < ``fraction`` <= 1 is drawn. ``order`` has *all* training patients, in one random order for every task, fraction
    and strategy: `Dataset.patient_order`.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction={fraction}: expected more than 0 and at most 1 (1 % is 0.01)")
    labels, patients = np.asarray(labels), np.asarray(patients)
    own = np.asarray(order)[np.isin(order, patients)]
    # a product such as 0.07 * 100 comes out a hair above its true value: round before the ceiling
    n_first = math.ceil(round(fraction * len(own), 9))
    place = pd.Series(np.arange(len(own)), index=own)[patients].to_numpy()  # in the order, of each image's patient
    first = pd.Series(place).groupby(labels).min()  # patient of each label
    return np.flatnonzero((place < n_first) | np.isin(place, first))


def data_summary(metadata: pd.DataFrame, task, *, development_fraction: float) -> pd.DataFrame:
    """What the subsets of a `data.Task` hold and what was left out.

    Rows ``(about, name)``: "total" (images, patients), "class" and "machine" (images), "left out" (images by reason),
    "check" (patients in two subsets, which is 0) and, if need be, "warning"; columns `SUBSETS`, ``total``.
    """
    label, subset = metadata[task.label_column], metadata["subset"].astype(pd.CategoricalDtype(SUBSETS))
    used, count = label.isin(task.classes), partial(pd.crosstab, columns=subset, dropna=False)
    patients = metadata["patient"][used].groupby(subset, observed=False).nunique()
    share = (subset == "development").sum() / (subset != "test").sum()
    n_shared = metadata.groupby("patient")["subset"].nunique().gt(1).sum()
    reasons = label.map(lambda name: f"{name}: {task.left_out.get(name)}")
    parts = {
        "total": pd.DataFrame({"images": subset[used].value_counts(), "patients": patients}).T,
        "class": count(label[used]).reindex(list(task.classes), fill_value=0),
        "machine": count(metadata["machine"][used]),
        "left out": count(reasons[~used]),
        "check": pd.DataFrame(n_shared, index=["patients in two subsets"], columns=SUBSETS),
    }
    if round(abs(share / development_fraction - 1), 9) > TOLERANCE:
        warning = f"{share:.0%} of the training images are for development; {development_fraction:.0%} were asked for"
        parts["warning"] = pd.DataFrame(0, index=[warning], columns=SUBSETS)
    table = pd.concat(parts, names=["about", "name"]).astype(int)[list(SUBSETS)]
    return table.assign(total=table.sum(axis=1))
