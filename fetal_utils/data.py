"""The metadata table of FETAL_PLANES_DB and the classification tasks that are read from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pandera.pandas as pa
import yaml

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


@dataclass(frozen=True)
class Task:
    """A classification task: which column holds the label, and what its classes are.

    Attributes
    ----------
    name : str
    label_column : str
        Column of the metadata table.
    classes : tuple of str
        Labels in the order of the network's outputs, the rows of every table and the colours.
    short_names : tuple of str
        One short name per class, for axes.
    left_out : dict of str to str
        Labels that are not classes of the task, each with the reason; such images are counted.
    """

    name: str
    label_column: str
    classes: tuple[str, ...]
    short_names: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"task {self.name!r} has the classes {list(self.classes)}: at least two are needed")
        if len(self.short_names) != len(self.classes):
            raise ValueError(
                f"task {self.name!r} has {len(self.classes)} classes but {len(self.short_names)} short names"
            )


TASKS = {
    "planes": Task(
        name="planes",
        label_column="plane",
        classes=(
            "Fetal abdomen",
            "Fetal brain",
            "Fetal femur",
            "Fetal thorax",
            "Maternal cervix",
            "Other",
        ),
        short_names=("abdomen", "brain", "femur", "thorax", "cervix", "other"),
    ),
    "brain_planes": Task(
        name="brain_planes",
        label_column="brain_plane",
        classes=("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"),
        short_names=("thalamic", "cerebellum", "ventricular"),
        left_out={
            "Not A Brain": "not an image of the fetal brain",
            "Other": "a brain image of none of the three standard planes",
        },
    ),
}


def read_tasks(data_dir: str | Path) -> dict[str, Task]:
    """The two tasks of the study and those that a data folder's ``tasks.yaml`` adds.

    An entry names the column of the label (one of the CSV's or of `read_metadata`'s), the classes
    with a short name for each, and, with the reason, the labels that are no class of the task::

        gender_planes:
          label_column: plane
          classes: {Fetal femur: femur, Fetal abdomen: abdomen}
          left_out: {Other: "not a standard plane"}

    Parameters
    ----------
    data_dir : path
        A folder in the layout of FETAL_PLANES_DB.

    Returns
    -------
    dict of str to Task

    Raises
    ------
    ValueError
        If the file is not YAML of that form, or an entry takes the name of a task of the study.
    """
    path = Path(data_dir) / TASKS_NAME
    if not path.exists():
        return dict(TASKS)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        added = {str(name): make_task(str(name), entry) for name, entry in entries.items()}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: each task needs 'label_column' and 'classes: {{label: short name, ...}}', "
            f"'left_out: {{label: reason, ...}}' is free to it ({error!r})"
        ) from error
    if taken := sorted(set(added) & set(TASKS)):
        raise ValueError(f"{path}: {taken} are tasks of the study; give your task another name")
    return {**TASKS, **added}


def make_task(name: str, entry: Mapping) -> Task:
    """The task that an entry of ``tasks.yaml`` describes."""
    tidy_names = {raw_name.strip(): tidy_name for raw_name, tidy_name in CSV_COLUMNS.items()}
    return Task(
        name=name,
        label_column=tidy_names.get(entry["label_column"], entry["label_column"]),
        classes=tuple(map(str, entry["classes"])),
        short_names=tuple(map(str, entry["classes"].values())),
        left_out={str(label): str(reason) for label, reason in entry.get("left_out", {}).items()},
    )


def find_task(name: str, tasks: dict[str, Task]) -> Task:
    """The task of that name.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.
    """
    if name not in tasks:
        raise ValueError(f"task={name!r} is unknown; known are {sorted(tasks)} (more in a {TASKS_NAME})")
    return tasks[name]


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


def present_classes(table: pd.DataFrame, task: Task) -> Task:
    """The task, restricted to the classes that a table has.

    A data set without some classes of a task is used with those it has: compare the two
    tasks' ``classes`` to say which are absent.

    Raises
    ------
    ValueError
        If a label is neither a class of the task nor left out by it, fewer than two classes
        have images, or a class has test but no training patient.
    """
    labels = table[task.label_column]
    if unknown := sorted(set(labels) - set(task.classes) - set(task.left_out)):
        row = labels.index[labels == unknown[0]][0]
        raise ValueError(
            f"{task.label_column} {unknown[0]!r} of {table['image_name'][row]} (line {int(row) + 2}) is unknown to "
            f"task {task.name!r}, whose classes are {list(task.classes)}; correct the label or, in a task of your "
            "own, add it to 'classes' or 'left_out'"
        )
    kept = [k for k, name in enumerate(task.classes) if (labels == name).any()]
    if len(kept) < 2:
        raise ValueError(
            f"task {task.name!r} finds the classes {[task.classes[k] for k in kept]} in this data set; "
            f"at least two of {list(task.classes)} are needed"
        )
    trained = set(labels[table["split"] == "train"])
    if untrained := [task.classes[k] for k in kept if task.classes[k] not in trained]:
        raise ValueError(
            f"task {task.name!r}: no training patient has {untrained}; add training images of it, or leave it out"
        )
    return replace(
        task,
        classes=tuple(task.classes[k] for k in kept),
        short_names=tuple(task.short_names[k] for k in kept),
    )
