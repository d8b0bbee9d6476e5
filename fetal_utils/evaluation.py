"""Metrics of a model on the test patients, each with an interval, as one tidy table."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from fetal_utils.intervals import draw_patient_weights, percentile_interval
from fetal_utils.metrics import METRICS, weighted_metrics
from fetal_utils.predictions import check_predictions, check_same_test_set


def metrics_table(
    predictions: pd.DataFrame | Sequence[pd.DataFrame],
    classes: Sequence[str],
    *,
    n_resamples: int,
    rng: np.random.Generator,
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """Every metric, macro and per class, with its 95 % interval over patients.

    Parameters
    ----------
    predictions : DataFrame, or a sequence of them
        One row per test image (see `predictions.check_predictions`). Of a sequence (repeated draws and seeds
        on one test set) the metrics are averaged, and the interval is that of the average.
    classes : sequence of str
        Class names in the fixed order of the task.
    n_resamples : int
        Bootstrap resamples of the test patients.
    rng : numpy Generator
        Draws the resamples.
    metrics : sequence of str
        Names out of `metrics.METRICS`.

    Returns
    -------
    DataFrame
        Columns ``plane, metric, value, low, high``. ``plane`` is a class name, or ``macro`` for the mean over
        the classes with test images and for metrics of all images at once (``accuracy``,
        ``calibration_error``, and ``balanced_accuracy``, which is the macro sensitivity). A class without
        test images keeps its rows, all NaN. A resample that lacks a class leaves it out likewise.

    Raises
    ------
    ValueError
        If a table is malformed, the tables have different test images, or there is only one test patient.

    Notes
    -----
    The interval is about other test patients. It holds the trained model, and so the labelled images and the
    seed it was trained with, fixed: the spread over draws and seeds is another uncertainty. The calibration
    error is biased upwards in small samples and more so in their resamples, so its interval leans high.
    Where every image is right (or wrong) all resamples agree and the interval has no width: with n such
    patients up to about 3/n of others may still be wrong.
    """
    tables = [predictions] if isinstance(predictions, pd.DataFrame) else list(predictions)
    weights = draw_shared_weights(tables, classes, n_resamples=n_resamples, rng=rng)
    return _tidy(mean_metrics(tables, classes, weights, metrics=metrics), classes)


def count_confusion(predictions: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Confusion counts, shape (n_classes, n_classes): rows are true classes, columns predicted ones."""
    check_predictions(predictions, classes)
    return confusion_matrix(predictions["true"], predictions["predicted"], labels=list(classes))


def draw_shared_weights(
    tables: Sequence[pd.DataFrame], classes: Sequence[str], *, n_resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Check tables of one test set and draw the patient weights they share (`draw_patient_weights`)."""
    if not tables:
        raise ValueError("no predictions tables: give at least one")
    for table in tables:
        check_predictions(table, classes)
    check_same_test_set(tables)
    return draw_patient_weights(tables[0]["patient"].nunique(), n_resamples=n_resamples, rng=rng)


def mean_metrics(
    tables: Sequence[pd.DataFrame], classes: Sequence[str], weights: np.ndarray, *, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """`weighted_metrics` averaged over repeated runs on one test set, under the same patient weights."""
    runs = [weighted_metrics(table, classes, weights, metrics=metrics) for table in tables]
    return {name: np.mean([run[name] for run in runs], axis=0) for name in metrics}


def _tidy(values: dict[str, np.ndarray], classes: Sequence[str]) -> pd.DataFrame:
    """Rows of plane, metric, value and interval; row 0 of each array is the data as they are."""
    parts = []
    for metric, scores in values.items():  # (1 + n_resamples, 1 or 1 + n_classes)
        low, high = percentile_interval(scores[1:])
        planes = ["macro", *classes][: scores.shape[1]]
        parts.append(pd.DataFrame({"plane": planes, "metric": metric, "value": scores[0], "low": low, "high": high}))
    return pd.concat(parts, ignore_index=True)
