"""Whether a map stays the same when its image is moved a little or gets other speckle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fetal_utils.cam_scores import check_same_shape

MapMaker = Callable[[Tensor], np.ndarray]  # network inputs (n, channels, side, side) to raw maps (n, side, side)
SHIFT = 1 / 16  # of the image's side
SPECKLE = 0.2  # standard deviation of the factor that each pixel is multiplied with


def correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson correlation of each map with its other, NaN where one of them is even; shape (n_images,)."""
    check_same_shape(maps, others)
    a, b = (
        stack.reshape(len(stack), -1) - stack.mean(axis=(1, 2), dtype=np.float64)[:, None] for stack in (maps, others)
    )
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.full(len(maps), np.nan), where=norms > 0)


def shift_stability(
    make_maps: MapMaker,
    images: Tensor,
    maps: np.ndarray,
    *,
    black: float,
    rng: np.random.Generator,
    shift: float = SHIFT,
) -> np.ndarray:
    """Whether a map moves along with its image: correlation with the shifted image's map, where both see the same.

    Parameters
    ----------
    make_maps : callable
        From network inputs to raw maps, such as ``lambda images: cam.of_classes(images, classes)``.
    images : Tensor, shape (n_images, channels, side, side)
        Network inputs.
    maps : ndarray, shape (n_images, side, side)
        ``make_maps(images)``.
    black : float
        Value of black in them, ``-mean / std``: what comes in at the edge.
    rng : numpy Generator
        Draws the direction, one of the four diagonals for all images.
    shift : float
        In both directions, as a share of the side.

    Returns
    -------
    ndarray of float64, shape (n_images,)
        In -1..1; NaN where a map is even.

    Raises
    ------
    ValueError
        If the shift is less than a pixel or leaves nothing in common.
    """
    side, n_px = images.shape[-1], round(shift * images.shape[-1])
    if not 1 <= n_px <= side // 2:
        raise ValueError(f"shift={shift} is {n_px} px of {side}: expected 1 px to half of the side")
    down, right = rng.choice([-1, 1], size=2).tolist()
    before, after = (tuple(_kept(sign * n_px, side) for sign in (down * k, right * k)) for k in (1, -1))
    shifted = torch.full_like(images, black)
    shifted[:, :, *after] = images[:, :, *before]
    return correlation(maps[:, *before], make_maps(shifted)[:, *after])


def speckle_stability(
    make_maps: MapMaker,
    images: Tensor,
    maps: np.ndarray,
    *,
    mean: float,
    std: float,
    rng: np.random.Generator,
    amount: float = SPECKLE,
) -> np.ndarray:
    """Whether a map stays as it is when every pixel's gray value is multiplied with ``1 + amount * noise``.

    Parameters
    ----------
    make_maps, images, maps
        As for `shift_stability`.
    mean, std : float
        Normalisation of the network inputs, from `models.normalisation`.
    rng : numpy Generator
        Draws the standard normal noise.
    amount : float
        Standard deviation of the factor, > 0.

    Returns
    -------
    ndarray of float64, shape (n_images,)
        In -1..1; NaN where a map is even.

    Raises
    ------
    ValueError
        If ``amount`` is not above 0.
    """
    if not amount > 0:
        raise ValueError(f"amount={amount}: expected more than 0, or the image stays the same")
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images.device)
    gray = (images * std + mean) * (1 + amount * noise)
    return correlation(maps, make_maps((gray.clamp(0, 1) - mean) / std))


def _kept(n_px: int, side: int) -> slice:
    """Along one axis, what stays in the image when it moves this far."""
    return slice(max(0, -n_px), side - max(0, n_px))
