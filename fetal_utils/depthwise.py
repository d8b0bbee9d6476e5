"""Depthwise convolution whose weight gradient is quick on small feature maps on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

SMALL_MAP = 16  # output positions up to which the sums below beat the library (a 4 x 4 map)


class DepthwiseConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with one kernel per channel; same parameters, names and results.

    oneDNN, which torch uses on a CPU, takes up to 15 times as long as the sums below for the weights' gradient on
    the last, small maps of an EfficientNet; on those maps they are used instead. `notebooks/90_performance` has
    the figures.
    """

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (images.device.type == "cpu" and torch.is_grad_enabled() and weight.requires_grad):
            return super()._conv_forward(images, weight, bias)
        return _Depthwise.apply(images, weight, bias, self.stride, self.padding, self.dilation)


def quicken_depthwise(module: nn.Module) -> nn.Module:
    """Turn a network's depthwise convolutions into `DepthwiseConv2d`, in place; returns the network."""
    for layer in module.modules():
        depthwise = type(layer) is nn.Conv2d and layer.groups == layer.in_channels == layer.out_channels > 1
        if depthwise and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            layer.__class__ = DepthwiseConv2d
    return module


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, weight, bias, stride, padding, dilation):
        ctx.save_for_backward(images, weight)
        ctx.geometry = list(stride), list(padding), list(dilation)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return nn.functional.conv2d(images, weight, bias, stride, padding, dilation, groups=len(weight))

    @staticmethod
    def backward(ctx, gradient):
        images, weight = ctx.saved_tensors
        small = gradient.shape[2] * gradient.shape[3] <= SMALL_MAP
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not small, ctx.needs_input_grad[2]]
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, images, weight, ctx.bias_sizes, *ctx.geometry, False, [0, 0], len(weight), wanted
        )
        if small and ctx.needs_input_grad[1]:
            of_weight = weight_gradient(images, gradient, weight.shape, *ctx.geometry)
        return of_images, of_weight, of_bias, None, None, None


def weight_gradient(
    images: Tensor,
    gradient: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Gradient of a depthwise convolution's weights: for each place of the kernel a sum of products.

    Parameters
    ----------
    images : Tensor, shape (n_images, n_channels, height, width)
        The layer's input.
    gradient : Tensor, shape (n_images, n_channels, out_height, out_width)
        Of its output.
    shape : Size
        Of the weights: (n_channels, 1, kernel_height, kernel_width).
    stride, padding, dilation : tuple of two int
        Vertical and horizontal.

    Returns
    -------
    Tensor, of that shape
    """
    of_weight = gradient.new_zeros(shape)
    sizes = zip(images.shape[2:], gradient.shape[2:], stride, padding, dilation, strict=True)
    rows, columns = (
        list(_overlaps(n, *rest)) for n, rest in ((shape[2 + axis], size) for axis, size in enumerate(sizes))
    )
    for y, in_rows, out_rows in rows:
        for x, in_columns, out_columns in columns:
            product = images[:, :, in_rows, in_columns] * gradient[:, :, out_rows, out_columns]
            of_weight[:, 0, y, x] = product.sum((0, 2, 3))
    return of_weight


def _overlaps(
    kernel: int, n_in: int, n_out: int, stride: int, padding: int, dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis, for each place of the kernel: which input positions meet which output positions."""
    for place in range(kernel):
        offset = place * dilation - padding  # output position o meets input position o * stride + offset
        first = max(0, -(offset // stride))
        last = min(n_out - 1, (n_in - 1 - offset) // stride)
        if first <= last:
            start = first * stride + offset
            yield place, slice(start, last * stride + offset + 1, stride), slice(first, last + 1)
