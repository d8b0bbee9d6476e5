"""The phantom as a folder in the layout of FETAL_PLANES_DB: one image per row, the table, masks, and what made it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from zlib import crc32

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image
from threadpoolctl import ThreadpoolController

from fetal_utils.environment import progress_bar
from fetal_utils.images import CSV_NAME, IMAGE_DIR
from fetal_utils.phantom.fetus import Fetus, draw_fetus
from fetal_utils.phantom.machines import ANATOMY, CALIPERS, MACHINES, TEXT, burn_in
from fetal_utils.phantom.metadata import check_drawable, draw_metadata
from fetal_utils.phantom.scene import compose, render
from fetal_utils.splits import read_metadata, write_metadata

MASK_DIR = "Masks"
RECORD_NAME = "phantom.json"
FORMAT_VERSION = 2  # raised whenever the same settings give other pixels or another table
IMAGE_HEIGHTS = (64, 1024)  # px
THREADS = ThreadpoolController()
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
    metadata: str | Path | None = None,
    n_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a phantom data set; the folder appears whole or not at all.

    Processes that ask for the same folder wait for each other; what a killed one left is cleared away by the next.

    Parameters
    ----------
    out_dir : path
        Folder to make. If it already holds a phantom of the same settings, nothing is done.
    n_patients : int
        Patients to draw; not used with ``metadata``.
    seed, image_height : int
        Decide every pixel; height in pixels, within ``IMAGE_HEIGHTS``.
    metadata : path, optional
        A ``FETAL_PLANES_DB_data.csv`` or its folder: an image is drawn for every row.
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
        If a setting is out of range or the metadata can't be drawn.
    FileNotFoundError
        If there is no metadata.
    FileExistsError
        If ``out_dir`` holds anything but a phantom of the same settings.
    """
    out_dir = Path(out_dir)
    _check_settings(seed, image_height)
    if n_workers is not None and n_workers < 1:
        raise ValueError(f"n_workers={n_workers}: give 1 or more")
    if metadata is None:
        table = draw_metadata(n_patients, rng=np.random.default_rng(seed))
    else:
        table = read_metadata(Path(metadata).parent if Path(metadata).name == CSV_NAME else metadata)
        check_drawable(table)
    record = {
        "notice": NOTICE,
        "format_version": FORMAT_VERSION,
        "seed": int(seed),
        "image_height": int(image_height),
        "n_patients": int(table["patient"].nunique()),
        "n_images": len(table),
        "table": "drawn" if metadata is None else "given",
        "table_crc32": crc32(table.to_csv(index=False, lineterminator="\n").encode()),
        "mask_values": {"nothing": 0, "defining anatomy": ANATOMY, "text": TEXT, "calipers": CALIPERS},
    }
    if _is_there(out_dir, record):
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    beside = out_dir.with_name(f".{out_dir.name}.partial")
    attempt = beside / str(os.getpid())  # which a worker of an earlier one, killed since, does not know
    with FileLock(out_dir.with_name(f".{out_dir.name}.lock")):
        if _is_there(out_dir, record):
            return out_dir
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        try:
            for directory in (IMAGE_DIR, MASK_DIR):
                (attempt / directory).mkdir(parents=True)
            write_metadata(table, attempt)
            (attempt / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            work = partial(_draw_and_save, folder=attempt, seed=seed, image_height=image_height)
            with closing(_map(work, table.to_dict("records"), n_workers)) as done:
                for _ in progress_bar(iterable=done, total=len(table), desc="phantom", unit="image", show=progress):
                    pass
            attempt.replace(out_dir)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return out_dir


def phantom_dir(root: str | Path, *, n_patients: int, seed: int, image_height: int = 256) -> Path:
    """The folder under ``root`` with the phantom of these settings, drawn when it is asked for first."""
    folder = Path(root) / f"phantom-{n_patients}p-seed{seed}-{image_height}px-v{FORMAT_VERSION}"
    if not (folder / RECORD_NAME).exists():
        print(f"Drawing the phantom of {n_patients} patients into {folder} (once; about a minute per 200 patients)")
        write_phantom(folder, n_patients=n_patients, seed=seed, image_height=image_height)
    return folder


def draw_image(row: Mapping, *, seed: int, image_height: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw the image of one row alone, with the same pixels as in the full run.

    Parameters
    ----------
    row : mapping
        ``image_name``, ``patient``, ``plane``, ``brain_plane``, ``operator`` and ``machine`` of an image.
    seed, image_height : int
        As of `write_phantom`; the width follows from the machine.

    Returns
    -------
    image, mask : array of uint8, shape (image_height, width)
        Gray values; 0 nothing, 1 anatomy that defines the plane, 2 text, 3 calipers.
    """
    _check_settings(seed, image_height)
    check_drawable(pd.DataFrame([dict(row)]))
    return _draw_row(row, seed=seed, image_height=image_height)


def _check_settings(seed: int, image_height: int) -> None:
    low, high = IMAGE_HEIGHTS
    if not low <= image_height <= high:
        raise ValueError(f"image_height={image_height}: give {low} to {high} px")
    if seed < 0:
        raise ValueError(f"seed={seed}: give 0 or more")


def _is_there(out_dir: Path, record: dict) -> bool:
    """Whether ``out_dir`` holds this very phantom; refuses anything else that is there, but not an empty folder."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    try:
        found = json.loads((out_dir / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(f"{out_dir} exists and is no phantom; name a folder that does not exist") from None
    if found != record:
        raise FileExistsError(f"{out_dir} holds a phantom of other settings; name another folder or remove it")
    return True


def _map(work, rows: list[dict], n_workers: int | None) -> Iterator[None]:
    """Do ``work`` for every row, in processes if that pays."""
    n_workers = min(n_workers or os.cpu_count() or 1, max(len(rows) // 16, 1))
    if n_workers == 1:
        yield from map(work, rows)
        return
    with ProcessPoolExecutor(n_workers, initializer=_end_with_parent) as pool:
        yield from pool.map(work, rows, chunksize=32)  # a patient's images follow one another


def _end_with_parent() -> None:
    """Let this worker end when its parent is killed: it would draw on, into the folder of whoever comes next."""
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _draw_and_save(row: dict, *, folder: Path, seed: int, image_height: int) -> None:
    image, mask = _draw_row(row, seed=seed, image_height=image_height)
    for directory, pixels in ((IMAGE_DIR, image), (MASK_DIR, mask)):
        # a higher level costs time and saves little: speckle is noise
        Image.fromarray(pixels).save(folder / directory / f"{row['image_name']}.png", compress_level=3)


def _draw_row(row: Mapping, *, seed: int, image_height: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a row that was checked before."""
    patient, machine = int(row["patient"]), MACHINES[row["machine"]]
    # crc32 and not hash(), which differs from one process to the next
    rng = np.random.default_rng([seed, patient, crc32(row["image_name"].encode())])
    with THREADS.limit(limits=1):  # sums do not depend on how they are split
        fetus = _fetus(seed, patient)
        scene = compose(row, fetus=fetus, machine=machine, rng=rng)
        image, structures = render(scene, fetus=fetus, machine=machine, image_height=image_height, rng=rng)
    mask = np.isin(structures, scene.defining).astype(np.uint8) * np.uint8(ANATOMY)
    return burn_in(image, mask, machine=machine, plane=row["plane"], weeks=fetus.weeks, rng=rng)


@lru_cache(maxsize=8)
def _fetus(seed: int, patient: int) -> Fetus:
    """The fetus of a patient; kept because a patient's images follow one another."""
    return draw_fetus(np.random.default_rng([seed, patient]))
