"""Who is trained on, who chooses, who is tested: patients, never images, are divided."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import hypergeom
from sklearn.model_selection import StratifiedGroupKFold

SUBSETS = ("train", "val", "test")


def split_by_patient(metadata: pd.DataFrame, *, val_fraction: float, rng: np.random.Generator) -> pd.Series:
    """Cut validation patients from the official training patients.

    The patients are stratified by plane and brain plane together, as well as whole patients
    allow, so that one split serves every task. A patient who is the only training patient of a
    plane stays in training.

    Parameters
    ----------
    metadata : DataFrame
        As from `read_metadata`.
    val_fraction : float
        Share of the training images to aim at, 0 < val_fraction <= 0.5; the nearest of 1/2, 1/3,
        1/4, ... is cut.
    rng : Generator

    Returns
    -------
    Series of str
        "train", "val" or "test" for every row of the table.

    Raises
    ------
    ValueError
        If the fraction is out of range or there are too few training patients or images.
    """
    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"val_fraction={val_fraction}: expected more than 0 and at most 0.5")
    subset = metadata["split"].copy()
    train = metadata[metadata["split"] == "train"]
    strata = train["plane"] + "/" + train["brain_plane"]
    n_patients = train.groupby(strata)["patient"].transform("nunique")
    needed = set(train["patient"][n_patients == 1])
    free = train[~train["patient"].isin(needed)]
    n_folds = round(1 / val_fraction)
    if free["patient"].nunique() < n_folds or strata[free.index].value_counts().max() < n_folds:
        raise ValueError(
            f"val_fraction={val_fraction}: {train['patient'].nunique()} training patients, {len(needed)} of them the "
            f"only one of a plane, are too few to cut validation patients from; at least {n_folds} others and "
            f"{n_folds} images of some plane are needed"
        )
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        # a plane with fewer images than folds is expected here, and judged below
        warnings.filterwarnings("ignore", message="The least populated class")
        candidates = [free.index[val] for _, val in folds.split(free, strata[free.index], free["patient"])]
    subset[min(candidates, key=lambda val: unevenness(strata, val))] = "val"
    assert_no_shared_patient(metadata["patient"], subset)
    return subset


def unevenness(strata: pd.Series, val: pd.Index) -> tuple[int, int, float]:
    """How far a choice of validation images is from the whole: strata emptied in training,
    strata without a validation image, and summed difference of the strata's shares."""
    in_val = strata[val].value_counts().reindex(strata.unique(), fill_value=0)
    in_all = strata.value_counts().reindex(in_val.index)
    difference = (in_val / in_val.sum() - in_all / in_all.sum()).abs().sum()
    return int((in_val == in_all).sum()), int((in_val == 0).sum()), float(difference)


def assert_no_shared_patient(patients: pd.Series, subset: pd.Series) -> None:
    """Raise an AssertionError that names patients found in more than one subset."""
    n_subsets = subset.groupby(patients).nunique()
    shared = n_subsets.index[n_subsets > 1].tolist()
    assert not shared, f"patients in more than one of {SUBSETS}: {shared[:5]} ({len(shared)} in all)"


@dataclass(frozen=True)
class LabelledSubset:
    """The training images whose labels a run may see.

    Attributes
    ----------
    rows : ndarray of int, shape (n_images,)
        Sorted positions in the table the subset was drawn from.
    n_patients : int
        Patients these images come from.
    added : dict of str to int
        For a class that the fraction alone would have left empty, the patient that was added.
    """

    rows: np.ndarray
    n_patients: int
    added: dict[str, int]


def draw_labelled_subset(
    labels: Sequence[str], patients: Sequence[int], *, fraction: float, rng: np.random.Generator
) -> LabelledSubset:
    """The images of a random fraction of the patients, with every class present.

    The first ``ceil(fraction * n_patients)`` patients of a random order are taken. For a class
    that none of them has, the first patient in that order who has it is added. Both steps only
    add as the fraction grows, so generators seeded alike give nested subsets.

    Parameters
    ----------
    labels, patients : sequences, shape (n_images,)
        Class and patient of each training image.
    fraction : float
        Share of the training patients, 0 < fraction <= 1.
    rng : Generator
        ``np.random.default_rng([seed, draw])`` gives every strategy the same subsets.

    Returns
    -------
    LabelledSubset

    Raises
    ------
    ValueError
        If the fraction is out of range or there is no image.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction={fraction}: expected more than 0 and at most 1 (1 % is 0.01)")
    labels, patients = np.asarray(labels), np.asarray(patients)
    if not len(labels) or len(labels) != len(patients):
        raise ValueError(f"{len(labels)} labels of {len(patients)} images: expected the same number, at least one")
    order = rng.permutation(np.unique(patients))
    # a product such as 0.07 * 100 comes out a hair above its true value: round before the ceiling
    chosen = set(order[: math.ceil(round(fraction * len(order), 9))].tolist())
    rank = pd.Series(np.arange(len(order)), index=order)
    first_of_class = pd.Series(order[rank[patients].groupby(labels).min()], index=np.unique(labels))
    present = set(labels[np.isin(patients, list(chosen))])
    added = {name: int(patient) for name, patient in first_of_class.items() if name not in present}
    chosen |= set(added.values())
    rows = np.flatnonzero(np.isin(patients, list(chosen)))
    return LabelledSubset(rows=rows, n_patients=len(chosen), added=added)


def leak_of_random_split(patients: Sequence[int], *, test_fraction: float) -> float:
    """Share of test images whose patient would also be trained on if *images* were split at random.

    The expectation in closed form: an image's patient stays out of training only if all of the
    patient's other images fall among the remaining test images (hypergeometric).

    Parameters
    ----------
    patients : sequence of int, shape (n_images,)
    test_fraction : float
        Share of the images that the random split would test on, 0 < test_fraction < 1.

    Returns
    -------
    float
        Between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction}: expected more than 0 and less than 1")
    siblings = pd.Series(patients).groupby(np.asarray(patients)).transform("size").to_numpy() - 1
    n_test = max(1, round(test_fraction * len(siblings)))
    in_training = 1 - hypergeom.pmf(siblings, len(siblings) - 1, siblings, n_test - 1)
    return float(in_training.mean())


def same_patient_rate(patients: Sequence[int], planes: Sequence[str], *, batch_size: int) -> float:
    """Share of anchors of a random batch that meet another image of their own patient and plane.

    NT-Xent pushes such a pair apart although it shows the same anatomy: a false negative.

    Parameters
    ----------
    patients, planes : sequences, shape (n_images,)
        Of the images that batches are drawn from.
    batch_size : int
        Images in a batch, at least 2.

    Returns
    -------
    float
        Expected share, between 0 and 1 (hypergeometric).
    """
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: expected at least 2 images")
    table = pd.DataFrame({"patient": np.asarray(patients), "plane": np.asarray(planes)})
    siblings = table.groupby(["patient", "plane"])["plane"].transform("size").to_numpy() - 1
    n_others = min(batch_size, len(table)) - 1
    return float(1 - hypergeom.pmf(0, len(table) - 1, siblings, n_others).mean())
