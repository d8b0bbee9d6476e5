"""The metadata table of FETAL_PLANES_DB: read, made tidy and checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

CSV_NAME = "FETAL_PLANES_DB_data.csv"
IMAGE_DIR = "Images"
TASKS_NAME = "tasks.yaml"

# raw header of the CSV, trailing space included, and the tidy name of each column
CSV_COLUMNS = {
    "Image_name": "image_name",
    "Patient_num": "patient",
    "Plane": "plane",
    "Brain_plane": "brain_plane",
    "Operator": "operator",
    "US_Machine": "machine",
    "Train ": "split",
}


SCHEMA = pa.DataFrameSchema(
    {
        "image_name": pa.Column(
            str,
            [
                pa.Check.str_matches(r"^[^/\\\0]+$", error="a plain file name: no folder, not empty"),
                pa.Check(lambda names: ~names.isin([".", ".."]), error="a plain file name"),
            ],
            unique=True,
        ),
        "patient": pa.Column(int, pa.Check.ge(0, error="a patient number, 0 or more")),
        "plane": pa.Column(str, pa.Check.str_length(min_value=1, error="not empty")),
        "brain_plane": pa.Column(str, pa.Check.str_length(min_value=1, error="not empty")),
        "operator": pa.Column(str, pa.Check.str_length(min_value=1, error="not empty")),
        "machine": pa.Column(str, pa.Check.str_length(min_value=1, error="not empty")),
        "split": pa.Column(str, pa.Check.isin(["train", "test"], error="1 (train) or 0 (test)")),
    },
    coerce=True,
)


def read_metadata(data_dir: str | Path, *, extra_columns: Sequence[str] = ()) -> pd.DataFrame:
    """The table of FETAL_PLANES_DB, tidy and checked; no image is touched.

    Parameters
    ----------
    data_dir : path
        Folder that holds ``FETAL_PLANES_DB_data.csv``.
    extra_columns : sequence of str, optional
        Further columns that the CSV is expected to hold (labels of a task of one's own).

    Returns
    -------
    DataFrame
        One row per image in the order of the file; columns ``image_name`` (no ``.png``),
        ``patient`` (int), ``plane``, ``brain_plane``, ``operator``, ``machine``,
        ``split`` ("train" or "test"), then the extra columns under their own names.

    Raises
    ------
    FileNotFoundError
        If the folder or the CSV is missing.
    ValueError
        If columns are missing or unknown, a value is not what its column holds, an image name
        stands twice or is no plain file name, or a patient is in both splits. The line of the
        file is named.

    References
    ----------
    Burgos-Artizzu et al. 2020, Sci Rep 10:10200; data set doi:10.5281/zenodo.3904280.
    """
    path = Path(data_dir) / CSV_NAME
    if not path.parent.is_dir():
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} is not a folder; expected one that holds {CSV_NAME}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected the metadata of FETAL_PLANES_DB beside {IMAGE_DIR}/")
    raw = read_raw(path)
    # the published header ends in "Train " and every row in a space; copies exist without them
    names = {raw_name.strip(): tidy_name for raw_name, tidy_name in CSV_COLUMNS.items()}
    check_columns(path, list(raw.columns), [*names, *extra_columns])
    table = raw[[*names, *extra_columns]].rename(columns=names)
    table["image_name"] = table["image_name"].str.removesuffix(".png")
    table["split"] = table["split"].replace({"1": "train", "0": "test"})
    table = check_values(path, table)
    check_patients_of_splits(path, table)
    return table.reset_index(drop=True)


def read_raw(path: Path) -> pd.DataFrame:
    """The CSV as text, spaces at the ends of names and values removed."""
    try:
        # empty lines are read and then dropped, so that an error names the line an editor shows
        raw = pd.read_csv(path, sep=";", dtype=str, keep_default_na=False, encoding="utf-8", skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no ';'-separated table: {error}") from error
    if not isinstance(raw.index, pd.RangeIndex):  # pandas took the surplus for an index
        raise ValueError(f"{path}: the rows hold more values than the header has columns ({len(raw.columns)})")
    raw = raw[(raw != "").any(axis=1)]
    if raw.empty:
        raise ValueError(f"{path} has no rows; expected one per image")
    raw.columns = raw.columns.str.strip()
    return raw.apply(lambda column: column.str.strip())


def check_columns(path: Path, found: list[str], expected: list[str]) -> None:
    """Raise a ValueError that names the columns missing from the CSV and those nobody knows."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    if missing or unknown:
        raise ValueError(
            f"{path}: columns missing {missing}, unknown {unknown}; expected {';'.join(expected)} "
            f"(a further label column is announced by a task in {TASKS_NAME})"
        )


def check_values(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table with its types, or a ValueError that names the lines and columns that do not fit."""
    try:
        return SCHEMA.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.dropna(subset=["index"]).drop_duplicates(["index", "column"])
        cases = cases.sort_values("index", kind="stable")
        shown = [
            f"line {int(case['index']) + 2}, {case['column']} {case['failure_case']!r}: "
            + ("stands twice" if "unique" in str(case["check"]) else f"expected {expected_of(case['check'])}")
            for case in cases.head(5).to_dict("records")
        ]
        rest = f" (and {len(cases) - 5} more)" if len(cases) > 5 else ""
        raise ValueError(f"{path}: " + "; ".join(shown) + rest) from None


def expected_of(check: str) -> str:
    """What a failed check of the schema asked for, in words."""
    return "a whole number" if re.search("dtype|coerce", str(check)) else str(check)


def check_patients_of_splits(path: Path, table: pd.DataFrame) -> None:
    """Raise a ValueError that names the patients found in both the training and the test set."""
    n_splits = table.groupby("patient")["split"].nunique()
    if len(both := n_splits.index[n_splits > 1]):
        rows = table.index[table["patient"] == both[0]]
        raise ValueError(
            f"{path}: patients {list(map(int, both[:5]))} are in the training and in the test set "
            f"({len(both)} in all; patient {both[0]}: lines {[int(row) + 2 for row in rows[:5]]}); "
            "a patient's images must all have the same 'Train ' value"
        )
