"""What common mistakes do to the numbers: splits by image, and results chosen on the test patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from fetal_utils.diagnostics import macro_f1_of_present
from fetal_utils.metrics import weighted_metrics
from fetal_utils.probes import build_probe

SPLITS = ("by image", "by patient")
TEACHING_STRENGTH = 0.01  # inverse regularisation, fixed: where splits are compared nothing may be chosen


def teaching_classifiers() -> dict[str, ClassifierMixin]:
    """A probe, and the nearest neighbour: what remembers a patient best gains most from meeting it again."""
    return {
        "linear probe": build_probe(strength=TEACHING_STRENGTH),
        "nearest neighbour": KNeighborsClassifier(1, metric="cosine"),
    }


def cross_validated_f1(
    classifier: ClassifierMixin,
    features: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    split: str,
    rng: np.random.Generator,
    n_folds: int = 5,
) -> float:
    """Macro-F1 of a classifier on images that it was not fitted on, each predicted once.

    Parameters
    ----------
    classifier : ClassifierMixin
        Of scikit-learn, not fitted; stays so.
    features : ndarray, shape (n_images, n_features)
    labels, patients : ndarray, shape (n_images,)
    split : str
        "by patient": all images of a patient fall into one fold. "by image": the mistake, folds of images.
    rng : Generator
        Deals the folds.
    n_folds : int
        At least 2; no more than there are patients.

    Returns
    -------
    float
        Over the classes that the images have.

    Raises
    ------
    ValueError
        If the split is unknown or there are fewer patients than folds.
    """
    n_patients = len(np.unique(patients))
    if split not in SPLITS or not 2 <= n_folds <= n_patients:
        raise ValueError(
            f"split={split!r}, n_folds={n_folds} of {n_patients} patients: expected one of {SPLITS}, and 2 folds or "
            "more, each with a patient"
        )
    dealer, groups = (StratifiedGroupKFold, patients) if split == "by patient" else (StratifiedKFold, None)
    folds = dealer(n_folds, shuffle=True, random_state=int(rng.integers(2**31)))
    with threadpool_limits(1):  # matrices this small are slower on several threads
        predicted = cross_val_predict(classifier, features, labels, groups=groups, cv=folds)
    return macro_f1_of_present(labels, predicted)


def compare_splits(
    features: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    n_folds: int = 5,
    n_repeats: int = 3,
) -> pd.DataFrame:
    """The same features and classifiers, judged by a split of images and by one of patients.

    Parameters
    ----------
    features, labels, patients, rng, n_folds
        As for `cross_validated_f1`.
    n_repeats : int
        Times that the folds are dealt anew.

    Returns
    -------
    DataFrame
        Columns ``classifier, split, repeat, macro_f1``.
    """
    rows = [
        {
            "classifier": name,
            "split": split,
            "repeat": repeat,
            "macro_f1": cross_validated_f1(
                classifier, features, labels, patients, split=split, rng=rng, n_folds=n_folds
            ),
        }
        for repeat in range(n_repeats)
        for name, classifier in teaching_classifiers().items()
        for split in SPLITS
    ]
    return pd.DataFrame(rows)


def choose_on_test(
    predictions: Sequence[pd.DataFrame],
    val_scores: Sequence[float],
    classes: Sequence[str],
    *,
    rng: np.random.Generator,
    n_halvings: int = 200,
) -> pd.DataFrame:
    """What choosing the best of several results on the test patients adds to the score that is reported.

    Again and again the test patients are dealt into two halves. The first plays the test set: the best of some
    results is chosen by its score there (the mistake), or by its score on the validation patients, and reported on
    it. The second half, which nobody has looked at, says what the chosen one is worth. Both halves play both parts,
    so luck of the deal cancels: whoever does not look at the first half reports, on average, what it is worth.

    Parameters
    ----------
    predictions : sequence of DataFrame
        As `Run.predictions`, of the same test images.
    val_scores : sequence of float
        Of each result on the validation patients.
    classes : sequence of str
    rng : Generator
        Deals the patients and draws which results are tried.
    n_halvings : int

    Returns
    -------
    DataFrame
        Columns ``n_tried, chosen_on`` ("test", "validation"), ``reported, worth`` (mean macro-F1), ``optimism``,
        their difference; ``n_tried`` is 1, 2, 4, ... and all.

    Raises
    ------
    ValueError
        If there is no result, there are fewer than four test patients, or the counts differ.
    """
    n_patients = predictions[0]["patient"].nunique() if len(predictions) else 0
    if not len(predictions) or len(predictions) != len(val_scores) or n_patients < 4:
        raise ValueError(
            f"{len(predictions)} results with {len(val_scores)} validation scores, {n_patients} test patients: "
            "expected a result or more with a score each, and four patients or more to halve"
        )
    first, second = halve_twice(n_patients, n_halvings=n_halvings, rng=rng)
    on_first, on_second = (
        np.column_stack([weighted_metrics(one, classes, half, metrics=("f1",))["f1"][:, 0] for one in predictions])
        for half in (first, second)
    )  # (2 n_halvings, n_results)
    order = np.array([rng.permutation(len(predictions)) for _ in range(n_halvings)])
    order = np.concatenate([order, order])  # a half is tried with the same results in both parts
    validation = np.broadcast_to(np.asarray(val_scores, dtype=float), on_first.shape)
    rows = []
    for n_tried in tries(len(predictions)):
        for chosen_on, score in (("test", on_first), ("validation", validation)):
            tried = order[:, :n_tried]
            best = np.take_along_axis(score, tried, axis=1).argmax(1)[:, None]
            chosen = np.take_along_axis(tried, best, axis=1)
            reported, worth = (np.take_along_axis(on, chosen, axis=1).mean() for on in (on_first, on_second))
            rows.append({"n_tried": n_tried, "chosen_on": chosen_on, "reported": reported, "worth": worth})
    return pd.DataFrame(rows).assign(optimism=lambda table: table["reported"] - table["worth"])


def halve_twice(n_patients: int, *, n_halvings: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights 0 and 1 of two halves of the patients, each deal once in either order.

    Two arrays of int, shape (2 * n_halvings, n_patients), that add up to 1.
    """
    deals = np.array([rng.permutation(n_patients) for _ in range(n_halvings)]) < n_patients // 2
    first = np.concatenate([deals, ~deals]).astype(int)
    return first, 1 - first


def tries(n_results: int) -> list[int]:
    """1, 2, 4, ... up to all."""
    powers = [2**power for power in range(n_results.bit_length())]
    return sorted({*(power for power in powers if power < n_results), n_results})
