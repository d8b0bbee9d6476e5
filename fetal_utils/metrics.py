"""Classification metrics of one predictions table under many weightings of its patients at once.

Every metric here is a function of sums over patients, so a bootstrap resample of patients is a row of weights
and 2,000 resamples are one matrix product. scikit-learn computes one weighting per call; with all weights 1
the two agree, which the tests hold.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fetal_utils.predictions import probability_columns

CLASS_METRICS = ("f1", "sensitivity", "precision", "specificity", "auroc")
OVERALL_METRICS = ("balanced_accuracy", "calibration_error", "accuracy")
METRICS = CLASS_METRICS + OVERALL_METRICS
N_BINS = 15  # of the calibration error, as in Guo et al. 2017


def weighted_metrics(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    weights: np.ndarray,
    *,
    metrics: Sequence[str] = METRICS,
) -> dict[str, np.ndarray]:
    """Metrics of a checked predictions table for each row of patient weights.

    Parameters
    ----------
    predictions : DataFrame, one row per test image
        As `predictions.check_predictions` accepts it.
    classes : sequence of str
        Class names in the fixed order of the task.
    weights : ndarray, shape (n_weightings, n_patients)
        How often each patient counts; columns follow the sorted patients. Ones: the data as they are.
    metrics : sequence of str
        Names out of `METRICS`.

    Returns
    -------
    dict of str to ndarray
        Of shape (n_weightings, 1 + n_classes) for `CLASS_METRICS`, the macro mean first, and
        (n_weightings, 1) for `OVERALL_METRICS`. NaN where a class has no weight; the
        macro mean is over the other classes.

    Raises
    ------
    ValueError
        If a metric is unknown or the weights have another number of columns than there are patients.
    """
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise ValueError(f"unknown metrics {unknown}: choose from {list(METRICS)}")
    patients, patient = np.unique(predictions["patient"].to_numpy(), return_inverse=True)
    if weights.ndim != 2 or weights.shape[1] != len(patients):
        raise ValueError(f"weights of shape {weights.shape}, expected (n_weightings, {len(patients)} patients)")
    weights = weights.astype(float)
    true = pd.Index(classes).get_indexer(predictions["true"])
    predicted = pd.Index(classes).get_indexer(predictions["predicted"])
    probabilities = predictions[probability_columns(classes)].to_numpy(float)

    counts = count_confusions(true, predicted, patient, n_patients=len(patients), n_classes=len(classes))
    confusion = np.tensordot(weights, counts, axes=1)  # (n_weightings, n_classes, n_classes)
    values = metrics_from_confusion(confusion)
    if "auroc" in metrics:
        values["auroc"] = _aurocs(probabilities, true, patient, weights)
    overall = {
        "balanced_accuracy": mean_of_present(values["sensitivity"]),
        "accuracy": np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2)),
    }
    if "calibration_error" in metrics:
        confidence, correct = probabilities.max(axis=1), (predicted == true).astype(float)
        overall["calibration_error"] = _calibration_errors(confidence, correct, patient, weights)
    columns = {name: np.column_stack([mean_of_present(value), value]) for name, value in values.items()}
    columns |= {name: value[:, None] for name, value in overall.items()}
    return {name: columns[name] for name in metrics}


def count_confusions(
    true: np.ndarray, predicted: np.ndarray, patient: np.ndarray, *, n_patients: int, n_classes: int
) -> np.ndarray:
    """Confusion counts of each patient, shape (n_patients, n_classes, n_classes): true, then predicted."""
    counts = np.zeros((n_patients, n_classes, n_classes))
    np.add.at(counts, (patient, true, predicted), 1)
    return counts


def metrics_from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class F1, sensitivity, precision and specificity, one class against the others.

    Parameters
    ----------
    confusion : ndarray, shape (..., n_classes, n_classes)
        Counts or weights; rows are true classes, columns predicted ones.

    Returns
    -------
    dict of str to ndarray, shape (..., n_classes)
        A class that is there but never predicted has precision 0 (scikit-learn's ``zero_division=0``). A
        class that is not there is NaN in all four; false alarms for it still lower others' sensitivity.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    n_true, n_predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    n_other = confusion.sum(axis=(-2, -1))[..., None] - n_true
    values = {
        "f1": _ratio(2 * hits, n_true + n_predicted),
        "sensitivity": _ratio(hits, n_true),
        "precision": _ratio(hits, n_predicted, empty=0.0),
        "specificity": _ratio(n_other - (n_predicted - hits), n_other),
    }
    return {name: np.where(n_true > 0, value, np.nan) for name, value in values.items()}


def mean_of_present(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without its NaN; NaN only where nothing is left."""
    present = ~np.isnan(values)
    return _ratio(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), empty), where=denominator > 0)


def _aurocs(probabilities: np.ndarray, true: np.ndarray, patient: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One-vs-rest AUROC of each class, shape (n_weightings, n_classes)."""
    n_patients, n_classes = weights.shape[1], probabilities.shape[1]
    aurocs = np.full((len(weights), n_classes), np.nan)
    for index in range(n_classes):
        is_class = true == index
        if not is_class.any() or is_class.all():
            continue  # no pair to rank
        n_class, n_rest = (weights @ np.bincount(patient[side], minlength=n_patients) for side in (is_class, ~is_class))
        wins = count_wins(probabilities[:, index], is_class, patient, n_patients=n_patients)
        aurocs[:, index] = _ratio(((weights @ wins) * weights).sum(axis=1), n_class * n_rest)
    return aurocs


def count_wins(scores: np.ndarray, is_class: np.ndarray, patient: np.ndarray, *, n_patients: int) -> np.ndarray:
    """Correctly ranked pairs of images, by patient: AUROC is a quadratic form in the patients' weights.

    Parameters
    ----------
    scores : ndarray, shape (n_images,)
        Probability of the class.
    is_class : ndarray of bool, shape (n_images,)
        Where the image is of the class.
    patient : ndarray of int, shape (n_images,)
        Index of the image's patient.
    n_patients : int
        Number of patients.

    Returns
    -------
    ndarray, shape (n_patients, n_patients)
        ``[p, q]``: pairs of an image of the class from patient p and another image from patient q in which
        the first scores higher; a tie counts one half (Hanley and McNeil 1982, Radiology 143:29).
    """
    rows, columns = (np.flatnonzero(side) for side in (is_class, ~is_class))
    rows, columns = rows[np.argsort(patient[rows])], columns[np.argsort(patient[columns])]
    row_patients, row_starts = np.unique(patient[rows], return_index=True)
    column_patients, column_starts = np.unique(patient[columns], return_index=True)
    above, level = scores[rows, None] > scores[columns], scores[rows, None] == scores[columns]
    pairs = above.astype(np.float32) + np.float32(0.5) * level  # (n_class, n_rest)
    by_column = np.add.reduceat(pairs, column_starts, axis=1)
    wins = np.zeros((n_patients, n_patients))
    wins[np.ix_(row_patients, column_patients)] = np.add.reduceat(by_column, row_starts, axis=0)
    return wins


def _calibration_errors(
    confidence: np.ndarray, correct: np.ndarray, patient: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Expected calibration error of the predicted class, shape (n_weightings,). Guo et al. 2017, eq. 3."""
    # bins (k/15, (k+1)/15], as in the paper
    bins = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    gaps = np.zeros((weights.shape[1], N_BINS))
    np.add.at(gaps, (patient, bins), confidence - correct)
    n_images = weights @ np.bincount(patient, minlength=weights.shape[1])
    return np.abs(weights @ gaps).sum(axis=1) / n_images
