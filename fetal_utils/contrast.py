"""One step of contrastive learning: the network, its loss on two views, and how well it tells images apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fetal_utils.diagnostics import alignment, top1_accuracy, uniformity
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import ProjectionHead, n_features
from fetal_utils.optimisers import descend, train_output

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
    model: SimCLR, optimiser: torch.optim.Optimizer, view_a: Tensor, view_b: Tensor, *, temperature: float
) -> Tensor:
    """One optimiser step on a batch's two views.

    Parameters
    ----------
    model : SimCLR
    optimiser : Optimizer
    view_a, view_b : Tensor, shape (n_images, 1, image_size, image_size)
    temperature : float

    Returns
    -------
    Tensor, shape (4,)
        As `STEP_MEASURES` names them, detached.
    """
    z_a, z_b = train_output(model, torch.cat([view_a, view_b])).chunk(2)  # one batch: shared batch statistics
    loss = nt_xent_loss(z_a, z_b, temperature=temperature)
    descend(model, optimiser, loss)
    with torch.no_grad():
        return torch.stack([loss, top1_accuracy(z_a, z_b), alignment(z_a, z_b), uniformity(torch.cat([z_a, z_b]))])
