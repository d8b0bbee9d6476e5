"""Which images a training step sees."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw_batches(n_images: int, *, n_batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Positions of the images of each batch: one random order after another, cut into batches.

    Every image comes once before any comes again, and every batch is full, so that batch
    normalisation never meets a batch of one and no image is dropped for good.

    Parameters
    ----------
    n_images : int
        At least 2.
    n_batches, batch_size : int
        The batch is no larger than ``n_images``.
    generator : torch.Generator

    Returns
    -------
    Tensor of int64, shape (n_batches, min(batch_size, n_images))

    Raises
    ------
    ValueError
        If there are fewer than two images or fewer than two in a batch.
    """
    size = min(batch_size, n_images)
    if size < 2:
        raise ValueError(f"{n_images} images in batches of {batch_size}: at least two of each are needed")
    n_orders = math.ceil(n_batches * size / n_images)
    orders = torch.cat([torch.randperm(n_images, generator=generator) for _ in range(n_orders)])
    return orders[: n_batches * size].view(n_batches, size)
