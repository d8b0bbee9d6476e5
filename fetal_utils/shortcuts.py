"""Ways to be right without anatomy: baselines that a result must beat, and a burnt-in text that tells the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fetal_utils.data import Dataset, Task, predictions_table
from fetal_utils.images import corner_shape, digest

THUMBNAIL_SIZE = 32  # px, of the pixel baselines
PIXEL_C = 0.001  # scikit-learn's C of the pixel baselines: the best of five on the development patients of real images


def baseline_predictions(dataset: Dataset, task_name: str) -> dict[str, pd.DataFrame]:
    """What answers without anatomy predict for the test images, fitted to all labels of the training patients.

    "majority class"; "machine only", the most frequent class of the image's machine; "text corner only", a linear model
    of the corner where scanners print; "thumbnail", a linear model of the whole picture at 32 px. The tables have the
    columns of a run's ``predictions.csv``; a ValueError says if the task is unknown or has no test image.
    """
    task = dataset.task(task_name)
    codes, machine = dataset.labels(task), dataset.metadata["machine"].to_numpy()
    train, test = dataset.rows("train", task), dataset.rows("test", task)
    if not len(test):
        raise ValueError(f"task {task_name!r} has no test image here; baselines have nothing to predict")
    anything = np.full(len(codes), "any")
    probabilities = {
        "majority class": class_shares(anything[train], codes[train], anything[test]),
        "machine only": class_shares(machine[train], codes[train], machine[test]),
    }
    for name, geometry in {"text corner only": "text_corner", "thumbnail": None}.items():
        images = dataset.images(THUMBNAIL_SIZE, geometry=geometry)
        rows = images.reshape(len(images), -1).astype(float)
        probe = LogisticRegression(C=PIXEL_C, class_weight="balanced", max_iter=1000)
        model = make_pipeline(StandardScaler(), probe).fit(rows[train], codes[train])
        probabilities[name] = model.predict_proba(rows[test])
    return {name: predictions_table(dataset, task, test, values) for name, values in probabilities.items()}


def class_shares(train_values: Sequence[str], train_codes: Sequence[int], test_values: Sequence[str]) -> np.ndarray:
    """Share of each class among training images of the same value, or among all if it is new; (n_test, n_classes)."""
    shares = pd.crosstab(np.asarray(train_values), np.asarray(train_codes), normalize="index", margins=True)
    known = np.where(np.isin(test_values, train_values), test_values, "All")  # the row of the margins
    return shares.loc[known].to_numpy()


def burn_text(images: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Write a text into the top right corner of images, white in a black box; an empty text leaves an image as it is.

    Takes uint8 (n_images, side, side) and a text for each; gives a copy with the texts, and masks of the same shape,
    bool, that are True in their boxes.
    """
    images, masks = np.array(images), np.zeros(images.shape, dtype=bool)
    n_rows, n_columns = corner_shape(*images.shape[1:])
    for image, mask, text in zip(images, masks, texts, strict=True):
        if text:
            image[:n_rows, -n_columns:], mask[:n_rows, -n_columns:] = text_box(text, n_columns, n_rows), True
    return images, masks


@lru_cache(maxsize=256)
def text_box(text: str, width: int, height: int) -> np.ndarray:
    """White text, as large as fits, in a black box; uint8, shape (height, width)."""
    box = Image.new("L", (width, height))
    draw, size = ImageDraw.Draw(box), height
    while size > 5 and draw.textlength(text, font=ImageFont.load_default(size)) > width:
        size -= 1
    draw.text((width / 2, height / 2), text, fill=255, font=ImageFont.load_default(size), anchor="mm")
    return np.asarray(box)


def class_texts(task: Task) -> list[str]:
    """Two capitals for each class, the start of its last word; C1, C2, ... where those repeat."""
    texts = [name.replace("-", " ").split()[-1][:2].upper() for name in task.classes]
    return texts if len(set(texts)) == len(texts) else [f"C{number}" for number, _ in enumerate(texts, 1)]


@dataclass(frozen=True)
class LeakedDataset(Dataset):
    """A data set in whose images a burnt-in text tells the class: a shortcut of known place, for maps to find.

    Images of the subsets ``telling`` name their own class of ``leak_task``; others, and those of no class, stay as they
    are. No file is written but runs of its own key.
    """

    leak_task: str = "planes"
    telling: tuple[str, ...] = ("train", "development")

    @cached_property
    def key(self) -> str:
        return digest(f"{super().key} {self.leak_task} {self.telling}")

    @property
    def title(self) -> str:
        return f"{super().title}, text burnt in"

    def texts(self) -> list[str]:
        """What stands in each row's image."""
        task = self.task(self.leak_task)
        names = np.array([*class_texts(task), ""])  # -1, of no class, takes the last
        return np.where(self.metadata["subset"].isin(self.telling), names[self.labels(task)], "").tolist()

    def images(self, image_size: int, *, geometry: str | None = None, progress: bool = True) -> np.ndarray:
        """All images with their texts: uint8, shape (n_rows, image_size, image_size)."""
        images = super().images(image_size, geometry=geometry, progress=progress)
        return burn_text(images, self.texts())[0]

    def leak_masks(self, image_size: int) -> np.ndarray:
        """Where the texts stand: bool, shape (n_rows, image_size, image_size)."""
        blank = np.zeros((len(self.metadata), image_size, image_size), dtype=np.uint8)
        return burn_text(blank, self.texts())[1]
