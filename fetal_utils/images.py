"""Pictures become gray squares: decoded once into a memory-mapped array whose name knows the files' contents."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image, ImageOps
from scipy.sparse import triu
from sklearn.neighbors import radius_neighbors_graph

from fetal_utils.environment import progress_bar, project_path, read_json, replace_file, write_json

# the layout of a data folder, which is that of FETAL_PLANES_DB
CSV_NAME = "FETAL_PLANES_DB_data.csv"
IMAGE_DIR = "Images"
MASK_DIR = "Masks"  # only the phantom has it
# raw header of the CSV, trailing space included, and the tidy name of each column
CSV_COLUMNS = {
    "Image_name": "image_name", "Patient_num": "patient", "Plane": "plane", "Brain_plane": "brain_plane",
    "Operator": "operator", "US_Machine": "machine", "Train ": "split",
}  # fmt: skip

FORMAT_VERSION = 2  # of the arrays: raised whenever the same files give other pixels
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")  # by content, whatever a file is called
ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
MIN_SIDE, MAX_PIXELS = 8, 50_000_000  # of a picture
GEOMETRIES = ("crop", "pad", "text_corner")
TEXT_CORNER = (44 / 256, 56 / 256)  # where scanners print, top right, as shares of height and width


@dataclass(frozen=True)
class ImageFormat:
    """How a picture becomes a square of ``image_size`` px; its aspect ratio is kept."""

    image_size: int
    geometry: str = "crop"  # or "pad" (the whole picture, black bars), "text_corner" (that alone, for a baseline)
    blank_text: bool = False  # the corner where scanners print is painted black

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

    A read-only memmap of uint8, shape (n_images, image_size, image_size), in the order of ``paths``; a ValueError names
    an image that can't be read.
    """
    cache_dir = Path(cache_dir)
    key = digest(f"{FORMAT_VERSION} {image_format} {content_hashes(paths, cache_dir=cache_dir)}")
    path = cache_dir / f"{image_format.geometry}-{image_format.image_size}px-{key}.npy"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of several processes, one decodes
        with suppress(OSError, ValueError):  # absent or cut short
            return np.lib.format.open_memmap(path, mode="r")
        replace_file(path, lambda beside: write_squares(beside, paths, image_format, progress=progress))
    return np.lib.format.open_memmap(path, mode="r")


def write_squares(path: Path, paths: Sequence[Path], image_format: ImageFormat, *, progress: bool) -> None:
    """Image files, decoded in threads, as a .npy file, one by one: memory does not grow with their number."""
    size = image_format.image_size
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), size, size)}
    bar = progress_bar(total=len(paths), desc=f"decoding images to {size} px", unit="image", show=progress)
    with path.open("wb") as file, bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        np.lib.format.write_array_header_1_0(file, header)
        for square in pool.map(lambda path: fit_to_square(read_image(path), image_format), paths):
            file.write(square.tobytes())
            bar.update()


def content_hashes(paths: Sequence[Path], *, cache_dir: str | Path | None = None) -> list[str]:
    """A `digest` of what each file holds; a cache folder remembers them while names, sizes and times stay the same."""
    facts = [(path.absolute(), path.stat()) for path in paths]
    listing = "\n".join(f"{path} {fact.st_size} {fact.st_mtime_ns} {fact.st_ctime_ns}" for path, fact in facts)
    memory = Path(cache_dir or "") / f"contents-{digest(listing)}.json"
    if cache_dir:
        with suppress(OSError, ValueError, KeyError):
            return read_json(memory)["hashes"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(pool.map(lambda path: digest(path.read_bytes()), paths))
    settled = time.time_ns() - 2 * 10**9  # a file changed just now may change again within a tick of its clock
    if cache_dir and all(fact.st_ctime_ns < settled for _, fact in facts):
        with suppress(OSError):  # a folder that can't be written costs time, no more
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, {"hashes": hashes})
    return hashes


def read_image(path: Path) -> np.ndarray:
    """A picture of any of `FORMATS`, gray: uint8, shape (height, width); a ValueError names one that can't be read."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            if min(file.size) < MIN_SIDE or file.width * file.height > MAX_PIXELS:
                raise ValueError(f"it has {file.width} x {file.height} px")
            if (n_frames := getattr(file, "n_frames", 1)) > 1:
                raise ValueError(f"it holds {n_frames} pictures")
            file.verify()  # the checksums, which decoding alone passes over
        with Image.open(path, formats=FORMATS) as file:
            return to_gray(file)
    except Exception as error:  # decoders raise whatever they like
        reason = str(error).partition("\n")[0] or type(error).__name__
        remedy = f"copy it again if it is damaged, else save it as an 8-bit gray PNG of {MIN_SIDE} to 7,000 px"
        raise ValueError(f"{path} can't be read: {reason}; {remedy}") from None


def to_gray(file: Image.Image) -> np.ndarray:
    """The pixels as 8-bit gray levels."""
    if file.mode[0] in "IF":
        values = np.asarray(file)
        if file.mode == "F" or values.min() < 0 or values.max() >= 2**16:
            raise ValueError(f"pixels of mode {file.mode!r} have no known white")
        # scanners store 12 bits in 16, and 8 bits are stored so too: as 16 they would be nearly black
        white = next(white for white in (2**8 - 1, 2**12 - 1, 2**16 - 1) if values.max() <= white)
        return np.round(values * (255 / white)).astype(np.uint8)
    if file.has_transparency_data:  # what is transparent shows the black behind it
        file = Image.alpha_composite(Image.new("RGBA", file.size, "black"), file.convert("RGBA"))
    return np.asarray(file.convert("L"))  # of colours of 16 bits, Pillow keeps the upper 8


def corner_shape(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the corner where scanners print, in a picture of this size, px."""
    return tuple(max(1, round(share * n)) for share, n in zip(TEXT_CORNER, (height, width), strict=True))


def fit_to_square(
    picture: np.ndarray, image_format: ImageFormat, *, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """A picture, uint8 of shape (height, width), in the format's geometry; NEAREST keeps the values of a mask whole."""
    size, geometry = image_format.image_size, image_format.geometry
    n_rows, n_columns = corner_shape(*picture.shape)
    if geometry == "text_corner":
        picture = picture[:n_rows, -n_columns:]
    elif image_format.blank_text:
        picture = picture.copy()
        picture[:n_rows, -n_columns:] = 0
    image = Image.fromarray(picture)
    if geometry == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), resample))
    square, scale = Image.new("L", (size, size)), size / max(image.size)
    columns, rows = (max(1, round(n * scale)) for n in image.size)
    square.paste(image.resize((columns, rows), resample), ((size - columns) // 2, (size - rows) // 2))
    return np.asarray(square)


def image_paths(data_dir: str | Path, image_names: Sequence[str]) -> list[Path]:
    """The files of the images, all of which must exist; FileNotFoundError with the remedy if not."""
    root, names = Path(data_dir) / IMAGE_DIR, [f"{name}.png" for name in image_names]
    found = {path.name for path in root.glob("*")}
    if missing := [name for name in names if name not in found]:
        remedy = "expected that folder and those names (rename .PNG or .jpg), or take the rows out of the CSV"
        reason = f"{len(missing)} of {len(names)} images are missing, first {missing[:3]}"
        raise FileNotFoundError(f"{root}: {reason}; {remedy}")
    return [root / name for name in names]


def nearly_black(images: np.ndarray) -> np.ndarray:
    """Which of the images, uint8 of shape (n, side, side), are dark all over: bool, shape (n,)."""
    return (images >= 32).mean(axis=(1, 2)) < 0.01


def find_duplicates(thumbnails: np.ndarray, hashes: Sequence[str], *, min_correlation: float = 0.98) -> pd.DataFrame:
    """Pairs of images that look the same, and whether they are the same file by the hashes of `content_hashes`.

    Gray levels of 32 px ``thumbnails``, uint8 of shape (n_images, side, side), are correlated; in FETAL_PLANES_DB
    different pictures of two patients reach 0.86 at most. Columns ``first, second`` (positions, first < second),
    ``kind`` ("same file" or "look alike"), ``correlation``.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)  # the cosine is then the correlation; of a black picture it is 0
    near = radius_neighbors_graph(flat, 1 - min_correlation, mode="distance", metric="cosine")
    pairs = triu(near, k=1).tocsr().tocoo()  # by rows
    same = np.asarray(hashes)[pairs.row] == np.asarray(hashes)[pairs.col]
    kind = np.where(same, "same file", "look alike")
    return pd.DataFrame({"first": pairs.row, "second": pairs.col, "kind": kind, "correlation": 1 - pairs.data})


@dataclass(frozen=True)
class ExtraImages:
    """Unlabelled images of any origin to pretrain on besides: a folder as it was when opened."""

    key: str  # of what the files hold and their names in the folder; a run is named by it
    n_images: int
    folder: str = field(default="", compare=False)  # differs between machines, and stays out of records

    def to_dict(self) -> dict:
        return {"key": self.key, "n_images": self.n_images}

    def check(self) -> None:
        """Raise a ValueError if the folder's files are not those it was opened with."""
        if not Path(self.folder).is_dir() or open_extra_images(self.folder) != self:
            raise ValueError(f"extra_images={self.folder} has changed since this run was asked for; ask again")

    def images(self, dataset, image_size: int, *, progress: bool = True) -> tuple[np.ndarray, dict[str, int]]:
        """What a pretraining on a `Dataset` may learn from, opened as its own, and how many are left out, by reason."""
        paths = list_images(Path(self.folder))
        squares = open_images(paths, dataset.image_format(image_size), cache_dir=dataset.cache_dir, progress=progress)
        held_out = dataset.metadata[dataset.metadata["subset"] != "train"]
        names = pd.Series([path.stem for path in paths])
        patients = pd.to_numeric(names.str.extract("^Patient([0-9]+)_", expand=False))
        is_held_out = names.isin(held_out["image_name"]) | patients.isin(held_out["patient"])
        own = {digest(square.tobytes()) for square in dataset.images(image_size, progress=progress)}
        contents = pd.Series([digest(square.tobytes()) for square in squares])
        is_known = ~is_held_out & (contents.isin(own) | contents.duplicated())
        left_out = {"known already": int(is_known.sum()), "of held-out patients": int(is_held_out.sum())}
        return squares[(~is_held_out & ~is_known).to_numpy()], left_out


def list_images(root: Path) -> list[Path]:
    """Image files in a folder and below, sorted, without hidden ones and those in hidden folders or in ``Masks``."""
    parts = {path: path.relative_to(root).parts for path in sorted(root.rglob("*")) if path.suffix.lower() in ENDINGS}
    return [path for path, names in parts.items() if not any(name[0] == "." or name == MASK_DIR for name in names)]


def open_extra_images(folder: str | Path) -> ExtraImages | None:
    """The images of a folder and of all folders in it, or None for an empty name; FileNotFoundError if it has none."""
    if not str(folder):
        return None
    root = project_path(folder).resolve()
    if not (paths := list_images(root)):
        raise FileNotFoundError(f"extra_images={root} holds no image ({', '.join(ENDINGS)}); give a folder that does")
    names = [path.relative_to(root).as_posix() for path in paths]
    key = digest("\n".join(map(" ".join, zip(names, content_hashes(paths), strict=True))))
    return ExtraImages(key, len(paths), str(root))
