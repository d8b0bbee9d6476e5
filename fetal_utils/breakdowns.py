"""Where a model holds up: macro-F1 by machine, by operator, and by the number of labelled patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fetal_utils.evaluation import draw_shared_weights, mean_metrics
from fetal_utils.intervals import percentile_interval
from fetal_utils.metrics import mean_of_present
from fetal_utils.runs import Run

SEEN_SHARE = 0.01  # of the training images, from which on a machine or operator counts as trained on
FEW_PATIENTS = 10  # below, a bootstrap of patients gives too narrow an interval
TRAINED_ON, UNSEEN, SHIFT = "all trained on", "all unseen", "unseen minus trained on"


def breakdown(
    predictions: pd.DataFrame | Sequence[pd.DataFrame],
    classes: Sequence[str],
    *,
    column: str,
    training: Sequence[str] | pd.Series,
    n_resamples: int,
    rng: np.random.Generator,
    metric: str = "f1",
) -> pd.DataFrame:
    """A macro metric within each machine or operator, and what is lost on those that training hardly showed.

    Parameters
    ----------
    predictions : DataFrame, or a sequence of them
        As for `metrics_table`; several are averaged.
    classes : sequence of str
        Class names in the fixed order of the task.
    column : str
        "machine", "operator" or another column of the predictions.
    training : sequence of str
        That column's value for each training image: ``dataset.metadata[column].iloc[dataset.rows("train", task)]``.
        A value with less than `SEEN_SHARE` of them counts as unseen.
    n_resamples : int
        Bootstrap resamples of the test patients, the same for all rows.
    rng : numpy Generator
        Draws the resamples.
    metric : str
        One of `metrics.CLASS_METRICS`.

    Returns
    -------
    DataFrame
        Columns ``<column>, group, n_train_images, n_images, n_patients, n_classes, value, low, high, note``. A row
        for each value that training or test images have, with the group "trained on" or "unseen"; then
        `TRAINED_ON` and `UNSEEN`, each of these groups as one; then `SHIFT`, their difference over the classes that
        both have, with counts of all test images. No row is left out: without test images the value is NaN, with a
        single patient the interval, and ``note`` says so and names the classes without test images.

    Raises
    ------
    ValueError
        If the predictions are malformed or of one patient, the column is missing or incomplete, or there are no
        training images.

    Notes
    -----
    Groups differ in more than the machine: a mean over other classes, or over other patients, is another number.
    The classes of a row are counted for that reason, and the shift is over shared classes only.
    """
    tables = [predictions] if isinstance(predictions, pd.DataFrame) else list(predictions)
    weights = draw_shared_weights(tables, classes, n_resamples=n_resamples, rng=rng)
    check_column(tables[0], column, training)
    n_train = pd.Series(training).value_counts()
    seen = set(n_train.index[n_train >= SEEN_SHARE * n_train.sum()])
    values = sorted(set(tables[0][column]) | set(n_train.index))
    groups = {TRAINED_ON: [v for v in values if v in seen], UNSEEN: [v for v in values if v not in seen]}
    rows, scores = [], {}
    for name, members in {**{value: [value] for value in values}, **groups}.items():
        inside = [table[table[column].isin(members)] for table in tables]
        n_patients = inside[0]["patient"].nunique()
        scores[name] = class_scores(inside, classes, weights_within(tables[0], inside[0], weights), metric=metric)
        rows.append(
            {
                column: name,
                "group": "unseen" if name in groups[UNSEEN] or name == UNSEEN else "trained on",
                "n_train_images": int(n_train.reindex(members, fill_value=0).sum()),
                "n_images": len(inside[0]),
                "n_patients": n_patients,
            }
            | summarise(scores[name], classes, n_patients=n_patients)
        )
    all_images = {"n_train_images": len(training), "n_images": len(tables[0]), "n_patients": weights.shape[1]}
    fewest = min(row["n_patients"] for row in rows[-2:])
    shift = summarise(scores[UNSEEN] - scores[TRAINED_ON], classes, n_patients=fewest)
    return pd.DataFrame([*rows, {column: SHIFT, "group": "", **all_images, **shift}])


def by_labelled_patients(
    runs: Sequence[Run], *, n_resamples: int, rng: np.random.Generator, metric: str = "f1"
) -> pd.DataFrame:
    """A macro metric against the number of labelled patients, for each strategy and protocol.

    Parameters
    ----------
    runs : sequence of Run
        Supervised runs of one task on one test set.
    n_resamples, rng, metric
        As for `breakdown`.

    Returns
    -------
    DataFrame
        Columns ``strategy, protocol, label_fraction, n_labelled_patients, n_labelled_images, n_runs, n_images,
        n_patients, n_classes, value, low, high, sd_over_runs, note``, the last four counts of the test set. A row
        for each strategy, protocol and label fraction, averaged over draws and seeds, numbers of labels too, as an
        empty class may add a patient to a draw. The interval is about other test patients; ``sd_over_runs`` is the
        standard deviation over draws and seeds, NaN for one run.

    Raises
    ------
    ValueError
        If there are no runs, they are of several tasks or test sets, or there is only one test patient.
    """
    tasks = {run.settings.task for run in runs}
    if len(tasks) != 1:
        raise ValueError(f"runs of the tasks {sorted(tasks)}: give runs of one, as their classes differ")
    classes = runs[0].record["facts"]["classes"]
    tables = [run.predictions for run in runs]
    weights = draw_shared_weights(tables, classes, n_resamples=n_resamples, rng=rng)
    n_patients = tables[0]["patient"].nunique()
    about = pd.DataFrame([label_counts(run) for run in runs])
    rows = []
    for key, group in about.groupby(["strategy", "protocol", "label_fraction"], sort=False):
        by_run = np.stack([class_scores([tables[i]], classes, weights, metric=metric) for i in group.index])
        rows.append(
            dict(zip(("strategy", "protocol", "label_fraction"), key, strict=True))
            | group[["n_labelled_patients", "n_labelled_images"]].mean().to_dict()
            | {"n_runs": len(group), "n_images": len(tables[0]), "n_patients": n_patients}
            | summarise(by_run.mean(axis=0), classes, n_patients=n_patients)
            | {"sd_over_runs": pd.Series(mean_of_present(by_run[:, 0])).std()}
        )
    table = pd.DataFrame(rows).sort_values(["protocol", "strategy", "n_labelled_patients"], kind="stable")
    return table[[name for name in table if name != "note"] + ["note"]].reset_index(drop=True)


def label_counts(run: Run) -> dict[str, object]:
    """What a supervised run was, and the labels it saw."""
    facts, settings = run.record["facts"], run.settings
    return {
        "strategy": settings.strategy,
        "protocol": settings.protocol,
        "label_fraction": settings.label_fraction,
        "n_labelled_patients": facts["n_patients"],
        "n_labelled_images": facts["n_images"],
    }


def check_column(predictions: pd.DataFrame, column: str, training: Sequence[str] | pd.Series) -> None:
    """Raise a ValueError for a column that can't divide the test images, or no training images to compare with."""
    if column not in predictions.columns:
        raise ValueError(f"no column {column!r} in {list(predictions.columns)}: name one of these")
    if predictions[column].isna().any():
        raise ValueError(f"{predictions[column].isna().sum()} images have no {column!r}: fill in a name for them")
    if not len(training):
        raise ValueError(f"no training images: give the {column!r} of each, to tell what the model was trained on")


def weights_within(predictions: pd.DataFrame, inside: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """The columns of patient weights that belong to the patients of a part of the table."""
    return weights[:, np.isin(np.unique(predictions["patient"]), inside["patient"])]


def class_scores(
    tables: Sequence[pd.DataFrame], classes: Sequence[str], weights: np.ndarray, *, metric: str
) -> np.ndarray:
    """A metric of each class, averaged over tables, shape (n_weightings, n_classes); NaN where a class is absent."""
    with np.errstate(invalid="ignore"):  # a resample without any patient of the group
        return mean_metrics(tables, classes, weights, metrics=[metric])[metric][:, 1:]


def summarise(scores: np.ndarray, classes: Sequence[str], *, n_patients: int) -> dict[str, object]:
    """Mean over the classes that are there, its interval, and what a reader must know of both.

    Parameters
    ----------
    scores : ndarray, shape (1 + n_resamples, n_classes)
        The first row is the data as they are.
    classes : sequence of str
    n_patients : int
        Test patients behind the scores.
    """
    macro = mean_of_present(scores)
    low, high = percentile_interval(macro[1:]) if n_patients > 1 else (np.nan, np.nan)
    absent = [name for name, score in zip(classes, scores[0], strict=True) if np.isnan(score)]
    notes = ["one patient, no interval"] if n_patients == 1 else []
    if 1 < n_patients < FEW_PATIENTS:
        notes = ["few patients"]
    notes += [f"without {', '.join(absent)}"] if 0 < len(absent) < len(classes) else []
    return {
        "n_classes": len(classes) - len(absent),
        "value": float(macro[0]),
        "low": float(low),
        "high": float(high),
        "note": "; ".join(notes) if n_patients else "no test images",
    }
