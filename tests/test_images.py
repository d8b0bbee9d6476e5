"""Pictures of all kinds become gray squares, once, and only as long as their files hold the same."""

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from data_folders import csv_line, plane_lines, write_folder, write_images
from PIL import Image

from fetal_utils import images
from fetal_utils.data import Dataset
from fetal_utils.images import (
    ExtraImages,
    ImageFormat,
    content_hashes,
    find_duplicates,
    fit_to_square,
    image_paths,
    nearly_black,
    open_extra_images,
    open_images,
    read_image,
)

NAMES = [f"image_{index}" for index in range(6)]
SHAPES = pytest.mark.parametrize("shape", [(37, 53), (64, 64), (160, 120), (131, 197)])


def random_pictures(n_images=6, shape=(16, 16), seed=0):
    rng = np.random.default_rng(seed)
    return {f"image_{index}": rng.integers(256, size=shape, dtype=np.uint8) for index in range(n_images)}


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Six images of 16 x 16 px."""
    return write_images(tmp_path / "data", random_pictures())


@pytest.fixture
def open_folder(folder, tmp_path):
    return partial(open_images, image_paths(folder, NAMES), cache_dir=tmp_path / "cache", progress=False)


@pytest.fixture
def decoded(monkeypatch):
    """The files that were really decoded, by name."""
    names = []
    monkeypatch.setattr(images, "read_image", lambda path: names.append(path.stem) or read_image(path))
    return names


# --- geometry ----------------------------------------------------------------------------------------


def square(pixels, *args, **kwargs):
    return fit_to_square(pixels, ImageFormat(*args, **kwargs))


def test_cropping_is_the_default_and_takes_the_central_square():
    picture = np.zeros((20, 40), dtype=np.uint8)
    picture[:, 10:30] = np.random.default_rng(0).integers(1, 256, size=(20, 20))
    np.testing.assert_array_equal(square(picture, 20), picture[:, 10:30])
    np.testing.assert_array_equal(square(picture.T, 20), picture[:, 10:30].T)


@pytest.mark.parametrize("size", [20, 40, 80])
def test_padding_keeps_the_aspect_ratio_and_centres(size):
    padded = square(np.full((40, 20), 200, dtype=np.uint8), size, "pad")
    expected = np.zeros((size, size), dtype=np.uint8)
    expected[:, size // 4 : size // 4 + size // 2] = 200
    np.testing.assert_array_equal(padded, expected)


def test_reducing_is_antialiased():
    stripes = np.tile(np.array([200, 0, 0, 0], dtype=np.uint8), (64, 16))  # every fourth pixel, all of them counted
    for geometry in ("pad", "crop"):
        assert square(stripes, 16, geometry)[:, 2:-2] == pytest.approx(np.full((16, 12), 50), abs=3)


# 44/256 of the height, 56/256 of the width, rounded
CORNERS = [((256, 256), (44, 56)), ((64, 128), (11, 28)), ((160, 240), (28, 52))]


@pytest.mark.parametrize(("shape", "corner"), CORNERS)
def test_the_text_corner_is_cut_out_or_blanked_exactly(shape, corner):
    picture = np.full(shape, 50, dtype=np.uint8)
    picture[: corner[0], shape[1] - corner[1] :] = 250
    cut = square(picture, max(corner), "text_corner")
    assert (cut == 250).sum() == corner[0] * corner[1]
    assert set(np.unique(cut)) <= {0, 250}
    blanked = square(picture, max(shape), "pad", blank_text=True)
    top, left = (max(shape) - shape[0]) // 2, (max(shape) - shape[1]) // 2
    inside = blanked[top : top + shape[0], left : left + shape[1]]
    np.testing.assert_array_equal(inside, np.where(picture == 250, 0, 50))
    assert (picture == 250).any()  # the caller's picture stays as it was


def test_blanking_reaches_the_part_of_the_corner_that_a_crop_keeps():
    picture = np.full((64, 80), 50, dtype=np.uint8)
    expected = np.full((64, 64), 50)
    expected[:11, 54:] = 0  # of columns 62 to 79, the crop keeps 8 to 71
    np.testing.assert_array_equal(square(picture, 64, blank_text=True), expected)


@SHAPES
@pytest.mark.parametrize("geometry", ["crop", "pad"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mask_lands_where_the_image_shows_what_it_marks(geometry, shape, axis):
    half = (np.indices(shape)[axis] > 0.4 * shape[axis]).astype(np.uint8)
    shown = square(half * 255, 96, geometry)
    mask = fit_to_square(half, ImageFormat(96, geometry), resample=Image.Resampling.NEAREST)
    assert set(np.unique(mask)) == {0, 1}  # values are never mixed
    # a pixel on the edge is part bright; one whose centre is marked is at least about half so
    assert (np.abs(shown.astype(int) - 255 * mask.astype(int)) <= 135).all()


@pytest.mark.parametrize("geometry", images.GEOMETRIES)
@pytest.mark.parametrize("shape", [(8, 2000), (2000, 8), (9, 8)])
def test_the_longest_pictures_become_squares(shape, geometry):
    assert square(np.full(shape, 9, dtype=np.uint8), 8, geometry).shape == (8, 8)


@pytest.mark.parametrize("image_size", [7, 1025, 96.5, "96"])
def test_an_image_size_out_of_range_is_named(image_size):
    with pytest.raises(ValueError, match=rf"image_size={image_size!r}: expected a whole number, 8 to 1024 px"):
        ImageFormat(image_size)


# --- kinds of files ----------------------------------------------------------------------------------

RED = np.full((16, 16, 3), [255, 0, 0], dtype=np.uint8)  # gray 76: 0.299 * 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_colours_become_gray_whatever_the_format_and_the_ending(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    path = save(tmp_path / "red.png", RED, format=kind, **options)
    assert read_image(path) == pytest.approx(np.full((16, 16), 76), abs=2)


def test_what_is_transparent_shows_black(tmp_path):
    alpha = np.zeros((16, 16), dtype=np.uint8)
    alpha[:8] = 255
    gray = np.full((16, 16), 200, dtype=np.uint8)
    expected = np.where(alpha, 200, 0)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.dstack([gray] * 3 + [alpha]))), expected)
    palette = Image.fromarray((alpha > 0).astype(np.uint8)).convert("P")
    palette.putpalette([90, 90, 90, 200, 200, 200])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 256, 0x8000, 0xFFFF], [0, 1, 128, 255]),  # 16 bits: by 257
        ([0, 16, 2048, 4095], [0, 1, 128, 255]),  # 12 bits in 16: by 4095 / 255
        ([0, 1, 128, 255], [0, 1, 128, 255]),  # 8 bits in 16
    ],
)
def test_sixteen_bits_are_scaled_by_what_they_hold(tmp_path, values, expected):
    pixels = np.repeat(np.array(values, dtype=np.uint16)[:, None], 16, axis=1).repeat(4, axis=0)
    for name in ("a.png", "a.tif"):
        assert read_image(save(tmp_path / name, pixels))[::4, 0].tolist() == expected


def frames(path):
    first, *rest = (Image.new("L", (16, 16), gray) for gray in (9, 99))
    first.save(path, save_all=True, append_images=rest)


REFUSED = {
    "animated.gif": (frames, "holds 2 pictures"),
    "tiny.png": (lambda path: Image.new("L", (300, 7)).save(path), "300 x 7 px"),
    "large.png": (lambda path: Image.new("1", (8000, 7000)).save(path), "8000 x 7000 px"),
    "huge.png": (lambda path: Image.new("1", (14000, 14000)).save(path), "196000000 pixels"),
    "float.tif": (lambda path: Image.new("F", (16, 16), 0.5).save(path), "mode 'F' have no known white"),
    "page.png": (lambda path: path.write_bytes(b"<html>not found</html>" + bytes(100)), "cannot identify"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_single_picture_is_refused_by_name_with_the_remedy(tmp_path, name):
    write, reason = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} can't be read: .*{reason}.*; copy it again.*8-bit gray"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: content[:-20] + b"\0" + content[-19:]]
)
def test_a_damaged_image_is_named_and_leaves_no_cache(folder, tmp_path, open_folder, damage):
    file = folder / "Images" / "image_3.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"image_3\.png can't be read: .*copy it again"):
        open_folder(ImageFormat(16))
    assert not list((tmp_path / "cache").glob("*.npy"))


# --- names -------------------------------------------------------------------------------------------


def test_missing_images_are_counted_and_the_first_are_named(folder):
    message = r"Images: 2 of {} images are missing, first \['x\.png', 'y\.png'\]; expected that folder.*rename"
    with pytest.raises(FileNotFoundError, match=message.format(8)):
        image_paths(folder, [*NAMES, "x", "y"])
    with pytest.raises(FileNotFoundError, match=message.format(2)):
        image_paths(folder / "nowhere", ["x", "y"])


# --- cache -------------------------------------------------------------------------------------------


def test_the_cache_holds_the_images_in_order_mapped_and_read_only(open_folder):
    cached = open_folder(ImageFormat(16))
    np.testing.assert_array_equal(cached, list(random_pictures().values()))
    assert isinstance(cached, np.memmap) and cached.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        cached[0] = 0


@pytest.mark.parametrize("age_s", [0, 100])
def test_another_picture_of_the_same_size_and_time_is_seen(folder, open_folder, decoded, age_s):
    file, other = (folder / "Images" / f"image_{number}.png" for number in (0, 1))
    pictures = {path: random_pictures(1, seed=path.stem == "image_1")["image_0"] // 2 * 2 for path in (file, other)}
    for path, pixels in pictures.items():
        save(path, pixels, compress_level=0)
        os.utime(path, (time.time() - age_s,) * 2)
    assert file.stat().st_size == other.stat().st_size
    assert (open_folder(ImageFormat(16))[0] == pictures[file]).all()
    shutil.copy2(other, file)  # with its time
    assert (open_folder(ImageFormat(16))[0] == pictures[other]).all()


def test_contents_are_read_once_and_again_when_a_file_changes(folder, tmp_path, monkeypatch):
    paths = image_paths(folder, NAMES)
    monkeypatch.setattr(images.time, "time_ns", lambda real=time.time_ns: real() + 10**10)  # ten seconds later
    first = content_hashes(paths, cache_dir=tmp_path / "cache")
    assert first == content_hashes(paths) and len(set(first)) == 6
    with monkeypatch.context() as patched:
        patched.setattr(images.Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
        assert content_hashes(paths, cache_dir=tmp_path / "cache") == first
    with paths[0].open("ab") as file:
        file.write(b"x")
    assert content_hashes(paths, cache_dir=tmp_path / "cache")[0] != first[0]


@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 1000), lambda path: path.write_bytes(b"PK a zip")])
def test_a_spoiled_cache_is_made_again(open_folder, tmp_path, decoded, spoil):
    expected = np.array(open_folder(ImageFormat(16)))
    spoil(*(tmp_path / "cache").glob("*.npy"))
    np.testing.assert_array_equal(open_folder(ImageFormat(16)), expected)
    assert len(decoded) == 12


def test_several_at_once_decode_once(open_folder, decoded, monkeypatch):
    write = images.write_squares
    monkeypatch.setattr(images, "write_squares", lambda *args, **how: (time.sleep(0.2), write(*args, **how)))
    with ThreadPoolExecutor(3) as pool:  # each opens the lock's file for itself, as processes do
        arrays = list(pool.map(open_folder, [ImageFormat(16)] * 3))
    assert len(decoded) == 6
    assert all((array == list(random_pictures().values())).all() for array in arrays)


# --- duplicates and black pictures -------------------------------------------------------------------


def test_pairs_of_one_file_and_of_one_look_are_found():
    rng = np.random.default_rng(0)
    pictures = rng.integers(256, size=(1500, 8, 8), dtype=np.uint8)
    pictures[1400] = np.clip(pictures[3] * 0.7 + rng.normal(0, 2, (8, 8)), 0, 255)  # darker, with noise
    pictures[20] = pictures[10]
    hashes = list(map(str, range(1500)))
    hashes[20] = hashes[10]
    pairs = find_duplicates(pictures, hashes)
    assert pairs[["first", "second", "kind"]].to_numpy().tolist() == [[3, 1400, "look alike"], [10, 20, "same file"]]
    assert pairs["correlation"].gt(0.98).all()


def test_black_pictures_are_no_likeness_and_are_counted():
    pictures = np.zeros((3, 32, 32), dtype=np.uint8)
    pictures[1, :3, :3] = 255  # 9 of 1024 pixels
    pictures[2, :8, :8] = 100
    assert nearly_black(pictures).tolist() == [True, True, False]
    assert find_duplicates(pictures[[0, 0]], ["a", "b"]).empty


def test_the_known_pairs_of_the_real_images_are_found(real_data, tmp_path):
    dataset = Dataset(real_data / "fetal_planes_native", tmp_path)
    thumbnails = dataset.images(32, progress=False)
    pairs = find_duplicates(thumbnails, dataset.hashes)
    names = dataset.metadata["image_name"].to_numpy()
    two = dataset.patients[pairs["first"]] != dataset.patients[pairs["second"]]
    assert [tuple(pair) for pair in names[pairs[two][["first", "second"]]]] == [
        ("Patient00786_Plane2_1_of_1", "Patient00799_Plane2_1_of_1"),
        ("Patient00820_Plane6_5_of_5", "Patient00830_Plane6_2_of_3"),
    ]
    assert (pairs["kind"] == "same file").sum() == 3
    assert not nearly_black(thumbnails).any()


# --- extra images ------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    lines = [*plane_lines(n_train=8, n_test=4), csv_line("Patient00099_Plane3_1_of_2", 99, train=0)]
    return Dataset(write_folder(tmp_path / "mine", lines, shape=(16, 16)), tmp_path / "cache")


@pytest.fixture
def extra(tmp_path):
    """Four images in three folders; a hidden one, a checkpoint's, a mask and a text besides."""
    root = tmp_path / "more"
    names = ["b.png", "a/c.JPG", "a/deep/d.bmp", "a/deep/a.png", "._b.png", ".ipynb_checkpoints/b.png", "Masks/b.png"]
    for seed, name in enumerate(names):
        save(root / name, random_pictures(1, seed=50 + seed)["image_0"])
    (root / "notes.txt").write_text("not an image")
    return root


def test_extra_images_of_all_folders_are_taken_and_hidden_ones_and_masks_left_out(extra, dataset):
    found = open_extra_images(extra)
    squares, left_out = found.images(dataset, 16, progress=False)
    assert (len(squares), found.n_images) == (4, 4)
    np.testing.assert_array_equal(squares[-1], random_pictures(1, seed=50)["image_0"])  # b.png, after a/
    assert left_out == {"known already": 0, "of held-out patients": 0}


def test_extra_images_that_are_known_or_of_held_out_patients_are_left_out(extra, dataset):
    source, names = dataset.data_dir / "Images", dataset.metadata["image_name"]
    for subset in ("train", "development", "test"):
        shutil.copy(source / f"{names[dataset.rows(subset)[0]]}.png", extra / f"copy_of_{subset}.png")
    save(extra / "again.tif", random_pictures(1, seed=50)["image_0"])  # the pixels of b.png
    held_out = names[dataset.rows("development")[1]], "Patient00099_Plane6_7_of_8", "Patient00001_Plane6_1_of_1"
    for seed, name in enumerate(held_out):  # patient 99 is tested on; patient 1 trains, and has an image here
        save(extra / "named" / f"{name}.png", random_pictures(1, seed=80 + seed)["image_0"])
    squares, left_out = open_extra_images(extra).images(dataset, 16, progress=False)
    trained = 1 in dataset.patients[dataset.rows("train")]
    assert left_out == {"known already": 4, "of held-out patients": 3 - trained}
    assert len(squares) == 4 + trained


def test_extra_images_are_known_by_content_and_no_folder_gets_into_records(extra, tmp_path):
    before = open_extra_images(extra)
    shutil.copytree(extra, tmp_path / "elsewhere")
    assert open_extra_images(tmp_path / "elsewhere") == before
    assert before.to_dict() == {"key": before.key, "n_images": 4}
    before.check()
    save(extra / "b.png", random_pictures(1, seed=77)["image_0"])
    assert open_extra_images(extra) != before
    for folder in (extra, tmp_path / "gone"):
        with pytest.raises(ValueError, match=f"{folder.name} has changed since this run was asked for"):
            ExtraImages(before.key, 4, str(folder)).check()


def test_an_empty_name_is_no_folder_and_one_without_images_is_refused(extra, tmp_path):
    assert open_extra_images("") is None
    for name in ("Masks/none", "missing"):
        with pytest.raises(FileNotFoundError, match=rf"{name} holds no image \(\.png, .*\); give a folder that does"):
            open_extra_images(tmp_path / "more" / name)
