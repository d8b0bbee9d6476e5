"""All scores of a network's maps, image by image, beside those of maps that know nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fetal_utils.cam import Cam, open_cam
from fetal_utils.cam_baselines import BASELINES, gaussian_maps, random_maps, reinitialised
from fetal_utils.cam_faithfulness import N_STEPS, PERCENTILES, deletion_area, insertion_area, road
from fetal_utils.cam_maps import rank_pixels
from fetal_utils.cam_scores import MASK_SCORES
from fetal_utils.cam_stability import MapMaker, shift_stability, speckle_stability
from fetal_utils.cam_targets import Target, class_targets, similarity_targets
from fetal_utils.models import Classifier, n_features, normalisation

MAPS = ("model", *BASELINES)


def score_images(
    model: nn.Module,
    images: Tensor,
    explained: Sequence[int] | np.ndarray | Tensor,
    *,
    planes: Sequence[str],
    patients: Sequence[int],
    rng: np.random.Generator,
    masks: Mapping[str, np.ndarray] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    min_side: int = 1,
    n_steps: int = N_STEPS,
    percentiles: Sequence[int] = PERCENTILES,
    only_masks: bool = False,
) -> pd.DataFrame:
    """Every score of every image, for the maps of the network and for the three baselines.

    Parameters
    ----------
    model : Module
        A `Classifier` or an encoder; left as it was found.
    images : Tensor, shape (n_images, channels, side, side)
        Network inputs.
    explained : sequence of int, or ndarray or Tensor
        For a classifier the class of each image; for an encoder the references of `Cam.of_similarity`, which the
        reinitialised encoder then gets too.
    planes, patients : sequence, length n_images
        Of each image.
    rng : numpy Generator
        Draws all there is to draw; shift, speckle and the order of equal pixels are the same for the four maps.
    masks : mapping of str to ndarray of bool, shape (n_images, side, side), optional
        By kind, from `read_masks` or `corner_masks`; for each the scores of `MASK_SCORES`.
    method, layer, min_side
        As for `open_cam`.
    n_steps, percentiles
        Of `insertion_area` and `road`; ROAD solves a system of equations for each image and percentile, and is left
        out if there are none.
    only_masks : bool
        Only the scores of the masks: one map of an image, where faithfulness and stability take dozens of passes.

    Returns
    -------
    DataFrame
        Columns ``image, patient, plane, map, score, value``; ``image`` is the position in ``images``. NaN where a
        score does not exist for an image, such as a share of a mask that is empty.

    Raises
    ------
    ValueError
        As `open_cam`, `Cam.of_classes` and the scores do, or if something is not one for each image.
    """
    masks = dict(masks or {})
    counts = {"planes": len(planes), "patients": len(patients)} | {kind: len(mask) for kind, mask in masks.items()}
    if set(counts.values()) != {len(images)}:
        raise ValueError(f"{len(images)} images with {counts}: expected one of each for each image")
    options = {"image_size": images.shape[-1], "in_chans": images.shape[1], "method": method}
    options |= {"layer": layer, "min_side": min_side}
    other = reinitialised(model, seed=int(rng.integers(2**31)), in_chans=images.shape[1])
    other.to(next(model.parameters()).device)
    with ExitStack() as stack:
        cams = [stack.enter_context(open_cam(network, **options)) for network in (model, other)]
        about = {"image": np.arange(len(images)), "patient": np.asarray(patients), "plane": np.asarray(planes)}
        seed = int(rng.integers(2**63))
        parts = []
        for name, make_maps in map_makers(*cams, explained, rng=rng).items():
            scores = scores_of(
                cams[0], images, make_maps, answer_targets(model, explained, len(images)), masks=masks,
                rng=np.random.default_rng(seed), n_steps=n_steps, percentiles=percentiles, only_masks=only_masks,
            )  # fmt: skip
            parts += [pd.DataFrame(about | {"map": name, "score": k, "value": v}) for k, v in scores.items()]
    return pd.concat(parts, ignore_index=True)


def map_makers(cam: Cam, other: Cam, explained, *, rng: np.random.Generator) -> dict[str, MapMaker]:
    """What makes each of `MAPS` from network inputs; ``other`` belongs to the reinitialised network."""
    makers = [each.of_classes if isinstance(each.model, Classifier) else each.of_similarity for each in (cam, other)]
    size = {"image_size": cam.image_size}
    return {
        "model": lambda images: makers[0](images, explained),
        "random": lambda images: random_maps(len(images), side=cam.layer.side, rng=rng, **size),
        "gaussian": lambda images: gaussian_maps(len(images), **size),
        "reinitialised": lambda images: makers[1](images, explained),
    }


def answer_targets(model: nn.Module, explained, n_images: int) -> list[Target]:
    """What faithfulness is about: the probability of the class, or the similarity."""
    if isinstance(model, Classifier):
        return class_targets(explained, n_images=n_images, n_classes=model.head.out_features, probability=True)
    return similarity_targets(explained, n_images=n_images, n_features=n_features(model))


def scores_of(
    cam: Cam,
    images: Tensor,
    make_maps: MapMaker,
    targets: Sequence[Target],
    *,
    masks: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    n_steps: int,
    percentiles: Sequence[int],
    only_masks: bool,
) -> dict[str, np.ndarray]:
    """Every score of one kind of map, each of shape (n_images,); arguments as for `score_images`."""
    model, maps = cam.model, make_maps(images)
    on_masks = {
        f"{name}_{kind}": score(maps, mask) for kind, mask in masks.items() for name, score in MASK_SCORES.items()
    }
    if only_masks:
        return on_masks
    mean, std = normalisation(model.encoder if isinstance(model, Classifier) else model)
    ranks = rank_pixels(maps, rng=rng)
    by_road = {"road": road(model, images, ranks, targets, rng=rng, percentiles=percentiles)} if percentiles else {}
    return (
        by_road
        | {
            "insertion": insertion_area(model, images, ranks, targets, n_steps=n_steps),
            "deletion": deletion_area(model, images, ranks, targets, n_steps=n_steps),
            "shift_stability": shift_stability(make_maps, images, maps, black=-mean / std, rng=rng),
            "speckle_stability": speckle_stability(make_maps, images, maps, mean=mean, std=std, rng=rng),
        }
        | on_masks
    )
