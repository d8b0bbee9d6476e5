"""Pictures become gray squares: decoded once into a memory-mapped array whose name knows the files' contents."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image, PngImagePlugin

from fetal_utils.environment import progress_bar, project_path, read_json, replace_file, write_json

# the layout of a data folder, which is that of FETAL_PLANES_DB
CSV_NAME = "FETAL_PLANES_DB_data.csv"
IMAGE_DIR = "Images"
MASK_DIR = "Masks"  # only the phantom has it
# raw header of the CSV, trailing space included, and the tidy name of each column
CSV_COLUMNS = {
    "Image_name": "image_name",
    "Patient_num": "patient",
    "Plane": "plane",
    "Brain_plane": "brain_plane",
    "Operator": "operator",
    "US_Machine": "machine",
    "Train ": "split",
}

FORMAT_VERSION = 2  # of the arrays: raised whenever the same files give other pixels
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")  # by content, whatever a file is called
ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
MIN_SIDE, MAX_PIXELS = 8, 50_000_000  # of a picture
GEOMETRIES = ("crop", "pad", "text_corner")
TEXT_CORNER = (44 / 256, 56 / 256)  # where scanners print, top right, as shares of height and width

PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # Pillow refuses a sound PNG with more than 1 MB of text or colour profile


@dataclass(frozen=True)
class ImageFormat:
    """How a picture becomes a square of ``image_size`` px; its aspect ratio is kept.

    ``geometry`` is "crop" (the central square, shorter side ``image_size``), "pad" (the whole picture, black bars) or
    "text_corner" (only the corner where scanners print, for a baseline). ``blank_text`` paints that corner black.
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


def digest(content: str | bytes) -> str:
    """Sixteen hexadecimal digits that stand for a content."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def open_images(
    paths: Sequence[Path], image_format: ImageFormat, *, cache_dir: str | Path, progress: bool = True
) -> np.memmap:
    """Image files as one array on disk, decoded on first use; it appears whole or not at all.

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
    shape = (len(paths), size, size)
    key = digest(f"{FORMAT_VERSION} {image_format} {content_hashes(paths, cache_dir=cache_dir)}")
    path = cache_dir / f"{image_format.geometry}-{size}px-{key}.npy"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of several processes, one decodes
        with suppress(OSError, ValueError):  # absent, cut short, or no array at all
            images = np.lib.format.open_memmap(path, mode="r")
            if images.shape == shape and images.dtype == np.uint8:
                return images
        squares = decode(paths, image_format, progress=progress)
        replace_file(path, lambda beside: write_array(beside, squares, shape=shape))
    return np.lib.format.open_memmap(path, mode="r")


def decode(paths: Sequence[Path], image_format: ImageFormat, *, progress: bool) -> Iterator[np.ndarray]:
    """The squares of image files one after the other, decoded in threads."""
    desc = f"decoding images to {image_format.image_size} px"
    bar = progress_bar(total=len(paths), desc=desc, unit="image", show=progress)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for square in pool.map(lambda path: fit_to_square(read_image(path), image_format), paths):
            yield square
            bar.update()


def write_array(path: Path, squares: Iterator[np.ndarray], *, shape: tuple[int, ...]) -> None:
    """A .npy file written image by image: memory does not grow with their number, and a full disk is an error."""
    with path.open("wb") as file:
        header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for square in squares:
            file.write(square.tobytes())


def content_hashes(paths: Sequence[Path], *, cache_dir: str | Path | None = None) -> list[str]:
    """A `digest` of what each file holds; a cache folder remembers them while names, sizes and times stay the same."""
    facts = [path.stat() for path in paths]
    times = [(fact.st_size, fact.st_mtime_ns, fact.st_ctime_ns) for fact in facts]
    listing = digest("\n".join(f"{path.absolute()} {one}" for path, one in zip(paths, times, strict=True)))
    memory = Path(cache_dir or "") / f"contents-{listing}.json"
    if cache_dir is not None:
        with suppress(OSError, ValueError, KeyError):
            return read_json(memory)["hashes"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(lambda path: digest(path.read_bytes()), paths))
    settled = time.time_ns() - 2 * 10**9  # a file changed just now may change again within a tick of its clock
    if cache_dir is not None and all(max(one[1:]) < settled for one in times):
        with suppress(OSError):  # a folder that can't be written costs time, no more
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, {"hashes": hashes})
    return hashes


def read_image(path: Path) -> np.ndarray:
    """A picture of any of `FORMATS`, gray: uint8, shape (height, width); a ValueError names one that can't be read."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            check_picture(file)
            file.verify()  # the checksums, which decoding alone passes over
        with Image.open(path, formats=FORMATS) as file:
            return to_gray(file)
    except Exception as error:  # decoders raise whatever they like
        reason = str(error).partition("\n")[0] or type(error).__name__
        remedy = f"copy it again if it is damaged, else save it as an 8-bit gray PNG of {MIN_SIDE} to 7,000 px"
        raise ValueError(f"{path} can't be read: {reason}; {remedy}") from None


def check_picture(file: Image.Image) -> None:
    """Raise a ValueError if an opened picture can't be taken as one gray image."""
    if min(file.size) < MIN_SIDE or file.width * file.height > MAX_PIXELS:
        raise ValueError(f"it has {file.width} x {file.height} px")
    if (n_frames := getattr(file, "n_frames", 1)) > 1:
        raise ValueError(f"it holds {n_frames} pictures")


def to_gray(file: Image.Image) -> np.ndarray:
    """The pixels as 8-bit gray levels."""
    if file.mode[0] in "IF":
        values = np.asarray(file)
        if file.mode == "F" or values.min() < 0 or values.max() >= 2**16:
            raise ValueError(f"pixels of mode {file.mode!r} have no known white")
        # scanners store 12 bits in 16, and 8 bits are stored so too: as 16 they would be nearly black
        white = next(white for white in (2**8 - 1, 2**12 - 1, 2**16 - 1) if values.max() <= white)
        return np.round(values * (255 / white)).astype(np.uint8)
    is_deep = ";16" in str(file.tile)  # colours of 16 bits, of which Pillow keeps the upper 8
    if file.has_transparency_data:  # what is transparent shows the black behind it
        file = Image.alpha_composite(Image.new("RGBA", file.size, "black"), file.convert("RGBA"))
    gray = np.asarray(file.convert("L"))
    if is_deep and gray.max() < 16:
        raise ValueError("12 bits in colours of 16 can't be told from black")
    return gray


def corner_shape(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the corner where scanners print, in a picture of this size, px."""
    return tuple(max(1, round(share * n)) for share, n in zip(TEXT_CORNER, (height, width), strict=True))


def fit_to_square(
    picture: np.ndarray, image_format: ImageFormat, *, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """A picture, uint8 of shape (height, width), in the format's geometry, shape (image_size, image_size).

    It is antialiased; with ``resample`` NEAREST, the values of a mask stay whole.
    """
    size, geometry = image_format.image_size, image_format.geometry
    height, width = picture.shape
    n_rows, n_columns = corner_shape(height, width)
    if geometry == "text_corner":
        picture, height, width = picture[:n_rows, width - n_columns :], n_rows, n_columns
    elif image_format.blank_text:
        picture = picture.copy()
        picture[:n_rows, width - n_columns :] = 0
    image = Image.fromarray(picture)
    if geometry == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return np.asarray(image.resize((size, size), resample, box=(left, top, left + side, top + side)))
    square, scale = Image.new("L", (size, size)), size / max(height, width)
    columns, rows = (max(1, round(n * scale)) for n in (width, height))
    square.paste(image.resize((columns, rows), resample), ((size - columns) // 2, (size - rows) // 2))
    return np.asarray(square)


def image_paths(data_dir: str | Path, image_names: Sequence[str]) -> list[Path]:
    """The files of the images, all of which must exist; FileNotFoundError with the remedy if not."""
    root = Path(data_dir) / IMAGE_DIR
    if not root.is_dir():
        alike = [path.name for path in Path(data_dir).iterdir() if path.is_dir() and path.name.lower() == "images"]
        remedy = f"rename {alike[0]}/" if alike else "expected <Image_name>.png in it for every row of the CSV"
        raise FileNotFoundError(f"{root} is missing; {remedy}")
    found = {entry.name for entry in os.scandir(root)}
    missing = [name for name in image_names if f"{name}.png" not in found]
    if not missing:
        return [root / f"{name}.png" for name in image_names]
    by_stem = {Path(name).stem: name for name in found if Path(name).suffix.lower() in ENDINGS}
    remedy = "add them, or take their rows out of the CSV"
    if other := [by_stem[name] for name in missing if name in by_stem]:
        remedy = f"{len(other)} are there under another ending ({other[0]}): rename them to .png, whatever they hold"
    first = [f"{name}.png" for name in missing[:3]]
    raise FileNotFoundError(f"{root}: {len(missing)} of {len(image_names)} images are missing, first {first}; {remedy}")


def nearly_black(images: np.ndarray) -> np.ndarray:
    """Which of the images, uint8 of shape (n, side, side), are dark all over: bool, shape (n,)."""
    return (images >= 32).mean(axis=(1, 2)) < 0.01


def find_duplicates(thumbnails: np.ndarray, hashes: Sequence[str], *, min_correlation: float = 0.98) -> pd.DataFrame:
    """Pairs of images that are the same file or look the same.

    The gray levels of 32 px ``thumbnails``, uint8 of shape (n_images, side, side), are correlated; in FETAL_PLANES_DB
    different pictures of two patients reach 0.86 at most. ``hashes`` are those of `content_hashes`.

    Returns
    -------
    DataFrame
        Columns ``first, second`` (positions, first < second), ``kind`` ("same file" or "look alike"), ``correlation``.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    hashes, parts = np.asarray(hashes), []
    for start in range(0, len(flat), 1024):  # in blocks: memory grows with n_images, not with its square
        correlation = flat[start : start + 1024] @ flat.T
        same = hashes[start : start + 1024, None] == hashes
        first, second = np.nonzero(np.triu(same | (correlation >= min_correlation), k=start + 1))
        kind = np.where(same[first, second], "same file", "look alike")
        values = {"first": first + start, "second": second, "kind": kind, "correlation": correlation[first, second]}
        parts.append(pd.DataFrame(values))
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class ExtraImages:
    """Unlabelled images of any origin to pretrain on besides: a folder as it was when opened.

    ``key``, of what the files hold and their names in the folder, is what a run is named by; ``folder`` differs between
    machines, and stays out of records and of comparisons.
    """

    key: str
    n_images: int
    folder: str = field(default="", compare=False)

    def to_dict(self) -> dict:
        return {"key": self.key, "n_images": self.n_images}

    def check(self) -> None:
        """Raise a ValueError if the folder's files are not those it was opened with."""
        if not Path(self.folder).is_dir() or open_extra_images(self.folder) != self:
            raise ValueError(f"extra_images={self.folder} has changed since this run was asked for; ask again")

    def images(self, dataset, image_size: int, *, progress: bool = True) -> tuple[np.ndarray, dict[str, int]]:
        """What a pretraining on a `Dataset` may learn from, in its geometry.

        Returns
        -------
        images : ndarray of uint8, shape (n_images, image_size, image_size)
        left_out : dict of str to int
            Files passed over, by reason.
        """
        paths, n_hidden = list_images(Path(self.folder))
        squares = open_images(paths, dataset.image_format(image_size), cache_dir=dataset.cache_dir, progress=progress)
        seen = {digest(square.tobytes()) for square in dataset.images(image_size, progress=progress)}
        held_out = dataset.metadata[dataset.metadata["subset"] != "train"]
        names, patients = set(held_out["image_name"]), set(held_out["patient"])
        kept, left_out = [], {"hidden files and masks": n_hidden, "known already": 0, "of held-out patients": 0}
        for position, path in enumerate(paths):
            content, patient = digest(squares[position].tobytes()), re.match(r"Patient(\d+)_", path.stem)
            if path.stem in names or (patient and int(patient[1]) in patients):
                left_out["of held-out patients"] += 1
            elif content in seen:
                left_out["known already"] += 1
            else:
                kept.append(position)
            seen.add(content)
        return squares[kept], left_out


def list_images(root: Path) -> tuple[list[Path], int]:
    """Image files in a folder and below, sorted, and how many more are hidden, in hidden folders or in ``Masks``."""
    files = [path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()]
    shown = [
        path
        for path in files
        if not any(part.startswith(".") or part == MASK_DIR for part in path.relative_to(root).parts)
    ]
    return sorted(shown), len(files) - len(shown)


def open_extra_images(folder: str | Path) -> ExtraImages | None:
    """The images of a folder and of all folders in it, or None for an empty name; FileNotFoundError if it has none."""
    if not str(folder):
        return None
    root = project_path(folder).resolve()
    paths, _ = list_images(root)
    if not paths:
        raise FileNotFoundError(f"extra_images={root} holds no image ({', '.join(ENDINGS)}); give a folder that does")
    names = [path.relative_to(root).as_posix() for path in paths]
    key = digest("\n".join(map(" ".join, zip(names, content_hashes(paths), strict=True))))
    return ExtraImages(key, len(paths), str(root))
