"""Who is trained on, who chooses, who is tested, whose labels are used: patients, never images, are divided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

SUBSETS = ("train", "development", "test")
N_ORDERS = 16  # random orders of the patients, the best of which makes the split
TOLERANCE = 0.25  # of the development share asked for: beyond it the data summary warns


def split_by_patient(
    metadata: pd.DataFrame,
    *,
    development_fraction: float,
    rng: np.random.Generator,
    label_columns: Sequence[str] = ("plane", "brain_plane"),
) -> pd.Series:
    """Take development patients from the official training patients.

    In a random order, a patient is taken if the images taken, in all and of each label of ``label_columns``, thereby
    come nearer to their share; of several orders the nearest counts. No label loses its last training patient.

    Parameters
    ----------
    metadata : DataFrame
        As from `read_metadata`.
    development_fraction : float
        Share of the training images to aim at, 0 < development_fraction <= 0.5.

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
    by_patient = pd.get_dummies(train[list(label_columns)].astype(str), dtype=int).groupby(train["patient"]).sum()
    counts, patients = by_patient.to_numpy(), by_patient.index.to_numpy()  # images, (n_patients, n_labels)
    total = counts.sum(axis=0)
    target = development_fraction * total

    def distance(taken: np.ndarray) -> float:
        """Chi-square of the labels' counts, and as much again for that of all images."""
        off = taken - target
        return float((off**2 / target).sum() + len(target) * off.sum() ** 2 / (len(label_columns) * target.sum()))

    best, chosen = math.inf, []
    for _ in range(N_ORDERS):
        taken, positions = np.zeros_like(total), []
        for position in rng.permutation(len(counts)):
            more = taken + counts[position]
            if (more < total).all() and distance(more) < distance(taken):
                taken = more
                positions.append(position)
        if positions and distance(taken) < best:
            best, chosen = distance(taken), positions
    if not chosen:
        raise ValueError(
            f"development_fraction={development_fraction}: none of {len(counts)} training patients can be spared, each "
            "being the only one of a label or too large a part; add patients"
        )
    subset = metadata["split"].mask(metadata["patient"].isin(patients[chosen]), "development")
    assert subset.groupby(metadata["patient"]).nunique().max() == 1, "a patient is in two subsets"
    return subset


@dataclass(frozen=True)
class LabelledSubset:
    """The training images whose labels a run may see: sorted ``rows`` of those drawn from, of ``n_patients``.

    ``added`` gives, for each label that the fraction alone would have left empty, the patient who was added.
    """

    rows: np.ndarray
    n_patients: int
    added: dict


def draw_labelled_subset(
    labels: Sequence, patients: Sequence[int], *, order: Sequence[int], fraction: float
) -> LabelledSubset:
    """The images of a fraction of the patients, with every label present; a larger fraction holds all of a smaller.

    The first ``ceil(fraction * n_patients)`` patients of the order are taken. For a label that none of them has, the
    first patient in that order who has it is added.

    Parameters
    ----------
    labels, patients : sequences, shape (n_images,)
        Label and patient of each training image of a task.
    order : sequence of int
        *All* training patients, in one random order for every task, fraction and strategy: `Dataset.patient_order`.
    fraction : float
        Share of the task's training patients, 0 < fraction <= 1.

    Raises
    ------
    ValueError
        If the fraction is out of range, there is no image, or a patient is missing in the order.
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
    first = rank[patients].groupby(labels).min()  # of each label, the position in the order
    added = {label: int(own[position]) for label, position in first.items() if label not in present}
    chosen |= set(added.values())
    rows = np.flatnonzero(np.isin(patients, list(chosen)))
    return LabelledSubset(rows=rows, n_patients=len(chosen), added=added)


def data_summary(
    metadata: pd.DataFrame,
    *,
    label_column: str,
    classes: Sequence[str],
    left_out: Mapping[str, str],
    development_fraction: float,
) -> pd.DataFrame:
    """What the subsets of a task hold and what was left out.

    Returns
    -------
    DataFrame
        Rows ``(about, name)``: "total" (images, patients), "class" and "machine" (images), "left out" (images by
        reason), "check" (patients in two subsets, which is 0) and, if need be, "warning"; columns `SUBSETS`, ``total``.
    """
    label, subset = metadata[label_column], pd.Categorical(metadata["subset"], categories=SUBSETS)
    used = label.isin(classes).to_numpy()

    def count(values: pd.Series, chosen: np.ndarray) -> pd.DataFrame:
        return pd.crosstab(values[chosen], subset[chosen], dropna=False)

    patients = metadata["patient"][used].groupby(subset[used], observed=False).nunique()
    share = (subset == "development").sum() / (subset != "test").sum()
    warning = f"{share:.0%} of the training images are for development; {development_fraction:.0%} were asked for"
    n_shared = metadata.groupby("patient")["subset"].nunique().gt(1).sum()
    reasons = label.map(lambda name: f"{name}: {left_out.get(name)}")
    parts = {
        "total": pd.DataFrame({"images": pd.Series(subset[used]).value_counts(), "patients": patients}).T,
        "class": count(label, used).reindex(list(classes), fill_value=0),
        "machine": count(metadata["machine"], used),
        "left out": count(reasons, ~used),
        "check": pd.DataFrame(n_shared, index=["patients in two subsets"], columns=SUBSETS),
        "warning": pd.DataFrame(0, index=[warning], columns=SUBSETS),
    }
    if round(abs(share / development_fraction - 1), 9) <= TOLERANCE:
        del parts["warning"]
    table = pd.concat(parts, names=["about", "name"]).astype(int)[list(SUBSETS)]
    return table.assign(total=table.sum(axis=1))


def leak_of_random_split(patients: Sequence[int], *, test_fraction: float) -> float:
    """Share of test images whose patient would also be trained on if *images* were split at random, 0..1.

    In closed form: a patient stays out of training only if all his or her other images, too, fall among the test
    images (hypergeometric); ``test_fraction``, 0 < test_fraction < 1, is the share of the images tested on.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction}: expected more than 0 and less than 1")
    siblings = pd.Series(patients).groupby(np.asarray(patients)).transform("size").to_numpy() - 1
    n_test = max(1, round(test_fraction * len(siblings)))
    return float(1 - hypergeom.pmf(siblings, len(siblings) - 1, siblings, n_test - 1).mean())


def same_patient_rate(patients: Sequence[int], planes: Sequence[str], *, batch_size: int) -> float:
    """Expected share of a random batch's anchors that meet another image of their own patient and plane, 0..1.

    NT-Xent pushes such a pair apart although it shows the same anatomy: a false negative.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: expected at least 2 images")
    table = pd.DataFrame({"patient": np.asarray(patients), "plane": np.asarray(planes)})
    siblings = table.groupby(["patient", "plane"])["plane"].transform("size").to_numpy() - 1
    n_others = min(batch_size, len(table)) - 1
    return float(1 - hypergeom.pmf(0, len(table) - 1, siblings, n_others).mean())
