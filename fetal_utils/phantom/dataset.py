"""The phantom as a folder in the layout of FETAL_PLANES_DB: one image per row, the table, masks, and what made it."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from fetal_utils.data import CSV_NAME, IMAGE_DIR
from fetal_utils.phantom.fetus import Fetus, draw_fetus
from fetal_utils.phantom.machines import MACHINES
from fetal_utils.phantom.metadata import draw_metadata
from fetal_utils.phantom.scene import compose, draw_scene
from fetal_utils.phantom.table import check_metadata, read_raw_csv, write_raw_csv

MASK_DIR = "Masks"
RECORD_NAME = "phantom.json"
FORMAT_VERSION = 1  # raised whenever the same settings give other pixels or another table
IMAGE_HEIGHTS = (64, 1024)  # px
NOTICE = (
    "This is a phantom: simulated images of a made-up parametric fetus. It is not clinical data, shows no patient, "
    "and says nothing about how well a method works on real images."
)


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
    _check_settings(seed, image_height)
    check_metadata(pd.DataFrame([dict(row)]), for_drawing=True)
    return _draw(dict(row), seed=seed, image_height=image_height)


def write_phantom(
    out_dir: str | Path,
    *,
    n_patients: int = 200,
    seed: int = 0,
    image_height: int = 256,
    metadata: str | Path | pd.DataFrame | None = None,
    n_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a phantom data set; the folder appears whole or not at all.

    Parameters
    ----------
    out_dir : path
        Folder to make. If it already holds a phantom of the same settings, nothing is done.
    n_patients : int
        Patients to draw; not used with ``metadata``.
    seed : int
        Decides, with the other settings, every pixel.
    image_height : int
        Height in pixels.
    metadata : path or DataFrame, optional
        A real CSV, or its raw columns: an image is drawn for every row of it.
    n_workers : int, optional
        Processes; default one per processor. The images do not depend on it.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        ``out_dir``.

    Raises
    ------
    ValueError
        If a setting is out of range or the metadata is not a table of FETAL_PLANES_DB.
    FileExistsError
        If ``out_dir`` holds anything but a phantom of the same settings.
    """
    out_dir = Path(out_dir)
    _check_settings(seed, image_height)
    rows = _rows(n_patients, seed, metadata)
    record = _record(rows, None if metadata is not None else n_patients, seed, image_height)
    if _already_there(out_dir, record):
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        _draw_all(building, rows, seed=seed, image_height=image_height, n_workers=n_workers, progress=progress)
        write_raw_csv(rows, building / CSV_NAME)
        (building / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
        building.chmod(0o755)
        if out_dir.exists():
            out_dir.rmdir()  # empty, or _already_there would have refused it
        building.rename(out_dir)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out_dir


def phantom_dir(root: str | Path, *, n_patients: int, seed: int, image_height: int = 256) -> Path:
    """The folder under ``root`` with the phantom of these settings, drawn when it is asked for first.

    Safe when several processes ask at once: one draws, the others wait.

    Parameters
    ----------
    root : path
        Folder that holds phantoms.
    n_patients, seed, image_height : int
        As in ``write_phantom``.

    Returns
    -------
    Path
        Folder in the layout of FETAL_PLANES_DB.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """
    folder = Path(root) / f"phantom-{n_patients}p-seed{seed}-{image_height}px-v{FORMAT_VERSION}"
    if (folder / RECORD_NAME).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / RECORD_NAME).exists():
            print(f"Drawing the phantom of {n_patients} patients into {folder} (once; about a minute per 200 patients)")
            write_phantom(folder, n_patients=n_patients, seed=seed, image_height=image_height)
    return folder


def _rows(n_patients: int, seed: int, metadata: str | Path | pd.DataFrame | None) -> pd.DataFrame:
    if metadata is None:
        return draw_metadata(n_patients, rng=np.random.default_rng(seed))
    rows = metadata if isinstance(metadata, pd.DataFrame) else read_raw_csv(metadata)
    check_metadata(rows)
    return rows


def _record(rows: pd.DataFrame, n_patients: int | None, seed: int, image_height: int) -> dict:
    """What made the folder; two folders with equal records hold equal images."""
    return {
        "notice": NOTICE,
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "image_height": image_height,
        "n_patients": n_patients if n_patients is not None else int(rows["Patient_num"].nunique()),
        "n_images": len(rows),
        "table": "drawn" if n_patients is not None else "given",
        "table_crc32": crc32(rows.to_csv(index=False, lineterminator="\n").encode()),
        "mask_values": {"nothing": 0, "defining anatomy": 1, "text": 2, "calipers": 3},
    }


def _already_there(out_dir: Path, record: dict) -> bool:
    """Whether ``out_dir`` holds this very phantom; refuses anything else that is there."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    found = out_dir / RECORD_NAME
    if not found.is_file():
        raise FileExistsError(f"{out_dir} exists and is no phantom; name a folder that does not exist")
    try:
        other = json.loads(found.read_text())
    except json.JSONDecodeError:
        other = {}
    if other != record:
        raise FileExistsError(f"{out_dir} holds a phantom of other settings; name another folder or remove it")
    return True


def _check_settings(seed: int, image_height: int) -> None:
    low, high = IMAGE_HEIGHTS
    if not low <= image_height <= high:
        raise ValueError(f"image_height={image_height}: give {low} to {high} px")
    if seed < 0:
        raise ValueError(f"seed={seed}: give 0 or more")


@lru_cache(maxsize=8)
def _fetus(seed: int, patient: int) -> Fetus:
    """The fetus of a patient; cached because a patient's images follow one another."""
    return draw_fetus(np.random.default_rng([seed, patient]))


def _draw(row: dict, *, seed: int, image_height: int) -> tuple[np.ndarray, np.ndarray]:
    patient = int(row["Patient_num"])
    machine = MACHINES[row["US_Machine"]]
    fetus = _fetus(seed, patient)
    # crc32 and not hash(), which differs from one process to the next
    rng = np.random.default_rng([seed, patient, crc32(row["Image_name"].encode())])
    # in the real table the operator "Other" used the Aloka for the cervix and for maternal vessels only
    vascular = row["US_Machine"] == "Aloka" and row["Operator"] == "Other"
    scene = compose(row["Plane"], row["Brain_plane"], vascular=vascular, fetus=fetus, machine=machine, rng=rng)
    return draw_scene(scene, fetus=fetus, machine=machine, plane=row["Plane"], image_height=image_height, rng=rng)


def _draw_and_save(row: dict, *, folder: Path, seed: int, image_height: int) -> None:
    for directory, pixels in zip((IMAGE_DIR, MASK_DIR), _draw(row, seed=seed, image_height=image_height), strict=True):
        Image.fromarray(pixels).save(
            folder / directory / f"{row['Image_name']}.png", compress_level=3
        )  # more costs time and saves little: speckle is noise


def _draw_all(folder: Path, rows: pd.DataFrame, *, seed: int, image_height: int, n_workers: int | None, progress: bool):
    for directory in (IMAGE_DIR, MASK_DIR):
        (folder / directory).mkdir()
    records = rows.to_dict("records")
    work = partial(_draw_and_save, folder=folder, seed=seed, image_height=image_height)
    n_workers = min(n_workers or os.cpu_count() or 1, max(len(records) // 16, 1))
    bar = partial(tqdm, total=len(records), desc="phantom", unit="image", disable=not progress)
    if n_workers == 1:
        with threadpool_limits(1):
            for _ in bar(map(work, records)):
                pass
        return
    with ProcessPoolExecutor(n_workers, initializer=threadpool_limits, initargs=(1,)) as pool:
        for _ in bar(pool.map(work, records, chunksize=8)):
            pass
