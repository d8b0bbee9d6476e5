"""Masks that lie beside the images of a data set, in the geometry that the images get."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode

from fetal_utils.data import IMAGE_DIR
from fetal_utils.dataset import Dataset
from fetal_utils.images import ImageFormat, corner_shape, fit_to_square
from fetal_utils.phantom import ANATOMY, CALIPERS, MASK_DIR, TEXT

LEAK = 4  # value of a box with the answer in it, painted by `fetal_utils.leaks`
LEAK_RECORD = "leak.json"
MASK_VALUES = {"anatomy": ANATOMY, "text": TEXT, "calipers": CALIPERS, "leak": LEAK}


def mask_kinds(dataset: Dataset) -> tuple[str, ...]:
    """Which masks a data set has: keys of `MASK_VALUES`, none for a folder without ``Masks/``.

    The phantom has "anatomy" (what defines the plane), "text" and "calipers"; a copy from `write_leaked_copy` has
    "leak" besides, and a copy of images without masks has "leak" alone.
    """
    if not (Path(dataset.data_dir) / MASK_DIR).is_dir():
        return ()
    record = Path(dataset.data_dir) / LEAK_RECORD
    return tuple(json.loads(record.read_text())["mask_kinds"]) if record.exists() else ("anatomy", "text", "calipers")


def has_masks(dataset: Dataset) -> bool:
    """Whether masks lie beside the images, so that a map can be scored against anatomy."""
    return bool(mask_kinds(dataset))


def read_masks(dataset: Dataset, rows: Sequence[int], image_size: int) -> dict[str, np.ndarray]:
    """The masks of images, where `Dataset.images` shows what they mark.

    Parameters
    ----------
    dataset : Dataset
        Its ``geometry`` and ``blank_text`` count here too: what is painted black is marked no longer.
    rows : sequence of int, length n_images
        Positions in the table.
    image_size : int
        px.

    Returns
    -------
    dict of str to ndarray of bool, shape (n_images, image_size, image_size)
        For each of `mask_kinds`; all False where an image has nothing of that kind.

    Raises
    ------
    ValueError
        If the data set has no masks.
    FileNotFoundError
        If the mask of an image is missing.
    """
    kinds, folder = mask_kinds(dataset), Path(dataset.data_dir) / MASK_DIR
    if not kinds:
        raise ValueError(f"{dataset.data_dir} has no folder {MASK_DIR}/; only the phantom and leaked copies have masks")
    image_format = dataset.image_format(image_size)
    values = np.zeros((len(rows), image_size, image_size), dtype=np.uint8)
    for i, name in enumerate(dataset.metadata["image_name"].iloc[list(rows)]):
        values[i] = fit_mask(read_values(folder / f"{name}.png"), image_format)
    return {kind: values == MASK_VALUES[kind] for kind in kinds}


def read_values(path: Path) -> np.ndarray:
    """A mask file as it is, uint8, shape (height, width)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a mask beside every image, as the phantom writes them")
    with Image.open(path) as file:
        return np.array(file)


def corner_masks(dataset: Dataset, rows: Sequence[int], image_size: int) -> np.ndarray:
    """Where scanners print at the top right: the region that ``blank_text`` paints, marked whether painted or not.

    Parameters
    ----------
    dataset, rows, image_size
        As for `read_masks`; no mask is needed.

    Returns
    -------
    ndarray of bool, shape (n_images, image_size, image_size)
        All False where ``geometry="crop"`` cuts the corner off.
    """
    image_format = ImageFormat(image_size, dataset.geometry)
    masks = np.zeros((len(rows), image_size, image_size), dtype=bool)
    for i, name in enumerate(dataset.metadata["image_name"].iloc[list(rows)]):
        with Image.open(Path(dataset.data_dir) / IMAGE_DIR / f"{name}.png") as file:
            width, height = file.size  # the header is enough
        marked = np.zeros((height, width), dtype=np.uint8)
        n_rows, n_columns = corner_shape(height, width)
        marked[:n_rows, width - n_columns :] = 1
        masks[i] = fit_mask(marked, image_format) > 0
    return masks


def fit_mask(values: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    """What `images.fit_to_square` does to a picture, done to its mask: the same geometry, values kept whole.

    Parameters
    ----------
    values : ndarray of uint8, shape (height, width)
    image_format : ImageFormat

    Returns
    -------
    ndarray of uint8, shape (image_size, image_size)
        Of each pixel the value at its centre (nearest neighbour); 0 in the bars.
    """
    picture = torch.from_numpy(values.copy())[None]
    return fit_to_square(picture, image_format, interpolation=InterpolationMode.NEAREST_EXACT)[0].numpy()
