"""Nearest neighbours in a feature space: what an encoder takes for alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors


def find_neighbours(features: np.ndarray, queries: np.ndarray, gallery: np.ndarray, *, n_neighbours: int) -> np.ndarray:
    """The images of a gallery whose features are closest by cosine, nearest first.

    Parameters
    ----------
    features : ndarray, shape (n_rows, n_features)
        Of every image of the data set.
    queries, gallery : ndarray of int, shapes (n_queries,) and (n_gallery,)
        Positions of the images asked about and of those to find; the two share none.
    n_neighbours : int

    Returns
    -------
    ndarray of int, shape (n_queries, n_neighbours)
        Positions in the data set.

    Raises
    ------
    ValueError
        If queries and gallery overlap, or the gallery is too small.
    """
    if len(shared := np.intersect1d(queries, gallery)):
        raise ValueError(f"{len(shared)} images are both query and gallery; an image would find itself")
    if len(gallery) < n_neighbours:
        raise ValueError(f"n_neighbours={n_neighbours}, and the gallery has {len(gallery)} images")
    search = NearestNeighbors(n_neighbors=n_neighbours, metric="cosine").fit(features[gallery])
    return gallery[search.kneighbors(features[queries], return_distance=False)]


def neighbour_purity(neighbours: np.ndarray, queries: np.ndarray, labels: np.ndarray) -> float:
    """Share of the neighbours that have their query's label.

    Parameters
    ----------
    neighbours : ndarray of int, shape (n_queries, n_neighbours)
    queries : ndarray of int, shape (n_queries,)
    labels : ndarray, shape (n_rows,)
        Say planes, or machines.
    """
    return float((labels[neighbours] == labels[queries][:, None]).mean())


def pair_similarities(features: np.ndarray, rows: np.ndarray, patients: np.ndarray, planes: np.ndarray) -> pd.DataFrame:
    """Cosine similarity of every pair of these images, and what the two have in common.

    Parameters
    ----------
    features : ndarray, shape (n_rows, n_features)
    rows : ndarray of int, shape (n_images,)
        Positions of the images to pair.
    patients, planes : ndarray, shape (n_rows,)

    Returns
    -------
    DataFrame
        A row per pair: ``similarity``, and ``pair``, one of "same patient and plane", "same plane", "another plane".
    """
    unit = features[rows] / np.linalg.norm(features[rows], axis=1, keepdims=True)
    first, second = np.triu_indices(len(rows), k=1)
    same_plane = planes[rows][first] == planes[rows][second]
    same_patient = patients[rows][first] == patients[rows][second]
    pair = np.select([same_plane & same_patient, same_plane], ["same patient and plane", "same plane"], "another plane")
    return pd.DataFrame({"similarity": (unit @ unit.T)[first, second], "pair": pair})
