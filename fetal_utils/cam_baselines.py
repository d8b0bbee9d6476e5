"""Maps that know nothing of the trained network: what the scores of a class activation map are read against."""

import numpy as np
from torch import nn

from fetal_utils.cam_layers import encoder_name
from fetal_utils.cam_maps import enlarge
from fetal_utils.models import Classifier, build_encoder

BASELINES = ("random", "gaussian", "reinitialised")
GAUSSIAN_SIGMA = 0.25  # of the image's side


def random_maps(n_images: int, *, side: int, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform noise on the grid of a layer, enlarged as its maps are: equally coarse, and about nothing.

    Parameters
    ----------
    n_images : int
    side : int
        Of the layer's grid, px: ``cam.layer.side``.
    image_size : int
        px.
    rng : numpy Generator

    Returns
    -------
    ndarray of float32, shape (n_images, image_size, image_size)
        In [0, 1).
    """
    return enlarge(rng.random((n_images, side, side)), image_size)


def gaussian_maps(n_images: int, *, image_size: int, sigma: float = GAUSSIAN_SIGMA) -> np.ndarray:
    """A bump in the middle of every image: what a map scores by knowing that anatomy is seldom at the edge.

    Parameters
    ----------
    n_images : int
    image_size : int
        px.
    sigma : float
        Standard deviation as a share of the side.

    Returns
    -------
    ndarray of float32, shape (n_images, image_size, image_size)
        In (0, 1].
    """
    places = (np.arange(image_size) + 0.5) / image_size - 0.5  # pixel centres, from the middle
    profile = np.exp(-0.5 * (places / sigma) ** 2)
    return np.repeat(np.outer(profile, profile).astype(np.float32)[None], n_images, axis=0)


def reinitialised(model: nn.Module, *, seed: int, in_chans: int = 1) -> nn.Module:
    """A network of the same shape with random weights, whose maps show what the architecture alone gives.

    All layers are drawn anew at once, by timm's own initialisation. A map that looks the same with these weights
    explains nothing that was learned.

    Parameters
    ----------
    model : Module
        A `Classifier` on a timm encoder, or the encoder.
    seed : int
        Decides the weights.
    in_chans : int
        Channels of the images.

    Returns
    -------
    Module
        New, in training mode, on the CPU.

    Raises
    ------
    ValueError
        If the encoder is none of timm's, or weights have other shapes than the model's.

    References
    ----------
    Adebayo et al. 2018, arXiv:1810.03292, section 3.1 (there also layer by layer).
    """
    encoder = model.encoder if isinstance(model, Classifier) else model
    if not getattr(encoder, "pretrained_cfg", {}).get("architecture"):
        raise ValueError(f"{type(encoder).__name__} is no encoder of timm's, so it can't be built again from its name")
    new = build_encoder(encoder_name(encoder), init="random", in_chans=in_chans, seed=seed)
    if isinstance(model, Classifier):
        new = Classifier(new, model.head.out_features, seed=seed)
    shapes, expected = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (new, model))
    if other := [name for name in expected | shapes if shapes.get(name) != expected.get(name)]:
        raise ValueError(
            f"built again, {encoder_name(encoder)} has other weights, first {other[0]}: {shapes.get(other[0])} for "
            f"{expected.get(other[0])}; give in_chans, and a network that timm's options did not change"
        )
    return new
