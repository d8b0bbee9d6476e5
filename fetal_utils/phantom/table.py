"""The raw CSV of FETAL_PLANES_DB, read, checked and written with all its quirks."""

from pathlib import Path

import pandas as pd

from fetal_utils.data import CSV_COLUMNS
from fetal_utils.phantom.machines import MACHINES
from fetal_utils.phantom.planes import BRAIN_PLANES, NOT_A_BRAIN, PLANES

ALLOWED = {"Plane": PLANES, "Brain_plane": (*BRAIN_PLANES, NOT_A_BRAIN), "US_Machine": tuple(MACHINES)}


def read_raw_csv(path: str | Path) -> pd.DataFrame:
    """Rows of a CSV of FETAL_PLANES_DB with their raw column names.

    Raises
    ------
    ValueError
        If there is no such file or it cannot be read as that table.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path}; give the path of a FETAL_PLANES_DB_data.csv")
    try:
        return pd.read_csv(path, sep=";")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table separated by ';': {error}") from error


def check_metadata(rows: pd.DataFrame, *, for_drawing: bool = False) -> None:
    """Refuse rows that cannot be drawn.

    Parameters
    ----------
    rows : DataFrame
        Raw columns.
    for_drawing : bool
        Do without ``Train `` (one row drawn alone).

    Raises
    ------
    ValueError
        If a column is missing, the table is empty, names repeat, or a value is unknown; the message names the first.
    """
    needed = [name for name in CSV_COLUMNS if not (for_drawing and name == "Train ")]
    missing = [name for name in needed if name not in rows]
    if missing:
        raise ValueError(f"columns {missing} are missing; found {list(rows.columns)}, expected {needed}")
    if rows.empty:
        raise ValueError("the table has no rows")
    for column, allowed in ALLOWED.items():
        unknown = rows.loc[~rows[column].isin(allowed), column]
        if len(unknown):
            where = f"{unknown.iloc[0]!r} in row {unknown.index[0]}"
            raise ValueError(f"unknown {column} {where}; expected one of {list(allowed)}")
    brain = rows["Plane"] == "Fetal brain"
    mixed = rows.loc[brain == (rows["Brain_plane"] == NOT_A_BRAIN)]
    if len(mixed):
        row = mixed.iloc[0]
        pair = f"Plane {row['Plane']!r} does not go with Brain_plane {row['Brain_plane']!r}"
        raise ValueError(f"{row['Image_name']}: {pair}; only brain images have a brain plane")
    names = rows["Image_name"].astype(str)
    unsafe = names[names.str.contains(r"[\\/]|^\.") | names.duplicated()]
    if len(unsafe):
        raise ValueError(f"Image_name {unsafe.iloc[0]!r} repeats or is no plain file name")
    patients = pd.to_numeric(rows["Patient_num"], errors="coerce")
    if patients.isna().any() or (patients < 0).any() or (patients % 1 != 0).any():
        raise ValueError("Patient_num must be whole numbers from 0")


def write_raw_csv(rows: pd.DataFrame, path: Path) -> None:
    """Write the table as the archive does: ``;``, a space at the end of every line, LF."""
    header = ";".join(CSV_COLUMNS)
    lines = rows[list(CSV_COLUMNS)].astype(str).agg(";".join, axis=1)
    path.write_bytes("".join(line + "\n" for line in [header, *(line + " " for line in lines)]).encode())
