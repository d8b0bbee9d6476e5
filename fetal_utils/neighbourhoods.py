"""Which images lie near each other, in a feature space or on a map, and what their neighbours say of each.

Exact, and in pieces: the distances between thousands of images are never in memory at once.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.metrics import pairwise_distances_chunked, silhouette_samples

CHUNK_MIB = 64  # of a distance matrix in memory at once


def trust_of_images(
    original: tuple[np.ndarray, str], drawn: tuple[np.ndarray, str], *, n_neighbours: int
) -> np.ndarray:
    """Each image's term of trustworthiness; their mean is scikit-learn's `trustworthiness`.

    That function gives the mean alone, which can't be resampled, and holds several n x n matrices.

    Parameters
    ----------
    original, drawn : tuple of ndarray and str
        Points, shape (n_images, n_dimensions), and the metric between them.
    n_neighbours : int
        Less than half the images.

    Returns
    -------
    ndarray, shape (n_images,)
        1 where all neighbours in ``drawn`` are among as many nearest in ``original``; else less by how far down they
        rank there.

    Raises
    ------
    ValueError
        If there are too few images.
    """
    points, metric = original
    n_images = len(points)
    if not 1 <= n_neighbours < n_images / 2:
        raise ValueError(
            f"n_neighbours={n_neighbours} with {n_images} images: expected less than half; lower it or give more images"
        )
    neighbours = nearest_images(drawn[0], n_neighbours=n_neighbours, metric=drawn[1])

    def penalty(distances: np.ndarray, start: int) -> np.ndarray:
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf  # an image is not its own neighbour
        theirs = np.take_along_axis(distances, neighbours[start : start + len(rows)], axis=1)
        n_closer = np.stack([(distances < one[:, None]).sum(axis=1) for one in theirs.T], axis=1)
        return np.maximum(0, n_closer + 1 - n_neighbours).sum(axis=1)

    total = np.concatenate(list(_chunks(points, metric, penalty)))
    return 1 - total * 2 / (n_neighbours * (2 * n_images - 3 * n_neighbours - 1))


def nearest_images(
    points: np.ndarray, *, n_neighbours: int, metric: str, patients: np.ndarray | None = None
) -> np.ndarray:
    """The nearest other images of each image, nearest first, exactly.

    Parameters
    ----------
    points : ndarray, shape (n_images, n_dimensions)
    n_neighbours : int
    metric : str
        "cosine" or "euclidean".
    patients : ndarray, shape (n_images,), optional
        If given, only images of other patients are found.

    Returns
    -------
    ndarray of int, shape (n_images, n_neighbours)

    Raises
    ------
    ValueError
        If an image has not that many others.
    """
    groups = np.arange(len(points)) if patients is None else np.unique(patients, return_inverse=True)[1]
    n_others = len(points) - np.bincount(groups).max()
    if not 1 <= n_neighbours <= n_others:
        raise ValueError(
            f"n_neighbours={n_neighbours}, and some of the {len(points)} images have only {n_others} others to choose "
            f"from{'' if patients is None else ' (of other patients)'}: lower it or give more images"
        )

    def nearest(distances: np.ndarray, start: int) -> np.ndarray:
        distances[groups[start : start + len(distances), None] == groups] = np.inf
        near = np.argpartition(distances, n_neighbours - 1, axis=1)[:, :n_neighbours]
        order = np.argsort(np.take_along_axis(distances, near, axis=1), axis=1)
        return np.take_along_axis(near, order, axis=1)

    return np.concatenate(list(_chunks(points, metric, nearest)))


def vote_is_right(neighbours: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether the most frequent class among each image's neighbours is its own; of equals the nearer counts.

    Parameters
    ----------
    neighbours : ndarray of int, shape (n_images, n_neighbours)
        Nearest first.
    classes : ndarray, shape (n_images,)

    Returns
    -------
    ndarray of bool, shape (n_images,)
    """
    theirs = np.unique(classes, return_inverse=True)[1][neighbours]
    n_votes = (theirs[:, :, None] == theirs[:, None, :]).sum(axis=2)  # for each neighbour, those of its class
    winner = neighbours[np.arange(len(neighbours)), n_votes.argmax(axis=1)]  # argmax takes the first of equals
    return classes[winner] == classes


def silhouettes(points: np.ndarray, classes: np.ndarray, *, metric: str) -> np.ndarray:
    """Silhouette of each image, shape (n_images,); NaN for the only image of its class.

    References
    ----------
    Rousseeuw 1987, J Comput Appl Math 20:53, which scores such an image 0.
    """
    with config_context(working_memory=CHUNK_MIB):
        values = silhouette_samples(points, classes, metric=metric)
    alone = pd.Series(classes).groupby(classes).transform("size").to_numpy() == 1
    return np.where(alone, np.nan, values)


def _chunks(points: np.ndarray, metric: str, reduce):
    """What ``reduce(distances, start)`` makes of the distances of some images to all, chunk by chunk."""
    return pairwise_distances_chunked(points, metric=metric, reduce_func=reduce, working_memory=CHUNK_MIB)
