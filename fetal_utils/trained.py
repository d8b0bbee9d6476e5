"""Trained encoders that leave the study: what a file of weights says of itself, and the network in it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from fetal_utils.dataset import Dataset
from fetal_utils.models import build_encoder, normalisation
from fetal_utils.weights import load_matching, read_about, read_weights

IN_CLASSIFIER = "encoder."  # what a `Classifier` puts before the names of its encoder's tensors


def describe_encoder(encoder: nn.Module, dataset: Dataset, *, backbone: str, image_size: int) -> dict[str, object]:
    """What who uses an encoder elsewhere must know; `save_weights` puts it into the file.

    Parameters
    ----------
    encoder : Module
        From `build_encoder`.
    dataset : Dataset
        What it was trained on.
    backbone : str
        A timm name.
    image_size : int
        px.

    Returns
    -------
    dict
        ``backbone``, ``in_chans`` and ``image_size`` of the network; ``mean`` and ``std`` that gray values in [0, 1]
        are normalised with; ``geometry`` and ``blank_text``: how a picture became a square, see `ImageFormat`.
    """
    mean, std = normalisation(encoder)
    return {
        "backbone": backbone,
        "in_chans": 1,
        "image_size": image_size,
        "mean": mean,
        "std": std,
        "geometry": dataset.geometry,
        "blank_text": dataset.blank_text,
    }


def open_encoder(path: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """The encoder in a run's ``weights.safetensors``, of a pretraining or of a fine-tuned classifier.

    Parameters
    ----------
    path : path

    Returns
    -------
    encoder : Module
        On the CPU, in evaluation mode: (n_images, 1, image_size, image_size) to features h.
    about : dict
        See `describe_encoder`; of a classifier also ``classes``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not safetensors, does not say what it holds, or holds other tensors than it says.
    """
    about = read_about(path)
    encoder = build_encoder(about["backbone"], init="random", seed=0)
    load_matching(encoder, encoder_part(read_weights(path)), source=path)
    return encoder.eval(), about


def encoder_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under timm's names; all of them if there is no classifier around it."""
    inside = {name: tensor for name, tensor in weights.items() if name.startswith(IN_CLASSIFIER)}
    return {name.removeprefix(IN_CLASSIFIER): tensor for name, tensor in inside.items()} or weights
