"""A data folder opened for the study: table, patient split, tasks and images under one key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fetal_utils.data import CSV_COLUMNS, read_metadata
from fetal_utils.environment import PROJECT_ROOT, project_path
from fetal_utils.images import ImageFormat, files_hash, image_paths, open_images
from fetal_utils.phantom import phantom_dir
from fetal_utils.receipts import Receipt, make_receipt
from fetal_utils.splits import split_by_patient
from fetal_utils.tasks import TASKS, Task, find_task, present_classes, read_tasks

PHANTOM_PATIENTS = 120  # of the embedded data set, unless a notebook says otherwise


@dataclass(frozen=True)
class Dataset:
    """A folder in the layout of FETAL_PLANES_DB, with the choices that decide what a run sees.

    Attributes
    ----------
    data_dir : Path
        Folder with ``Images/`` and ``FETAL_PLANES_DB_data.csv``; only ever read.
    cache_dir : Path
        Folder for the decoded images.
    val_fraction : float
        Share of the training images whose patients validate.
    split_seed : int
        Decides which patients validate; one choice for all runs of a study.
    geometry : str
        "pad" or "crop", see `ImageFormat`.
    blank_text : bool
        Paint the corner where scanners print black, for every strategy alike.
    """

    data_dir: Path
    cache_dir: Path
    val_fraction: float = 0.2
    split_seed: int = 0
    geometry: str = "pad"
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
        """The table of `read_metadata` with a column ``subset``: "train", "val" or "test"."""
        label_columns = {task.label_column for task in self.tasks.values()}
        extra_columns = sorted(label_columns - set(CSV_COLUMNS.values()))
        table = read_metadata(self.data_dir, extra_columns=extra_columns)
        rng = np.random.default_rng(self.split_seed)
        return table.assign(subset=split_by_patient(table, val_fraction=self.val_fraction, rng=rng))

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits of all that a run's numbers depend on but its settings:
        table, split, names and sizes of the image files, geometry, blanking, tasks of one's own."""
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
        """A task, restricted to the classes this data set has (see `present_classes`)."""
        return present_classes(self.metadata, find_task(name, self.tasks))

    def labels(self, task: Task) -> np.ndarray:
        """Class of every row as its position in ``task.classes``, int, -1 where left out; shape (n_rows,)."""
        return pd.Index(task.classes).get_indexer(self.metadata[task.label_column]).astype(np.int64)

    def rows(self, subset: str, task: Task | None = None) -> np.ndarray:
        """Positions of a subset's images in the table, of one task or of all; shape (n_images,)."""
        chosen = (self.metadata["subset"] == subset).to_numpy()
        if task is not None:
            chosen = chosen & (self.labels(task) >= 0)
        return np.flatnonzero(chosen)

    def receipt(self, name: str) -> Receipt:
        """What the subsets of a task hold and what was left out."""
        return make_receipt(
            self.metadata, self.metadata["subset"], task=find_task(name, self.tasks), present=self.task(name)
        )

    def images(self, image_size: int, *, geometry: str | None = None, progress: bool = True) -> np.memmap:
        """All images, decoded once: uint8, shape (n_rows, image_size, image_size)."""
        return open_images(
            self.data_dir,
            self.metadata["image_name"],
            self.image_format(image_size, geometry=geometry),
            cache_dir=self.cache_dir,
            progress=progress,
        )

    def image_format(self, image_size: int, *, geometry: str | None = None) -> ImageFormat:
        """How an image becomes a square here."""
        image_format = ImageFormat(image_size, geometry or self.geometry, self.blank_text)
        if image_format.geometry == "text_corner":
            return replace(image_format, blank_text=False)  # the corner is asked about as it was
        return image_format


def open_dataset(
    data_dir: str | Path, *, results_dir: str | Path, phantom_patients: int = PHANTOM_PATIENTS, **choices
) -> Dataset:
    """The data set that a notebook's parameters name.

    Parameters
    ----------
    data_dir : path
        A folder in the layout of FETAL_PLANES_DB, relative ones from the repository root; empty
        for the phantom, which is drawn into ``data/`` on first use.
    results_dir : path
        Its folder ``cache`` takes the decoded images.
    phantom_patients : int
        Patients of the phantom; of no meaning for another data set.
    **choices
        Further fields of `Dataset`.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_metadata` and `image_paths`; the table and the presence of the images are looked at here.
    """
    if data_dir:
        folder = project_path(data_dir)
    else:
        folder = phantom_dir(PROJECT_ROOT / "data", n_patients=phantom_patients, seed=0)
    dataset = Dataset(folder, project_path(results_dir) / "cache", **choices)
    image_paths(folder, dataset.metadata["image_name"])
    return dataset
