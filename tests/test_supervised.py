"""Which labels a supervised run sees, and the table of predictions it leaves."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from toy_runs import toy_store

from fetal_utils.dataset import Dataset
from fetal_utils.predictions import check_predictions
from fetal_utils.runs import Work
from fetal_utils.supervised import LabelledData, Supervised


@dataclass(frozen=True, kw_only=True)
class Labelled(Supervised):
    """What every supervised run has, and nothing else."""

    kind: ClassVar[str] = "labelled"
    protocol: ClassVar[str] = "labelled"
    task: str = "planes"
    strategy: str = "scratch"


@pytest.fixture
def brain_data(tiny_dataset):
    return LabelledData(tiny_dataset, Labelled(task="brain_planes"))


# --- the labels ---


@pytest.mark.parametrize("task", ["planes", "brain_planes"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_train_val_and_test_share_no_patient_and_every_class_is_labelled(tiny_dataset, task, fraction):
    data = LabelledData(tiny_dataset, Labelled(task=task, label_fraction=fraction))
    patients = tiny_dataset.metadata["patient"].to_numpy()
    train, val, test = (set(patients[rows]) for rows in (data.train, data.val, data.test))
    assert not train & val
    assert not train & test
    assert not val & test
    assert set(data.labels[data.train]) == set(range(len(data.task.classes)))
    assert data.facts()["n_patients"] == len(train)


def test_labels_are_positions_in_the_classes_and_minus_one_where_left_out(tiny_dataset, brain_data):
    names = tiny_dataset.metadata["brain_plane"]
    for name, label in zip(names, brain_data.labels, strict=True):
        assert label == (brain_data.task.classes.index(name) if name in brain_data.task.classes else -1)
    for rows in (brain_data.train, brain_data.val, brain_data.test):
        assert (brain_data.labels[rows] >= 0).all()


def test_fewer_labels_are_a_part_of_more_and_val_and_test_stay(tiny_dataset):
    few, more = (LabelledData(tiny_dataset, Labelled(label_fraction=fraction)) for fraction in (0.2, 0.6))
    assert set(few.train) < set(more.train)
    np.testing.assert_array_equal(few.val, more.val)
    np.testing.assert_array_equal(few.test, more.test)


def test_a_draw_is_the_same_for_every_strategy_and_seed_and_another_draw_is_not(tiny_dataset):
    asked = Labelled(label_fraction=0.4)
    drawn = LabelledData(tiny_dataset, asked).train
    for same in ({"strategy": "imagenet"}, {"seed": 3}):
        np.testing.assert_array_equal(LabelledData(tiny_dataset, dataclasses.replace(asked, **same)).train, drawn)
    others = [LabelledData(tiny_dataset, dataclasses.replace(asked, draw=draw)).train for draw in (1, 2, 3)]
    assert any(list(other) != list(drawn) for other in others)


def test_the_real_subset_is_a_task_of_the_four_planes_it_has(real_data, tmp_path):
    data = LabelledData(Dataset(real_data / "fetal_planes_subset", tmp_path), Labelled(label_fraction=0.1))
    assert data.facts()["classes"] == ["Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax"]
    assert data.facts()["n_test_images"] == 393  # the official test images of SOURCES.md
    patients = data.dataset.metadata["patient"]
    assert not set(patients.iloc[data.train]) & set(patients.iloc[np.r_[data.val, data.test]])


# --- class weights and scores ---


def test_class_weights_by_hand(brain_data):
    by_class = [np.flatnonzero(brain_data.labels == label) for label in range(3)]
    brain_data.train = np.r_[by_class[0][:3], by_class[1][:1], by_class[2][:2]]
    # 6 images, 3 classes: 6 / (3 * 3), 6 / (3 * 1), 6 / (3 * 2)
    assert brain_data.class_weights.tolist() == pytest.approx([2 / 3, 2, 1])


def test_class_weights_average_to_one_over_the_labelled_images(tiny_dataset):
    data = LabelledData(tiny_dataset, Labelled())
    assert data.class_weights[data.labels[data.train]].mean() == pytest.approx(1)


def test_macro_f1_by_hand_counts_only_classes_that_the_rows_have(brain_data):
    rows = np.r_[np.flatnonzero(brain_data.labels == 0)[:2], np.flatnonzero(brain_data.labels == 1)[:2]]
    assert brain_data.macro_f1(rows, np.array([0, 0, 1, 1])) == 1.0
    # class 0: precision 1, recall 1/2, F1 2/3; class 1: recall 1, precision 2/3, F1 4/5
    assert brain_data.macro_f1(rows, np.array([0, 1, 1, 1])) == pytest.approx((2 / 3 + 4 / 5) / 2)
    # a class that no row has (2) takes part only by what it takes away: F1 2/3 and 1
    assert brain_data.macro_f1(rows, np.array([0, 2, 1, 1])) == pytest.approx((2 / 3 + 1) / 2)


# --- predictions ---


@pytest.fixture
def written(brain_data, tmp_path):
    """The predictions table of known probabilities, read back."""
    store = toy_store(tmp_path)
    work = Work(folder=tmp_path, dataset=brain_data.dataset, store=store, device=store.device)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=len(brain_data.test))
    brain_data.write_predictions(work, probabilities)
    return pd.read_csv(tmp_path / "predictions.csv"), probabilities


def test_predictions_have_the_agreed_columns_in_the_order_of_the_classes(written):
    table, _ = written
    assert list(table.columns) == [
        "image_name",
        "patient",
        "operator",
        "machine",
        "true",
        "predicted",
        "probability_Trans-thalamic",
        "probability_Trans-cerebellum",
        "probability_Trans-ventricular",
    ]


def test_predictions_have_a_row_for_every_test_image_with_its_own_labels(written, brain_data):
    table, probabilities = written
    classes = list(brain_data.task.classes)
    check_predictions(table, classes)
    metadata = brain_data.dataset.metadata.iloc[brain_data.test]
    for column in ("image_name", "patient", "operator", "machine"):
        assert table[column].tolist() == metadata[column].tolist()
    assert table["true"].tolist() == metadata["brain_plane"].tolist()
    assert table["predicted"].tolist() == [classes[k] for k in probabilities.argmax(1)]
    columns = [f"probability_{name}" for name in classes]
    np.testing.assert_allclose(table[columns], probabilities, atol=1e-6)
    assert table[columns].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_fraction": 0.0}, "label_fraction=0.0"),
        ({"label_fraction": 1.5}, "label_fraction=1.5"),
        ({"task": "hands"}, "hands"),
        ({"draw": -1}, "draw=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(tiny_dataset, wrong, message):
    with pytest.raises(ValueError, match=message):
        Labelled(**wrong).check(tiny_dataset)


@pytest.mark.parametrize(("subset", "message"), [("val", "0 validation images"), ("test", "0 test patients")])
def test_a_task_without_images_to_choose_by_or_test_on_is_refused(tiny_dataset, monkeypatch, subset, message):
    original = Dataset.rows
    monkeypatch.setattr(
        Dataset, "rows", lambda self, name, *task: original(self, name, *task)[: 0 if name == subset else None]
    )
    with pytest.raises(ValueError, match=message):
        Labelled().check(tiny_dataset)
