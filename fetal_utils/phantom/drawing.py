"""One row of the table to one image: the seeds, the fetus of the patient, the scene."""

from collections.abc import Mapping
from functools import lru_cache
from zlib import crc32

import numpy as np
import pandas as pd

from fetal_utils.phantom.fetus import Fetus, draw_fetus
from fetal_utils.phantom.machines import MACHINES
from fetal_utils.phantom.scene import Scene, compose, draw_scene, draw_structures
from fetal_utils.phantom.table import check_metadata

IMAGE_HEIGHTS = (64, 1024)  # px


def draw_image(row: Mapping, *, seed: int, image_height: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw the image of one row alone, with the same pixels as in the full run.

    Parameters
    ----------
    row : mapping
        A row of the raw table: ``Image_name``, ``Patient_num``, ``Plane``, ``Brain_plane``, ``Operator``,
        ``US_Machine``.
    seed : int
        Seed of the data set, >= 0.
    image_height : int
        Height in pixels, within ``IMAGE_HEIGHTS``; the width follows from the machine.

    Returns
    -------
    image : array, shape (image_height, width), uint8
        Gray values.
    mask : array, shape (image_height, width), uint8
        0 nothing, 1 anatomy that defines the plane, 2 text, 3 calipers.

    Raises
    ------
    ValueError
        If a setting is out of range or the row names an unknown plane, brain plane or machine.
    """
    check_settings(seed, image_height)
    check_metadata(pd.DataFrame([dict(row)]), for_drawing=True)
    return draw_row(dict(row), seed=seed, image_height=image_height)


def check_settings(seed: int, image_height: int) -> None:
    """Refuse a seed or a height that is out of range, with a ValueError."""
    low, high = IMAGE_HEIGHTS
    if not low <= image_height <= high:
        raise ValueError(f"image_height={image_height}: give {low} to {high} px")
    if seed < 0:
        raise ValueError(f"seed={seed}: give 0 or more")


@lru_cache(maxsize=8)
def _fetus(seed: int, patient: int) -> Fetus:
    """The fetus of a patient; cached because a patient's images follow one another."""
    return draw_fetus(np.random.default_rng([seed, patient]))


def draw_row(row: dict, *, seed: int, image_height: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a row that was checked before."""
    scene, about = _compose(row, seed)
    return draw_scene(scene, plane=row["Plane"], image_height=image_height, **about)


def draw_row_structures(row: dict, *, seed: int, image_height: int) -> np.ndarray:
    """`Structure` at every pixel of the image of a row that was checked before, uint8, of the image's shape."""
    scene, about = _compose(row, seed)
    return draw_structures(scene, image_height=image_height, **about)


def _compose(row: dict, seed: int) -> tuple[Scene, dict]:
    """The scene of a row, and what else its drawing needs: fetus, machine and the generator of this image."""
    patient = int(row["Patient_num"])
    machine = MACHINES[row["US_Machine"]]
    fetus = _fetus(seed, patient)
    # crc32 and not hash(), which differs from one process to the next
    rng = np.random.default_rng([seed, patient, crc32(row["Image_name"].encode())])
    # in the real table the operator "Other" used the Aloka for the cervix and for maternal vessels only
    vascular = row["US_Machine"] == "Aloka" and row["Operator"] == "Other"
    scene = compose(row["Plane"], row["Brain_plane"], vascular=vascular, fetus=fetus, machine=machine, rng=rng)
    return scene, {"fetus": fetus, "machine": machine, "rng": rng}
