"""How well maps agree with masks, each image by itself.

One rule for the sign of raw maps: what is negative speaks against the class and counts as 0 wherever amounts are summed
(energy); where only the order or the shape of a map counts (peak, ranks, correlation), it stays as it is.
"""

from __future__ import annotations

import numpy as np


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the peak of a map lies in the mask.

    Parameters
    ----------
    maps : ndarray, shape (n_images, side, side)
    masks : ndarray of bool, of that shape

    Returns
    -------
    ndarray of float64, shape (n_images,)
        1 or 0; the share of the peak's pixels in the mask where several are equally high (the corners of an enlarged
        2 x 2 map are even). NaN where the mask is empty.

    Raises
    ------
    ValueError
        If the shapes differ.

    References
    ----------
    Zhang et al. 2018, Int J Comput Vis 126:1084, section 4.1; without their tolerance of 15 px around the mask.
    """
    check_same_shape(maps, masks)
    peak = maps == maps.max(axis=(1, 2), keepdims=True)
    hits = (peak & masks).sum(axis=(1, 2)) / peak.sum(axis=(1, 2))
    return np.where(masks.any(axis=(1, 2)), hits, np.nan)


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of a map's positive values that lies in the mask.

    Parameters
    ----------
    maps, masks : ndarray
        As for `pointing_game`.

    Returns
    -------
    ndarray of float64, shape (n_images,)
        In 0..1; NaN where the mask is empty or no value is positive.

    Raises
    ------
    ValueError
        If the shapes differ.

    References
    ----------
    Wang et al. 2020, arXiv:1910.01279, section 4.3 (the energy-based pointing game).
    """
    check_same_shape(maps, masks)
    positive = np.maximum(maps, 0, dtype=np.float64)
    total = positive.sum(axis=(1, 2))
    inside = (positive * masks).sum(axis=(1, 2))
    defined = masks.any(axis=(1, 2)) & (total > 0)
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=defined)


def energy_ratio(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`energy_inside` over the mask's share of the image: 1 for an even map, whatever the size of the mask."""
    energy, share = energy_inside(maps, masks), masks.mean(axis=(1, 2))
    return np.divide(energy, share, out=np.full(len(maps), np.nan), where=share > 0)


MASK_SCORES = {"pointing_game": pointing_game, "energy": energy_inside, "energy_ratio": energy_ratio}


def check_same_shape(maps: np.ndarray, others: np.ndarray) -> None:
    if maps.ndim != 3 or maps.shape != others.shape:
        raise ValueError(f"shapes {maps.shape} and {others.shape}: expected (n_images, side, side) for both")
