"""Who is trained on, who chooses, who is tested, whose labels are used: patients, never images, are divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

SUBSETS = ("train", "development", "test")
N_ORDERS = 32  # random orders of the patients that a split is the best of
TOLERANCE = 0.25  # of the development share asked for: beyond it the data summary warns


def split_by_patient(
    metadata: pd.DataFrame,
    *,
    development_fraction: float,
    rng: np.random.Generator,
    label_columns: Sequence[str] = ("plane", "brain_plane"),
) -> pd.Series:
    """Take development patients from the official training patients.

    In a random order, a patient is taken if that brings the images taken, in all and of each label, nearer to their
    share; of several orders the nearest counts. No label loses its last training patient.

    Parameters
    ----------
    metadata : DataFrame
        As from `read_metadata`.
    development_fraction : float
        Share of the training images to aim at, 0 < development_fraction <= 0.5.
    rng : Generator
    label_columns : sequence of str
        Columns whose labels are shared out evenly.

    Returns
    -------
    Series of str
        One of `SUBSETS` for every row of the table.

    Raises
    ------
    ValueError
        If the fraction is out of range or no patient can be taken.
    """
    if not 0 < development_fraction <= 0.5:
        raise ValueError(f"development_fraction={development_fraction}: expected more than 0 and at most 0.5")
    train = metadata[metadata["split"] == "train"]
    labels = pd.get_dummies(train[list(label_columns)].astype(str), dtype=int)
    counts = labels.groupby(train["patient"]).sum()  # (n_patients, n_labels), images
    total = counts.sum().to_numpy()
    target = development_fraction * total
    # chi-square: as far from the shares of the labels as from that of all images
    weight = np.append(1 / np.maximum(target, 1), len(total) / max(development_fraction * len(train), 1))

    def distance(taken: np.ndarray) -> float:
        off = np.append(taken - target, (taken - target).sum() / len(label_columns))
        return float((weight * off**2).sum())

    best, chosen = math.inf, np.array([], dtype=int)
    for _ in range(N_ORDERS):
        taken, patients = np.zeros_like(total), []
        for position in rng.permutation(len(counts)):
            more = taken + counts.to_numpy()[position]
            if (more < total).all() and distance(more) < distance(taken):
                taken = more
                patients.append(counts.index[position])
        if patients and distance(taken) < best:
            best, chosen = distance(taken), np.array(patients)
    if not len(chosen):
        raise ValueError(
            f"development_fraction={development_fraction}: none of the {len(counts)} training patients can be spared, "
            "as each is the only one of a label or too large a part; add patients"
        )
    subset = metadata["split"].mask(metadata["patient"].isin(chosen), "development")
    assert subset.groupby(metadata["patient"]).nunique().max() == 1, "a patient is in two subsets"
    return subset


@dataclass(frozen=True)
class LabelledSubset:
    """The training images whose labels a run may see.

    Attributes
    ----------
    rows : ndarray of int, shape (n_images,)
        Sorted positions among the images that the subset was drawn from.
    n_patients : int
        Patients these images come from.
    added : dict
        For a label that the fraction alone would have left empty, the patient that was added.
    """

    rows: np.ndarray
    n_patients: int
    added: dict


def draw_labelled_subset(
    labels: Sequence, patients: Sequence[int], *, order: Sequence[int], fraction: float
) -> LabelledSubset:
    """The images of a fraction of the patients, with every label present; larger fractions hold the smaller ones.

    The first ``ceil(fraction * n_patients)`` patients of the order are taken. For a label that none of them has, the
    first patient in that order who has it is added.

    Parameters
    ----------
    labels, patients : sequences, shape (n_images,)
        Label and patient of each training image of a task.
    order : sequence of int
        A random order of *all* training patients, the same for every task, fraction and strategy of a draw.
    fraction : float
        Share of the task's training patients, 0 < fraction <= 1.

    Raises
    ------
    ValueError
        If the fraction is out of range, there is no image, or a patient is not in the order.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction={fraction}: expected more than 0 and at most 1 (1 % is 0.01)")
    labels, patients = np.asarray(labels), np.asarray(patients)
    own = np.asarray(order)[np.isin(order, patients)]
    if not len(labels) or len(labels) != len(patients) or set(own) != set(patients):
        raise ValueError(f"{len(labels)} labels of {len(patients)} images: expected one each, of patients in the order")
    # a product such as 0.07 * 100 comes out a hair above its true value: round before the ceiling
    chosen = set(own[: math.ceil(round(fraction * len(own), 9))].tolist())
    present = set(labels[np.isin(patients, list(chosen))].tolist())
    rank = pd.Series(np.arange(len(own)), index=own)
    first = rank[patients].groupby(labels).min()  # by label
    added = {label: int(own[position]) for label, position in first.items() if label not in present}
    chosen |= set(added.values())
    rows = np.flatnonzero(np.isin(patients, list(chosen)))
    return LabelledSubset(rows=rows, n_patients=len(chosen), added=added)
