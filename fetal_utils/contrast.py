"""One step of contrastive learning: the network, its loss on two views, and how well it tells images apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from fetal_utils.diagnostics import alignment, top1_accuracy, uniformity
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import ProjectionHead, n_features
from fetal_utils.optimisers import check_finite, climb_down, mixed_precision, train_output

if TYPE_CHECKING:  # at run time `shares` reads this module, not the other way round
    from fetal_utils.shares import Share, SharedSimCLR

STEP_MEASURES = ("loss", "top1_accuracy", "alignment", "uniformity")


class SimCLR(nn.Module):
    """An encoder and its projection head.

    Parameters
    ----------
    encoder : Module
    projection_dim : int
    seed : int
        Decides the head's first weights.
    """

    def __init__(self, encoder: nn.Module, *, projection_dim: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection_head = ProjectionHead(n_features(encoder), projection_dim=projection_dim, seed=seed)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.encoder(images))  # (n_images, projection_dim)


def contrast_step(
    model: SimCLR | SharedSimCLR,
    optimiser: torch.optim.Optimizer,
    schedule: LRScheduler,
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: float,
    not_negatives: Tensor | None = None,
    chunk_size: int = 0,
    share: Share | None = None,
) -> Tensor:
    """One optimiser step on a batch's two views.

    Parameters
    ----------
    model : SimCLR or SharedSimCLR
    optimiser : Optimizer
    schedule : LRScheduler
        Stepped too.
    view_a, view_b : Tensor, shape (n_images, 1, image_size, image_size)
    temperature : float
    not_negatives : Tensor of bool, shape (n_images, n_images), optional
        See `nt_xent_loss`.
    chunk_size : int
        Views that the encoder takes at a time; 0: all at once. In pieces the memory is that of one piece
        while every view still meets all the others as negatives, which accumulated gradients would not
        give. The price is a second forward pass; and an encoder's BatchNorm sees a piece, not the batch.
    share : Share, optional
        Where several processes take the step together, each with a `SharedSimCLR`: the views are those of
        ``share.images``, in pieces that it decides; ``not_negatives`` and what is measured are of the whole batch.

    Returns
    -------
    Tensor, shape (4,)
        As `STEP_MEASURES` names them, detached.

    Raises
    ------
    FloatingPointError
        If the loss is not finite; the weights are then those of the step before.
    LostProcessError
        If another process that shares the step is gone.

    References
    ----------
    Gao et al. 2021, arXiv:2101.06983, section 3, for the pieces.
    """
    optimiser.zero_grad(set_to_none=True)
    options = {"temperature": temperature, "not_negatives": not_negatives, "chunk_size": chunk_size, "share": share}
    loss, z = contrast_backward(model, schedule, view_a, view_b, **options)
    climb_down(model, optimiser, schedule)
    z_a, z_b = z.chunk(2)
    return torch.stack([loss, top1_accuracy(z_a, z_b), alignment(z_a, z_b), uniformity(z)])


def contrast_backward(
    model: SimCLR | SharedSimCLR,
    schedule: LRScheduler,
    view_a: Tensor,
    view_b: Tensor,
    *,
    chunk_size: int = 0,
    share: Share | None = None,
    **options,
) -> tuple[Tensor, Tensor]:
    """Gradients of NT-Xent, added to those that the model has; no step is taken.

    Parameters
    ----------
    model, schedule, view_a, view_b, chunk_size, share
        As for `contrast_step`; the schedule only names the step if the loss is not finite.
    **options
        ``temperature``, and if wanted ``not_negatives``.

    Returns
    -------
    loss : Tensor, shape ()
    projections : Tensor, shape (2 * n_images, projection_dim)
        All first views, then all second ones; both results detached.
    """
    views = torch.cat([view_a, view_b])  # one batch: shared batch statistics
    pieces = share.split(views) if share else even_pieces(views, chunk_size)
    with share.ranks.listening() if share else nullcontext():
        if len(pieces) > 1:
            return backward_in_pieces(model, schedule, pieces, share=share, **options)
        return backward_from_projections(train_output(model, views), schedule, share=share, **options)


def backward_from_projections(
    z: Tensor, schedule: LRScheduler, *, share: Share | None, **options
) -> tuple[Tensor, Tensor]:
    """The loss of the batch's projections and its backward pass; the loss and all projections, detached."""
    z = share.gather(z) if share else z
    loss = nt_xent_loss(*z.chunk(2), **options)
    check_finite(loss, schedule)
    (share.scale(loss) if share else loss).backward()
    return loss.detach(), z.detach()


def backward_in_pieces(
    model: SimCLR | SharedSimCLR, schedule: LRScheduler, pieces: tuple[Tensor, ...], **options
) -> tuple[Tensor, Tensor]:
    """`contrast_backward` of all pieces together, the encoder holding one piece's activations at a time."""
    with torch.no_grad(), frozen_statistics(model.encoder):
        features = torch.cat([train_output(model.encoder, piece) for piece in pieces])
    features.requires_grad_()
    with mixed_precision(features.device):
        z = model.projection_head.train()(features)
    loss, z = backward_from_projections(z, schedule, **options)
    gradients = features.grad.split([len(piece) for piece in pieces])
    for k, (piece, gradient) in enumerate(zip(pieces, gradients, strict=True), start=1):
        with nullcontext() if k == len(pieces) else unshared(model.encoder):
            train_output(model.encoder, piece).backward(gradient)
    return loss, z


def unshared(module: nn.Module) -> AbstractContextManager:
    """A context in which gradients stay where they are made, for those to which the last piece's are still to come."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def even_pieces(views: Tensor, chunk_size: int) -> tuple[Tensor, ...]:
    """The views, two for each image, in as few pieces of at most ``chunk_size`` as there can be (0: in one), of lengths
    that differ by one at most: a single view left over would have no variance for BatchNorm on a map of one pixel."""
    return views.tensor_split(math.ceil(len(views) / (chunk_size or len(views))))


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm works on its batch as in training, but its running statistics stay as they are."""
    tracking = [layer for layer in module.modules() if getattr(layer, "track_running_stats", False)]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
