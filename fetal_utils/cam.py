"""Class activation maps: which layer to explain, maps that know nothing, masks, and scores paired image by image.

All is read as the difference to a random map of the same image: insertion and deletion follow a network's confidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from fetal_utils.data import Dataset
from fetal_utils.embeddings import mean_over_patients, with_interval
from fetal_utils.images import IMAGE_DIR, MASK_DIR, corner_shape, fit_to_square

N_STEPS = 16  # of insertion and deletion
PHANTOM_MASKS = {"anatomy": 1, "text": 2, "calipers": 3}  # values in the phantom's mask files


def find_target_layer(encoder: nn.Module, *, image_size: int, min_side: int = 4) -> tuple[nn.Module, int]:
    """The deepest stage of a timm encoder whose maps are at least ``min_side`` px wide, and their side."""
    sides = {stage["module"]: image_size // stage["reduction"] for stage in getattr(encoder, "feature_info", [])}
    large = [name for name, side in sides.items() if side >= min_side]
    if not large or hasattr(encoder, "patch_embed"):
        stages = f"{type(encoder).__name__} at {image_size} px has stages of {sides} px, none of min_side={min_side}"
        raise ValueError(f"{stages}: lower min_side, enlarge image_size, or take a convolutional backbone")
    return encoder.get_submodule(large[-1]), sides[large[-1]]


def scale_per_network(cam: BaseCAM, maps: np.ndarray) -> np.ndarray:
    """Give back the heights that grad-cam takes away by stretching each map to 0..1: the highest of all maps is 1.

    Call it right after ``maps = cam(inputs, targets)``; heights of two networks are in different units.
    """
    kept = cam.activations_and_grads
    layer = [None if not found else found[0].numpy() for found in (kept.activations, kept.gradients)]
    heights = np.maximum(cam.get_cam_image(None, cam.target_layers[0], None, *layer, False), 0).max(axis=(1, 2))
    return maps * (heights / max(heights.max(), 1e-12))[:, None, None]


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the peak (a share, of equal ones) is in the mask; NaN without (Zhang et al. 2018, IJCV 126:1084, 4.1)."""
    peak = maps == maps.max(axis=(1, 2), keepdims=True)
    hits = (peak & masks).sum(axis=(1, 2)) / peak.sum(axis=(1, 2))
    return np.where(masks.any(axis=(1, 2)), hits, np.nan)


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of positive values in the mask; NaN without such or mask (Wang et al. 2020, arXiv:1910.01279, 4.3)."""
    positive = np.maximum(maps, 0, dtype=np.float64)
    total = positive.sum(axis=(1, 2))
    inside = (positive * masks).sum(axis=(1, 2))
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=masks.any(axis=(1, 2)) & (total > 0))


def energy_ratio(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`energy_inside` over the mask's share of the image: 1 for an even map, whatever the size of the mask."""
    share = masks.mean(axis=(1, 2))
    return energy_inside(maps, masks) / np.where(share > 0, share, np.nan)


MASK_SCORES = (pointing_game, energy_inside, energy_ratio)


def rank_pixels(maps: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """The place of each pixel in the order of its map, 0 (least) to below 1; ties are drawn, as in an even map."""
    flat = maps.reshape(len(maps), -1)
    order = np.lexsort((rng.random(flat.shape), flat), axis=1)
    return (np.argsort(order, axis=1) / flat.shape[1]).reshape(maps.shape).astype(np.float32)


@torch.no_grad()
def answer_area(model: nn.Module, start: Tensor, end: Tensor, ranks: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Area under the probability of each image's class while pixels of ``start`` become those of ``end``: (n_images,).

    The highest ranks go first, in `N_STEPS` equal steps. Insertion leads from the blurred image to the image, deletion
    from the image to its mean gray (Petsiuk et al. 2018, arXiv:1806.07421, section 3.3). Images (n, 1, side, side).
    """
    lowest = 1 - torch.linspace(0, 1, N_STEPS + 1, device=start.device)[:, None, None, None]  # lowest rank replaced
    areas = []
    for before, after, rank, k in zip(start, end, torch.from_numpy(ranks).to(start.device), classes, strict=True):
        mixed = torch.where(rank >= lowest, after, before)  # (N_STEPS + 1, 1, side, side)
        areas.append(torch.trapezoid(model(mixed).softmax(dim=1)[:, k], dx=1 / N_STEPS).item())
    return np.array(areas)


def road(
    model: nn.Module, inputs: Tensor, ranks: np.ndarray, classes: Sequence[int], percentiles: Sequence[int]
) -> np.ndarray:
    """grad-cam's ROADCombined (Rong et al. 2022, arXiv:2202.00449): (n_images,), 0 for a map that knows nothing.

    Half of what removing the ``percentiles`` of least relevant pixels leaves of the class's probability beyond what
    removing the most relevant leaves, their mean. The noise that fills them is always the same.
    """
    measure = ROADCombined(percentiles=[100 - percentile for percentile in percentiles])  # the library's are kept
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return measure(inputs, ranks, [ClassifierOutputSoftmaxTarget(int(k)) for k in classes], model)


def score_maps(
    model: nn.Module,
    inputs: Tensor,
    maps: Mapping[str, np.ndarray],
    classes: Sequence[int],
    *,
    masks: Mapping[str, np.ndarray],
    percentiles: Sequence[int] = (),
    only_masks: bool = False,
) -> pd.DataFrame:
    """Every score of every image and map, and its difference to the random map of the same image.

    Columns ``image`` (position), ``map, score, value, difference``, NaN where a score does not exist. The model is in
    evaluation mode, ``inputs`` what it is given, (n_images, 1, side, side), ``classes`` what each map explains; maps
    ("random" is among them) and masks (see `read_masks`) are (n_images, side, side). Without ``percentiles`` there is
    no `road`, which costs most; with ``only_masks`` neither insertion nor deletion, which take dozens of passes.
    """
    side, parts = inputs.shape[-1], []
    blurred = gaussian_blur(inputs, [side // 2 * 2 - 1] * 2, [0.1 * side] * 2)  # less still tells planes apart
    gray = inputs.mean(dim=(2, 3), keepdim=True).expand_as(inputs)
    for name, stack in maps.items():
        scores = {}
        if not only_masks:
            ranks = rank_pixels(stack, rng=np.random.default_rng(0))  # ties alike in all maps
            scores["insertion"] = answer_area(model, blurred, inputs, ranks, classes)
            scores["deletion"] = answer_area(model, inputs, gray, ranks, classes)
        if percentiles and not only_masks:
            scores["road"] = road(model, inputs, ranks, classes, percentiles)
        for kind, mask in masks.items():
            scores |= {f"{score.__name__}_{kind}": score(stack, mask) for score in MASK_SCORES}
        about = {"image": np.arange(len(inputs)), "map": name}
        parts += [pd.DataFrame(about | {"score": score, "value": value}) for score, value in scores.items()]
    table = pd.concat(parts, ignore_index=True)
    random = table[table["map"] == "random"][["image", "score", "value"]]
    paired = table.merge(random, on=["image", "score"], suffixes=("", "_of_random"), validate="many_to_one")
    return table.assign(difference=paired["value"] - paired["value_of_random"])


def summarise_scores(scores: pd.DataFrame, weights: pd.DataFrame, **about: object) -> pd.DataFrame:
    """Rows of ``cam_scores.csv``: means over images with 95 % intervals over patients, for each plane and for "all".

    ``scores`` are from `score_maps`, with each image's ``patient`` and ``plane`` added; ``weights`` from
    `evaluation.patient_weights`; ``about`` are columns that all rows share.
    """
    rows = []
    every = pd.concat([scores.assign(plane="all"), scores])
    for (name, score, plane), group in every.groupby(["map", "score", "plane"], sort=False):
        row = about | {"map": name, "score": score, "plane": plane}
        for column, prefix in (("value", ""), ("difference", "difference_")):
            mean, low, high = with_interval(mean_over_patients(group[column].to_numpy(), group["patient"], weights))
            row |= {column: mean, f"{prefix}low": low, f"{prefix}high": high}
        there = group.dropna(subset=["value"])
        rows.append(row | {"n_images": len(there), "n_patients": there["patient"].nunique()})
    return pd.DataFrame(rows)


def read_masks(dataset: Dataset, rows: Sequence[int], image_size: int) -> dict[str, np.ndarray]:
    """Where each image shows what in the phantom's masks, and the "corner" where scanners print: bool arrays by kind,
    shape (n_images, image_size, image_size), in the geometry of the images. A kind that no image has is left out."""
    image_format, kinds = dataset.image_format(image_size), PHANTOM_MASKS if dataset.is_phantom else {}
    masks = {kind: np.zeros((len(rows), image_size, image_size), bool) for kind in (*kinds, "corner")}
    for place, name in enumerate(dataset.metadata["image_name"].iloc[list(rows)]):
        with Image.open(dataset.data_dir / IMAGE_DIR / f"{name}.png") as file:
            marked = np.zeros(file.size[::-1], np.uint8)  # the header is enough
        n_rows, n_columns = corner_shape(*marked.shape)
        marked[:n_rows, -n_columns:] = 1
        shown = replace(image_format, blank_text=False)  # marked where it is painted black too
        masks["corner"][place] = fit_to_square(marked, shown, resample=Image.Resampling.NEAREST) > 0
        if kinds:
            with Image.open(dataset.data_dir / MASK_DIR / f"{name}.png") as file:
                values = fit_to_square(np.asarray(file), image_format, resample=Image.Resampling.NEAREST)
        for kind, value in kinds.items():
            masks[kind][place] = values == value
    return {kind: mask for kind, mask in masks.items() if mask.any() or kind == "corner"}
