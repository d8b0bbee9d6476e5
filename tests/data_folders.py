"""Small data folders in the layout of FETAL_PLANES_DB, made up for the tests."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from fetal_utils.images import CSV_COLUMNS, CSV_NAME, IMAGE_DIR

HEADER = ";".join(CSV_COLUMNS)


def csv_line(
    image_name,
    patient,
    plane="Fetal femur",
    *,
    brain_plane="Not A Brain",
    operator="Op. 1",
    machine="Aloka",
    train=1,
):
    """A row as the archive writes it, with the space at its end."""
    return f"{image_name};{patient};{plane};{brain_plane};{operator};{machine};{train} "


def plane_lines(n_train=3, n_test=1, planes=("Fetal femur", "Fetal thorax")):
    """One image per plane for each patient, who are numbered from 1, training first."""
    return [
        csv_line(f"p{patient}_{plane.split()[-1]}", patient, plane, train=int(patient <= n_train))
        for patient in range(1, n_train + n_test + 1)
        for plane in planes
    ]


def write_table(folder: Path, lines: Iterable[str], *, header: str = HEADER) -> Path:
    """A folder with the CSV alone."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in [header, *lines])
    (folder / CSV_NAME).write_bytes(text.encode())
    return folder


def write_images(folder: Path, images: Mapping[str, np.ndarray]) -> Path:
    """Gray or RGB PNGs under ``Images/``."""
    (folder / IMAGE_DIR).mkdir(parents=True, exist_ok=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / IMAGE_DIR / f"{name}.png")
    return folder


def write_folder(folder: Path, lines: Iterable[str], *, header: str = HEADER, shape=(20, 30)) -> Path:
    """CSV and, for every row of it, a PNG of random pixels."""
    lines = list(lines)
    rng = np.random.default_rng(0)
    names = [line.split(";")[0] for line in lines]
    write_images(folder, {name: rng.integers(256, size=shape, dtype=np.uint8) for name in names})
    return write_table(folder, lines, header=header)
