"""Class activation maps as arrays: at the size of the image, on one scale, and as an order of pixels."""

import numpy as np
import torch
from torch.nn import functional as F


def enlarge(grids: np.ndarray, image_size: int) -> np.ndarray:
    """Maps on a layer's grid, (n, side, side), at the size of the image, bilinearly; float32."""
    maps = torch.from_numpy(np.asarray(grids, dtype=np.float32))[:, None]
    return F.interpolate(maps, (image_size, image_size), mode="bilinear", align_corners=False)[:, 0].numpy()


def to_common_scale(maps: np.ndarray, *, percentile: float = 100.0) -> np.ndarray:
    """Maps of several images or strategies on one scale from 0 to 1, to be looked at side by side.

    Parameters
    ----------
    maps : ndarray, shape (..., image_size, image_size)
        Raw maps of one method.
    percentile : float
        Of all positive parts together, what becomes 1; values above it too. 100 is the largest of all.

    Returns
    -------
    ndarray of float32, of that shape
        Negative values, which speak against the class, are 0. All 0 if no value is positive.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    positive = np.maximum(maps, 0, dtype=np.float32)
    if not np.isfinite(positive).all():
        raise ValueError("the maps hold values that are not finite; look for a training that diverged")
    top = np.percentile(positive, percentile)
    return np.clip(positive / top, 0, 1) if top > 0 else np.zeros_like(positive)


def rank_pixels(maps: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """The place of each pixel in the order of its map, from 0 for the least relevant.

    The scores of `cam_faithfulness` depend on a map by this order alone, and an enlarged 2 x 2 map has even corners:
    equal pixels come in an order drawn at random, so that an even map is a random one.

    Parameters
    ----------
    maps : ndarray, shape (n_images, side, side)
        Raw: negative values keep their order.
    rng : numpy Generator
        Draws the order of equal pixels.

    Returns
    -------
    ndarray of int64, of that shape
        Each image holds 0 to side * side - 1 once.
    """
    values = maps.reshape(len(maps), -1)
    order = np.lexsort((rng.random(values.shape), values), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(values.shape[1])[None], axis=1)
    return ranks.reshape(maps.shape)
