"""Answers without anatomy: baselines that are known by hand, and text that tells the class from a known place."""

import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
from data_folders import csv_line, plane_lines, write_folder
from PIL import Image

from fetal_utils.data import TASKS, Dataset, Task
from fetal_utils.evaluation import check_predictions
from fetal_utils.shortcuts import LeakedDataset, baseline_predictions, burn_text, class_shares, class_texts


@pytest.fixture
def dataset(tmp_path):
    """Femur and thorax in equal numbers, told by the machine and by the whole picture, and not by the corner."""
    lines = [line.replace("Aloka", "Voluson E6") if "thorax" in line else line for line in plane_lines(15, 5)]
    folder = write_folder(tmp_path / "data", lines, shape=(64, 64))
    for line in lines:
        picture = np.zeros((64, 64), dtype=np.uint8)
        picture[32:, : 32 if "femur" in line else 64] = 200
        Image.fromarray(picture).save(folder / "Images" / f"{line.split(';')[0]}.png")
    return Dataset(folder, tmp_path / "cache")


# --- baselines ---------------------------------------------------------------------------------------


def test_class_shares_of_a_value_worked_by_hand():
    machines = ["Aloka", "Aloka", "Aloka", "Voluson", "Voluson", "Voluson"]
    shares = class_shares(machines, [2, 2, 0, 1, 1, 0], ["Voluson", "Aloka", "unseen"])
    assert shares == pytest.approx(np.array([[1 / 3, 2 / 3, 0], [1 / 3, 0, 2 / 3], [1 / 3, 1 / 3, 1 / 3]]))


def test_what_tells_the_plane_is_found_and_what_does_not_is_at_chance(dataset):
    tables = baseline_predictions(dataset, "planes")
    accuracy = {name: (table["true"] == table["predicted"]).mean() for name, table in tables.items()}
    assert accuracy == {"majority class": 0.5, "machine only": 1.0, "text corner only": 0.5, "thumbnail": 1.0}


def test_baselines_are_predictions_tables_of_the_test_images(dataset):
    task, rows = dataset.task("planes"), dataset.rows("test")
    for table in baseline_predictions(dataset, "planes").values():
        assert list(table.columns) == [
            "image_name", "patient", "operator", "machine", "true", "predicted",
            "probability_Fetal femur", "probability_Fetal thorax",
        ]  # fmt: skip
        check_predictions(table, task.classes)
        assert table["image_name"].tolist() == dataset.metadata["image_name"].iloc[rows].tolist()
        assert table["true"].tolist() == dataset.metadata["plane"].iloc[rows].tolist()


def test_neither_development_labels_nor_test_labels_are_used(dataset):
    before = baseline_predictions(dataset, "planes")["thumbnail"]
    table = dataset.metadata
    other = table["subset"] != "train"
    table.loc[other, "plane"] = table.loc[other, "plane"].to_numpy()[::-1]  # the cached table, changed in place
    after = baseline_predictions(dataset, "planes")["thumbnail"]
    assert before.filter(like="probability").equals(after.filter(like="probability"))
    assert not before["true"].equals(after["true"])


def test_the_machine_alone_names_the_plane_of_two_in_five_real_test_images(real_data, tmp_path):
    # all 7,129 training images, with the development patients, as the published figure counts them
    dataset = Dataset(real_data, tmp_path)
    codes, machine = dataset.labels(dataset.task("planes")), dataset.metadata["machine"].to_numpy()
    train = (dataset.metadata["split"] == "train").to_numpy()
    shares = class_shares(machine[train], codes[train], machine[~train])
    assert (shares.argmax(axis=1) == codes[~train]).mean() == pytest.approx(0.398, abs=0.0005)


def test_a_task_without_test_images_is_an_error_of_ours(tmp_path):
    brain = {"plane": "Fetal brain", "brain_plane": "Other", "train": 0}
    lines = [
        csv_line(f"i{n}", n, "Fetal brain", brain_plane=plane, train=1)
        for n, plane in enumerate(TASKS["brain_planes"].classes * 4)
    ]
    dataset = Dataset(write_folder(tmp_path / "data", [*lines, csv_line("last", 99, **brain)]), tmp_path / "cache")
    with pytest.raises(ValueError, match="task 'brain_planes' has no test image here"):
        baseline_predictions(dataset, "brain_planes")


# --- burnt-in text -----------------------------------------------------------------------------------


def test_a_text_changes_the_box_in_its_corner_and_nothing_else():
    images = np.random.default_rng(0).integers(50, 200, size=(2, 64, 64), dtype=np.uint8)
    before = images.copy()
    burnt, masks = burn_text(images, ["AB", ""])
    np.testing.assert_array_equal(images, before)
    assert masks[0, :11, 50:].all()  # 44/256 of 64 rows, 56/256 of 64 columns
    assert masks.sum() == 11 * 14
    np.testing.assert_array_equal(burnt[~masks], before[~masks])
    assert burnt[masks].max() > 200 and (burnt[masks] == 0).mean() > 0.3
    with pytest.raises(ValueError, match="shorter"):
        burn_text(images, ["A"])


def test_texts_are_short_and_differ_and_so_do_their_pictures():
    assert class_texts(TASKS["planes"]) == ["AB", "BR", "FE", "TH", "CE", "OT"]
    assert class_texts(TASKS["brain_planes"]) == ["TH", "CE", "VE"]
    assert class_texts(Task("beds", "bed", ("long one", "short one"))) == ["C1", "C2"]
    for size in (32, 64):
        texts = class_texts(TASKS["planes"])
        burnt, masks = burn_text(np.zeros((6, size, size), dtype=np.uint8), texts)
        flat = burnt[:, masks[0]].astype(int)
        assert min(abs(a - b).mean() for n, a in enumerate(flat) for b in flat[:n]) > 10  # of 255 gray levels


def test_a_leaked_data_set_shows_texts_and_is_another_one(dataset):
    leaked = LeakedDataset(**asdict(dataset))
    assert leaked.key != dataset.key and leaked.title == "data, text burnt in"
    assert pickle.loads(pickle.dumps(leaked)).key == replace(leaked).key == leaked.key
    assert LeakedDataset(**asdict(dataset), telling=("train",)).key != leaked.key
    for subset, texts in {"train": {"FE", "TH"}, "development": {"FE", "TH"}, "test": {""}}.items():
        assert {leaked.texts()[row] for row in leaked.rows(subset)} == texts
    masks, before = leaked.leak_masks(64), dataset.images(64, progress=False)
    np.testing.assert_array_equal(leaked.images(64, progress=False)[~masks], before[~masks])
    test = leaked.rows("test")
    np.testing.assert_array_equal(leaked.images(64, progress=False)[test], before[test])
    rows = leaked.rows("train")
    first, second = leaked.images(64, progress=False)[rows], np.array(leaked.texts())[rows]
    boxes = {text: first[second == text][:, masks[rows[0]]] for text in ("FE", "TH")}
    assert all((box == box[0]).all() for box in boxes.values())
