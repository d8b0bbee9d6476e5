"""The optimiser, its learning rate and its step, shared by pretraining and supervised training."""

from __future__ import annotations

import math

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

MAX_GRADIENT_NORM = 1.0
MOMENTUM = 0.9  # of SGD and LARS
OPTIMISERS = ("adamw", "sgd", "lars")


def check_optimiser(name: str) -> None:
    """Raise a ValueError for an optimiser that is not known."""
    if name not in OPTIMISERS:
        raise ValueError(f"optimiser={name!r} is unknown; known are {OPTIMISERS}")


def check_optimisation(*, lr: float, weight_decay: float, warmup_fraction: float) -> None:
    """Raise a ValueError for values that no training can use."""
    if not (lr > 0 and weight_decay >= 0 and 0 <= warmup_fraction < 1):
        raise ValueError(
            f"lr={lr}, weight_decay={weight_decay}, warmup_fraction={warmup_fraction}: expected lr above 0, "
            "weight_decay of 0 or more, and warmup_fraction from 0 to less than 1"
        )


def parameter_groups(
    module: nn.Module, *, weight_decay: float, head: nn.Module | None = None, head_lr_factor: float = 1.0
) -> list[dict]:
    """A module's parameters in groups, weight decay not on biases and normalisation layers.

    Parameters
    ----------
    module : Module
    weight_decay : float
        For parameters with two or more dimensions; 0 for the others.
    head : Module, optional
        A part of ``module`` that learns at ``head_lr_factor`` times the rate of the rest.
    head_lr_factor : float

    Returns
    -------
    list of dict
        Parameter groups for a torch optimiser, two of the rest and two of the head, if there is one. Each has
        its ``lr_factor``.
    """
    of_head = set(head.parameters()) if head else set()
    groups = []
    for factor, in_head in ((1.0, False), (head_lr_factor, True))[: 2 if head else 1]:
        own = [p for p in module.parameters() if p.requires_grad and (p in of_head) == in_head]
        groups += [
            {"params": [p for p in own if p.ndim > 1], "weight_decay": weight_decay, "lr_factor": factor},
            {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, "lr_factor": factor},
        ]
    return groups


def build_optimiser(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    name: str = "adamw",
    head: nn.Module | None = None,
    head_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """An optimiser over `parameter_groups`.

    Parameters
    ----------
    module : Module
    lr, weight_decay : float
        Rates differ between optimisers: for SimCLR in batches of 128, 4e-3 suits AdamW, and 1 LARS.
    name : str
        One of `OPTIMISERS`. LARS adapts the rate of the weights that decay, and no others.
    head : Module, optional
        A part of ``module`` whose rate is ``head_lr_factor * lr``: a new layer on an encoder that has learned
        may want a higher one.
    head_lr_factor : float

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError
        If the name is unknown.

    References
    ----------
    You et al. 2017, arXiv:1708.03888, for LARS; Howard and Ruder 2018, arXiv:1801.06146, section 3.2, for
    rates that differ between layers.
    """
    check_optimiser(name)
    groups = parameter_groups(module, weight_decay=weight_decay, head=head, head_lr_factor=head_lr_factor)
    groups = [group | {"lr": lr * group["lr_factor"]} for group in groups]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return (Lars if name == "lars" else torch.optim.SGD)(groups, lr=lr, momentum=MOMENTUM)


def warmup_cosine(optimiser: torch.optim.Optimizer, *, n_steps: int, n_warmup: int) -> LambdaLR:
    """Linear warm-up to the optimiser's rate, then a cosine to 0 at ``n_steps``; stepped per step.

    Parameters
    ----------
    optimiser : Optimizer
    n_steps, n_warmup : int
        Optimiser steps in all and of the warm-up; 0 <= n_warmup < n_steps.

    Returns
    -------
    LambdaLR

    Raises
    ------
    ValueError
        If the warm-up is not shorter than the training.

    References
    ----------
    Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, one cycle.
    """
    if not 0 <= n_warmup < n_steps:
        raise ValueError(f"n_warmup={n_warmup} of n_steps={n_steps}: expected fewer warm-up steps than steps")

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        progress = min(1.0, (step - n_warmup) / (n_steps - n_warmup))
        return (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimiser, factor)


def train_output(module: nn.Module, images: Tensor) -> Tensor:
    """A network's output in training mode, in bfloat16 where an accelerator computes it.

    Parameters
    ----------
    module : Module
        Left in training mode.
    images : Tensor, shape (n_images, 1, image_size, image_size)

    Returns
    -------
    Tensor, shape (n_images, n_outputs)
    """
    with mixed_precision(images.device):
        return module.train()(images.contiguous(memory_format=torch.channels_last))


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context that computes in bfloat16 on an accelerator, and changes nothing on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu")


def descend(module: nn.Module, optimiser: torch.optim.Optimizer, schedule: LRScheduler, loss: Tensor) -> None:
    """One optimiser step down a loss, and one of the schedule.

    Parameters
    ----------
    module : Module
        Whose parameters the optimiser holds.
    optimiser : Optimizer
    schedule : LRScheduler
    loss : Tensor, shape ()
        Of an output of the module.

    Raises
    ------
    FloatingPointError
        If the loss is not finite; the weights stay as they are.
    """
    check_finite(loss, schedule)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    climb_down(module, optimiser, schedule)


def climb_down(module: nn.Module, optimiser: torch.optim.Optimizer, schedule: LRScheduler) -> None:
    """One step of optimiser and schedule along gradients that are there, their norm clipped to `MAX_GRADIENT_NORM`."""
    nn.utils.clip_grad_norm_(module.parameters(), max_norm=MAX_GRADIENT_NORM)
    optimiser.step()
    schedule.step()


def check_finite(loss: Tensor, schedule: LRScheduler) -> None:
    """Raise a FloatingPointError that names the step if a loss is NaN or infinite."""
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {schedule.last_epoch + 1}: the training diverged; try a lower lr or a "
            "longer warm-up. The checkpoint of the last whole epoch stays"
        )
