"""Whether the pixels that a map marks are those that the network's answer depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from pytorch_grad_cam.metrics.road import ROADCombined
from torch import Tensor, nn

from fetal_utils.cam_targets import Target, target_scores

BLUR = 0.1  # standard deviation of the blurred image's kernel, as a share of the side
N_STEPS = 16
PERCENTILES = (20, 50, 80)  # the share of pixels, in %, that ROAD removes at a time
BASELINES = ("blur", "mean")


def insertion_area(
    model: nn.Module,
    images: Tensor,
    ranks: np.ndarray,
    targets: Sequence[Target],
    *,
    n_steps: int = N_STEPS,
    blur: float = BLUR,
    batch_size: int = 128,
) -> np.ndarray:
    """Area under the answer while the most relevant pixels first replace those of the blurred image; high is good.

    Parameters
    ----------
    model : Module
        In evaluation mode, see `cam_layers.left_as_found`.
    images : Tensor, shape (n_images, channels, side, side)
        Network inputs.
    ranks : ndarray, shape (n_images, side, side)
        From `cam_maps.rank_pixels`.
    targets : sequence of Target, length n_images
        The answer: the probability of a class, or a similarity.
    n_steps : int
        Equal steps from none to all of the pixels.
    blur : float
        Standard deviation of the blur, as a share of the side: 0.1, where the paper takes about 0.02 (5 px of 224),
        after which fetal planes are still told apart.
    batch_size : int
        Changed images at a time.

    Returns
    -------
    ndarray of float64, shape (n_images,)
        By the trapezoidal rule over the share of pixels, 0..1.

    Raises
    ------
    ValueError
        If the shapes differ or there is no step.

    References
    ----------
    Petsiuk et al. 2018, arXiv:1806.07421, section 3.3.
    """
    options = {"n_steps": n_steps, "batch_size": batch_size}
    return _area(model, blurred(images, blur), images, ranks, targets, **options)


def deletion_area(
    model: nn.Module,
    images: Tensor,
    ranks: np.ndarray,
    targets: Sequence[Target],
    *,
    baseline: str = "mean",
    n_steps: int = N_STEPS,
    blur: float = BLUR,
    batch_size: int = 128,
) -> np.ndarray:
    """Area under the answer while the most relevant pixels go first; low is good.

    Parameters
    ----------
    model, images, ranks, targets, n_steps, blur, batch_size
        As for `insertion_area`.
    baseline : str
        What pixels are replaced with: "mean", each image's mean gray (the paper takes zero, the mean of its images), or
        "blur", the blurred image, which brings no new edges.

    Returns
    -------
    ndarray of float64, shape (n_images,)

    Raises
    ------
    ValueError
        If the baseline is unknown, shapes differ or there is no step.

    References
    ----------
    Petsiuk et al. 2018, arXiv:1806.07421, section 3.3.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline={baseline!r}: expected one of {BASELINES}")
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    end = mean if baseline == "mean" else blurred(images, blur)
    return _area(model, images, end, ranks, targets, n_steps=n_steps, batch_size=batch_size)


def road(
    model: nn.Module,
    images: Tensor,
    ranks: np.ndarray,
    targets: Sequence[Target],
    *,
    rng: np.random.Generator,
    percentiles: Sequence[int] = PERCENTILES,
    batch_size: int = 32,
) -> np.ndarray:
    """How much less the answer suffers when the least relevant pixels are removed than when the most relevant are.

    Removed pixels are filled in from their neighbours with a little noise, so that their shape tells nothing.

    Parameters
    ----------
    model, images, ranks, targets
        As for `insertion_area`.
    rng : numpy Generator
        Seeds the noise; the library draws it from torch's global generator, which is put back.
    percentiles : sequence of int
        The shares of pixels removed, in %, over which the mean is taken.
    batch_size : int
        Images at a time.

    Returns
    -------
    ndarray of float64, shape (n_images,)
        In -0.5..0.5 for a probability: half of the difference; 0 for a map that knows nothing.

    Raises
    ------
    ValueError
        If the shapes differ, or a percentile is not between 0 and 100.

    References
    ----------
    Rong et al. 2022, arXiv:2202.00449; the combined score is that of the grad-cam package.
    """
    _check_shapes(images, ranks, targets)
    if not percentiles or not all(0 < percentile < 100 for percentile in percentiles):
        raise ValueError(f"percentiles={list(percentiles)}: expected some, each above 0 and below 100")
    measure = ROADCombined(percentiles=[100 - percentile for percentile in percentiles])  # the library's are kept
    relevance = (ranks / ranks[0].size).astype(np.float32)  # in [0, 1), as the library turns it around by 1 - x
    device = next(model.parameters()).device
    scores = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            scores.append(measure(images[part].to(device), relevance[part], targets[part], model))
    return np.concatenate(scores).astype(np.float64)


def blurred(images: Tensor, blur: float = BLUR) -> Tensor:
    """Images after a Gaussian blur whose standard deviation is this share of their side."""
    sigma = blur * images.shape[-1]  # px
    radius = min(math.ceil(3 * sigma), images.shape[-1] - 1)  # the edge is mirrored once
    return gaussian_blur2d(images, 2 * radius + 1, (sigma, sigma))


def _area(model, start: Tensor, end: Tensor, ranks: np.ndarray, targets, *, n_steps: int, batch_size: int):
    """Area under the targets while pixels of ``start`` become those of ``end``, the highest ranks first."""
    _check_shapes(start, ranks, targets)
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps}: expected at least 1")
    n_px = ranks[0].size
    first = torch.from_numpy(n_px - np.linspace(0, n_px, n_steps + 1).round().astype(int))  # lowest rank replaced
    first = first[:, None, None, None]
    answers = []
    for i in range(0, len(start), n_images := max(1, batch_size // (n_steps + 1))):
        part = slice(i, i + n_images)
        replaced = torch.from_numpy(ranks[part])[:, None, None] >= first  # (n, n_steps + 1, 1, side, side)
        mixed = torch.where(replaced.to(start.device), end[part, None], start[part, None]).flatten(0, 1)
        repeated = [target for target in targets[part] for _ in range(n_steps + 1)]
        answers.append(target_scores(model, mixed, repeated, batch_size=batch_size).reshape(-1, n_steps + 1))
    return np.trapezoid(np.concatenate(answers).astype(np.float64), dx=1 / n_steps, axis=1)


def _check_shapes(images: Tensor, ranks: np.ndarray, targets: Sequence[Target]) -> None:
    if ranks.shape != (len(images), *images.shape[2:]) or len(targets) != len(images):
        raise ValueError(
            f"images {tuple(images.shape)}, ranks {ranks.shape} and {len(targets)} targets: expected a map of its "
            "size and a target for each image"
        )
