"""How alike two encoders see the same images, stage by stage: linear centred kernel alignment (CKA)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn

from fetal_utils.embeddings import check_features
from fetal_utils.environment import progress_bar
from fetal_utils.models import normalisation
from fetal_utils.transforms import EvalTransform

FEATURES = "features"  # the name of the last column of activations, the features h


def linear_cka(a: np.ndarray, b: np.ndarray, *, debiased: bool = True) -> float:
    """Linear CKA of two sets of activations of the same images.

    Parameters
    ----------
    a, b : ndarray, shapes (n_images, n_a) and (n_images, n_b)
        Row ``i`` of both comes from image ``i``.
    debiased : bool
        Take the unbiased estimator of the three terms. The plain one tends to 1 as the images become fewer than the
        activations, for any two networks; here images number hundreds and activations up to thousands.

    Returns
    -------
    float
        1 for the same up to rotation and one common scale; 0 for unrelated ones, about which the debiased value
        scatters and may so be a little negative. NaN if one of the two does not vary, or so few images show nothing.

    Raises
    ------
    ValueError
        If the images differ in number, are fewer than 4, or an activation is NaN or infinite.

    Notes
    -----
    The estimator takes images for independent, and those of a patient are not: give one image of each patient where
    the value itself, rather than a comparison of values, is the point. Averages of small batches (Nguyen et al.
    2021, arXiv:2010.15327) are not needed, since only inner products of activations are formed, never of images.

    References
    ----------
    Kornblith et al. 2019, arXiv:1905.00414, section 3 and equation 4; the debiased terms are those of Song et al.
    2012, J Mach Learn Res 13:1393, equation 5, in the form of Kornblith's published notebook.
    """
    a, b = (check_features(x).astype(np.float64) for x in (a, b))
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(
            f"activations of {len(a)} and {len(b)} images: expected the same images for both, at least 4; take both "
            "from one table"
        )
    if (a == a[0]).all() or (b == b[0]).all():
        return float("nan")
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    of_both, of_a, of_b = (_alignment(x, y, debiased=debiased) for x, y in ((a, b), (a, a), (b, b)))
    # the unbiased estimate of a variance may fall below zero where images are few
    return float(of_both / np.sqrt(of_a * of_b)) if min(of_a, of_b) > 0 else float("nan")


def _alignment(a: np.ndarray, b: np.ndarray, *, debiased: bool) -> float:
    """Sum of the squared inner products between centred columns; HSIC of linear kernels, but for a common factor."""
    n_images = len(a)
    plain = np.square(a.T @ b).sum()
    if not debiased:
        return plain
    lengths_a, lengths_b = np.square(a).sum(axis=1), np.square(b).sum(axis=1)  # (n_images,), squared
    diagonal = n_images / (n_images - 2) * lengths_a @ lengths_b
    return plain - diagonal + lengths_a.sum() * lengths_b.sum() / ((n_images - 1) * (n_images - 2))


@torch.no_grad()
def stage_activations(
    encoder: nn.Module,
    images: np.ndarray,
    *,
    image_size: int,
    device: torch.device,
    batch_size: int = 128,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Activations of every stage of a timm encoder, averaged over the image, and its features.

    timm's encoders hand out their stages themselves (``forward_intermediates``), so that nothing is hooked.

    Parameters
    ----------
    encoder : Module
        From `build_encoder`. Moved to the device; in training mode again afterwards if it was before.
    images : ndarray of uint8, shape (n_images, height, width)
    image_size : int
        Side of the network's input, px.
    device : torch.device
    batch_size : int
    progress : bool
        Show a bar.

    Returns
    -------
    dict of str to ndarray of float32, shape (n_images, n_channels)
        From the stem to the last stage, under the names of timm's modules, then ``features``.

    Raises
    ------
    ValueError
        If the network does not hand out its stages, or there is no image.
    """
    if not hasattr(encoder, "forward_intermediates") or len(images) == 0:
        raise ValueError(
            f"{type(encoder).__name__} and {len(images)} images: expected a timm encoder with forward_intermediates "
            "(ResNet, EfficientNet, ViT and most others have it) and at least one image"
        )
    transform = EvalTransform(image_size, *normalisation(encoder))
    was_training = encoder.training
    encoder.to(device).eval()
    batches = []
    try:
        with progress_bar(total=len(images), desc="stages", unit="image", show=progress, leave=False) as bar:
            for start in range(0, len(images), batch_size):
                # the copy makes a writable array of the read-only memory map
                batch = torch.from_numpy(images[start : start + batch_size].copy()).to(device)
                batches.append(_pooled_stages(encoder, transform(batch)))
                bar.update(len(batch))
    finally:
        encoder.train(was_training)
    names = [*stage_names(encoder), FEATURES]
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*batches, strict=True), strict=True)}


def stage_names(encoder: nn.Module) -> list[str]:
    """timm's name of the module that ends each stage, from the stem on."""
    return [stage["module"] for stage in encoder.feature_info]


def _pooled_stages(encoder: nn.Module, batch: torch.Tensor) -> list[np.ndarray]:
    last, stages = encoder.forward_intermediates(batch)  # each (n, n_channels, height, width)
    pooled = [stage.mean(dim=(2, 3)) for stage in stages]
    return [x.float().cpu().numpy() for x in (*pooled, encoder.forward_head(last))]


def cka_matrix(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], *, debiased: bool = True) -> pd.DataFrame:
    """Linear CKA between every stage of one encoder and every stage of another.

    Parameters
    ----------
    a, b : mapping of str to ndarray, shape (n_images, n_channels)
        From `stage_activations`, of the same images in the same order.
    debiased : bool
        See `linear_cka`.

    Returns
    -------
    DataFrame
        Rows are the stages of ``a``, columns those of ``b``.

    Raises
    ------
    ValueError
        As `linear_cka`, or if one has no stage.
    """
    if not a or not b:
        raise ValueError(f"{len(a)} and {len(b)} stages: expected at least one of each, see stage_activations")
    values = [[linear_cka(x, y, debiased=debiased) for y in b.values()] for x in a.values()]
    return pd.DataFrame(values, index=list(a), columns=list(b))
