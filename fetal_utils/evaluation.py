"""Metrics of many runs under many weightings of the test patients at once.

Every metric is a function of sums over patients, so a bootstrap resample of patients is a row of weights, and all
resamples are one matrix product. With all weights 1 the metrics are scikit-learn's, which the tests hold.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

CLASS_METRICS = ("f1", "sensitivity", "precision", "specificity", "auroc")
METRICS = (*CLASS_METRICS, "balanced_accuracy", "calibration_error", "accuracy")
ARM = ["metric", "plane", "task", "protocol", "strategy", "label_fraction"]  # what an arm of the study is named by
N_BINS = 15  # of the calibration error, as in Guo et al. 2017


def check_predictions(predictions: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """The probabilities, (n_images, n_classes), of predictions; a ValueError if no honest metric can be computed."""
    columns = [f"probability_{name}" for name in classes]
    needed = ["image_name", "patient", "true", "predicted", *columns]
    missing = [column for column in needed if column not in predictions.columns]
    if missing or predictions.empty or predictions["image_name"].duplicated().any():
        raise ValueError(f"{len(predictions)} predictions without {missing}: expected one row per test image, with all")
    probabilities = predictions[columns].to_numpy(float)
    if not ((probabilities > -1e-3) & (np.abs(probabilities.sum(axis=1, keepdims=True) - 1) < 1e-3)).all():  # or NaN
        raise ValueError("probabilities are no distribution over the classes: look for a training that diverged")
    return probabilities


def patient_weights(patients: Sequence, *, n_resamples: int, seed: int = 0) -> pd.DataFrame:
    """How often each test patient (columns) is drawn in each bootstrap resample: (1 + n_resamples, n_patients).

    Row 0 is the data as they are, all ones. ``patients`` are those of all tasks, repeats allowed: one table serves all
    runs and tasks, as what is hard about a patient is so for all, and cancels in differences. 1,000 resamples steady a
    standard error to 2 %; ValueError below 10, or for one patient.
    """
    names = np.unique(np.asarray(patients))
    if len(names) < 2 or n_resamples < 10:
        raise ValueError(f"{len(names)} test patients, n_resamples={n_resamples}: an interval needs 2, and 10 or more")
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    return pd.DataFrame(np.concatenate([np.ones((1, len(names)), int), drawn]), columns=names)


def weighted_metrics(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    weights: pd.DataFrame,
    *,
    metrics: Sequence[str] = METRICS,
    class_counts: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Metrics of a predictions table for each row of patient weights, which may hold further patients.

    Of shape (n_weightings, 1 + n_classes) for `CLASS_METRICS`, the macro mean first, and (n_weightings, 1) for the
    others. NaN for a class without weight, which the macro mean leaves out. A loss that weighs classes alike gives
    probabilities for equally frequent classes: the calibration error multiplies them by the shares of
    ``class_counts``, the labelled images of each class, and renormalises.
    """
    probabilities = check_predictions(predictions, classes)
    patients, patient = np.unique(predictions["patient"].to_numpy(), return_inverse=True)
    drawn = weights[patients].to_numpy(float)
    true, predicted = (pd.Index(classes).get_indexer(predictions[column]) for column in ("true", "predicted"))
    shape = len(patients), len(classes), len(classes)
    cells = np.ravel_multi_index((patient, true, predicted), shape)
    counts = np.bincount(cells, minlength=np.prod(shape)).reshape(shape)  # of each patient: true, then predicted
    confusion = np.tensordot(drawn, counts, axes=1)  # (n_weightings, n_classes, n_classes)
    values = metrics_from_confusion(confusion)
    if "auroc" in metrics:
        values["auroc"] = _aurocs(probabilities, true, patient, drawn)
    values = {name: np.column_stack([mean_of_present(value), value]) for name, value in values.items()}
    values["balanced_accuracy"] = values["sensitivity"][:, :1]
    values["accuracy"] = _ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))[:, None]
    if "calibration_error" in metrics:
        if class_counts is not None:
            probabilities = probabilities * np.asarray(class_counts)
            probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        values["calibration_error"] = _calibration_errors(probabilities, true, patient, drawn)[:, None]
    return {name: values[name] for name in metrics}


def metrics_from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """F1, sensitivity, precision and specificity of each class, (..., n_classes), from (..., true, predicted).

    A class that is there but never predicted has precision 0 (scikit-learn's ``zero_division=0``). A class that is not
    there is NaN; false alarms for it still lower others' sensitivity.
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
    """One-vs-rest AUROC of each class, shape (n_weightings, n_classes): a quadratic form in the patients' weights.

    A pair of images, one of the class and one not, is won where the first has the higher probability; a tie counts
    one half (Hanley and McNeil 1982, Radiology 143:29). ``wins[p, q]`` sums over the pairs of patients p and q.
    """
    aurocs, member = np.full((len(weights), probabilities.shape[1]), np.nan), np.eye(weights.shape[1])[patient]
    for index, score in enumerate(probabilities.T):
        own, rest = true == index, true != index
        if own.any() and rest.any():  # else there is no pair to rank
            pairs = (np.sign(score[own, None] - score[rest]) + 1) / 2  # (n_own, n_rest)
            patients = np.unique(patient[own])
            wins = member[own][:, patients].T @ pairs @ member[rest]
            won = np.einsum("wp,wp->w", weights[:, patients] @ wins, weights)
            aurocs[:, index] = _ratio(won, (weights @ member[own].sum(0)) * (weights @ member[rest].sum(0)))
    return aurocs


def _calibration_errors(
    probabilities: np.ndarray, true: np.ndarray, patient: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Expected calibration error of the most probable class, shape (n_weightings,). Guo et al. 2017, eq. 3."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    bins = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)  # (k/15, (k+1)/15], as in the paper
    gaps = np.zeros((weights.shape[1], N_BINS))
    np.add.at(gaps, (patient, bins), confidence - correct)
    return _ratio(np.abs(weights @ gaps).sum(axis=1), weights[:, patient].sum(axis=1))


def score_runs(
    runs: Sequence, weights: pd.DataFrame, *, metrics: Sequence[str] = METRICS, within: tuple[str, str] | None = None
) -> pd.DataFrame:
    """Scores of supervised runs under all rows of `patient_weights`: what every table is computed from.

    Shape (n_scores, 1 + n_resamples); column 0 is the data as they are. The index names each row: `ARM`, then ``draw,
    seed, n_images, n_patients`` (labelled), ``n_test_patients`` and ``key`` (the run's folder). "macro" is the plane of
    means over classes and of metrics of all images at once. ``within`` (column, value) takes only those test images,
    say of one "machine".
    """
    values, index = [], []
    for run in runs:
        about = {name: getattr(run.settings, name) for name in (*ARM[2:], "draw", "seed")}
        facts, predictions = run.record["facts"], run.predictions
        if within:
            predictions = predictions[predictions[within[0]] == within[1]]
        about |= {"n_images": facts["n_images"], "n_patients": facts["n_patients"]}
        about |= {"n_test_patients": predictions["patient"].nunique(), "key": run.folder.name}
        options = {"metrics": metrics, "class_counts": facts.get("class_counts")}
        for metric, scores in weighted_metrics(predictions, facts["classes"], weights, **options).items():
            values.append(scores.T)
            planes = ["macro", *facts["classes"]][: len(scores.T)]
            index += [{"metric": metric, "plane": plane} | about for plane in planes]
    return pd.DataFrame(np.concatenate(values), index=pd.MultiIndex.from_frame(pd.DataFrame(index)))


def metrics_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``metrics.csv``: each score of each run with its 95 % interval over patients alone (percentiles).

    The interval holds the trained network fixed: it says nothing of other draws and seeds.
    """
    table = scores.index.to_frame(index=False).assign(value=scores[0].to_numpy())
    for name, share, interpolation in (("low", 0.025, "lower"), ("high", 0.975, "higher")):
        table[name] = scores.iloc[:, 1:].quantile(share, axis=1, interpolation=interpolation).to_numpy()
    return table.drop(columns="n_test_patients")
