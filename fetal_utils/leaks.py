"""A copy of a data set in which a text in the corner names the class: a shortcut of known place, for maps to find."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw, ImageFont

from fetal_utils.data import CSV_NAME, IMAGE_DIR, TASKS_NAME
from fetal_utils.dataset import Dataset
from fetal_utils.images import corner_shape, files_hash, image_paths
from fetal_utils.masks import LEAK, LEAK_RECORD, mask_kinds, read_values
from fetal_utils.phantom import MASK_DIR
from fetal_utils.phantom.dataset import RECORD_NAME
from fetal_utils.tasks import Task

FORMAT_VERSION = 1  # raised whenever the same choices give other pixels
OVERLAYS = ("telling", "random", "absent")
LEAK_IN_TRAINING = {"train": "telling", "val": "telling", "test": "absent"}
CORNERS = ("top_right", "top_left", "bottom_right", "bottom_left")


def write_leaked_copy(
    dataset: Dataset,
    folder: str | Path,
    *,
    task: str,
    overlays: Mapping[str, str] = LEAK_IN_TRAINING,
    corner: str = "top_right",
    seed: int = 0,
) -> Path:
    """Write a data set in which a text burnt into a corner tells the class; the folder appears whole or not at all.

    A network trained on it can learn the text instead of the anatomy, and the mask of the text says whether a map
    shows that. The box is as large as the corner that ``blank_text`` paints, and the text fills it, so that it is
    legible at 64 px.

    Parameters
    ----------
    dataset : Dataset
        Only read; of 8-bit images. Masks beside its images are copied, with the box painted over in them too.
    folder : path
        To make, in the layout of FETAL_PLANES_DB with the same CSV. If it holds this very copy, nothing is done.
    task : str
        Whose classes the text tells; images of none of them stay as they are.
    overlays : mapping of str to str
        For "train", "val" and "test": "telling" (the class of the image), "random" (a class drawn at random, the
        right one among them) or "absent" (the image as it was).
    corner : str
        "top_right", where scanners print and ``blank_text`` paints; "top_left", "bottom_right" or "bottom_left".
        A geometry of "crop" may cut any of them off.
    seed : int
        Decides the random classes.

    Returns
    -------
    Path
        ``folder`` from the root, for `open_dataset`. In its ``Masks/`` the box has the value `masks.LEAK`.

    Raises
    ------
    ValueError
        If the task, a subset, an overlay or the corner is unknown.
    FileExistsError
        If ``folder`` holds anything else.
    """
    folder, classes = Path(folder).resolve(), dataset.task(task)
    if set(overlays) != set(LEAK_IN_TRAINING) or not set(overlays.values()) <= set(OVERLAYS) or corner not in CORNERS:
        raise ValueError(
            f"overlays={dict(overlays)}, corner={corner!r}: expected one of {OVERLAYS} for each of "
            f"{list(LEAK_IN_TRAINING)}, and one of {CORNERS}"
        )
    shown = shown_classes(dataset, classes, overlays, rng=np.random.default_rng(seed))
    record = {
        "format_version": FORMAT_VERSION,
        "notice": f"The images of {dataset.title} with text painted in: a test of explanations, no data of a study.",
        "source": files_hash(image_paths(dataset.data_dir, dataset.metadata["image_name"])),
        "task": task,
        "texts": dict(zip(classes.classes, texts_of(classes), strict=True)),
        "overlays": dict(overlays),
        "corner": corner,
        "seed": seed,
        "shown": "".join("-" if position < 0 else chr(ord("a") + position) for position in shown.tolist()),
        "mask_kinds": [*(kind for kind in mask_kinds(dataset) if kind != "leak"), "leak"],
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not is_this_copy(folder, record):
            write_whole(folder, dataset, shown, record)
    return folder


def shown_classes(dataset: Dataset, task: Task, overlays: Mapping[str, str], *, rng: np.random.Generator) -> np.ndarray:
    """Position of the class that each image's text names, int, -1 for no text; shape (n_rows,)."""
    labels = dataset.labels(task)
    overlay = dataset.metadata["subset"].map(dict(overlays)).to_numpy()
    drawn = rng.integers(len(task.classes), size=len(labels))  # for all rows, so that no choice shifts another's
    shown = np.select([overlay == "telling", overlay == "random"], [labels, drawn], default=-1)
    return np.where(labels >= 0, shown, -1)


def texts_of(task: Task) -> list[str]:
    """A text of two to four capitals for each class, the start of its short name; C1, C2, ... where those repeat."""
    names = [name.upper().replace(" ", "") for name in task.short_names]
    for length in (2, 3, 4):
        texts = [name[:length] for name in names]
        if len(set(texts)) == len(texts):
            return texts
    return [f"C{position + 1}" for position in range(len(names))]


def is_this_copy(folder: Path, record: dict) -> bool:
    """Whether the folder holds this very copy already; anything else that is there is refused."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    path = folder / LEAK_RECORD
    if not path.is_file() or json.loads(path.read_text()) != record:
        raise FileExistsError(f"{folder} holds something else than this leaked copy; name another folder or remove it")
    return True


def write_whole(folder: Path, dataset: Dataset, shown: np.ndarray, record: dict) -> None:
    """Build the copy beside its place, then rename it."""
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name in (IMAGE_DIR, MASK_DIR):
            (building / name).mkdir()
        texts = list(record["texts"].values())
        for name, position in zip(dataset.metadata["image_name"], shown.tolist(), strict=True):
            text = texts[position] if position >= 0 else ""
            write_image(Path(dataset.data_dir), building, f"{name}.png", text=text, corner=record["corner"])
        copy_tables(Path(dataset.data_dir), building, record)
        building.chmod(0o755)
        if folder.exists():
            folder.rmdir()  # empty, or is_this_copy would have refused it
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def copy_tables(source: Path, folder: Path, record: dict) -> None:
    """The CSV and the tasks as they are, and the records of what made the images."""
    shutil.copyfile(source / CSV_NAME, folder / CSV_NAME)
    if (source / TASKS_NAME).exists():
        shutil.copyfile(source / TASKS_NAME, folder / TASKS_NAME)
    if (source / RECORD_NAME).exists():  # it stays a phantom, but not the very one
        phantom = json.loads((source / RECORD_NAME).read_text()) | {"leak": record["notice"]}
        (folder / RECORD_NAME).write_text(json.dumps(phantom, indent=2) + "\n")
    (folder / LEAK_RECORD).write_text(json.dumps(record, indent=2) + "\n")


def write_image(source: Path, folder: Path, file: str, *, text: str, corner: str) -> None:
    """One image and its mask, with a text or, if it is empty, as they were."""
    with Image.open(source / IMAGE_DIR / file) as opened:
        picture = opened.copy()
    path = source / MASK_DIR / file
    mask = read_values(path) if path.exists() else np.zeros(picture.size[::-1], dtype=np.uint8)
    if text:
        picture = picture.convert("L")
        left, top, right, bottom = box_in(corner, picture.height, picture.width)
        picture.paste(text_box(text, right - left, bottom - top), (left, top))
        mask[top:bottom, left:right] = LEAK
        picture.save(folder / IMAGE_DIR / file, compress_level=3)
    else:
        shutil.copyfile(source / IMAGE_DIR / file, folder / IMAGE_DIR / file)
    Image.fromarray(mask).save(folder / MASK_DIR / file, compress_level=3)


def box_in(corner: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the box in a picture of this size, px."""
    n_rows, n_columns = corner_shape(height, width)
    top = 0 if corner.startswith("top") else height - n_rows
    left = 0 if corner.endswith("left") else width - n_columns
    return left, top, left + n_columns, top + n_rows


@lru_cache(maxsize=256)
def text_box(text: str, width: int, height: int) -> Image.Image:
    """White text, as large as fits, in the middle of a black box."""
    box = Image.new("L", (width, height))
    draw, size = ImageDraw.Draw(box), height
    while size > 5 and draw.textlength(text, font=ImageFont.load_default(size)) > width - 2:
        size -= 1
    draw.text((width / 2, height / 2), text, fill=255, font=ImageFont.load_default(size), anchor="mm")
    return box
