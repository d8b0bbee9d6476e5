"""Does a batch fit into memory? Asked before training, and answered with the largest that does."""

from __future__ import annotations

import math

import psutil
import torch
from torch import Tensor, nn

from fetal_utils.contrast import frozen_statistics
from fetal_utils.memory import return_freed_memory
from fetal_utils.optimisers import train_output
from fetal_utils.ranks import ALONE, Ranks

SAFETY = 1.25  # memory in use at the peak over what is counted here: workspaces, fragments
COPIES = 4  # of every weight: itself, its gradient, and AdamW's two moments


def check_batch_fits(
    model: nn.Module,
    *,
    batch_size: int,
    image_size: int,
    chunk_size: int = 0,
    free: int | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Raise a MemoryError if a contrastive step does not fit into memory.

    Parameters
    ----------
    model : Module
        Already on its device; unchanged.
    batch_size : int
        Images in a batch, each as two views.
    image_size : int
        px.
    chunk_size : int
        Views that the encoder takes at a time, see `contrast_step`; 0: all.
    free : int, optional
        Bytes that may be used; by default what is free on the model's device.
    ranks : Ranks
        The processes that share the batch; those of one machine share the memory of its CPU too.

    Raises
    ------
    MemoryError
        With what is needed and free, and the largest batch that fits.
    """
    device = next(model.parameters()).device
    if free is None:
        free = free_bytes(device) // (ranks.on_this_machine if device.type == "cpu" else 1)
    weights = COPIES * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    per_view = SAFETY * bytes_per_view(model, image_size)
    n_views = math.ceil(min(chunk_size or 2 * batch_size, 2 * batch_size) / ranks.world_size)
    if weights + n_views * per_view <= free:
        return
    largest = max(0, int((free - weights) / (2 * per_view))) * ranks.world_size
    raise MemoryError(
        f"batch_size={batch_size} of {image_size} px needs about {(weights + n_views * per_view) / 2**30:.1f} GiB, and "
        f"{free / 2**30:.1f} GiB are free on {device}; the largest that fits is about {largest}. For the negatives of "
        f"a larger batch let the encoder take it in pieces: chunk_size={max(2, largest)}, or a smaller image_size"
    )


def bytes_per_view(model: nn.Module, image_size: int) -> float:
    """Memory that one view's forward pass keeps for the backward pass, measured on two views."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    views = torch.zeros(2, 1, image_size, image_size, device=next(model.parameters()).device)
    with frozen_statistics(model), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = train_output(model, views)  # held, so that no address is counted for two tensors
    del output
    return sum(kept.values()) / len(views)


def free_bytes(device: torch.device) -> int:
    """Bytes that a computation on the device may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return_freed_memory()  # what this process keeps for itself is free too
    return psutil.virtual_memory().available
