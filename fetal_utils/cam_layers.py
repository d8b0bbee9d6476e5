"""The layer whose feature maps a class activation map is made of, found in any convolutional encoder."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ENLARGEMENT = 64  # px added to the image to see which outputs grow with it; networks reduce a side up to 32 times


@dataclass(frozen=True)
class TargetLayer:
    """A layer of an encoder that gives feature maps.

    Attributes
    ----------
    name : str
        As in ``encoder.named_modules()``.
    module : Module
    side : int
        Of its square maps, px.
    n_channels : int
    """

    name: str
    module: nn.Module
    side: int
    n_channels: int


def find_layer(
    encoder: nn.Module, *, image_size: int, in_chans: int = 1, name: str | None = None, min_side: int = 1
) -> TargetLayer:
    """The layer to explain: the deepest with large enough maps, or the one named.

    The encoder is run on black images of two sizes, and a layer has maps if its output grows with the image. The
    deepest is the last to finish of those that everything passes: the inside of a residual branch is no candidate,
    since the features do not depend on it alone. For a ResNet that is ``layer4``, for an EfficientNet ``bn2`` (with
    its activation), for a ConvNeXt ``stages``, for a MobileNetV3 ``blocks``.

    Parameters
    ----------
    encoder : Module
        From `build_encoder`; left as it was found.
    image_size : int
        Side of its input, px.
    in_chans : int
        Channels of its input.
    name : str, optional
        A layer of one's own choice; ``min_side`` then does not count.
    min_side : int
        Least side of the maps, px: the last maps of an EfficientNet-Lite0 are 2 x 2 for an image of 64 px.

    Returns
    -------
    TargetLayer

    Raises
    ------
    ValueError
        If the encoder has no maps at its end (a vision transformer), none is large enough, or the named layer does
        not exist (close ones are listed), gives no maps, or runs several times in a pass.
    """
    names = dict(encoder.named_modules())
    if name is not None and (name not in names or not name):
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or [key for key, _ in encoder.named_children()]
        raise ValueError(f"layer={name!r} does not exist in {encoder_name(encoder)}; near it are {', '.join(close)}")
    image = torch.zeros(1, in_chans, image_size, image_size, device=next(encoder.parameters()).device)
    with left_as_found(encoder):
        maps = _feature_maps(encoder, image)
        if name is None:
            return _deepest(encoder, maps, image, min_side)
    named = [layer for layer in maps if layer.name == name]
    if len(named) != 1:
        some = ", ".join(dict.fromkeys(layer.name for layer in maps[-8:]))
        raise ValueError(
            f"layer={name!r} gives maps {len(named)} times in a pass of {encoder_name(encoder)}; expected once; "
            f"the last that do are {some}"
        )
    return named[0]


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode and frozen; afterwards modes, gradients and what needs them are as before."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        yield model.eval().requires_grad_(False)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad).grad = gradient  # the library sets it to None


def encoder_name(encoder: nn.Module) -> str:
    """The timm name of an encoder; of another network, its class."""
    return getattr(encoder, "pretrained_cfg", {}).get("architecture") or type(encoder).__name__


def _feature_maps(encoder: nn.Module, image: Tensor) -> list[TargetLayer]:
    """Every output that is a square map, in the order in which layers finish."""
    size = image.shape[-1]
    larger = image.new_zeros(*image.shape[:2], size + ENLARGEMENT, size + ENLARGEMENT)
    try:
        outputs = zip(_output_shapes(encoder, image), _output_shapes(encoder, larger), strict=True)
        growing = [(name, shape, larger) for (name, shape), (_, larger) in outputs if shape != larger]
    except (AssertionError, RuntimeError, ValueError) as error:  # a network for images of one size
        raise _without_maps(encoder, f"images of {size} and {size + ENLARGEMENT} px fail ({error})") from error
    if not growing or not _is_map(*growing[-1][1:]):
        raise _without_maps(encoder, f"the last output that grows with the image is {growing[-1:]}")
    return [
        TargetLayer(name, encoder.get_submodule(name), side=shape[-1], n_channels=shape[1])
        for name, shape, larger in growing
        if _is_map(shape, larger)
    ]


def _without_maps(encoder: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f"{encoder_name(encoder)} has no feature maps (n, channels, side, side) at its end: {reason}; "
        "use a convolutional encoder such as resnet18 or tf_efficientnet_lite0"
    )


def _is_map(shape: torch.Size, larger: torch.Size) -> bool:
    """Whether an output of this shape, and of the other for a larger image, is (n, channels, side, side)."""
    square = len(shape) == 4 and shape[2] == shape[3] and shape[1] == larger[1]
    return square and larger[2] > shape[2] and larger[3] > shape[3]


def _output_shapes(encoder: nn.Module, image: Tensor) -> list[tuple[str, torch.Size]]:
    """Name and output shape of every layer, in the order in which they finish; identities are left out."""
    shapes = []
    with _hooks(encoder, lambda name, output: shapes.append((name, output.shape))), torch.no_grad():
        encoder(image)
    return shapes


@contextmanager
def _hooks(encoder: nn.Module, look) -> Iterator[None]:
    """``look(name, output)`` at every layer that gives a tensor."""

    def hook_of(name: str):
        return lambda module, inputs, output: look(name, output) if isinstance(output, Tensor) else None

    layers = [(name, layer) for name, layer in encoder.named_modules() if name and not isinstance(layer, nn.Identity)]
    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _deepest(encoder: nn.Module, maps: list[TargetLayer], image: Tensor, min_side: int) -> TargetLayer:
    n_calls = Counter(layer.name for layer in maps)
    large = [layer for layer in maps if layer.side >= min_side and n_calls[layer.name] == 1]
    found = next((layer for layer in reversed(large) if _passes_everything(encoder, layer.module, image)), None)
    if found is None:
        raise ValueError(
            f"min_side={min_side}: the largest maps of {encoder_name(encoder)} for images of {image.shape[-1]} px are "
            f"{max(layer.side for layer in maps)} px on a side; give a smaller min_side"
        )
    return found


def _passes_everything(encoder: nn.Module, layer: nn.Module, image: Tensor) -> bool:
    """Whether the features depend on the image through this layer alone: cut there, they have no gradient."""
    handle = layer.register_forward_hook(lambda module, inputs, output: output.detach())
    try:
        with torch.enable_grad():
            return not encoder(image.clone().requires_grad_()).requires_grad
    finally:
        handle.remove()
