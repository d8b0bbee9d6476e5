"""The predictions table: one row per test image, what it is and what a model says it is."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

PREDICTION_COLUMNS = ("image_name", "patient", "operator", "machine", "true", "predicted")
SUM_TOLERANCE = 1e-3  # a table read back from CSV has rounded probabilities


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the probability columns, in the order of the classes."""
    return [f"probability_{name}" for name in classes]


def check_predictions(predictions: pd.DataFrame, classes: Sequence[str]) -> None:
    """Refuse a predictions table from which no honest metric can be computed.

    Parameters
    ----------
    predictions : DataFrame, one row per test image
        Columns ``image_name, patient, operator, machine, true, predicted`` and
        ``probability_<class>`` for each class.
    classes : sequence of str
        Class names in the fixed order of the task.

    Raises
    ------
    ValueError
        If the classes repeat, a column is missing, the table is empty, an image appears twice, a patient is
        not given, a label is no class, or an image's probabilities are NaN, outside 0..1 or do not sum to 1.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be two or more different names, got {list(classes)}")
    expected = [*PREDICTION_COLUMNS, *probability_columns(classes)]
    missing = [column for column in expected if column not in predictions.columns]
    if missing:
        raise ValueError(
            f"predictions lack the columns {missing}; they have {list(predictions.columns)}: "
            "write one row per test image with every column, and give the classes the model was trained on"
        )
    if predictions.empty:
        raise ValueError("predictions have no rows: check that the data set has test images of these classes")
    repeated = predictions["image_name"][predictions["image_name"].duplicated()]
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} repeated rows, first of image {repeated.iloc[0]!r}: keep one row per test "
            "image and one table per draw and seed"
        )
    if predictions["patient"].isna().any():
        image = predictions.loc[predictions["patient"].isna(), "image_name"].iloc[0]
        raise ValueError(f"image {image!r} has no patient: give one, since intervals resample patients")
    _check_labels(predictions, classes)
    _check_probabilities(predictions, classes)


def _check_labels(predictions: pd.DataFrame, classes: Sequence[str]) -> None:
    for column in ("true", "predicted"):
        unknown = predictions[column][~predictions[column].isin(list(classes))]
        if len(unknown):
            raise ValueError(
                f"column {column!r} holds {sorted(map(str, unknown.unique()))}, not among the classes "
                f"{list(classes)}: leave these images out before predicting, or add the class"
            )


def _check_probabilities(predictions: pd.DataFrame, classes: Sequence[str]) -> None:
    probabilities = predictions[probability_columns(classes)].to_numpy(float)  # (n_images, n_classes)
    sums = probabilities.sum(axis=1)
    outside = ((probabilities < -SUM_TOLERANCE) | (probabilities > 1 + SUM_TOLERANCE)).any(axis=1)
    bad = ~(np.abs(sums - 1) <= SUM_TOLERANCE) | outside  # written so that NaN is bad
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        values = dict(zip(classes, probabilities[row].tolist(), strict=True))
        raise ValueError(
            f"probabilities of {int(bad.sum())} images are not a distribution over the classes, first of "
            f"{predictions['image_name'].iloc[row]!r}: {values} (sum {sums[row]:.4g}, expected values in "
            "0..1 with sum 1): write the softmax of the logits, and look for a training that diverged"
        )


def check_same_test_set(tables: Sequence[pd.DataFrame]) -> None:
    """Refuse tables that are not predictions of the same images, of the same patients, with the same labels.

    Raises
    ------
    ValueError
        Naming how many images differ and one of them.
    """
    keys = ["image_name", "patient", "true"]
    first = tables[0][keys].sort_values("image_name").reset_index(drop=True)
    for position, table in enumerate(tables[1:], start=1):
        other = table[keys].sort_values("image_name").reset_index(drop=True)
        unshared = sorted(map(str, set(first["image_name"]) ^ set(other["image_name"])))
        if unshared:
            raise ValueError(
                f"table {position} and table 0 have different test images: {len(unshared)} are in only one "
                f"of them, e.g. {unshared[0]!r}; a paired comparison needs one test set and task for both"
            )
        changed = (first != other).any(axis=1)
        if changed.any():
            row = int(np.flatnonzero(changed)[0])
            raise ValueError(
                f"table {position} and table 0 disagree on {int(changed.sum())} images, first "
                f"{first.loc[row].to_dict()} and {other.loc[row].to_dict()}: predict again from one metadata"
            )


def count_test_images(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Test images and patients of each class: what a metric rests on, with a 0 where a class is absent.

    Returns
    -------
    DataFrame
        Columns ``plane, n_images, n_patients``, one row per class in the order given.
    """
    check_predictions(predictions, classes)
    counts = predictions.groupby("true")["patient"].agg(n_images="size", n_patients="nunique")
    counts = counts.reindex(list(classes), fill_value=0)
    return counts.rename_axis("plane").reset_index()
