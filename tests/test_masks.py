from pathlib import Path

import numpy as np
import pytest
import torch
from data_folders import plane_lines, write_folder, write_images
from PIL import Image

from fetal_utils.dataset import Dataset
from fetal_utils.images import ImageFormat, corner_shape, fit_to_square
from fetal_utils.masks import corner_masks, fit_mask, has_masks, mask_kinds, read_masks

LINES = plane_lines(n_train=8, n_test=2)
SIZES = [(37, 53), (64, 64), (160, 120), (131, 197)]
GEOMETRIES = pytest.mark.parametrize("geometry", ["pad", "crop"])


def write_masks(folder: Path, masks):
    (folder / "Masks").mkdir(exist_ok=True)
    for name, values in masks.items():
        Image.fromarray(values).save(folder / "Masks" / f"{name}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    """Twenty images of 20 x 30 px, without masks."""
    return write_folder(tmp_path / "data", LINES)


@pytest.fixture
def marked(folder):
    """The same with masks: column k of the k-th image is anatomy, row 5 text, pixel (10, 25) calipers."""
    masks = {}
    for k, line in enumerate(LINES):
        masks[line.split(";")[0]] = values = np.zeros((20, 30), dtype=np.uint8)
        values[:, k] = 1
        values[5] = 2
        values[10, 25] = 3
    return write_masks(folder, masks)


def opened(folder, **choices):
    return Dataset(folder, folder.parent / "cache", **choices)


# --- geometry ---


@GEOMETRIES
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("image_size", [32, 96])
def test_a_mask_lands_where_the_image_shows_what_it_marks(geometry, shape, axis, image_size):
    half = (np.indices(shape)[axis] > 0.4 * shape[axis]).astype(np.uint8)
    image_format = ImageFormat(image_size, geometry)
    shown = fit_to_square(torch.from_numpy(half * 255)[None], image_format)[0].numpy()
    mask = fit_mask(half, image_format)
    # a pixel on the edge is part bright; one whose centre is marked is at least about half so
    assert (np.abs(shown.astype(int) - 255 * mask.astype(int)) <= 135).all()
    assert set(np.unique(mask)) == {0, 1}


@GEOMETRIES
@pytest.mark.parametrize("shape", SIZES)
def test_what_blanking_paints_black_is_marked_no_longer_and_is_the_corner(geometry, shape):
    image_format = ImageFormat(64, geometry, blank_text=True)
    white = torch.full((1, *shape), 255, dtype=torch.uint8)
    shown = fit_to_square(white, image_format)[0].numpy()
    mask = fit_mask(np.ones(shape, dtype=np.uint8), image_format)
    assert (np.abs(shown.astype(int) - 255 * mask.astype(int)) <= 200).all()  # the corner of a corner is a quarter


def test_values_are_never_mixed():
    values = np.random.default_rng(0).choice(np.array([0, 3], dtype=np.uint8), size=(97, 61))
    assert set(np.unique(fit_mask(values, ImageFormat(40)))) == {0, 3}


def test_the_corner_is_44_rows_and_56_columns_of_256():
    assert corner_shape(256, 256) == (44, 56)
    assert corner_shape(512, 128) == (88, 28)
    assert corner_shape(2, 2) == (1, 1)


# --- a data set ---


def test_masks_of_rows_come_by_kind_in_the_order_of_the_rows(marked):
    dataset = opened(marked)
    masks = read_masks(dataset, [3, 1], 30)
    assert list(masks) == ["anatomy", "text", "calipers"]
    assert all(mask.shape == (2, 30, 30) and mask.dtype == bool for mask in masks.values())
    # 20 x 30 px in 30 x 30: five black rows above
    assert [np.flatnonzero(mask.any(axis=0)).tolist() for mask in masks["anatomy"]] == [[3], [1]]
    assert np.argwhere(masks["text"][0])[:, 0].tolist() == [10] * 30
    assert np.argwhere(masks["calipers"][1]).tolist() == [[15, 25]]


def test_the_phantom_has_masks_of_anatomy_where_its_images_have_pixels(tiny_dataset):
    rows = tiny_dataset.rows("test")[:10]
    masks = read_masks(tiny_dataset, rows, 64)
    assert mask_kinds(tiny_dataset) == ("anatomy", "text", "calipers")
    assert masks["anatomy"].any(axis=(1, 2)).all()
    assert not (masks["anatomy"] & masks["text"]).any()
    images = tiny_dataset.images(64, progress=False)[rows]
    assert images[masks["text"]].mean() > 2 * images.mean()  # text is bright


def test_blanked_text_is_not_marked(marked):
    blanked, seen = (read_masks(opened(marked, blank_text=blank), [0], 30)["text"][0] for blank in (True, False))
    assert seen.sum() == 30
    assert blanked.sum() == 30  # row 5 of 20 lies below the corner of 3 rows
    values = np.zeros((20, 30), dtype=np.uint8)
    values[0] = 2
    name = opened(marked).metadata["image_name"].iloc[0]
    write_masks(marked, {name: values})
    assert read_masks(opened(marked, blank_text=True), [0], 30)["text"][0].sum() == 30 - corner_shape(20, 30)[1]


def test_a_data_set_without_masks_says_so(folder):
    dataset = opened(folder)
    assert not has_masks(dataset)
    assert mask_kinds(dataset) == ()
    with pytest.raises(ValueError, match=r"no folder Masks/; only the phantom"):
        read_masks(dataset, [0], 32)


def test_a_missing_mask_is_named(marked):
    name = opened(marked).metadata["image_name"].iloc[2]
    (marked / "Masks" / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.png is missing"):
        read_masks(opened(marked), [0, 1, 2], 32)


@GEOMETRIES
def test_the_corner_is_the_region_that_blanking_paints(folder, geometry):
    names = [line.split(";")[0] for line in LINES]
    sizes = [(40, 80), (80, 40), (64, 64), (51, 77)] * 5
    write_images(folder, {name: np.full(size, 255, dtype=np.uint8) for name, size in zip(names, sizes, strict=True)})
    rows = np.arange(len(names))
    corner = corner_masks(opened(folder, geometry=geometry), rows, 64)
    seen, blanked = (
        opened(folder, geometry=geometry, blank_text=blank).images(64, progress=False)[rows].astype(int)
        for blank in (False, True)
    )
    painted = (seen - blanked) / 255  # share of each pixel
    assert (painted[corner] >= 0.2).all()  # at the corner's own corner a quarter
    assert (painted[~corner] <= 0.6).all()
    assert corner.any(axis=(1, 2)).tolist() == [geometry == "pad" or size in ((64, 64), (51, 77)) for size in sizes]
