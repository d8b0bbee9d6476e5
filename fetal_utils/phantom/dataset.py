"""The phantom as a folder in the layout of FETAL_PLANES_DB: one image per row, the table, masks, and what made it."""

import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image
from threadpoolctl import threadpool_limits

from fetal_utils.data import CSV_NAME, IMAGE_DIR
from fetal_utils.environment import progress_bar
from fetal_utils.memory import keep_freed_memory
from fetal_utils.phantom.drawing import check_settings, draw_row
from fetal_utils.phantom.metadata import draw_metadata
from fetal_utils.phantom.table import check_metadata, read_raw_csv, write_raw_csv

MASK_DIR = "Masks"
RECORD_NAME = "phantom.json"
FORMAT_VERSION = 1  # raised whenever the same settings give other pixels or another table
NOTICE = (
    "This is a phantom: simulated images of a made-up parametric fetus. It is not clinical data, shows no patient, "
    "and says nothing about how well a method works on real images."
)


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
    check_settings(seed, image_height)
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
        "seed": int(seed),
        "image_height": int(image_height),
        "n_patients": int(rows["Patient_num"].nunique()),
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


def _draw_and_save(row: dict, *, folder: Path, seed: int, image_height: int) -> None:
    for directory, pixels in zip(
        (IMAGE_DIR, MASK_DIR), draw_row(row, seed=seed, image_height=image_height), strict=True
    ):
        Image.fromarray(pixels).save(
            folder / directory / f"{row['Image_name']}.png", compress_level=3
        )  # more costs time and saves little: speckle is noise


def _draw_all(folder: Path, rows: pd.DataFrame, *, seed: int, image_height: int, n_workers: int | None, progress: bool):
    for directory in (IMAGE_DIR, MASK_DIR):
        (folder / directory).mkdir()
    records = rows.to_dict("records")
    work = partial(_draw_and_save, folder=folder, seed=seed, image_height=image_height)
    n_workers = min(n_workers or os.cpu_count() or 1, max(len(records) // 16, 1))
    bar = partial(progress_bar, total=len(records), desc="phantom", unit="image", show=progress)
    if n_workers == 1:
        with threadpool_limits(1):
            for _ in bar(iterable=map(work, records)):
                pass
        return
    with ProcessPoolExecutor(n_workers, initializer=_prepare_worker) as pool:
        for _ in bar(iterable=pool.map(work, records, chunksize=32)):
            pass


def _prepare_worker() -> None:
    threadpool_limits(1)
    keep_freed_memory()
