"""The labels that a supervised run may see, and the table of predictions it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd

from fetal_utils.dataset import Dataset
from fetal_utils.diagnostics import macro_f1_of_present
from fetal_utils.files import replace_file
from fetal_utils.predictions import probability_columns
from fetal_utils.runs import Work
from fetal_utils.settings import Settings
from fetal_utils.splits import LabelledSubset, draw_labelled_subset
from fetal_utils.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Supervised(Settings):
    """What every run on labels is asked by.

    Attributes
    ----------
    task, strategy : str
        Names in the data set's tasks and in `fetal_utils.strategies`; the strategy is a label
        only, ``source`` or ``features`` says what it does.
    label_fraction : float
        Share of the training patients whose labels are used, 0 < label_fraction <= 1.
    draw : int
        Which of the nested label subsets; the same for every strategy.
    seed : int
        Of order, views and first weights.
    """

    protocol: ClassVar[str]
    task: str
    strategy: str
    label_fraction: float = 1.0
    draw: int = 0
    seed: int = 0

    def check(self, dataset: Dataset) -> None:
        if self.draw < 0 or self.seed < 0:
            raise ValueError(f"draw={self.draw}, seed={self.seed}: expected 0 or more")
        data = LabelledData(dataset, self)
        n_test_patients = dataset.metadata["patient"].iloc[data.test].nunique()
        if not len(data.val) or n_test_patients < 2:
            raise ValueError(
                f"task {self.task!r} has {len(data.val)} validation images and {n_test_patients} test patients; "
                "at least one image to choose by and two patients to test on are needed"
            )


class LabelledData:
    """Rows and classes of a supervised run.

    Attributes
    ----------
    task : Task
        Restricted to the classes of the data set.
    labels : ndarray of int, shape (n_rows,)
        Class of every row of the data set's table, -1 where the task leaves it out.
    train, val, test : ndarray of int
        Positions in the table; ``train`` only those whose labels the run may see.
    subset : LabelledSubset
        How ``train`` was drawn.
    """

    def __init__(self, dataset: Dataset, settings: Supervised) -> None:
        self.dataset = dataset
        self.task: Task = dataset.task(settings.task)
        self.labels = dataset.labels(self.task)
        pool = dataset.rows("train", self.task)
        # by the split's seed and not the run's: every strategy and seed gets the same draws
        rng = np.random.default_rng([dataset.split_seed, settings.draw])
        self.subset: LabelledSubset = draw_labelled_subset(
            self.labels[pool],
            dataset.metadata["patient"].to_numpy()[pool],
            fraction=settings.label_fraction,
            rng=rng,
        )
        self.train = pool[self.subset.rows]
        self.val, self.test = dataset.rows("val", self.task), dataset.rows("test", self.task)

    @cached_property
    def class_weights(self) -> np.ndarray:
        """Weight of each class in the loss, from the labelled images' own counts; shape (n_classes,).

        Inversely proportional to the count, with a mean of 1 over the images.
        """
        counts = np.bincount(self.labels[self.train], minlength=len(self.task.classes))
        return counts.sum() / (len(counts) * counts)

    def macro_f1(self, rows: np.ndarray, predicted: np.ndarray) -> float:
        """Macro-F1 of predictions for rows, over the classes that these rows have."""
        return macro_f1_of_present(self.labels[rows], predicted)

    def facts(self) -> dict:
        """Counts for the run's record."""
        return {
            "n_images": len(self.train),
            "n_patients": self.subset.n_patients,
            "patients_added_for_empty_classes": len(self.subset.added),
            "n_val_images": len(self.val),
            "n_test_images": len(self.test),
            "classes": list(self.task.classes),
        }

    def write_predictions(self, work: Work, probabilities: np.ndarray) -> None:
        """Write ``predictions.csv``: a row per test image, ``probabilities`` of shape (n_test, n_classes)."""
        classes = np.array(self.task.classes)
        table = self.dataset.metadata.iloc[self.test][["image_name", "patient", "operator", "machine"]]
        table = table.assign(true=classes[self.labels[self.test]], predicted=classes[probabilities.argmax(1)])
        columns = pd.DataFrame(
            probabilities.round(6), columns=probability_columns(self.task.classes), index=table.index
        )
        table = pd.concat([table, columns], axis=1)
        replace_file(work.folder / "predictions.csv", lambda path: table.to_csv(path, index=False))
