"""A data folder in the layout of FETAL_PLANES_DB: its table, the classification tasks, and all that runs ask of it."""

import re
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from fetal_utils.environment import PROJECT_ROOT, project_path, read_json, write_json
from fetal_utils.images import CSV_COLUMNS, CSV_NAME, ImageFormat, content_hashes, digest, image_paths, open_images
from fetal_utils.phantom import phantom_dir
from fetal_utils.splits import data_summary, read_metadata, split_by_patient

TASKS_NAME = "tasks.yaml"
KEPT_NAME = "data.json"  # marks a copy of the table alone, see `keep_metadata`


@dataclass(frozen=True)
class Task:
    """A classification task on the labels of a column of the metadata table."""

    name: str
    label_column: str
    classes: tuple[str, ...]  # in the order of the network's outputs, of every table and of the colours
    left_out: dict[str, str] = field(default_factory=dict)  # the reason for each label that is no class

    def __post_init__(self) -> None:
        labels = [*self.classes, *self.left_out]
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError("its name becomes part of file names: use letters, digits, '_' and '-'")
        are_text = all(isinstance(label, str) for label in [self.label_column, *labels])
        if len(self.classes) < 2 or not are_text or len(set(labels)) < len(labels):
            raise ValueError("expected one label_column and two classes or more, all of them text, and no label twice")


PLANES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
BRAIN_PLANES = ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular")
NO_BRAIN_PLANE = {"Not A Brain": "no image of the fetal brain", "Other": "a brain image of none of the three planes"}
TASKS = {
    "planes": Task("planes", "plane", PLANES),
    "brain_planes": Task("brain_planes", "brain_plane", BRAIN_PLANES, NO_BRAIN_PLANE),
}


def read_tasks(data_dir: str | Path) -> dict[str, Task]:
    """The two tasks of the study and those that a data folder's ``tasks.yaml`` adds; a ValueError names a wrong one.

    An entry names the column of the label (one of the CSV's or of `read_metadata`'s), the classes and, with the reason,
    the labels that are no class of the task. All is taken as the text that stands there, also Yes, 01 or 1.0::

        trimester: {label_column: Trimester, classes: [2, 3], left_out: {unknown: no date of the scan}}
    """
    path, tasks = Path(data_dir) / TASKS_NAME, dict(TASKS)
    if not path.exists():
        return tasks
    form = "'name: {label_column: ..., classes: [...], left_out: {label: reason, ...}}'"
    tidy_names, name = {raw_name.strip(): tidy_name for raw_name, tidy_name in CSV_COLUMNS.items()}, None
    try:
        for name, entry in dict(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)).items():
            unknown = set(entry) - {"label_column", "classes", "left_out"}
            if name in TASKS or unknown or isinstance(entry["classes"], str):
                raise ValueError(f"unknown keys {sorted(unknown)}, one class, or the name of a task of the study")
            column = tidy_names.get(entry["label_column"], entry["label_column"])
            tasks[name] = Task(name, column, tuple(entry["classes"]), dict(entry.get("left_out", {})))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, task {name!r}: {error}; expected entries of the form {form}") from None
    return tasks


@dataclass(frozen=True)
class Dataset:
    """A data folder with the choices that decide what a run sees."""

    data_dir: Path  # only ever read
    cache_dir: Path  # takes the decoded images
    development_fraction: float = 0.2  # share of the training images whose patients are set aside to choose settings on
    split_seed: int = 0  # decides which patients these are, and every draw's order of patients
    geometry: str = "crop"  # as blank_text, see `ImageFormat`
    blank_text: bool = False

    def __post_init__(self) -> None:
        ImageFormat(64, self.geometry, self.blank_text)  # says what is wrong with them

    def __getstate__(self) -> dict:
        # another process reads table and images itself: only the fields travel
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The study's tasks and those of the folder's ``tasks.yaml``."""
        return read_tasks(self.data_dir)

    @cached_property
    def metadata(self) -> pd.DataFrame:
        """The table of `read_metadata` with a column ``subset``: "train", "development" or "test"."""
        columns = list(dict.fromkeys(["plane", "brain_plane", *(task.label_column for task in self.tasks.values())]))
        table = read_metadata(self.data_dir, extra_columns=[x for x in columns if x not in CSV_COLUMNS.values()])
        rng = np.random.default_rng(self.split_seed)
        options = {"development_fraction": self.development_fraction, "rng": rng, "label_columns": columns}
        return table.assign(subset=split_by_patient(table, **options))

    @cached_property
    def paths(self) -> list[Path]:
        """The image files, which all exist."""
        return image_paths(self.data_dir, self.metadata["image_name"])

    @cached_property
    def hashes(self) -> list[str]:
        """One for each image file, of its content."""
        return content_hashes(self.paths, cache_dir=self.cache_dir)

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits of all that a run's numbers depend on but its settings."""
        if self.kept:
            if self.choices not in self.kept["keys"]:
                raise ValueError(f"{self.data_dir} keeps results of {list(self.kept['keys'])}, not of {self.choices}")
            return self.kept["keys"][self.choices]
        # a run's settings hold only the name of its task, and tasks.yaml may change under it
        tasks = [task for name, task in sorted(self.tasks.items()) if name not in TASKS]
        return digest(f"{self.metadata.to_csv(index=False)}\n{self.hashes}\n{self.geometry} {self.blank_text}\n{tasks}")

    @property
    def choices(self) -> str:
        """The choices as a word, for `keep_metadata`."""
        return f"{self.development_fraction} {self.split_seed} {self.geometry} {self.blank_text}"

    @cached_property
    def kept(self) -> dict:
        """What `keep_metadata` wrote, if this is such a copy of the table, without images."""
        path = Path(self.data_dir) / KEPT_NAME
        return read_json(path) if path.exists() else {}

    @property
    def patients(self) -> np.ndarray:
        """Patient of every row, shape (n_rows,)."""
        return self.metadata["patient"].to_numpy()

    @property
    def is_phantom(self) -> bool:
        """Whether the images are drawn by `fetal_utils.phantom` and not real."""
        return self.kept.get("is_phantom", (Path(self.data_dir) / "phantom.json").exists())

    @property
    def title(self) -> str:
        """What tables and figures call this data set."""
        name = Path(self.data_dir).name
        return self.kept.get("title", f"phantom ({name})" if self.is_phantom else name)

    def task(self, name: str) -> Task:
        """A task, restricted to the classes that this data set has; a ValueError says why it can't be served."""
        if name not in self.tasks:
            raise ValueError(f"task={name!r} is unknown; known are {sorted(self.tasks)} (more in a {TASKS_NAME})")
        task = self.tasks[name]
        labels = self.metadata[task.label_column]
        if unknown := sorted(set(labels) - set(task.classes) - set(task.left_out)):
            image = self.metadata["image_name"][labels == unknown[0]].iloc[0]
            remedy = f"first of {image}; correct the table, or describe a task of your own in {TASKS_NAME}"
            found = f"knows {list(task.classes)}, not {task.label_column} {unknown[:5]}"
            raise ValueError(f"task {name!r} {found}, {remedy}")
        present = tuple(label for label in task.classes if (labels == label).any())
        untrained = set(present) - set(labels[self.metadata["subset"] == "train"])
        if len(present) < 2 or untrained:
            found = f"the classes {list(present)} here, {sorted(untrained)} of them without a training patient"
            raise ValueError(f"task {name!r} finds {found}; two or more are needed, each with one")
        return replace(task, classes=present)

    def usable_tasks(self) -> dict[str, Task]:
        """All tasks that this data set serves, as `task` gives them; a ValueError with the reasons if there is none."""
        usable, reasons = {}, []
        for name in self.tasks:
            try:
                usable[name] = self.task(name)
            except ValueError as error:
                reasons.append(str(error))
        if not usable:
            raise ValueError(f"{self.data_dir} serves no task: " + "; ".join(reasons))
        return usable

    def labels(self, task: Task) -> np.ndarray:
        """Class of every row as its position in ``task.classes``, int, -1 where left out; shape (n_rows,)."""
        return pd.Index(task.classes).get_indexer(self.metadata[task.label_column]).astype(np.int64)

    def rows(self, subset: str, task: Task | None = None) -> np.ndarray:
        """Positions of a subset's images in the table, of one task or of all; shape (n_images,)."""
        chosen = (self.metadata["subset"] == subset).to_numpy()
        return np.flatnonzero(chosen if task is None else chosen & (self.labels(task) >= 0))

    def patient_order(self, draw: int) -> np.ndarray:
        """All training patients in the random order of a draw, the same for every task; shape (n_patients,)."""
        rng = np.random.default_rng([self.split_seed, draw])
        return rng.permutation(np.unique(self.patients[self.rows("train")]))

    def summary(self, task_name: str) -> pd.DataFrame:
        """What the subsets of a task hold, a class that is absent with 0, and what was left out: see `data_summary`."""
        return data_summary(self.metadata, self.tasks[task_name], development_fraction=self.development_fraction)

    def image_format(self, image_size: int, *, geometry: str | None = None) -> ImageFormat:
        """How a picture becomes a square here."""
        return ImageFormat(image_size, geometry or self.geometry, self.blank_text)

    def images(self, image_size: int, *, geometry: str | None = None, progress: bool = True) -> np.memmap:
        """All images, decoded once: uint8, shape (n_rows, image_size, image_size)."""
        if self.kept:
            raise FileNotFoundError(f"{self.data_dir} keeps only tables and runs; give a data_dir, or delete it")
        image_format = self.image_format(image_size, geometry=geometry)
        return open_images(self.paths, image_format, cache_dir=self.cache_dir, progress=progress)


def predictions_table(dataset: Dataset, task: Task, rows: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """The table of a run's ``predictions.csv`` for rows of the data set; probabilities (n_images, n_classes)."""
    classes = np.array(task.classes)
    table = dataset.metadata.iloc[rows][["image_name", "patient", "operator", "machine"]]
    table = table.assign(true=classes[dataset.labels(task)[rows]], predicted=classes[probabilities.argmax(axis=1)])
    table[[f"probability_{name}" for name in classes]] = probabilities.round(6)
    return table


def keep_metadata(dataset: Dataset) -> Path:
    """Copy a data set's table beside its results, so that what they say can be worked out again without an image."""
    folder = Path(dataset.cache_dir).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CSV_NAME, TASKS_NAME):
        if (source := Path(dataset.data_dir) / name).exists() and source.parent != folder:
            shutil.copyfile(source, folder / name)
    keys = replace(dataset, data_dir=folder).kept.get("keys", {}) | {dataset.choices: dataset.key}
    write_json(folder / KEPT_NAME, {"title": dataset.title, "is_phantom": dataset.is_phantom, "keys": keys})
    return folder


def open_dataset(data_dir: str | Path, *, results_dir: str | Path, phantom_patients: int = 120, **choices) -> Dataset:
    """The data set that a notebook's parameters name, with ``choices``; an empty ``data_dir`` is the phantom.

    No image is decoded here; FileNotFoundError or ValueError if one is missing, or the table or all tasks are wrong.
    """
    results_dir = project_path(results_dir)
    folder = project_path(data_dir) if data_dir else results_dir / "data"
    # a results folder that has decoded images is worked in; one that came without them keeps what was found elsewhere
    if not data_dir and ((results_dir / "cache").exists() or not (folder / KEPT_NAME).exists()):
        folder = phantom_dir(PROJECT_ROOT / "data", n_patients=phantom_patients, seed=0)
    dataset = Dataset(folder, results_dir / "cache", **choices)
    dataset.usable_tasks()
    if not dataset.kept:
        dataset.paths  # noqa: B018 (a missing file is an error)
    return dataset
