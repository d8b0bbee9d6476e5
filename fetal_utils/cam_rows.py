"""The scores of class activation maps as rows of a table: means over images, with intervals over patients."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fetal_utils.intervals import draw_patient_weights, percentile_interval
from fetal_utils.tables import CAM_COLUMNS


def cam_rows(
    scores: pd.DataFrame,
    *,
    task: str,
    strategy: str,
    protocol: str,
    label_fraction: float,
    seed: int,
    method: str,
    n_resamples: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """The means of scores with intervals over patients, for each plane and for all images.

    Parameters
    ----------
    scores : DataFrame
        From `cam_comparison.score_images`.
    task, strategy, protocol, label_fraction, seed, method
        What the rows are about; written as they are.
    n_resamples : int
        Bootstrap resamples of the patients, the same for all rows.
    rng : numpy Generator
        Draws them.

    Returns
    -------
    DataFrame
        Columns `CAM_COLUMNS`, a row for each map, score and plane and for "all", none left out: ``value`` is the mean
        over the ``n_images`` images that have the score, NaN if there are none; ``low`` and ``high`` are NaN for fewer
        than two patients.

    Raises
    ------
    ValueError
        If there are no scores, or they are of one patient.
    """
    if scores.empty:
        raise ValueError("no scores: give the table of score_images for at least one image")
    patients, positions = np.unique(scores["patient"], return_inverse=True)
    weights = draw_patient_weights(len(patients), n_resamples=n_resamples, rng=rng)
    scores = scores.assign(position=positions)
    about = {"task": task, "strategy": strategy, "protocol": protocol, "label_fraction": label_fraction}
    about |= {"seed": seed, "method": method}
    every = pd.concat([scores, scores.assign(plane="all")])
    order = [*sorted(set(scores["plane"]) - {"all"}), "all"]
    every["plane"] = pd.Categorical(every["plane"], categories=order, ordered=True)
    rows = [
        about | dict(zip(("map", "score", "plane"), key, strict=True)) | clustered_mean(group, weights)
        for key, group in every.groupby(["map", "score", "plane"], sort=False, observed=True)
    ]
    return pd.DataFrame(rows)[list(CAM_COLUMNS)]


def clustered_mean(scores: pd.DataFrame, weights: np.ndarray) -> dict[str, float | int]:
    """Mean of the values that are there, with its interval; ``position`` is the patient's column in the weights."""
    there = scores.dropna(subset=["value"])
    sums, counts = (
        np.bincount(there["position"], weights=numbers, minlength=weights.shape[1])
        for numbers in (there["value"], np.ones(len(there)))
    )
    with np.errstate(invalid="ignore"):  # a resample without any of these patients
        means = (weights @ sums) / (weights @ counts)
    n_patients = int((counts > 0).sum())
    low, high = percentile_interval(means[1:]) if n_patients > 1 else (np.nan, np.nan)
    return {
        "value": float(means[0]),
        "low": float(low),
        "high": float(high),
        "n_images": len(there),
        "n_patients": n_patients,
    }
