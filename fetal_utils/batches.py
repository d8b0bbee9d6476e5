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
        At least 1 and 2; a batch is no larger than ``n_images``.
    generator : torch.Generator

    Returns
    -------
    Tensor of int64, shape (n_batches, min(batch_size, n_images))

    Raises
    ------
    ValueError
        If there is no batch to draw, or fewer than two images in all or in a batch.
    """
    size = min(batch_size, n_images)
    if size < 2 or n_batches < 1:
        raise ValueError(
            f"n_images={n_images}, n_batches={n_batches}, batch_size={batch_size}: expected at least 2 images, "
            "1 batch, and 2 images in a batch"
        )
    n_orders = math.ceil(n_batches * size / n_images)
    orders = torch.cat([torch.randperm(n_images, generator=generator) for _ in range(n_orders)])
    return orders[: n_batches * size].view(n_batches, size)
