"""A further folder of images: what is found in it, what is kept out, and what a pretraining makes of it."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from fetal_utils.encoders import InitialWeights
from fetal_utils.images import ImageFormat, read_image
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.simclr import Pretrain, main, settings_from
from fetal_utils.unlabelled import IMAGE_ENDINGS, UnlabelledImages, open_unlabelled

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
SETTINGS = Pretrain(start=START, image_size=32, n_epochs=1, batch_size=40)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def picture(seed, shape=(32, 32)):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Four images in three folders, and a file that is none."""
    root = tmp_path / "more"
    for seed, name in enumerate(["b.png", "a/c.JPG", "a/deep/d.jpeg", "a/deep/a.png"]):
        save(root / name, picture(seed))
    (root / "notes.txt").write_text("not an image")
    return root


def with_images_of(folder, dataset):
    """Copies of held-out images in a folder, by pixels and by name, and one of a training image."""
    names = dataset.metadata["image_name"]
    source = dataset.data_dir / "Images"
    for subset, copy in [("val", "copy_of_val"), ("test", "a/copy_of_test"), ("train", "copy_of_train")]:
        shutil.copy(source / f"{names[dataset.rows(subset)[0]]}.png", folder / f"{copy}.png")
    for subset, seed in [("val", 8), ("test", 9)]:
        save(folder / "named" / f"{names[dataset.rows(subset)[1]]}.png", picture(seed))
    return folder


# --- what is found ---


def test_images_of_all_folders_are_found_in_a_fixed_order(folder):
    found = [path.relative_to(folder).as_posix() for path in open_unlabelled(folder).paths()]
    assert found == ["a/c.JPG", "a/deep/a.png", "a/deep/d.jpeg", "b.png"]


@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_every_kind_of_file_that_is_taken_becomes_gray_as_a_png_does(ending, tmp_path):
    blue = np.zeros((16, 16, 3), dtype=np.uint8)
    blue[..., 2] = 200
    pixels = read_image(save(tmp_path / f"blue{ending}", blue), ImageFormat(16))
    assert pixels == pytest.approx(np.full((16, 16), 0.114 * 200), abs=2)


def test_an_empty_name_is_no_folder(tmp_path, monkeypatch):
    assert open_unlabelled("") is None
    save(tmp_path / "here.png", picture(0))
    monkeypatch.chdir(tmp_path)  # nor is it the folder where the command was typed
    assert settings_from({"extra_images": ""}).extra_images is None


def test_a_folder_without_images_or_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("not an image")
    for name in ("empty", "missing"):
        with pytest.raises(FileNotFoundError, match=rf"{name} holds no image \(\.png, .*\); give a folder that does"):
            open_unlabelled(tmp_path / name)


def test_the_same_files_are_the_same_images_and_others_are_not(folder, tmp_path):
    before = open_unlabelled(folder)
    assert open_unlabelled(str(folder)) == before
    save(folder / "new.png", picture(5))
    assert open_unlabelled(folder) != before


def test_a_folder_that_changed_is_refused(folder):
    images = open_unlabelled(folder)
    images.check()
    save(folder / "b.png", picture(0, (20, 20)))
    with pytest.raises(ValueError, match="more has changed since this run was asked for; ask again"):
        images.check()


def test_a_folder_that_was_taken_away_is_refused(folder):
    images = open_unlabelled(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="more has changed"):
        images.check()


# --- what is kept out ---


def test_images_are_squares_in_the_order_of_the_files(folder, tiny_dataset):
    images, n_left_out = open_unlabelled(folder).images(tiny_dataset, 32, progress=False)
    assert (images.shape, images.dtype, n_left_out) == ((4, 32, 32), np.uint8, 0)
    np.testing.assert_array_equal(images[1], picture(3))
    np.testing.assert_array_equal(images[3], picture(0))


def test_images_of_held_out_patients_are_left_out_by_name_and_by_pixels(folder, tiny_dataset):
    extra = open_unlabelled(with_images_of(folder, tiny_dataset))
    images, n_left_out = extra.images(tiny_dataset, 32, progress=False)
    assert n_left_out == 4
    kept = [path.name for path in extra.paths() if "copy_of_train" in path.name or path.stem in "abcd"]
    assert len(images) == len(kept) == 5
    held_out = np.concatenate([tiny_dataset.rows("val"), tiny_dataset.rows("test")])
    seen = {image.tobytes() for image in tiny_dataset.images(32, progress=False)[held_out]}
    assert not seen & {image.tobytes() for image in images}


def test_blanking_and_geometry_are_those_of_the_data_set(folder, tiny_dataset):
    blanked = dataclasses.replace(tiny_dataset, blank_text=True)
    images, _ = open_unlabelled(folder).images(blanked, 32, progress=False)
    whole, _ = open_unlabelled(folder).images(tiny_dataset, 32, progress=False)
    corner = np.zeros((32, 32), dtype=bool)
    corner[: round(32 * 44 / 256), 32 - round(32 * 56 / 256) :] = True
    assert (images[:, corner] == 0).all()
    np.testing.assert_array_equal(images[:, ~corner], whole[:, ~corner])


def test_a_truncated_file_is_named(folder, tiny_dataset):
    broken = folder / "a" / "deep" / "a.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"deep/a\.png can't be decoded"):
        open_unlabelled(folder).images(tiny_dataset, 32, progress=False)


# --- a pretraining ---


def test_a_pretraining_counts_them_and_is_another_run_than_one_without(folder, tiny_dataset, tmp_path):
    store = RunStore(tmp_path, tiny_dataset, device="cpu", progress=False)
    extra = open_unlabelled(with_images_of(folder, tiny_dataset))
    more = dataclasses.replace(SETTINGS, extra_images=extra)
    run, plain = store.get([more, SETTINGS])
    facts = run.record["facts"]
    counted = {"n_images": plain.record["facts"]["n_images"] + 5, "n_extra_images": 5, "n_extra_left_out": 4}
    assert {name: facts[name] for name in counted} == counted
    assert facts["n_patients"] == plain.record["facts"]["n_patients"]
    assert run.folder != plain.folder
    assert run.weights.read_bytes() != plain.weights.read_bytes()
    assert run.record["settings"]["extra_images"] == {"folder": str(folder), "key": extra.key}


def test_a_pretraining_of_a_folder_that_changed_is_refused_before_it_starts(folder, tiny_dataset, tmp_path):
    store = RunStore(tmp_path, tiny_dataset, device="cpu", progress=False)
    settings = dataclasses.replace(SETTINGS, extra_images=UnlabelledImages(str(folder), "of another day"))
    with pytest.raises(ValueError, match="has changed"):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


def test_a_pretraining_with_a_truncated_file_fails_and_names_it(folder, tiny_dataset, tmp_path):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    store = RunStore(tmp_path, tiny_dataset, device="cpu", progress=False)
    with pytest.raises(RunsFailedError, match=r"b\.png can't be decoded"):
        store.get([dataclasses.replace(SETTINGS, extra_images=open_unlabelled(folder))])


def test_the_command_takes_a_folder_and_refuses_one_without_images(folder, tiny_phantom, tmp_path, capsys):
    def status(extra):
        given = {"extra_images": extra, "backbone": "test_efficientnet", "init": "random", "image_size": 32}
        arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path / "results"), "--device", "cpu"]
        for name, value in {**given, "n_epochs": 1}.items():
            arguments += ["-p", name, str(value)]
        return main(arguments)

    assert status(folder) == 0
    assert "4 images of" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert status(tmp_path / "empty") == 2
    assert "empty holds no image" in capsys.readouterr().err
