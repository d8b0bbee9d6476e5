"""Batch normalisation by the statistics of the whole batch, where several processes share it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn


def share_statistics(module: nn.Module, device: torch.device) -> nn.Module:
    """A network whose batch normalisations work on the batch of all processes; weights and their names stay.

    torch's synchronised layers on a GPU; on a CPU, where torch has none, `SharedBatchNorm`.

    Parameters
    ----------
    module : Module
        Changed in place, where it is not such a layer itself.
    device : torch.device

    Raises
    ------
    ValueError
        If a layer keeps statistics of its batch in a way that can't be shared.
    """
    module = convert_sync_batchnorm(module)  # timm's: that of torch loses the activations in timm's layers
    layers = [layer for layer in module.modules() if getattr(layer, "running_var", None) is not None]
    if strange := {type(layer).__name__ for layer in layers if not isinstance(layer, nn.SyncBatchNorm)}:
        raise ValueError(
            f"the network has layers {sorted(strange)}, whose batch statistics several processes can't share; "
            "train it with one process, or take another backbone"
        )
    if device.type == "cpu":
        for layer in layers:
            layer.__class__ = SharedBatchNorm
    return module


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What a synchronised batch normalisation does on a GPU, with timm's activation where one follows, on a CPU.

    No `torch.nn.SyncBatchNorm` itself, which DistributedDataParallel refuses there.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise_together(x) if self.training else super().forward(x)
        return self.act(self.drop(x)) if hasattr(self, "act") else x

    def normalise_together(self, x: Tensor) -> Tensor:
        """Normalise by the batch of all processes, and note its statistics."""
        x, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = self.momentum or 1 / self.num_batches_tracked.item()  # None: a mean of all batches
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance, momentum)
        return x

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions will do."""


class _Normalise(torch.autograd.Function):
    """Normalised inputs, and the mean and unbiased variance of all processes' inputs, without gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        dims = [dim for dim in range(x.ndim) if dim != 1]
        variance, mean = torch.var_mean(x, dims, correction=0)
        means, variances, counts = gathered(torch.stack([mean, variance, torch.full_like(mean, x.numel() / len(mean))]))
        n = counts.sum(0)
        mean = (counts * means).sum(0) / n
        variance = (counts * (variances + (means - mean).square())).sum(0) / n  # within processes and between them
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.eps = eps
        unbiased = variance * n / (n - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, unbiased

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, variance, n = ctx.saved_tensors
        arguments = (gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3)
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(*arguments)  # as if both were constants
        # what flows through mean and variance takes a straight line in x away
        total_weight, total_bias = added_up(torch.stack([of_weight, of_bias])) / n
        scale = (variance + ctx.eps).rsqrt()
        slope = weight * scale.square() * total_weight
        offset = weight * scale * total_bias - slope * mean
        shape = [1, -1] + [1] * (x.ndim - 2)
        return of_x - torch.addcmul(offset.view(shape), x, slope.view(shape)), of_weight, of_bias, None


def gathered(values: Tensor) -> Tensor:
    """The tensors of all processes, shape (n_values, world_size, ...) for own ones (n_values, ...)."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts, dim=1)


def added_up(values: Tensor) -> Tensor:
    """The sum of the tensors of all processes, in place."""
    dist.all_reduce(values)
    return values
