"""The classification tasks: which column holds the label, and what its classes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import yaml

from fetal_utils.data import CSV_COLUMNS, TASKS_NAME


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
