"""What a result must beat: answers that need no look at the anatomy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

from fetal_utils.dataset import Dataset
from fetal_utils.supervised import LabelledData, Supervised
from fetal_utils.training import choose_probe

THUMBNAIL_SIZE = 32  # px, of the pixel baselines


def predict_by_value(
    train_values: Sequence[str], train_labels: Sequence[int], test_values: Sequence[str]
) -> np.ndarray:
    """The most frequent training label of each image's value, say of its machine.

    Parameters
    ----------
    train_values, train_labels : sequences, shape (n_train,)
    test_values : sequence, shape (n_test,)
        A value never seen in training gets the most frequent label of all.

    Returns
    -------
    ndarray of int, shape (n_test,)
    """
    labels = pd.Series(train_labels)
    by_value = labels.groupby(np.asarray(train_values)).agg(lambda group: group.mode().iloc[0])
    return pd.Series(test_values).map(by_value).fillna(labels.mode().iloc[0]).to_numpy(dtype=int)


def pixels(dataset: Dataset, geometry: str) -> np.ndarray:
    """Thumbnails as rows of numbers, shape (n_rows, `THUMBNAIL_SIZE` squared)."""
    images = dataset.images(THUMBNAIL_SIZE, geometry=geometry)
    return images.reshape(len(images), -1).astype(np.float32)


def run_baselines(dataset: Dataset, task_name: str) -> pd.DataFrame:
    """Test results of answers without anatomy, for one task with all its labels.

    The majority class; the most frequent class of the machine; a linear model on the corner
    where scanners print; and a linear model on thumbnails of the whole picture.

    Parameters
    ----------
    dataset : Dataset
    task_name : str

    Returns
    -------
    DataFrame
        Columns ``task, baseline, n_test_images, accuracy, balanced_accuracy, macro_f1, chance``;
        ``chance`` is the balanced accuracy of guessing.

    Raises
    ------
    ValueError
        If the task is unknown, or nobody is there to validate or to test on.
    """
    labels = Supervised(task=task_name, strategy="none")
    labels.check(dataset)
    data = LabelledData(dataset, labels)
    machine = dataset.metadata["machine"].to_numpy()
    fitted = np.concatenate([data.train, data.val])  # nothing is chosen here, so validation patients count too
    predictions = {
        "majority class": predict_by_value(["any"] * len(fitted), data.labels[fitted], ["any"] * len(data.test)),
        "machine only": predict_by_value(machine[fitted], data.labels[fitted], machine[data.test]),
        "text corner only": predict_by_pixels(pixels(dataset, "text_corner"), data),
        "32 px thumbnail": predict_by_pixels(pixels(dataset, dataset.geometry), data),
    }
    true = data.labels[data.test]
    rows = [
        {
            "task": task_name,
            "baseline": name,
            "n_test_images": len(true),
            "accuracy": float((predicted == true).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(true, predicted)),
            "macro_f1": data.macro_f1(data.test, predicted),
            "chance": 1 / len(np.unique(true)),
        }
        for name, predicted in predictions.items()
    ]
    return pd.DataFrame(rows)


def predict_by_pixels(features: np.ndarray, data: LabelledData) -> np.ndarray:
    """Classes of the test images by the probe of `choose_probe`; shape (n_test,)."""
    probe, _ = choose_probe(features, data)
    return probe.predict(features[data.test])
