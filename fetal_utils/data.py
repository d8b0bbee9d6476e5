"""A data folder in the layout of FETAL_PLANES_DB: its table, the classification tasks, and both with images opened."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fetal_utils.environment import PROJECT_ROOT, project_path
from fetal_utils.images import CSV_NAME, IMAGE_DIR, MASK_DIR, ImageFormat, files_hash, image_paths, open_images
from fetal_utils.splits import split_by_patient

__all__ = ["CSV_COLUMNS", "CSV_NAME", "IMAGE_DIR", "MASK_DIR", "TASKS", "Dataset", "Task", "open_dataset"]

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


def read_metadata(data_dir: str | Path, *, extra_columns: Sequence[str] = ()) -> pd.DataFrame:
    """The table of FETAL_PLANES_DB, tidy and checked; no image is touched."""
    raw = pd.read_csv(Path(data_dir) / CSV_NAME, sep=";", dtype=str, keep_default_na=False)
    raw.columns = raw.columns.str.strip()
    raw = raw.apply(lambda column: column.str.strip())
    names = {raw_name.strip(): tidy_name for raw_name, tidy_name in CSV_COLUMNS.items()}
    table = raw[[*names, *extra_columns]].rename(columns=names)
    table["patient"] = table["patient"].astype(int)
    table["split"] = table["split"].replace({"1": "train", "0": "test"})
    return table


def write_metadata(table: pd.DataFrame, data_dir: str | Path) -> None:
    """Write a table of `read_metadata` as the archive does: ``;``, a space at the end of every row, LF."""
    rows = table.assign(split=table["split"].map({"train": "1 ", "test": "0 "}))[list(CSV_COLUMNS.values())]
    lines = [";".join(CSV_COLUMNS), *rows.astype(str).agg(";".join, axis=1)]
    (Path(data_dir) / CSV_NAME).write_bytes("".join(f"{line}\n" for line in lines).encode())


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes
    ----------
    name : str
    label_column : str
        Column of the metadata table.
    classes : tuple of str
        Labels in the order of the network's outputs, the rows of every table and the colours.
    left_out : dict of str to str
        Labels that are not classes of the task, each with the reason; such images are counted.
    """

    name: str
    label_column: str
    classes: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


TASKS = {
    "planes": Task(
        "planes",
        "plane",
        ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other"),
    ),
    "brain_planes": Task(
        "brain_planes",
        "brain_plane",
        ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"),
        {
            "Not A Brain": "not an image of the fetal brain",
            "Other": "a brain image of none of the three standard planes",
        },
    ),
}


def read_tasks(data_dir: str | Path) -> dict[str, Task]:
    """The two tasks of the study and those that a data folder's ``tasks.yaml`` adds."""
    return dict(TASKS)


@dataclass(frozen=True)
class Dataset:
    """A data folder with the choices that decide what a run sees.

    Attributes
    ----------
    data_dir, cache_dir : Path
        Folder with ``Images/`` and ``FETAL_PLANES_DB_data.csv``, only ever read; folder for the decoded images.
    development_fraction : float
        Share of the training images whose patients are set aside to choose settings on.
    split_seed : int
        Decides which patients these are, and the order of patients of every draw.
    geometry, blank_text
        See `ImageFormat`.
    """

    data_dir: Path
    cache_dir: Path
    development_fraction: float = 0.2
    split_seed: int = 0
    geometry: str = "crop"
    blank_text: bool = False

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
        columns = {task.label_column for task in self.tasks.values()}
        extra_columns = sorted(columns - set(CSV_COLUMNS.values()))
        table = read_metadata(self.data_dir, extra_columns=extra_columns)
        subset = split_by_patient(
            table,
            development_fraction=self.development_fraction,
            rng=np.random.default_rng(self.split_seed),
            label_columns=["plane", "brain_plane", *extra_columns],
        )
        return table.assign(subset=subset)

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits of all that a run's numbers depend on but its settings."""
        files = files_hash(image_paths(self.data_dir, self.metadata["image_name"]))
        text = f"{self.metadata.to_csv(index=False)}\n{files}\n{self.geometry}\n{self.blank_text}"
        # a run's settings hold only the name of its task, and tasks.yaml may change under it
        text += "".join(f"\n{task}" for name, task in sorted(self.tasks.items()) if name not in TASKS)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def patients(self) -> np.ndarray:
        """Patient of every row, shape (n_rows,)."""
        return self.metadata["patient"].to_numpy()

    @property
    def is_phantom(self) -> bool:
        """Whether the images are drawn by `fetal_utils.phantom` and not real."""
        return (Path(self.data_dir) / "phantom.json").exists()

    @property
    def title(self) -> str:
        """What tables and figures call this data set."""
        return f"phantom ({self.data_dir.name})" if self.is_phantom else self.data_dir.name

    def task(self, name: str) -> Task:
        """A task, restricted to the classes that this data set has.

        Raises
        ------
        ValueError
            If there is no such task, or it can't be used here.
        """
        if name not in self.tasks:
            raise ValueError(f"task={name!r} is unknown; known are {sorted(self.tasks)} (more in a {TASKS_NAME})")
        task = self.tasks[name]
        labels = set(self.metadata[task.label_column])
        return replace(task, classes=tuple(label for label in task.classes if label in labels))

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

    def image_format(self, image_size: int, *, geometry: str | None = None) -> ImageFormat:
        """How a picture becomes a square here."""
        geometry = geometry or self.geometry
        # the corner is asked about as it was
        return ImageFormat(image_size, geometry, self.blank_text and geometry != "text_corner")

    def images(self, image_size: int, *, geometry: str | None = None, progress: bool = True) -> np.memmap:
        """All images, decoded once: uint8, shape (n_rows, image_size, image_size)."""
        paths = image_paths(self.data_dir, self.metadata["image_name"])
        image_format = self.image_format(image_size, geometry=geometry)
        return open_images(paths, image_format, cache_dir=self.cache_dir, progress=progress)


def open_dataset(data_dir: str | Path, *, results_dir: str | Path, phantom_patients: int = 120, **choices) -> Dataset:
    """The data set that a notebook's parameters name; an empty ``data_dir`` is the phantom.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_metadata` and `image_paths`; the table and the presence of the images are looked at here.
    """
    if data_dir:
        folder = project_path(data_dir)
    else:
        from fetal_utils.phantom import phantom_dir

        folder = phantom_dir(PROJECT_ROOT / "data", n_patients=phantom_patients, seed=0)
    dataset = Dataset(folder, project_path(results_dir) / "cache", **choices)
    image_paths(folder, dataset.metadata["image_name"])
    return dataset
