"""The image cache: every image decoded once into a memory-mapped array of gray squares."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fetal_utils.data import IMAGE_DIR
from fetal_utils.environment import progress_bar
from fetal_utils.files import storage_errors

FORMAT_VERSION = 1
GEOMETRIES = ("pad", "crop", "text_corner")
CHUNK = 256  # images held in memory at a time while building

# Where the scanners print at the top right, as shares of the picture's height and width: the
# 44 x 56 px corner of a 256 x 256 px picture.
TEXT_CORNER = (44 / 256, 56 / 256)


@dataclass(frozen=True)
class ImageFormat:
    """How an image becomes a square of pixels.

    Attributes
    ----------
    image_size : int
        Side of the square, px.
    geometry : str
        "pad": the whole picture, longer side ``image_size``, black bars; "crop": the central
        square, shorter side ``image_size``; "text_corner": only the corner where scanners
        print, for the text-only baseline. The aspect ratio is kept by all three.
    blank_text : bool
        Paint that corner black first, so that no strategy can read it.
    """

    image_size: int
    geometry: str = "pad"
    blank_text: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, Integral) or not 8 <= self.image_size <= 1024:
            raise ValueError(f"image_size={self.image_size!r}: expected a whole number, 8 to 1024 px")
        if self.geometry not in GEOMETRIES:
            raise ValueError(f"geometry={self.geometry!r}: expected one of {GEOMETRIES}")


def open_images(
    data_dir: str | Path,
    image_names: Sequence[str],
    image_format: ImageFormat,
    *,
    cache_dir: str | Path,
    n_threads: int | None = None,
    progress: bool = True,
) -> np.memmap:
    """The images of a data folder as one array on disk, see `open_image_files`.

    Parameters
    ----------
    data_dir : path
        Folder that holds ``Images/<image_name>.png``.
    image_names : sequence of str, length n_images
    image_format, cache_dir, n_threads, progress
        As for `open_image_files`.

    Returns
    -------
    memmap of uint8, shape (n_images, image_size, image_size)
        Read-only, in the order of ``image_names``.

    Raises
    ------
    FileNotFoundError
        If images are missing; they are counted and the first are named.
    ValueError
        If an image can't be decoded; the file is named.
    """
    paths = image_paths(data_dir, image_names)
    return open_image_files(paths, image_format, cache_dir=cache_dir, n_threads=n_threads, progress=progress)


def open_image_files(
    paths: Sequence[Path],
    image_format: ImageFormat,
    *,
    cache_dir: str | Path,
    n_threads: int | None = None,
    progress: bool = True,
) -> np.memmap:
    """Image files as one array on disk, built on first use.

    The array carries a key of what made it: the names and file sizes, the format and this
    module's `FORMAT_VERSION`. It is built beside its place and renamed, under a lock, so a
    half-written array is never seen and several processes build it once. An array that is
    short, foreign or of another key is rebuilt with a message. Memory in use does not grow
    with the number of images.

    Parameters
    ----------
    paths : sequence of Path, length n_images
    image_format : ImageFormat
    cache_dir : path
        Folder for the arrays, one for each key.
    n_threads : int, optional
        Decoding threads; by default one per core.
    progress : bool
        Show a bar while building.

    Returns
    -------
    memmap of uint8, shape (n_images, image_size, image_size)
        Read-only, in the order of ``paths``.

    Raises
    ------
    ValueError
        If an image can't be decoded; the file is named.
    """
    key = {"version": FORMAT_VERSION, "files": files_hash(paths), **asdict(image_format)}
    folder = Path(cache_dir) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(paths), image_format.image_size, image_format.image_size)
    with FileLock(f"{folder}.lock"):
        if folder.exists() and (fault := fault_of_cache(folder, key, shape)):
            print(f"image cache {folder.name}: {fault}; building it again")
            folder.unlink() if folder.is_file() else shutil.rmtree(folder)
        if not folder.exists():
            build_cache(folder, paths, image_format, key=key, n_threads=n_threads, progress=progress)
    return np.load(folder / "images.npy", mmap_mode="r")


def image_paths(data_dir: str | Path, image_names: Sequence[str]) -> list[Path]:
    """The files of the images, all of which must exist and hold something."""
    root = Path(data_dir) / IMAGE_DIR
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is missing; expected a folder with <Image_name>.png for every row of the CSV")
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(root)}
    files = [f"{name}.png" for name in image_names]
    if missing := [file for file in files if file not in sizes]:
        raise FileNotFoundError(
            f"{root}: {len(missing)} of {len(files)} images are missing, the first {missing[:3]}; "
            "add them, or take their rows out of the CSV"
        )
    if empty := [file for file in files if not sizes[file]]:
        raise ValueError(f"{root}: {len(empty)} images are empty files, the first {empty[:3]}; copy them again")
    return [root / file for file in files]


def files_hash(paths: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits of the files' names and sizes, in order."""
    text = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fault_of_cache(folder: Path, key: dict, shape: tuple[int, ...]) -> str:
    """Why a cache can't be used, or an empty string."""
    try:
        if json.loads((folder / "key.json").read_text()) != key:
            return "made from something else"
        # unlike np.load, takes no other kind of file
        images = np.lib.format.open_memmap(folder / "images.npy", mode="r")
    except (OSError, ValueError) as error:  # a short file is a ValueError
        return f"unreadable ({error})"
    return "" if images.shape == shape and images.dtype == np.uint8 else f"holds {images.dtype} {images.shape}"


def build_cache(
    folder: Path,
    paths: Sequence[Path],
    image_format: ImageFormat,
    *,
    key: dict,
    n_threads: int | None,
    progress: bool,
) -> None:
    """Decode every image into ``folder``, which appears only when it is whole."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    side = image_format.image_size
    images = np.lib.format.open_memmap(
        partial / "images.npy", mode="w+", dtype=np.uint8, shape=(len(paths), side, side)
    )
    reserve_space(partial / "images.npy")
    bar = progress_bar(total=len(paths), desc=f"decoding images to {side} px", unit="image", show=progress)
    with bar, ThreadPoolExecutor(n_threads or os.cpu_count()) as pool:
        for start, chunk in enumerate_chunks(paths):
            for i, image in enumerate(pool.map(lambda path: read_image(path, image_format), chunk)):
                images[start + i] = image
                bar.update()
            images.flush()
    (partial / "key.json").write_text(json.dumps(key, indent=1))
    partial.replace(folder)


def reserve_space(path: Path) -> None:
    """Give a file the room on the disk that its length promises: a mapped page without room kills the process.

    Raises
    ------
    StorageError
        If the disk has less.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file, storage_errors(path):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def enumerate_chunks(paths: Sequence[Path]) -> Iterator[tuple[int, list[Path]]]:
    """Chunks of at most `CHUNK` paths with the position of their first."""
    rest = iter(paths)
    start = 0
    while chunk := list(islice(rest, CHUNK)):
        yield start, chunk
        start += len(chunk)


def read_image(path: Path, image_format: ImageFormat) -> np.ndarray:
    """One image file as a gray square, uint8, shape (image_size, image_size)."""
    try:
        with Image.open(path) as file:
            file.verify()  # checksums: torchvision's decoder takes the whole process down on a damaged PNG
        picture = decode_image(str(path), ImageReadMode.GRAY)  # (1, height, width)
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} can't be decoded ({str(error).splitlines()[0]}); copy it again") from None
    picture = F.to_dtype(picture, torch.uint8, scale=True)  # a PNG may hold 16 bits per pixel
    return fit_to_square(picture, image_format)[0].numpy()


def corner_shape(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the corner where scanners print, in a picture of this size, px."""
    return tuple(max(1, round(share * n)) for share, n in zip(TEXT_CORNER, (height, width), strict=True))


def fit_to_square(
    picture: torch.Tensor,
    image_format: ImageFormat,
    *,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> torch.Tensor:
    """A picture in the format's geometry, antialiased.

    Parameters
    ----------
    picture : Tensor of uint8, shape (1, height, width)
    image_format : ImageFormat
    interpolation : InterpolationMode
        The nearest neighbour keeps the values of a mask whole, without antialiasing.

    Returns
    -------
    Tensor of uint8, shape (1, image_size, image_size)
    """
    size, geometry = image_format.image_size, image_format.geometry
    height, width = picture.shape[1:]
    corner_rows, corner_columns = corner_shape(height, width)
    options = {"interpolation": interpolation, "antialias": interpolation == InterpolationMode.BILINEAR}
    if geometry == "text_corner":
        picture = picture[:, :corner_rows, width - corner_columns :]
        height, width = picture.shape[1:]
    elif image_format.blank_text:
        picture = picture.clone()
        picture[:, :corner_rows, width - corner_columns :] = 0
    if geometry == "crop":
        return F.center_crop(F.resize(picture, [size], **options), [size])
    scale = size / max(height, width)
    shape = [max(1, round(height * scale)), max(1, round(width * scale))]
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    padding = [left, top, size - shape[1] - left, size - shape[0] - top]
    return F.pad(F.resize(picture, shape, **options), padding)
