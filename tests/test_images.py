import json
import multiprocessing
import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from data_folders import write_images
from PIL import Image

from fetal_utils import images
from fetal_utils.data import read_metadata
from fetal_utils.images import (
    TEXT_CORNER,
    ImageFormat,
    files_hash,
    fit_to_square,
    image_paths,
    open_image_files,
    open_images,
    read_image,
)

N_IMAGES = 6
NAMES = [f"image_{index}" for index in range(N_IMAGES)]


def random_pictures(n_images, shape, seed=0):
    rng = np.random.default_rng(seed)
    return {f"image_{index}": rng.integers(256, size=shape, dtype=np.uint8) for index in range(n_images)}


@pytest.fixture
def folder(tmp_path):
    """Six images of 16 x 16 px."""
    return write_images(tmp_path / "data", random_pictures(N_IMAGES, (16, 16)))


@pytest.fixture
def open_folder(folder, tmp_path):
    return partial(open_images, folder, NAMES, cache_dir=tmp_path / "cache", progress=False)


@pytest.fixture
def count_builds(monkeypatch):
    """A list that grows by one with every build of a cache."""
    builds = []
    build = images.build_cache
    monkeypatch.setattr(images, "build_cache", lambda *args, **kwargs: builds.append(1) or build(*args, **kwargs))
    return builds


def cache_of(tmp_path) -> Path:
    """The one cache that a test has made."""
    (cache,) = [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    return cache


def square(pixels, *args, **kwargs):
    """The square of a picture given as an array (height, width)."""
    return fit_to_square(torch.as_tensor(pixels)[None], ImageFormat(*args, **kwargs))[0].numpy()


# --- geometry ----------------------------------------------------------------------------------------


def test_an_image_of_the_right_size_is_passed_on_unchanged(folder):
    expected = random_pictures(1, (16, 16))["image_0"]
    for geometry in ("pad", "crop"):
        np.testing.assert_array_equal(read_image(folder / "Images/image_0.png", ImageFormat(16, geometry)), expected)


@pytest.mark.parametrize("size", [20, 40, 80])
def test_padding_keeps_the_aspect_ratio_and_centres_a_picture_twice_as_high_as_wide(size):
    padded = square(np.full((40, 20), 200, dtype=np.uint8), size)
    expected = np.zeros((size, size), dtype=np.uint8)
    expected[:, size // 4 : size // 4 + size // 2] = 200
    np.testing.assert_array_equal(padded, expected)


def test_padding_centres_a_picture_twice_as_wide_as_high():
    padded = square(np.full((20, 40), 200, dtype=np.uint8), 40)
    assert (padded[10:30] == 200).all()
    assert (padded[:10] == 0).all()
    assert (padded[30:] == 0).all()


def test_an_odd_margin_leaves_the_odd_row_at_the_bottom():
    padded = square(np.full((9, 16), 200, dtype=np.uint8), 16)
    assert np.flatnonzero(padded[:, 0]).tolist() == list(range(3, 12))


def test_cropping_takes_the_central_square():
    picture = np.zeros((20, 40), dtype=np.uint8)
    picture[:, 10:30] = np.random.default_rng(0).integers(1, 256, size=(20, 20))
    np.testing.assert_array_equal(square(picture, 20, "crop"), picture[:, 10:30])
    np.testing.assert_array_equal(square(picture.T, 20, "crop"), picture[:, 10:30].T)


def test_reducing_is_antialiased():
    stripes = np.tile(np.array([200, 0, 0, 0], dtype=np.uint8), (64, 16))  # every fourth pixel, all of them counted
    for geometry in ("pad", "crop"):
        assert square(stripes, 16, geometry)[:, 2:-2] == pytest.approx(np.full((16, 12), 50), abs=3)


def picture_with_marked_corner(height, width, n_rows, n_columns):
    picture = np.full((height, width), 50, dtype=np.uint8)
    picture[:n_rows, width - n_columns :] = 250
    return picture


# 44/256 of the height, 56/256 of the width, rounded
CORNERS = [((256, 256), (44, 56)), ((64, 128), (11, 28)), ((160, 240), (28, 52))]


@pytest.mark.parametrize(("shape", "corner"), CORNERS)
def test_the_text_corner_is_cut_out_exactly(shape, corner):
    cut = square(picture_with_marked_corner(*shape, *corner), max(corner), "text_corner")
    top, left = (max(corner) - corner[0]) // 2, (max(corner) - corner[1]) // 2
    expected = np.zeros_like(cut)
    expected[top : top + corner[0], left : left + corner[1]] = 250
    np.testing.assert_array_equal(cut, expected)


@pytest.mark.parametrize(("shape", "corner"), CORNERS)
def test_blanking_paints_that_corner_and_nothing_else(shape, corner):
    picture = picture_with_marked_corner(*shape, *corner)
    blanked = square(picture, max(shape), blank_text=True)
    top, left = (max(shape) - shape[0]) // 2, (max(shape) - shape[1]) // 2
    inside = blanked[top : top + shape[0], left : left + shape[1]]
    np.testing.assert_array_equal(inside, np.where(picture == 250, 0, 50))
    assert (picture == picture_with_marked_corner(*shape, *corner)).all()  # the caller's picture stays as it was


def test_blanking_reaches_the_part_of_the_corner_that_a_crop_keeps():
    picture = picture_with_marked_corner(64, 80, 11, 18)  # columns 62 to 79, the crop keeps 8 to 71
    expected = np.full((64, 64), 50)
    expected[:11, 54:] = 0
    np.testing.assert_array_equal(square(picture, 64, "crop", blank_text=True), expected)


def test_the_text_corner_is_the_one_measured_on_the_real_subset():
    assert TEXT_CORNER == (44 / 256, 56 / 256)


@pytest.mark.parametrize("geometry", images.GEOMETRIES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (3, 2)])
def test_the_smallest_and_the_longest_pictures_become_squares(shape, geometry):
    assert (square(np.full(shape, 9, dtype=np.uint8), 8, geometry) <= 9).all()
    assert square(np.full(shape, 9, dtype=np.uint8), 8, geometry).shape == (8, 8)


@pytest.mark.parametrize("image_size", [7, 1025, 0, -96, 96.5, "96", None])
def test_an_image_size_out_of_range_is_named(image_size):
    with pytest.raises(ValueError, match=rf"image_size={image_size!r}: expected a whole number, 8 to 1024 px"):
        ImageFormat(image_size)


def test_an_unknown_geometry_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"geometry='stretch': expected one of \('pad', 'crop', 'text_corner'\)"):
        ImageFormat(96, "stretch")


# --- files -------------------------------------------------------------------------------------------


def save(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_colour_palette_and_transparency_become_gray(tmp_path):
    red = np.full((8, 8, 3), [255, 0, 0], dtype=np.uint8)
    gray_of_red = 76  # 0.299 * 255
    save(tmp_path / "rgb.png", red)
    save(tmp_path / "rgba.png", np.dstack([red, np.full((8, 8), 255, dtype=np.uint8)]))
    Image.fromarray(red).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name in ("rgb", "rgba", "palette"):
        gray = read_image(tmp_path / f"{name}.png", ImageFormat(8))
        assert gray == pytest.approx(np.full((8, 8), gray_of_red), abs=1)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    path = save(tmp_path / "deep.png", np.repeat(np.array([[0], [256], [0x8000], [0xFFFF]], dtype=np.uint16), 8, 0))
    column = read_image(path, ImageFormat(32))[::8].max(axis=1)
    assert column.tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:5],
        lambda content: content[:40],
        lambda content: content[: len(content) // 2],
        lambda content: b"<html>not found</html>" + bytes(100),
        lambda content: content[:60] + bytes(40) + content[100:],
    ],
    ids=["few bytes", "header only", "half", "a web page", "zeros inside"],
)
def test_an_unreadable_image_is_named_and_leaves_no_cache(folder, tmp_path, open_folder, damage):
    file = folder / "Images" / "image_3.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"image_3\.png can't be decoded .*copy it again"):
        open_folder(ImageFormat(16))
    assert cache_of(tmp_path).suffix == ".partial"


def test_a_missing_image_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Images is missing"):
        image_paths(tmp_path, ["a"])


def test_missing_images_are_counted_and_the_first_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"2 of 8 images are missing, the first \['x\.png', 'y\.png'\]"):
        image_paths(folder, [*NAMES, "x", "y"])


def test_empty_images_are_counted_and_named(folder):
    (folder / "Images" / "image_2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images are empty files, the first \['image_2\.png'\]"):
        image_paths(folder, NAMES)


def test_the_key_of_the_files_changes_with_name_size_and_order(folder):
    paths = image_paths(folder, NAMES)
    before = files_hash(paths)
    assert files_hash(paths) == before
    assert files_hash(paths[::-1]) != before
    assert files_hash(paths[:-1]) != before
    with paths[0].open("ab") as file:
        file.write(b"x")
    assert files_hash(paths) != before


# --- files of any folder -----------------------------------------------------------------------------


def test_files_of_several_folders_and_endings_come_in_the_order_given(folder, tmp_path):
    gray = np.full((16, 16), 77, dtype=np.uint8)
    (tmp_path / "elsewhere").mkdir()
    paths = [save(tmp_path / "elsewhere" / "gray.jpg", gray), folder / "Images" / "image_2.png"]
    array = open_image_files(paths, ImageFormat(16), cache_dir=tmp_path / "cache", progress=False)
    assert array[0] == pytest.approx(gray, abs=1)
    np.testing.assert_array_equal(array[1], random_pictures(3, (16, 16))["image_2"])


def test_files_of_one_name_in_two_folders_are_two_images(tmp_path):
    paths = []
    for value in (10, 200):
        (tmp_path / str(value)).mkdir()
        paths.append(save(tmp_path / str(value) / "same.png", np.full((16, 16), value, dtype=np.uint8)))
    array = open_image_files(paths, ImageFormat(16), cache_dir=tmp_path / "cache", progress=False)
    assert array.mean((1, 2)).tolist() == [10, 200]


def test_the_images_of_a_data_folder_are_its_files_and_share_their_cache(folder, tmp_path, open_folder, count_builds):
    by_name = open_folder(ImageFormat(16))
    paths = [folder / "Images" / f"{name}.png" for name in NAMES]
    by_path = open_image_files(paths, ImageFormat(16), cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(by_path, by_name)
    assert len(count_builds) == 1


# --- cache -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", images.GEOMETRIES)
def test_the_cache_holds_what_a_direct_decode_gives_in_the_order_of_the_names(tiny_phantom, tmp_path, geometry):
    names = read_metadata(tiny_phantom)["image_name"].tolist()[::-5]
    image_format = ImageFormat(32, geometry)
    cached = open_images(tiny_phantom, names, image_format, cache_dir=tmp_path, progress=False)
    direct = [read_image(tiny_phantom / "Images" / f"{name}.png", image_format) for name in names]
    np.testing.assert_array_equal(cached, direct)
    assert cached.dtype == np.uint8


def test_the_cache_is_mapped_and_read_only(open_folder):
    cached = open_folder(ImageFormat(16))
    assert isinstance(cached, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cached[0] = 0


def test_more_images_than_a_chunk_stay_in_order(open_folder, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 4)  # six images: a whole and a broken chunk
    np.testing.assert_array_equal(open_folder(ImageFormat(16)), list(random_pictures(N_IMAGES, (16, 16)).values()))


def test_a_second_call_does_not_build_again(open_folder, tmp_path, count_builds):
    open_folder(ImageFormat(16))
    modified = (cache_of(tmp_path) / "images.npy").stat().st_mtime_ns
    open_folder(ImageFormat(16))
    assert (cache_of(tmp_path) / "images.npy").stat().st_mtime_ns == modified
    assert len(count_builds) == 1


def test_another_format_gets_a_cache_of_its_own(open_folder, count_builds):
    for image_format in (
        ImageFormat(16),
        ImageFormat(24),
        ImageFormat(16, "crop"),
        ImageFormat(16, blank_text=True),
    ):
        open_folder(image_format)
    assert len(count_builds) == 4


def test_a_file_of_another_size_makes_another_cache(folder, open_folder, count_builds):
    open_folder(ImageFormat(16))
    save(folder / "Images" / "image_0.png", np.zeros((16, 16), dtype=np.uint8))
    assert (open_folder(ImageFormat(16))[0] == 0).all()
    assert len(count_builds) == 2


def shorten(cache):
    with (cache / "images.npy").open("r+b") as file:
        file.truncate(1000)


def write_other_key(cache):
    (cache / "key.json").write_text(json.dumps({"version": 0}))


FAULTS = {
    "stale key": (write_other_key, "made from something else"),
    "broken key": (lambda cache: (cache / "key.json").write_text("{"), "unreadable"),
    "no key": (lambda cache: (cache / "key.json").unlink(), "unreadable"),
    "short array": (shorten, "unreadable"),
    "empty array": (lambda cache: (cache / "images.npy").write_bytes(b""), "unreadable"),
    "no array": (lambda cache: (cache / "images.npy").unlink(), "unreadable"),
    "foreign array": (lambda cache: np.save(cache / "images.npy", np.zeros((2, 3))), r"holds float64 \(2, 3\)"),
    "foreign file": (lambda cache: (cache / "images.npy").write_bytes(b"PK\x03\x04 a zip"), "unreadable"),
    "file in its place": (
        lambda cache: (cache.rename(cache.with_suffix(".old")), cache.write_text("mine")),
        "unreadable",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_cache_is_rebuilt_with_a_message(open_folder, tmp_path, capsys, count_builds, fault):
    spoil, message = FAULTS[fault]
    expected = np.array(open_folder(ImageFormat(16)))
    assert capsys.readouterr().out == ""
    spoil(cache_of(tmp_path))
    np.testing.assert_array_equal(open_folder(ImageFormat(16)), expected)
    assert len(count_builds) == 2
    assert re.search(f"^image cache [0-9a-f]{{16}}: {message}.*; building it again$", capsys.readouterr().out, re.M)


def test_an_interrupted_build_leaves_nothing_that_is_used(open_folder, tmp_path, monkeypatch):
    def interrupted(path, image_format):
        if path.stem == "image_4":
            raise KeyboardInterrupt
        return read_image(path, image_format)

    with monkeypatch.context() as patched:
        patched.setattr(images, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_folder(ImageFormat(16))
    assert cache_of(tmp_path).suffix == ".partial"
    (cache_of(tmp_path) / "rest of another build").write_text("")
    np.testing.assert_array_equal(open_folder(ImageFormat(16)), list(random_pictures(N_IMAGES, (16, 16)).values()))
    assert {path.name for path in cache_of(tmp_path).iterdir()} == {"images.npy", "key.json"}


def build_slowly(folder, cache_dir, builds_dir, barrier):
    """Another process: open the images with all others at once and leave a file for each build."""
    build = images.build_cache

    def counted(*args, **kwargs):
        (builds_dir / str(os.getpid())).touch()
        time.sleep(0.3)  # the others have come to the lock by now
        build(*args, **kwargs)

    images.build_cache = counted
    barrier.wait(timeout=60)
    cached = open_images(folder, NAMES, ImageFormat(16), cache_dir=cache_dir, progress=False)
    assert (cached == list(random_pictures(N_IMAGES, (16, 16)).values())).all()


def test_several_processes_at_once_build_the_cache_once(folder, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fetal_utils.images"])  # imports torch once for all
    (tmp_path / "builds").mkdir()
    barrier = context.Barrier(3)
    arguments = (folder, tmp_path / "cache", tmp_path / "builds", barrier)
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=90)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((tmp_path / "builds").iterdir())) == 1


def private_memory_mib():
    """Memory of this process that is backed by no file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**10


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_while_building_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    side, peaks = 256, []
    monkeypatch.setattr(images, "CHUNK", 32)
    write_images(tmp_path, random_pictures(1, (4, 4)))

    def watched(path, image_format):
        peaks.append(private_memory_mib())
        return read_image(path, image_format)

    monkeypatch.setattr(images, "read_image", watched)
    for n_images in (200, 2000):
        open_images(
            tmp_path,
            ["image_0"] * n_images,
            ImageFormat(side),
            cache_dir=tmp_path / "cache",
            progress=False,
            n_threads=2,
        )
    few, many = max(peaks[:200]), max(peaks[200:])
    all_at_once = (2000 - 200) * side**2 / 2**20  # 112 MiB
    assert len(peaks) == 2200
    assert many - few < all_at_once / 4
