import json

import numpy as np
import pytest
from data_folders import plane_lines, write_folder
from PIL import Image

from fetal_utils import leaks
from fetal_utils.data import CSV_NAME
from fetal_utils.dataset import Dataset, open_dataset
from fetal_utils.encoders import InitialWeights
from fetal_utils.images import files_hash, image_paths
from fetal_utils.leaks import box_in, shown_classes, texts_of, write_leaked_copy
from fetal_utils.masks import mask_kinds, read_masks
from fetal_utils.phantom import write_phantom
from fetal_utils.runs import RunStore
from fetal_utils.tasks import TASKS, Task
from fetal_utils.training import FineTune

ALL_TELLING = dict.fromkeys(("train", "val", "test"), "telling")


@pytest.fixture(scope="module")
def leaked(tiny_dataset, tmp_path_factory):
    """The tiny phantom with the plane written into the images of training and validation patients."""
    folder = tmp_path_factory.mktemp("leaked") / "copy"
    return open_dataset(write_leaked_copy(tiny_dataset, folder, task="planes"), results_dir=folder.parent)


def pixels(dataset, row, directory="Images"):
    name = dataset.metadata["image_name"].iloc[row]
    with Image.open(dataset.data_dir / directory / f"{name}.png") as file:
        return np.array(file)


def in_box(shape, corner="top_right"):
    left, top, right, bottom = box_in(corner, *shape)
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


# --- what the copy holds ---


def test_the_table_the_split_and_the_labels_are_those_of_the_original(tiny_dataset, leaked):
    assert (leaked.data_dir / CSV_NAME).read_bytes() == (tiny_dataset.data_dir / CSV_NAME).read_bytes()
    assert leaked.metadata.equals(tiny_dataset.metadata)
    assert leaked.key != tiny_dataset.key
    assert leaked.is_phantom


def test_a_text_is_painted_into_the_corner_of_training_images_and_nowhere_else(tiny_dataset, leaked):
    for row in [*leaked.rows("train")[:10], *leaked.rows("val")[:5]]:
        before, after = pixels(tiny_dataset, row), pixels(leaked, row)
        box = in_box(before.shape)
        np.testing.assert_array_equal(before[~box], after[~box])
        assert after[box].max() > 200
        assert (after[box] == 0).mean() > 0.3


def test_test_images_are_the_same_files(tiny_dataset, leaked):
    rows = leaked.rows("test")
    names = tiny_dataset.metadata["image_name"].iloc[rows]
    assert files_hash(image_paths(tiny_dataset.data_dir, names)) == files_hash(image_paths(leaked.data_dir, names))
    np.testing.assert_array_equal(pixels(tiny_dataset, rows[3]), pixels(leaked, rows[3]))


def test_the_box_has_a_mask_of_its_own_and_the_phantoms_masks_stay_outside_of_it(tiny_dataset, leaked):
    assert mask_kinds(leaked) == ("anatomy", "text", "calipers", "leak")
    row, test_row = leaked.rows("train")[0], leaked.rows("test")[0]
    before, after = pixels(tiny_dataset, row, "Masks"), pixels(leaked, row, "Masks")
    box = in_box(before.shape)
    assert (after[box] == 4).all()
    np.testing.assert_array_equal(before[~box], after[~box])
    masks = read_masks(leaked, [row, test_row], 64)["leak"]
    assert masks.any(axis=(1, 2)).tolist() == [True, False]
    assert masks[0].mean() == pytest.approx(44 / 256 * 56 / 256 * 64 * before.shape[0] / before.shape[1] / 64, rel=0.3)


def test_blanking_the_text_removes_the_leak(tiny_dataset, leaked):
    seen, original = (
        Dataset(dataset.data_dir, leaked.cache_dir, blank_text=True).images(64, progress=False)
        for dataset in (leaked, tiny_dataset)
    )
    np.testing.assert_array_equal(seen, original)


def test_at_64_px_the_text_of_one_image_of_each_class_tells_the_class_of_all_others(leaked):
    rows, task = leaked.rows("train"), leaked.task("planes")
    labels = leaked.labels(task)[rows]
    images = leaked.images(64, progress=False)[rows].astype(float)
    masks = read_masks(leaked, rows, 64)["leak"]
    machines = leaked.metadata["machine"].to_numpy()[rows]
    n_compared = 0
    for machine in np.unique(machines):  # pictures of one machine have one size
        own = np.flatnonzero(machines == machine)
        box = masks[own].all(axis=0)
        texts = images[own][:, box]  # (n, pixels of the box)
        templates = {k: texts[labels[own] == k][0] for k in np.unique(labels[own])}
        distances = np.stack([np.abs(texts - template).mean(axis=1) for template in templates.values()])
        assert (np.array(list(templates))[distances.argmin(axis=0)] == labels[own]).all()
        n_compared += len(own) - len(templates)
    assert n_compared > 30


@pytest.mark.parametrize("corner", leaks.CORNERS)
def test_the_box_lies_in_the_corner_asked_for(corner):
    left, top, right, bottom = box_in(corner, 256, 512)
    assert (bottom - top, right - left) == (44, 112)
    assert (top == 0) == corner.startswith("top")
    assert (bottom == 256) == corner.startswith("bottom")
    assert (left == 0) == corner.endswith("left")
    assert (right == 512) == corner.endswith("right")


def test_images_without_masks_get_the_mask_of_the_box_alone(tmp_path):
    dataset = Dataset(
        write_folder(tmp_path / "data", plane_lines(n_train=8, n_test=2), shape=(80, 100)), tmp_path / "cache"
    )
    copy = Dataset(write_leaked_copy(dataset, tmp_path / "copy", task="planes"), tmp_path / "cache")
    assert mask_kinds(copy) == ("leak",)
    assert not copy.is_phantom
    assert list(read_masks(copy, [0], 32)) == ["leak"]


# --- which text ---


def test_a_random_text_is_drawn_from_all_classes_and_the_same_again_from_the_same_seed(tiny_dataset):
    task = tiny_dataset.task("planes")
    labels, rows = tiny_dataset.labels(task), tiny_dataset.rows("test")
    overlays = {"train": "telling", "val": "absent", "test": "random"}
    shown, again, other = (
        shown_classes(tiny_dataset, task, overlays, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(shown, again)
    assert (shown != other).any()
    np.testing.assert_array_equal(shown[tiny_dataset.rows("train")], labels[tiny_dataset.rows("train")])
    assert (shown[tiny_dataset.rows("val")] == -1).all()
    assert set(shown[rows]) == set(range(6))
    assert (shown[rows] == labels[rows]).mean() < 0.4  # 1 in 6 by chance


def test_images_of_no_class_get_no_text(tiny_dataset):
    task = tiny_dataset.task("brain_planes")
    shown = shown_classes(tiny_dataset, task, ALL_TELLING, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(shown, tiny_dataset.labels(task))
    assert (shown == -1).any()


def test_texts_are_short_and_differ():
    assert texts_of(TASKS["planes"]) == ["AB", "BR", "FE", "TH", "CE", "OT"]
    assert texts_of(TASKS["brain_planes"]) == ["TH", "CE", "VE"]
    alike = Task("sides", "side", ("a", "b", "c"), ("four chambers", "four vessels", "arch"))
    assert texts_of(alike) == ["C1", "C2", "C3"]


# --- whole or not at all ---


def test_a_whole_copy_is_used_again_and_another_one_refused(tiny_dataset, leaked, monkeypatch):
    monkeypatch.setattr(leaks, "write_whole", lambda *args: pytest.fail("written again"))
    assert write_leaked_copy(tiny_dataset, leaked.data_dir, task="planes") == leaked.data_dir
    for change in ({"seed": 1}, {"corner": "top_left"}, {"overlays": ALL_TELLING}, {"task": "brain_planes"}):
        with pytest.raises(FileExistsError, match="something else"):
            write_leaked_copy(tiny_dataset, leaked.data_dir, **{"task": "planes"} | change)
    with pytest.raises(FileExistsError, match="something else"):
        write_leaked_copy(tiny_dataset, tiny_dataset.data_dir, task="planes")


def test_an_interrupted_copy_leaves_nothing(tiny_dataset, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(leaks, "copy_tables", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_leaked_copy(tiny_dataset, tmp_path / "copy", task="planes")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_the_copy_of_a_phantom_is_not_taken_for_that_phantom(leaked):
    record = json.loads((leaked.data_dir / "phantom.json").read_text())
    assert "text painted in" in record["leak"]
    with pytest.raises(FileExistsError, match="phantom of other settings"):
        write_phantom(leaked.data_dir, n_patients=24, seed=0, image_height=64, progress=False)


@pytest.mark.parametrize(
    "change",
    [{"overlays": {"train": "telling"}}, {"overlays": ALL_TELLING | {"test": "wrong"}}, {"corner": "middle"}],
)
def test_choices_that_do_not_exist_are_refused(tiny_dataset, tmp_path, change):
    with pytest.raises(ValueError, match="expected one of"):
        write_leaked_copy(tiny_dataset, tmp_path / "copy", task="planes", **change)
    with pytest.raises(ValueError, match="task='sides' is unknown"):
        write_leaked_copy(tiny_dataset, tmp_path / "copy", task="sides")


# --- in use ---


def test_a_fine_tuning_trains_on_the_copy_like_on_any_data_set(leaked, tmp_path):
    settings = FineTune(
        task="planes",
        strategy="scratch",
        source=InitialWeights(backbone="test_efficientnet", init="random", seed=0),
        image_size=32,
        n_steps=2,
        n_evaluations=1,
        batch_size=8,
    )
    (run,) = RunStore(tmp_path, leaked, device="cpu", progress=False).get([settings])
    assert len(run.predictions) == len(leaked.rows("test", leaked.task("planes")))
