"""Images to look at, chosen by rules instead of taste: right and wrong, sure and unsure, one of each patient."""

from __future__ import annotations

import numpy as np
import pandas as pd

RULES = ("right, surest", "right, least sure", "wrong, surest", "wrong, least sure")


def choose_examples(predictions: pd.DataFrame, *, n_each: int = 2, rng: np.random.Generator) -> pd.DataFrame:
    """The most and the least confident of the right and of the wrong predictions.

    Parameters
    ----------
    predictions : DataFrame
        See `predictions.check_predictions`.
    n_each : int
        Images of each of `RULES`, at least 1.
    rng : numpy Generator
        Decides between images of equal confidence.

    Returns
    -------
    DataFrame
        Rows of ``predictions`` with ``confidence``, the probability of the predicted class, and ``rule``. No patient
        stands twice; a rule has fewer rows where there are not enough images.

    Raises
    ------
    ValueError
        If ``n_each`` is below 1.
    """
    if n_each < 1:
        raise ValueError(f"n_each={n_each}: expected at least one image of each rule")
    table = predictions.iloc[rng.permutation(len(predictions))]
    table = table.assign(confidence=table.filter(like="probability_").max(axis=1))
    right = table["true"] == table["predicted"]
    chosen: list[pd.DataFrame] = []
    for rule in RULES:
        rows = table[right] if rule.startswith("right") else table[~right]
        rows = rows.sort_values("confidence", ascending="least" in rule, kind="stable").drop_duplicates("patient")
        taken = {patient for part in chosen for patient in part["patient"]}
        chosen.append(rows[~rows["patient"].isin(taken)].head(n_each).assign(rule=rule))
    return pd.concat(chosen)


def draw_one_per_patient(predictions: pd.DataFrame, *, n_images: int, rng: np.random.Generator) -> pd.DataFrame:
    """One image of each of so many patients, drawn at random; fewer if there are fewer patients."""
    shuffled = predictions.iloc[rng.permutation(len(predictions))]
    return shuffled.drop_duplicates("patient").head(n_images).sort_index()
