"""How features group by plane, patient and machine, in numbers: in their own space and on each map.

A map is drawn by a method with settings and a seed; what it seems to show is worth what the same score says in the
original space. Distances there are by cosine, on a map Euclidean.

Every score is a mean over images or over classes, so its interval comes from resampling patients. Features, map and
neighbours are held fixed: an interval says what other patients would change, and the rows of several seeds what
another seed would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fetal_utils.embeddings import EmbeddingMap, check_features
from fetal_utils.environment import progress_bar
from fetal_utils.grouping import class_scores, map_scores, patient_scores
from fetal_utils.intervals import draw_patient_weights, percentile_interval
from fetal_utils.tables import EMBEDDING_COLUMNS

LABELS = ("plane", "patient", "machine")
ALL_IMAGES = "all"  # in the column ``label`` of scores that look at no label


def embedding_scores(
    features: np.ndarray,
    maps: Sequence[EmbeddingMap],
    metadata: pd.DataFrame,
    *,
    task: str,
    strategy: str,
    n_resamples: int,
    rng: np.random.Generator,
    n_neighbours: int = 10,
    labels: Sequence[str] = LABELS,
    progress: bool = True,
) -> pd.DataFrame:
    """All scores of one encoder's features and of maps of them, as rows of ``embedding_scores.csv``.

    Parameters
    ----------
    features : ndarray, shape (n_images, n_features)
        Of test images: those trained on would flatter the encoder.
    maps : sequence of EmbeddingMap
        Of the same images in the same order.
    metadata : DataFrame, one row per image
        With a column ``patient`` and those in ``labels``; for another task, its classes as ``plane``.
    task, strategy : str
        Written into the rows.
    n_resamples : int
        Bootstrap resamples of the patients, the same for every score.
    rng : Generator
        Draws the resamples, and the folds that are the same for every space.
    n_neighbours : int
        Of the kNN vote, trustworthiness and continuity.
    labels : sequence of str
        Out of `LABELS`.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        Columns `EMBEDDING_COLUMNS`; ``low`` and ``high`` are a 95 % interval over patients, NaN for a chance level.
        ``method`` is "original", "pca", "tsne" or "umap". Scores of ``plane`` and ``machine``: see `class_scores`;
        of ``patient``: `patient_scores`; with the label "all", for maps only: `map_scores`.

    Raises
    ------
    ValueError
        If features hold NaN, tables differ in length, a column or a label is missing, a label has one class only, or
        there are too few patients or images for an interval or for the neighbours.
    """
    features = check_features(features)
    table = _check_table(metadata, len(features), labels)
    patients = table["patient"].to_numpy()
    weights = draw_patient_weights(len(np.unique(patients)), n_resamples=n_resamples, rng=rng)
    shared = {"weights": weights, "n_neighbours": n_neighbours}
    fold_seed = int(rng.integers(2**31))
    spaces = [EmbeddingMap("original", features, {"features": features.shape[1]}), *maps]
    parts = []
    for space in progress_bar(
        total=len(spaces), desc="scores", unit="space", show=progress, leave=False, iterable=spaces
    ):
        if len(space.points) != len(features):
            raise ValueError(f"{space.method} has {len(space.points)} points, the features {len(features)} images")
        metric = "cosine" if space.method == "original" else "euclidean"
        found = {}
        for label in labels:
            if label == "patient":
                found[label] = patient_scores(space.points, patients, metric=metric, **shared)
            else:
                classes = table[label].to_numpy()
                found[label] = class_scores(
                    space.points, classes, patients, metric=metric, fold_seed=fold_seed, **shared
                )
        if space.method != "original":
            found[ALL_IMAGES] = map_scores(features, space.points, patients, **shared)
        parts.append(_tidy(found).assign(task=task, strategy=strategy, method=space.method, setting=space.setting))
    return pd.concat(parts, ignore_index=True)[list(EMBEDDING_COLUMNS)]


def _check_table(metadata: pd.DataFrame, n_images: int, labels: Sequence[str]) -> pd.DataFrame:
    if not labels or not set(labels) <= set(LABELS):
        raise ValueError(f"labels={list(labels)}: expected one or more of {list(LABELS)}")
    columns = list(dict.fromkeys(["patient", *labels]))
    missing = [column for column in columns if column not in metadata.columns]
    if len(metadata) != n_images or missing:
        raise ValueError(
            f"{len(metadata)} rows with the columns {list(metadata.columns)} for the features of {n_images} images: "
            f"expected a row for each image with {columns} (missing: {missing})"
        )
    table = metadata[columns]
    if table.isna().any(axis=None):
        columns = table.columns[table.isna().any()].tolist()
        raise ValueError(f"some images have no value in {columns}: fill in a name, or leave these images out")
    return table


def _tidy(scores: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Rows of label, score, value and interval; the first of each array is of the data as they are."""
    rows = []
    for label, of_label in scores.items():
        for score, values in of_label.items():
            low, high = percentile_interval(values[1:])
            rows.append({"label": label, "score": score, "value": values[0], "low": float(low), "high": float(high)})
    return pd.DataFrame(rows)
