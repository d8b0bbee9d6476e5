"""SimCLR pretraining; the network is timm's smallest, at 32 px."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file

from fetal_utils.contrast import STEP_MEASURES, SimCLR, contrast_step
from fetal_utils.dataset import Dataset
from fetal_utils.diagnostics import top1_accuracy
from fetal_utils.encoders import InitialWeights
from fetal_utils.models import build_encoder
from fetal_utils.optimisers import build_optimiser
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain, Pretraining, main

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
SETTINGS = Pretrain(start=START, image_size=32, n_epochs=3, batch_size=40, lr=2e-3)


def new_store(tiny_dataset, folder):
    return RunStore(folder, tiny_dataset, device="cpu", progress=False)


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return new_store(tiny_dataset, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def run(store):
    return store.get([SETTINGS])[0]


def weights_differ(encoder, other):
    pairs = zip(encoder.parameters(), other.parameters(), strict=True)
    return [not torch.equal(a, b) for a, b in pairs]


# --- which images ---


@pytest.mark.parametrize("pool", ["all", "planes", "brain_planes"])
def test_the_pool_holds_no_patient_who_validates_or_tests(tiny_dataset, pool):
    table = tiny_dataset.metadata
    rows = dataclasses.replace(SETTINGS, pool=pool).pool_rows(tiny_dataset)
    held_out = set(table["patient"][table["subset"] != "train"])
    assert not held_out & set(table["patient"].iloc[rows])
    in_training = table["subset"] == "train"
    if pool == "brain_planes":
        in_training &= (table["plane"] == "Fetal brain") & (table["brain_plane"] != "Other")
    assert sorted(table.index[rows]) == table.index[in_training].tolist()


def test_test_images_change_nothing_of_a_pretraining(tiny_dataset, run, tmp_path, monkeypatch):
    def images_without_test(self, image_size, **options):
        images = original(self, image_size, **options).copy()
        images[self.rows("test")] = images[self.rows("val")[0]]
        images[self.rows("val")] = 255
        return images

    original = type(tiny_dataset).images
    monkeypatch.setattr(type(tiny_dataset), "images", images_without_test)
    (blind,) = new_store(tiny_dataset, tmp_path).get([SETTINGS])
    assert blind.weights.read_bytes() == run.weights.read_bytes()


# --- what it learns ---


def test_the_loss_falls_within_a_few_steps_on_one_batch(tiny_dataset, store):
    """Of 32 images the same two views are seen 12 times: a loss that can't fall here never will."""
    pool = torch.tensor(tiny_dataset.images(32, progress=False)[:32]).unsqueeze(1) / 255 - 0.5
    view_a, view_b = pool, pool.flip(3)
    model = SimCLR(START.encoder(), projection_dim=16, seed=0)
    optimiser = build_optimiser(model, lr=2e-3, weight_decay=0.0)
    measured = [contrast_step(model, optimiser, view_a, view_b, temperature=0.1).tolist() for _ in range(12)]
    assert measured[-1][0] < measured[0][0] - 1
    assert measured[-1][1] > measured[0][1]


def test_pretraining_changes_every_layer_of_the_encoder(store, run):
    assert all(weights_differ(SETTINGS.encoder(store), START.encoder()))


def test_a_step_with_rate_zero_would_measure_but_not_move():
    model = SimCLR(START.encoder(), projection_dim=16, seed=0)
    views = torch.randn(2, 8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    measured = contrast_step(model, still, *views, temperature=0.5).tolist()
    loss, accuracy, aligned, uniform = measured
    assert len(measured) == len(STEP_MEASURES)
    assert 0 < loss < 10
    assert 0 <= accuracy <= 1
    assert 0 <= aligned <= 4
    assert -8 <= uniform <= 0
    assert not any(weights_differ(model.encoder, START.encoder()))


def test_the_other_view_is_the_most_similar_by_hand():
    east, north, west = (torch.tensor(direction) for direction in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]))
    z_a, z_b = torch.stack([east, north]), torch.stack([3 * east, 2 * north])
    assert top1_accuracy(z_a, z_b).item() == 1.0
    assert top1_accuracy(z_a, z_b.flip(0)).item() == 0.0
    # image 0: east and nearly east find each other; image 1: north is nearest to nearly east,
    # and west, opposite to east, is nearest to north, its other view
    nearly_east = torch.tensor([1.0, 0.2])
    assert top1_accuracy(torch.stack([east, north]), torch.stack([nearly_east, west])).item() == 0.75


def test_top1_accuracy_does_not_depend_on_the_length_or_the_order_of_the_views():
    z_a, z_b = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(3))
    accuracy = top1_accuracy(z_a, z_b)
    assert 0 < top1_accuracy(z_a, z_a + 0.8 * z_b) < 1
    assert top1_accuracy(5 * z_a, 0.1 * z_b) == accuracy == top1_accuracy(z_b, z_a)


# --- what it leaves ---


def test_weights_load_by_timm_in_three_lines(store, run):
    encoder = timm.create_model("test_efficientnet", num_classes=0, in_chans=1)
    encoder.load_state_dict(load_file(run.weights))
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.eval()(images), SETTINGS.encoder(store).eval()(images))


def test_the_record_counts_images_patients_steps_and_views(run, tiny_dataset):
    in_training = tiny_dataset.metadata["subset"] == "train"
    n_images = int(in_training.sum())
    assert n_images // 40 == 2  # batches of an epoch
    assert run.record["facts"] == {
        "n_images": n_images,
        "n_patients": tiny_dataset.metadata["patient"][in_training].nunique(),
        "batch_size": 40,
        "optimiser_steps": 3 * 2,
        "views_seen": 3 * 2 * 40 * 2,
    }


def test_the_log_measures_steps_each_epoch_and_held_out_features_at_the_last(run):
    looks = ["feature_spread", "effective_rank", "knn_macro_f1"]
    assert list(run.log.columns) == ["epoch", "seconds", *STEP_MEASURES, *looks]
    assert run.log[list(STEP_MEASURES)].notna().all(axis=None)
    assert run.log[looks].notna().any(axis=1).tolist() == [False, False, True]
    assert 1 <= run.log["effective_rank"].iloc[-1] <= 12  # no more than the held-out images
    assert 0 <= run.log["knn_macro_f1"].iloc[-1] <= 1
    assert run.log["epoch"].tolist() == [1, 2, 3]
    assert sorted(path.name for path in run.folder.iterdir()) == ["log.csv", "record.json", "weights.safetensors"]


def test_a_batch_larger_than_the_pool_takes_the_whole_pool(store):
    settings = dataclasses.replace(SETTINGS, pool="brain_planes", batch_size=4096, n_epochs=1)
    (run,) = store.get([settings])
    facts = run.record["facts"]
    assert facts["batch_size"] == facts["n_images"] == len(settings.pool_rows(store.dataset))
    assert facts["optimiser_steps"] == 1


# --- the same again ---


def test_the_same_settings_give_the_same_weights_and_another_seed_others(tiny_dataset, run, tmp_path):
    torch.manual_seed(1234)  # no global generator has a say
    same, other = new_store(tiny_dataset, tmp_path).get([SETTINGS, dataclasses.replace(SETTINGS, seed=5)])
    assert same.weights.read_bytes() == run.weights.read_bytes()
    assert other.weights.read_bytes() != run.weights.read_bytes()


@pytest.mark.parametrize("n_steps_done", [2, 3, 5])  # after an epoch, and within one
def test_a_killed_and_resumed_pretraining_ends_like_an_uninterrupted_one(
    tiny_dataset, run, tmp_path, monkeypatch, n_steps_done
):
    store, steps = new_store(tiny_dataset, tmp_path), []

    def killed(self, batch):
        if len(steps) == n_steps_done:
            raise KeyboardInterrupt
        steps.append(batch)
        return original(self, batch)

    original = Pretraining.train_batch
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            store.get([SETTINGS])
    assert (store.folder(SETTINGS).with_suffix(".partial") / "checkpoint.pt").exists()
    (resumed,) = store.get([SETTINGS])
    assert resumed.weights.read_bytes() == run.weights.read_bytes()
    assert resumed.record["facts"] == run.record["facts"]
    pd.testing.assert_frame_equal(resumed.log.drop(columns="seconds"), run.log.drop(columns="seconds"))


# --- what is refused ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"weight_decay": -1.0},
        {"warmup_fraction": 1.0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"projection_dim": 0},
        {"seed": -1},
        {"image_size": 4},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name_before_the_run(store, wrong):
    ((name, value),) = wrong.items()
    settings = dataclasses.replace(SETTINGS, **wrong)
    with pytest.raises(ValueError, match=f"{name}={value}"):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


def test_an_unknown_augmentation_or_pool_is_refused_before_the_run(store):
    with pytest.raises(ValueError, match="blurry"):
        store.get([dataclasses.replace(SETTINGS, augmentation="blurry")])
    with pytest.raises(ValueError, match="hands"):
        store.get([dataclasses.replace(SETTINGS, pool="hands")])


def test_an_encoder_before_its_pretraining_is_refused(store):
    with pytest.raises(FileNotFoundError, match="simclr has not been computed"):
        dataclasses.replace(SETTINGS, seed=77).encoder(store)


def test_a_pretraining_from_the_weights_of_a_file_starts_there(store, run):
    start = InitialWeights(backbone="test_efficientnet", init=str(run.weights))
    assert not any(weights_differ(start.encoder(), SETTINGS.encoder(store)))
    assert any(weights_differ(start.encoder(), build_encoder("test_efficientnet", init="random", seed=0)))


# --- the command ---


def test_the_command_makes_the_run_that_the_same_settings_name_and_prints_its_folder_last(
    tiny_phantom, tmp_path, capsys
):
    arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), "--device", "cpu"]
    small = {"backbone": "test_efficientnet", "init": "random", "image_size": 32, "n_epochs": 1, "lr": 1e-3}
    for name, value in small.items():
        arguments += ["-p", name, str(value)]
    assert main(arguments) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    settings = Pretrain(
        start=InitialWeights(backbone="test_efficientnet", init="random"), image_size=32, n_epochs=1, lr=1e-3
    )
    store = RunStore(tmp_path, Dataset(tiny_phantom, tmp_path / "cache"), device="cpu")
    assert folder == store.folder(settings)
    assert store.has(settings)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "epochs", "3"], "epochs"),
        (["-p", "lr", "fast"], "lr='fast'"),
        (["-p", "temperature", "0"], "temperature=0"),
        (["-p", "backbone", "resnet19"], "resnet19"),
        (["-p", "init", "no.safetensors"], "no.safetensors"),
        (["-p", "pool", "feet"], "feet"),
        (["--data-dir", "no/such/folder"], "no/such/folder"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_ends_the_command_with_status_2(arguments, named, tiny_phantom, tmp_path, capsys):
    given = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), *arguments]
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and named in error
    assert not (tmp_path / "runs").exists()
