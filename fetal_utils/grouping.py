"""How well a space groups images by a label that is known: votes of neighbours, silhouettes, a linear probe.

Each score is a mean over images or over classes under weightings of their patients, the first of which is of the data
as they are and the others resamples; so its interval comes from patients.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from fetal_utils.metrics import mean_of_present
from fetal_utils.neighbourhoods import nearest_images, silhouettes, trust_of_images, vote_is_right
from fetal_utils.probes import fit_probe

N_FOLDS = 5
STRENGTH = 0.1  # inverse regularisation of the logistic regression, the same in every space
MAX_ITER = 5000  # fine-tuned features separate so well that weights grow for long


def class_scores(
    points: np.ndarray,
    classes: np.ndarray,
    patients: np.ndarray,
    *,
    metric: str,
    n_neighbours: int,
    weights: np.ndarray,
    fold_seed: int,
) -> dict[str, np.ndarray]:
    """Scores of a label that patients share, such as plane or machine.

    Parameters
    ----------
    points : ndarray, shape (n_images, n_dimensions)
        A feature space or a map.
    classes, patients : ndarray, shape (n_images,)
    metric : str
        "cosine" or "euclidean".
    n_neighbours : int
    weights : ndarray, shape (n_weightings, n_patients)
        From `draw_patient_weights`.
    fold_seed : int
        Decides the folds.

    Returns
    -------
    dict of str to ndarray, shape (n_weightings,)
        ``knn_accuracy``, the share of images whose class wins the vote of their nearest images of *other*
        patients (those of the same patient are alike whatever the class is; ties go to the nearer class);
        ``silhouette``, mean over images;
        ``separability``, the balanced accuracy of a logistic regression on patients it was not fitted to. On a map
        it asks for straight borders, so a class drawn as two islands may have a low one and a high kNN accuracy;
        ``knn_accuracy_chance``, the share of the most frequent class, and ``separability_chance``, 1 / number of
        classes: what either comes to where the space says nothing.
        Images of a class that only one patient has can't be right by kNN or by regression, and are left out of both.

    Raises
    ------
    ValueError
        If fewer than two classes have two patients, or there are too few images of other patients.
    """
    n_patients = pd.Series(patients).groupby(classes).transform("nunique").to_numpy()
    shared = n_patients > 1
    n_classes = len(np.unique(classes[shared]))
    if n_classes < 2:
        raise ValueError(
            f"classes {np.unique(classes).tolist()}, of which {n_classes} are seen in two patients or more: expected "
            "at least 2 such classes; leave this label out of labels=..., or give more images"
        )
    nearest = nearest_images(points, n_neighbours=n_neighbours, metric=metric, patients=patients)
    vote, linear = np.full(len(points), np.nan), np.full(len(points), np.nan)
    vote[shared] = vote_is_right(nearest, classes)[shared]
    linear[shared] = _held_out_is_right(points[shared], classes[shared], patients[shared], fold_seed=fold_seed)
    of_class = [np.where(classes == name, linear, np.nan) for name in np.unique(classes)]
    recalls = [patient_mean(values, patients, weights) for values in of_class]
    return {
        "knn_accuracy": patient_mean(vote, patients, weights),
        "silhouette": patient_mean(silhouettes(points, classes, metric=metric), patients, weights),
        "separability": mean_of_present(np.stack(recalls, axis=1)),
        "knn_accuracy_chance": np.array([pd.Series(classes[shared]).value_counts(normalize=True).max()]),
        "separability_chance": np.array([1 / n_classes]),
    }


def patient_scores(
    points: np.ndarray, patients: np.ndarray, *, metric: str, n_neighbours: int, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores of how far images group by patient, which a classifier of planes has no use for.

    Parameters and returned value are those of `class_scores`, but that neighbours may be any other image:
    ``knn_accuracy`` and ``silhouette`` as there; ``separability``, the share of images whose nearest image is of the
    same patient; ``separability_chance``, that share if neighbours were drawn at random. Images whose patient has no
    other are left out of all four.

    Raises
    ------
    ValueError
        If no patient has two images, or there are too few images.
    """
    n_siblings = pd.Series(patients).groupby(patients).transform("size").to_numpy() - 1
    if not n_siblings.any() or n_siblings[0] == len(patients) - 1:
        raise ValueError(
            f"{len(np.unique(patients))} patients of {len(patients)} images: expected at least 2 patients, one of "
            "them with two images; leave 'patient' out of labels=..."
        )
    nearest = nearest_images(points, n_neighbours=n_neighbours, metric=metric)
    values = {
        "knn_accuracy": vote_is_right(nearest, patients),
        "silhouette": silhouettes(points, patients, metric=metric),
        "separability": vote_is_right(nearest[:, :1], patients),
    }
    means = {name: patient_mean(np.where(n_siblings, v, np.nan), patients, weights) for name, v in values.items()}
    return means | {"separability_chance": np.array([n_siblings[n_siblings > 0].mean() / (len(patients) - 1)])}


def map_scores(
    features: np.ndarray, points: np.ndarray, patients: np.ndarray, *, n_neighbours: int, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """How well a map keeps neighbourhoods, in 0..1 each, about 0.5 for a map drawn at random.

    Parameters are those of `class_scores`; ``features`` is the original space.

    Returns
    -------
    dict of str to ndarray, shape (n_weightings,)
        ``trustworthiness``: neighbours on the map are neighbours by features; ``continuity``, the same with the
        spaces swapped: neighbours by features stay together on the map.

    References
    ----------
    Venna and Kaski 2001, ICANN, LNCS 2130:485, equations 2 and 4.
    """
    spaces = (features, "cosine"), (points, "euclidean")
    trust = trust_of_images(*spaces, n_neighbours=n_neighbours)
    continuity = trust_of_images(*spaces[::-1], n_neighbours=n_neighbours)
    return {
        "trustworthiness": patient_mean(trust, patients, weights),
        "continuity": patient_mean(continuity, patients, weights),
    }


def patient_mean(values: np.ndarray, patients: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over images under each weighting of their patients.

    Parameters
    ----------
    values : ndarray, shape (n_images,)
        NaN where an image does not count.
    patients : ndarray, shape (n_images,)
    weights : ndarray, shape (n_weightings, n_patients)
        Columns follow the sorted patients.

    Returns
    -------
    ndarray, shape (n_weightings,)
        NaN where no image that counts has weight.
    """
    known = ~np.isnan(values)
    patient, n_patients = np.unique(patients, return_inverse=True)[1][known], weights.shape[1]
    sums = weights @ np.bincount(patient, values[known], minlength=n_patients)
    counts = weights @ np.bincount(patient, minlength=n_patients)
    return np.divide(sums, counts, out=np.full(len(weights), np.nan), where=counts > 0)


def _held_out_is_right(points: np.ndarray, classes: np.ndarray, patients: np.ndarray, *, fold_seed: int) -> np.ndarray:
    n_folds = min(N_FOLDS, len(np.unique(patients)))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=fold_seed)
    right = np.zeros(len(points))
    with warnings.catch_warnings():
        # a class of fewer patients than folds is expected here: some folds test none of it
        warnings.filterwarnings("ignore", message="The least populated class")
        for fitted, held_out in folds.split(points, classes, patients):
            probe = fit_probe(points[fitted], classes[fitted], strength=STRENGTH, max_iter=MAX_ITER)
            right[held_out] = probe.predict(points[held_out]) == classes[held_out]
    return right
