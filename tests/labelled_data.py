"""A small data set in which brightness tells the classes apart, for tests of what learns from labels."""

from pathlib import Path

import numpy as np
from data_folders import csv_line, write_images, write_table

from fetal_utils.data import Dataset

BRAIN_PLANES = ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular")
BRIGHTNESS = {"Fetal femur": 30, "Fetal thorax": 210} | dict(zip(BRAIN_PLANES, (70, 110, 150), strict=True))


def write_labelled_folder(folder: Path, *, n_train: int = 20, n_test: int = 8) -> Dataset:
    """Four images of each patient: femur, thorax, two brain planes; gray noise around the brightness of the label."""
    rng, lines, images = np.random.default_rng(0), [], {}
    for patient in range(1, n_train + n_test + 1):
        for label in ("Fetal femur", "Fetal thorax", BRAIN_PLANES[patient % 3], BRAIN_PLANES[(patient + 1) % 3]):
            name = f"p{patient:02d}_{label.replace(' ', '_')}"
            about = {"train": int(patient <= n_train), "machine": "Aloka" if patient % 2 else "Voluson E6"}
            is_brain = label in BRAIN_PLANES
            plane = {"plane": "Fetal brain", "brain_plane": label} if is_brain else {"plane": label}
            lines.append(csv_line(name, patient, **plane, **about))
            images[name] = rng.integers(BRIGHTNESS[label] - 20, BRIGHTNESS[label] + 20, (40, 40)).astype(np.uint8)
    write_images(folder, images)
    write_table(folder, lines)
    return Dataset(folder, folder / "cache")
