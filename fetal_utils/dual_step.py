"""One step of the dual task: the network, and the gradients of its two losses on one encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LRScheduler

from fetal_utils.contrast import SimCLR, contrast_backward
from fetal_utils.fine_tuning import classification_loss
from fetal_utils.models import Classifier
from fetal_utils.optimisers import check_finite, climb_down

DUAL_MEASURES = ("train_loss", "contrast_loss", "train_gradient_norm", "contrast_gradient_norm")


class DualNetwork(nn.Module):
    """One encoder under two heads: a classifier's linear layer and a projection head.

    Parameters
    ----------
    classifier : Classifier
        Held as it is, not copied.
    projection_dim : int
    seed : int
        Decides the projection head's first weights.
    """

    def __init__(self, classifier: Classifier, *, projection_dim: int, seed: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.simclr = SimCLR(classifier.encoder, projection_dim=projection_dim, seed=seed)

    @property
    def encoder(self) -> nn.Module:
        """What both share."""
        return self.classifier.encoder


def dual_step(
    network: DualNetwork,
    optimiser: torch.optim.Optimizer,
    schedule: LRScheduler,
    *,
    labelled: tuple[Tensor, Tensor] | None,
    views: tuple[Tensor, Tensor] | None,
    class_weights: Tensor,
    contrastive_weight: float,
    **contrast,
) -> Tensor:
    """One optimiser step down cross-entropy + contrastive_weight * NT-Xent.

    Each loss has its own forward and backward pass, one after the other, so that memory holds the activations of
    one of them only and the two gradients can be measured apart.

    Parameters
    ----------
    network : DualNetwork
    optimiser : Optimizer
    schedule : LRScheduler
        Stepped too.
    labelled : tuple of Tensor, or None
        Images, shape (n_images, 1, image_size, image_size), and labels, shape (n_images,). None: a step of SimCLR.
    views : tuple of Tensor, or None
        Two views, each of shape (n_views, 1, image_size, image_size). None: a step of supervised training.
    class_weights : Tensor, shape (n_classes,)
    contrastive_weight : float
        Of NT-Xent, > 0.
    **contrast
        ``temperature``, and if wanted ``not_negatives`` and ``chunk_size``; see `contrast_step`.

    Returns
    -------
    Tensor, shape (4,)
        As `DUAL_MEASURES` names them, detached: both losses without weight, and the norms of the gradients that
        they send into the encoder, the contrastive one with its weight, before clipping. A loss that was not
        asked for is NaN, its norm 0.

    Raises
    ------
    ValueError
        If there are neither labelled images nor views.
    FloatingPointError
        If a loss is not finite; the weights are then those of the step before.

    Notes
    -----
    BatchNorm normalises each pass by its own batch; its running statistics, which prediction uses, follow both
    passes in turn, the labelled images last.
    """
    if labelled is None and views is None:
        raise ValueError("neither labelled images nor views: give one of them, or both")
    optimiser.zero_grad(set_to_none=True)
    train_loss = contrast_loss = torch.tensor(torch.nan, device=class_weights.device)
    if views is not None:
        contrast_loss, _ = contrast_backward(network.simclr, schedule, *views, **contrast)
        for parameter in network.simclr.parameters():
            if parameter.grad is not None:  # of a layer that an encoder does not use
                parameter.grad.mul_(contrastive_weight)
    of_contrast = take_gradients(network.encoder)
    if labelled is not None:
        train_loss = classification_loss(network.classifier, *labelled, class_weights=class_weights)
        check_finite(train_loss, schedule)
        train_loss.backward()
    of_labels = take_gradients(network.encoder)
    # before they are clipped in place
    norms = [get_total_norm(gradients.values()).to(train_loss) for gradients in (of_labels, of_contrast)]
    give_gradients(network.encoder, of_labels, of_contrast)
    climb_down(network, optimiser, schedule)
    return torch.stack([train_loss.detach(), contrast_loss, *norms])


def take_gradients(module: nn.Module) -> dict[str, Tensor]:
    """A module's gradients by the names of their parameters, taken away from it."""
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return gradients


def give_gradients(module: nn.Module, *parts: dict[str, Tensor]) -> None:
    """Set a module's gradients to the sum of what `take_gradients` gave; without any, a parameter keeps none."""
    for name, parameter in module.named_parameters():
        gradients = [part[name] for part in parts if name in part]
        parameter.grad = sum(gradients[1:], start=gradients[0]) if gradients else None
