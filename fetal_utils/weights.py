"""Weights on disk: written whole, and loaded only where every tensor fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from fetal_utils.files import replace_file

ABOUT = "about"  # the entry in a file's metadata


def save_weights(module: nn.Module, path: str | Path, *, about: Mapping[str, object] | None = None) -> None:
    """Write a module's weights as safetensors; the file appears whole or not at all.

    An encoder's file has timm's own names: ``timm.create_model(backbone, num_classes=0, in_chans=1)`` takes
    it by ``load_state_dict(load_file(path))``.

    Parameters
    ----------
    module : Module
    path : path
    about : mapping, optional
        What who uses the file elsewhere must know, see `describe_encoder`; JSON in the file's metadata.
    """
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    # one entry: safetensors writes several in an order of its own, and equal weights should be equal files
    metadata = {ABOUT: json.dumps(about, sort_keys=True)} if about else None
    replace_file(path, lambda beside: save_file(tensors, beside, metadata=metadata))


def read_about(path: str | Path) -> dict[str, object]:
    """What a file says of the weights in it, see `save_weights`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not safetensors or says nothing.
    """
    metadata = _open(path).metadata() or {}
    if ABOUT not in metadata:
        raise ValueError(
            f"{path} does not say which network it holds; delete that run and ask for it again, or build the network "
            "by its name: build_encoder(backbone, init=path)"
        )
    return json.loads(metadata[ABOUT])


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Put the weights of a safetensors file into a module of the same layers.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not safetensors, or a tensor is missing, needless or of another shape.
    """
    load_matching(module, read_weights(path), source=path)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, or an error that names the file."""
    file = _open(path)
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _open(path: str | Path) -> safe_open:
    """A safetensors file, of which no tensor is read yet."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no weights at {str(path)!r}; give a safetensors file (or, to start an encoder, 'random' or 'imagenet')"
        )
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); write one with save_weights") from error


def load_pretrained(encoder: nn.Module, weights: dict[str, Tensor], *, source: str | Path) -> None:
    """Load weights that may still have ImageNet's classifier and its three input channels."""
    config, here = encoder.pretrained_cfg, encoder.state_dict()
    weights = {
        name: tensor
        for name, tensor in weights.items()
        if name.rpartition(".")[0] not in _as_tuple(config["classifier"])
    }
    for stem in (f"{name}.weight" for name in _as_tuple(config["first_conv"])):
        if stem in weights and stem in here and weights[stem].shape[1] != here[stem].shape[1]:
            weights[stem] = adapt_input_conv(here[stem].shape[1], weights[stem])
    load_matching(encoder, weights, source=source)


def _as_tuple(names: str | list | tuple | None) -> tuple[str, ...]:
    """timm gives one layer's name as a string, several (distilled or two-branch networks) as a sequence."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def load_matching(module: nn.Module, weights: dict[str, Tensor], *, source: str | Path) -> None:
    """Load weights that are the module's to the last tensor, or raise a ValueError that names the first others."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
    if wrong:
        first = "; ".join(
            f"{name}: {found.get(name, 'absent')} there, {expected.get(name, 'absent')} here" for name in wrong[:3]
        )
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {len(wrong)} tensors differ ({first}); "
            "give the file of the same backbone and layers"
        )
    module.load_state_dict(weights)
