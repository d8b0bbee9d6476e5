import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from data_folders import HEADER, csv_line, plane_lines, write_folder, write_table
from PIL import Image

from fetal_utils import dataset as dataset_module
from fetal_utils.data import CSV_NAME
from fetal_utils.dataset import Dataset, open_dataset
from fetal_utils.images import TEXT_CORNER, ImageFormat
from fetal_utils.tasks import TASKS, TASKS_NAME

LINES = plane_lines(n_train=12, n_test=4)


@pytest.fixture
def folder(tmp_path):
    """Two planes of 12 training and 4 test patients, 32 x 32 px."""
    return write_folder(tmp_path / "mine", LINES, shape=(32, 32))


@pytest.fixture
def dataset(folder, tmp_path):
    return Dataset(folder, tmp_path / "cache")


# --- rows and labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task_name", [None, *TASKS])
def test_the_subsets_of_a_task_share_no_row_and_are_all_its_rows(tiny_dataset, task_name):
    task = None if task_name is None else tiny_dataset.task(task_name)
    rows = np.concatenate([tiny_dataset.rows(subset, task) for subset in ("train", "val", "test")])
    used = np.ones(len(tiny_dataset.metadata)) if task is None else tiny_dataset.labels(task) >= 0
    assert sorted(rows) == np.flatnonzero(used).tolist()


@pytest.mark.parametrize("split_seed", range(5))
def test_no_test_patient_is_trained_or_validated_on(tiny_dataset, split_seed):
    dataset = replace(tiny_dataset, split_seed=split_seed)
    patient, split = (dataset.metadata[column].to_numpy() for column in ("patient", "split"))
    patients = {subset: set(patient[dataset.rows(subset)]) for subset in ("train", "val", "test")}
    assert not patients["test"] & (patients["train"] | patients["val"])
    assert not patients["train"] & patients["val"]
    for subset, official in [("train", "train"), ("val", "train"), ("test", "test")]:
        assert set(split[dataset.rows(subset)]) == {official}


@pytest.mark.parametrize("task_name", TASKS)
def test_labels_are_positions_in_the_classes_and_minus_one_where_left_out(tiny_dataset, task_name):
    task = tiny_dataset.task(task_name)
    names = np.array([*task.classes, "left out"])[tiny_dataset.labels(task)]  # -1 takes the last
    expected = tiny_dataset.metadata[task.label_column].where(lambda label: label.isin(task.classes), "left out")
    assert names.tolist() == expected.tolist()


def test_a_data_set_without_some_classes_is_used_with_those_it_has(dataset):
    task = dataset.task("planes")
    assert task.classes == ("Fetal femur", "Fetal thorax")
    assert dataset.labels(task).tolist() == [0, 1] * 16
    receipt = dataset.receipt("planes")
    assert receipt.absent == ["Fetal abdomen", "Fetal brain", "Maternal cervix", "Other"]
    assert receipt.totals.loc["images"].sum() == 32


def test_the_receipt_of_the_phantom_adds_up(tiny_dataset):
    receipt = tiny_dataset.receipt("brain_planes")
    assert receipt.totals.loc["images"].sum() + sum(receipt.left_out.values()) == len(tiny_dataset.metadata)
    assert receipt.overlap == 0


def test_the_real_subset_opens_with_its_four_planes(real_data, tmp_path):
    dataset = Dataset(real_data / "fetal_planes_subset", tmp_path)
    assert dataset.task("planes").classes == ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")
    assert len(dataset.rows("test")) == 393
    assert len(dataset.rows("test", dataset.task("brain_planes"))) == 74 + 32 + 32
    assert len(dataset.rows("train")) + len(dataset.rows("val")) == 888
    assert dataset.receipt("planes").absent == ["Maternal cervix", "Other"]
    assert list(tmp_path.iterdir()) == []  # nothing was decoded for this


def test_an_unknown_task_is_named(dataset):
    with pytest.raises(ValueError, match="task='femurs' is unknown"):
        dataset.task("femurs")


OWN_TASK = "side: {label_column: Side, classes: {left: left, right: right}}"


@pytest.fixture
def own_task_folder(tmp_path):
    """A further column of the CSV that says left for the femur and right for the thorax."""
    lines = [f"{line.strip()};{'left' if 'femur' in line else 'right'}" for line in LINES]
    folder = write_folder(tmp_path / "sides", lines, header=HEADER.strip() + ";Side")
    (folder / TASKS_NAME).write_text(OWN_TASK)
    return folder


def test_a_task_of_ones_own_on_a_further_column(own_task_folder, tmp_path):
    dataset = Dataset(own_task_folder, tmp_path / "cache")
    assert dataset.labels(dataset.task("side")).tolist() == [0, 1] * 16
    assert dataset.receipt("side").classes.sum(axis=1).to_dict() == {"left": 16, "right": 16}
    assert "Side" in dataset.metadata


# --- identity ----------------------------------------------------------------------------------------


def test_the_key_is_the_same_for_another_object_and_another_place(folder, tmp_path):
    key = Dataset(folder, tmp_path / "cache").key
    moved = folder.rename(tmp_path / "elsewhere")
    assert Dataset(moved, tmp_path / "other_cache").key == key
    assert len(key) == 16


@pytest.mark.parametrize(
    "choice", [{"blank_text": True}, {"geometry": "crop"}, {"split_seed": 1}, {"val_fraction": 0.5}], ids=str
)
def test_the_key_changes_with_every_choice(dataset, choice):
    assert replace(dataset, **choice).key != dataset.key


def test_the_key_changes_with_one_label_and_with_one_image(folder, tmp_path):
    keys = [Dataset(folder, tmp_path).key]
    write_table(folder, [LINES[0].replace("Aloka", "Other"), *LINES[1:]])
    keys.append(Dataset(folder, tmp_path).key)
    write_table(folder, LINES)
    Image.fromarray(np.zeros((32, 32), dtype=np.uint8)).save(folder / "Images" / "p1_femur.png")
    keys.append(Dataset(folder, tmp_path).key)
    assert len(set(keys)) == 3


def test_the_key_changes_when_a_task_of_ones_own_does(own_task_folder, tmp_path):
    before = Dataset(own_task_folder, tmp_path).key
    (own_task_folder / TASKS_NAME).write_text(OWN_TASK.replace("right: right", "right: r"))
    assert Dataset(own_task_folder, tmp_path).key != before


def test_a_data_set_travels_small_and_arrives_equal(tiny_dataset):
    assert len(tiny_dataset.metadata)  # has been read
    sent = pickle.dumps(tiny_dataset)
    arrived = pickle.loads(sent)
    assert len(sent) < 1000
    assert arrived == tiny_dataset
    assert arrived.key == tiny_dataset.key
    pd.testing.assert_frame_equal(arrived.metadata, tiny_dataset.metadata)


def test_a_phantom_is_called_one(tiny_dataset, dataset):
    assert tiny_dataset.is_phantom
    assert tiny_dataset.title == "phantom (tiny_phantom)"
    assert not dataset.is_phantom
    assert dataset.title == "mine"


# --- images ------------------------------------------------------------------------------------------


def test_images_come_in_the_order_of_the_table(dataset):
    files = [dataset.data_dir / "Images" / f"{name}.png" for name in dataset.metadata["image_name"]]
    np.testing.assert_array_equal(dataset.images(32, progress=False), [np.asarray(Image.open(file)) for file in files])


def test_blanking_reaches_the_images_and_spares_the_question_about_the_corner(dataset):
    blanked = replace(dataset, blank_text=True)
    n_rows, n_columns = (round(share * 32) for share in TEXT_CORNER)
    expected = np.array(dataset.images(32, progress=False))
    expected[:, :n_rows, 32 - n_columns :] = 0
    np.testing.assert_array_equal(blanked.images(32, progress=False), expected)
    corner = [one.images(32, geometry="text_corner", progress=False) for one in (dataset, blanked)]
    np.testing.assert_array_equal(*corner)
    assert corner[0].any()
    assert sum(path.is_dir() for path in dataset.cache_dir.iterdir()) == 3  # whole, blanked, and one of the corner


def test_the_format_of_an_image_is_what_the_data_set_says(dataset):
    assert dataset.image_format(32) == ImageFormat(32, "pad", blank_text=False)
    chosen = replace(dataset, geometry="crop", blank_text=True)
    assert chosen.image_format(24) == ImageFormat(24, "crop", blank_text=True)
    assert chosen.image_format(24, geometry="pad") == ImageFormat(24, "pad", blank_text=True)
    assert chosen.image_format(24, geometry="text_corner") == ImageFormat(24, "text_corner", blank_text=False)


def test_the_geometry_of_the_data_set_is_used_unless_another_is_asked_for(tmp_path):
    folder = write_folder(tmp_path / "wide", LINES, shape=(16, 32))
    dataset = Dataset(folder, tmp_path / "cache", geometry="crop")
    assert dataset.images(16, progress=False)[:, 0].any()
    assert not dataset.images(16, geometry="pad", progress=False)[:, 0].any()


# --- opening -----------------------------------------------------------------------------------------


def test_opening_looks_for_every_image_and_decodes_none(folder, tmp_path):
    dataset = open_dataset(folder, results_dir=tmp_path / "results", phantom_patients=24, split_seed=3)
    assert dataset == Dataset(folder, tmp_path / "results" / "cache", split_seed=3)
    assert not (tmp_path / "results").exists()
    (folder / "Images" / "p1_femur.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 32 images are missing, the first \['p1_femur\.png'\]"):
        open_dataset(folder, results_dir=tmp_path / "results", phantom_patients=24)


def test_opening_a_folder_without_a_table_or_with_a_bad_one_says_so(folder, tmp_path):
    write_table(folder, [*LINES, csv_line("new", 1, train=0)])
    with pytest.raises(ValueError, match="patients \\[1\\] are in the training and in the test set"):
        open_dataset(folder, results_dir=tmp_path, phantom_patients=24)
    (folder / CSV_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=CSV_NAME):
        open_dataset(folder, results_dir=tmp_path, phantom_patients=24)


def test_relative_paths_count_from_the_repository_and_no_path_is_the_phantom(tiny_phantom, tmp_path, monkeypatch):
    asked = {}

    def drawn(root, **settings):
        asked.update(root=root, **settings)
        return tiny_phantom

    monkeypatch.setattr(dataset_module, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(dataset_module, "project_path", lambda path: tmp_path / path)
    monkeypatch.setattr(dataset_module, "phantom_dir", drawn)
    dataset = open_dataset("", results_dir="results", phantom_patients=24)
    assert dataset == Dataset(tiny_phantom, tmp_path / "results" / "cache")
    assert asked == {"root": tmp_path / "data", "n_patients": 24, "seed": 0}
    write_folder(tmp_path / "mine", LINES)
    assert open_dataset("mine", results_dir="results", phantom_patients=24).data_dir == tmp_path / "mine"
