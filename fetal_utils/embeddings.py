"""How features group by plane, patient and machine, in their own space and on maps of it, and how alike encoders see.

Distances between features are by cosine, on a map Euclidean. Intervals resample patients; features and map are fixed.
"""

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fetal_utils.evaluation import mean_of_present

N_FOLDS, N_NEIGHBOURS = 5, 10  # folds of patients; of a vote and a neighbourhood, fewer where images are few


def check_features(features: np.ndarray) -> np.ndarray:
    """Features as float32, (n_images, n_features); a ValueError in words for those that no map can be drawn of."""
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 4 or not np.isfinite(features).all():
        remedy = "NaN comes from a training that diverged: lower its learning rate"
        raise ValueError(f"features of shape {features.shape}: expected finite ones of at least 4 images; {remedy}")
    if np.ptp(features, axis=0).max() <= 1e-6 * np.abs(features).max():
        reason = "the encoder has collapsed (see its training log), or the images are all alike"
        raise ValueError(f"the features of all {len(features)} images are the same, there is nothing to draw: {reason}")
    return features


def mean_over_patients(values: np.ndarray, patients: np.ndarray, weights: pd.DataFrame) -> np.ndarray:
    """Mean of ``values``, (n_images,), but for NaN, under each row of `evaluation.patient_weights`: (n_weightings,)."""
    there = ~np.isnan(values)
    place = weights.columns.get_indexer(np.asarray(patients)[there])
    sums = weights.to_numpy() @ np.bincount(place, values[there], minlength=weights.shape[1])
    counts = weights.to_numpy() @ np.bincount(place, minlength=weights.shape[1])
    return np.divide(sums, counts, out=np.full(len(weights), np.nan), where=counts > 0)


def with_interval(means: np.ndarray) -> tuple[float, float, float]:
    """The first mean and the 95 % interval of the others, percentiles; NaN where nothing was resampled."""
    resampled = means[1:][~np.isnan(means[1:])]
    low, high = np.quantile(resampled, (0.025, 0.975)) if len(resampled) else (np.nan, np.nan)
    return float(means[0]), float(low), float(high)


def group_scores(
    points: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, metric: str, weights: pd.DataFrame
) -> dict[str, np.ndarray]:
    """How well a space, (n_images, n_dimensions), groups images by a label: scores, each of shape (n_weightings,).

    ``knn_accuracy``: the label wins the vote of the nearest images of patients in other folds, as images of one patient
    are alike whatever they show. ``separability``: balanced accuracy of a logistic regression on patients of other
    folds. ``..._chance``: of a space that says nothing. Labels that only one patient has are left out.
    """
    shared = pd.Series(patients).groupby(labels).transform("nunique").to_numpy() > 1
    points, labels, patients = points[shared], labels[shared], patients[shared]
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2:
        return {}
    folds = StratifiedGroupKFold(min(N_FOLDS, len(np.unique(patients))), shuffle=True, random_state=0)
    with warnings.catch_warnings(action="ignore"):  # of fewer patients of a label than folds
        folds = list(folds.split(points, labels, patients))
    knn = KNeighborsClassifier(min(N_NEIGHBOURS, *(len(fitted) // 2 for fitted, _ in folds)), metric=metric)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    votes, answers = (cross_val_predict(one, points, labels, cv=folds) for one in (knn, linear))
    recalls = [mean_over_patients(np.where(labels == k, answers == k, np.nan), patients, weights) for k in names]
    return {
        "knn_accuracy": mean_over_patients((votes == labels).astype(float), patients, weights),
        "silhouette": mean_over_patients(silhouette_samples(points, labels, metric=metric), patients, weights),
        "separability": mean_of_present(np.stack(recalls, axis=1)),
        "knn_accuracy_chance": np.array([counts.max() / counts.sum()]),
        "separability_chance": np.array([1 / len(names)]),
    }


def patient_scores(points: np.ndarray, patients: np.ndarray, *, metric: str, weights: pd.DataFrame) -> dict:
    """How far a space groups images by patient (of those who have several), which a classifier has no use for."""
    n_others = pd.Series(patients).groupby(patients).transform("size").to_numpy() - 1
    if n_others.max() < 1 or n_others.max() == len(patients) - 1:
        return {}
    nearest = NearestNeighbors(n_neighbors=1, metric=metric).fit(points).kneighbors(return_distance=False)[:, 0]
    same, silhouettes = patients[nearest] == patients, silhouette_samples(points, patients, metric=metric)
    return {
        "same_patient_nearest": mean_over_patients(np.where(n_others, same, np.nan), patients, weights),
        "silhouette": mean_over_patients(np.where(n_others, silhouettes, np.nan), patients, weights),
        "same_patient_nearest_chance": np.array([n_others[n_others > 0].mean() / (len(patients) - 1)]),
    }


def embedding_scores(
    features: np.ndarray, maps: Mapping[tuple[str, str], np.ndarray], table: pd.DataFrame, weights: pd.DataFrame
) -> pd.DataFrame:
    """All scores of one encoder's features and of maps of them: rows of ``embedding_scores.csv``.

    Features, (n_images, n_features), are those of test images, as images trained on would flatter the encoder; maps,
    (n_images, 2), have the key (method, setting), and the features' own space is added as "original". ``table`` has
    ``patient``, ``plane`` and ``machine`` of each image, ``weights`` are `evaluation.patient_weights`.

    Intervals of 95 % are over patients, NaN where nothing is resampled. ``trustworthiness`` and ``continuity``
    (neighbours on the map are neighbours by features, and the reverse) have the label "all", and are about 0.5 by
    chance (Venna and Kaski 2001, LNCS 2130:485).
    """
    patients, rows = table["patient"].to_numpy(), []
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)  # Euclidean order is by cosine
    k = min(N_NEIGHBOURS, (len(features) - 1) // 2)  # scikit-learn asks for less than half of the images
    for (method, setting), points in {("original", f"{features.shape[1]} features"): features, **maps}.items():
        shared = {"metric": "cosine" if method == "original" else "euclidean", "weights": weights}
        found = {"patient": patient_scores(points, patients, **shared)}
        for name in ("plane", "machine"):
            found[name] = group_scores(points, table[name].to_numpy(), patients, **shared)
        if method != "original":
            found["all"] = {
                "trustworthiness": np.array([trustworthiness(unit, points, n_neighbors=k)]),
                "continuity": np.array([trustworthiness(points, unit, n_neighbors=k)]),
            }
        for label, scores in found.items():
            for score, values in scores.items():
                rows.append((method, setting, label, score, *with_interval(values)))
    return pd.DataFrame(rows, columns=["method", "setting", "label", "score", "value", "low", "high"])


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Debiased linear CKA of activations of the same 4 images or more, (n_images, n_a) and (n_images, n_b).

    1 for the same up to rotation and one scale; about 0, also a little below, for unrelated ones; NaN if one does not
    vary. The plain estimator tends to 1 for any two networks as images become fewer than activations. Kornblith et al.
    2019, arXiv:1905.00414, equation 4; terms of Song et al. 2012, J Mach Learn Res 13:1393, equation 5.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if (a == a[0]).all() or (b == b[0]).all():
        return np.nan
    n, a, b = len(a), a - a.mean(axis=0), b - b.mean(axis=0)

    def alignment(x: np.ndarray, y: np.ndarray) -> float:
        x2, y2 = np.square(x).sum(axis=1), np.square(y).sum(axis=1)  # (n_images,)
        return np.square(x.T @ y).sum() - n / (n - 2) * x2 @ y2 + x2.sum() * y2.sum() / ((n - 1) * (n - 2))

    own = alignment(a, a), alignment(b, b)  # unbiased, so they may fall below 0 where images are few
    return float(alignment(a, b) / np.sqrt(own[0] * own[1])) if min(own) > 0 else np.nan
