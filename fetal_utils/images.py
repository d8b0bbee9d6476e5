"""Pictures become gray squares: decoded once into a memory-mapped array whose name knows the files' contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from fetal_utils.environment import progress_bar, replace_file

# a data folder in the layout of FETAL_PLANES_DB
CSV_NAME = "FETAL_PLANES_DB_data.csv"
IMAGE_DIR = "Images"
MASK_DIR = "Masks"  # only the phantom has it

FORMAT_VERSION = 2  # of the arrays: raised whenever the same files give other pixels
GEOMETRIES = ("crop", "pad", "text_corner")
TEXT_CORNER = (44 / 256, 56 / 256)  # where scanners print, top right, as shares of height and width


@dataclass(frozen=True)
class ImageFormat:
    """How a picture becomes a square of pixels.

    Attributes
    ----------
    image_size : int
        Side of the square, px.
    geometry : str
        "crop": the central square, shorter side ``image_size``; "pad": the whole picture, longer side
        ``image_size``, black bars; "text_corner": only the corner where scanners print, for the text-only baseline.
        The aspect ratio is kept by all three.
    blank_text : bool
        Paint that corner black first, so that no strategy can read it.
    """

    image_size: int
    geometry: str = "crop"
    blank_text: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, Integral) or not 8 <= self.image_size <= 1024:
            raise ValueError(f"image_size={self.image_size!r}: expected a whole number, 8 to 1024 px")
        if self.geometry not in GEOMETRIES:
            raise ValueError(f"geometry={self.geometry!r}: expected one of {GEOMETRIES}")
        if not isinstance(self.blank_text, bool):
            raise ValueError(f"blank_text={self.blank_text!r}: expected True or False")


def open_images(
    paths: Sequence[Path], image_format: ImageFormat, *, cache_dir: str | Path, progress: bool = True
) -> np.memmap:
    """Image files as one array on disk, decoded on first use.

    Returns
    -------
    memmap of uint8, shape (n_images, image_size, image_size)
        Read-only, in the order of ``paths``.

    Raises
    ------
    ValueError
        If an image can't be read; the file is named.
    """
    size, cache_dir = image_format.image_size, Path(cache_dir)
    text = f"{FORMAT_VERSION} {image_format} {files_hash(paths)}"
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = cache_dir / f"{image_format.geometry}-{size}px-{key}.npy"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # several processes decode once
        if not path.exists():
            squares = decode(paths, image_format, progress=progress)
            replace_file(path, lambda beside: write_array(beside, squares, shape=(len(paths), size, size)))
    return np.load(path, mmap_mode="r")


def decode(paths: Sequence[Path], image_format: ImageFormat, *, progress: bool) -> Iterator[np.ndarray]:
    """The squares one after the other, decoded in threads."""
    bar = progress_bar(
        total=len(paths), desc=f"decoding images to {image_format.image_size} px", unit="image", show=progress
    )
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for square in pool.map(lambda path: fit_to_square(read_image(path), image_format), paths):
            yield square
            bar.update()


def write_array(path: Path, squares: Iterator[np.ndarray], *, shape: tuple[int, ...]) -> None:
    """A .npy file written image by image: memory does not grow with their number, a full disk is an error."""
    with path.open("wb") as file:
        header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for square in squares:
            file.write(square.tobytes())


def read_image(path: Path) -> np.ndarray:
    """An image file as it is, gray: uint8, shape (height, width)."""
    with Image.open(path) as file:
        return np.asarray(file.convert("L"))


def corner_shape(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the corner where scanners print, in a picture of this size, px."""
    return tuple(max(1, round(share * n)) for share, n in zip(TEXT_CORNER, (height, width), strict=True))


def fit_to_square(
    picture: np.ndarray, image_format: ImageFormat, *, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """A picture in the format's geometry, antialiased.

    Parameters
    ----------
    picture : ndarray of uint8, shape (height, width)
    image_format : ImageFormat
    resample : Resampling
        ``NEAREST`` keeps the values of a mask whole.

    Returns
    -------
    ndarray of uint8, shape (image_size, image_size)
    """
    size, geometry = image_format.image_size, image_format.geometry
    height, width = picture.shape
    n_rows, n_columns = corner_shape(height, width)
    if geometry == "text_corner":
        picture = picture[:n_rows, width - n_columns :]
        height, width = n_rows, n_columns
    elif image_format.blank_text:
        picture = picture.copy()
        picture[:n_rows, width - n_columns :] = 0
    image, square = Image.fromarray(picture), Image.new("L", (size, size))
    if geometry == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        square.paste(image.resize((size, size), resample, box=(left, top, left + side, top + side)))
    else:
        scale = size / max(height, width)
        shape = (max(1, round(width * scale)), max(1, round(height * scale)))
        square.paste(image.resize(shape, resample), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(square)


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
    """Sixteen hexadecimal digits of the files' names and contents, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), paths)
        text = "\n".join(f"{path.name} {content}" for path, content in zip(paths, contents, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ExtraImages:
    """A folder of unlabelled images to pretrain on besides; its identity is what the files hold.

    Attributes
    ----------
    key : str
    n_images : int
    folder : str
        Absolute; it stays out of records and of comparison.
    """

    key: str
    n_images: int
    folder: str = ""
