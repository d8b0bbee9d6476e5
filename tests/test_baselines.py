import numpy as np
import pytest
from data_folders import csv_line, plane_lines, write_folder
from PIL import Image

from fetal_utils.baselines import THUMBNAIL_SIZE, pixels, predict_by_value, run_baselines
from fetal_utils.dataset import Dataset
from fetal_utils.tasks import TASKS

BASELINES = ["majority class", "machine only", "text corner only", "32 px thumbnail"]


def test_the_most_frequent_label_of_each_value_worked_by_hand():
    machines = ["Aloka", "Aloka", "Aloka", "Voluson", "Voluson", "Voluson"]
    labels = [2, 2, 0, 1, 1, 0]
    assert predict_by_value(machines, labels, ["Voluson", "Aloka", "Aloka"]).tolist() == [1, 2, 2]


def test_a_value_never_seen_in_training_gets_the_most_frequent_label_of_all():
    assert predict_by_value(["a", "b", "b"], [3, 5, 5], ["c", "a"]).tolist() == [5, 3]


def test_a_tie_goes_to_the_first_label():
    assert predict_by_value(["a", "a"], [4, 1], ["a"]).tolist() == [1]


def test_thumbnails_are_the_pixels_of_each_image_in_a_row(tiny_dataset):
    rows = pixels(tiny_dataset, "pad")
    assert rows.shape == (len(tiny_dataset.metadata), THUMBNAIL_SIZE**2)
    images = tiny_dataset.images(THUMBNAIL_SIZE, geometry="pad", progress=False)
    np.testing.assert_array_equal(rows[3].reshape(THUMBNAIL_SIZE, THUMBNAIL_SIZE), images[3])


@pytest.mark.parametrize("task_name", TASKS)
def test_the_baselines_of_the_phantom(tiny_dataset, task_name):
    table = run_baselines(tiny_dataset, task_name)
    task = tiny_dataset.task(task_name)
    test = tiny_dataset.labels(task)[tiny_dataset.rows("test", task)]
    n_classes = len(task.classes)
    assert list(table.columns) == [
        "task",
        "baseline",
        "n_test_images",
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "chance",
    ]
    assert table["baseline"].tolist() == BASELINES
    assert set(table["task"]) == {task_name}
    assert set(table["n_test_images"]) == {len(test)}
    assert table["chance"].tolist() == pytest.approx([1 / n_classes] * 4)
    scores = table[["accuracy", "balanced_accuracy", "macro_f1"]]
    assert scores.ge(0).all(axis=None)
    assert scores.le(1).all(axis=None)

    fitted = np.concatenate([tiny_dataset.rows(subset, task) for subset in ("train", "val")])
    most_frequent = np.bincount(tiny_dataset.labels(task)[fitted]).argmax()
    share = (test == most_frequent).mean()
    majority = table.set_index("baseline").loc["majority class"]
    assert majority["accuracy"] == pytest.approx(share)
    assert majority["balanced_accuracy"] == pytest.approx(1 / n_classes)
    assert majority["macro_f1"] == pytest.approx(2 * share / (1 + share) / n_classes)  # recall 1, precision share


def write_telling_folder(folder):
    """Two planes in equal numbers, of which the machine and the whole picture tell, and the corner does not."""
    lines = [
        line.replace("Aloka", "Voluson E6") if "thorax" in line else line for line in plane_lines(n_train=15, n_test=5)
    ]
    write_folder(folder, lines, shape=(64, 64))
    return lines


def test_what_tells_the_plane_is_found_and_what_does_not_is_at_chance(tmp_path):
    folder = tmp_path / "telling"
    for line in write_telling_folder(folder):
        picture = np.zeros((64, 64), dtype=np.uint8)
        picture[32:, : 32 if "femur" in line else 64] = 200
        Image.fromarray(picture).save(folder / "Images" / f"{line.split(';')[0]}.png")
    table = run_baselines(Dataset(folder, tmp_path / "cache"), "planes").set_index("baseline")
    assert table["balanced_accuracy"].to_dict() == {
        "majority class": 0.5,
        "machine only": 1.0,
        "text corner only": 0.5,
        "32 px thumbnail": 1.0,
    }


def test_a_data_set_without_test_patients_is_an_error_of_ours(tmp_path):
    lines = [*plane_lines(n_train=12, n_test=0), csv_line("lonely", 99, train=0)]
    folder = write_folder(tmp_path / "data", lines)
    with pytest.raises(ValueError, match="1 test patients"):
        run_baselines(Dataset(folder, tmp_path / "cache"), "planes")
