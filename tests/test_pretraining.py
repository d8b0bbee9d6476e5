"""A SimCLR pretraining under way; the network is timm's smallest, at 32 px."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fetal_utils import batch_fit, pretraining
from fetal_utils.contrast import STEP_MEASURES
from fetal_utils.encoders import InitialWeights
from fetal_utils.pretraining import LOOK_EVERY, Pretraining, strata
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.simclr import Pretrain

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
SETTINGS = Pretrain(start=START, image_size=32, n_epochs=3, batch_size=40, lr=2e-3)
LOOKS = ["feature_spread", "effective_rank", "knn_macro_f1", "probe_macro_f1"]
RATES = ["same_patient_anchors", "same_class_negatives"]
TIMES = ["seconds", "images_per_s", "share_outside_model"]


def new_store(tiny_dataset, folder):
    return RunStore(folder, tiny_dataset, device="cpu", progress=False)


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return new_store(tiny_dataset, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def run(store):
    return store.get([SETTINGS])[0]


def changed(store, **settings):
    """The run whose settings differ from `SETTINGS` in these."""
    return store.get([dataclasses.replace(SETTINGS, **settings)])[0]


def without_times(log):
    return log.drop(columns=TIMES)


def same_weights(run, other):
    return run.weights.read_bytes() == other.weights.read_bytes()


# --- which images ---


def test_test_images_change_nothing_of_a_pretraining(tiny_dataset, run, tmp_path, monkeypatch):
    def images_without_test(self, image_size, **options):
        images = original(self, image_size, **options).copy()
        images[self.rows("test")] = images[self.rows("val")[0]]
        images[self.rows("val")] = 255
        return images

    original = type(tiny_dataset).images
    monkeypatch.setattr(type(tiny_dataset), "images", images_without_test)
    (blind,) = new_store(tiny_dataset, tmp_path).get([SETTINGS])
    assert same_weights(blind, run)


def test_labels_change_the_log_and_no_weight(tiny_dataset, run, tmp_path, monkeypatch):
    def shuffled(metadata):
        return np.random.default_rng(0).permutation(strata(metadata))

    monkeypatch.setattr(pretraining, "strata", shuffled)
    (blind,) = new_store(tiny_dataset, tmp_path).get([SETTINGS])
    assert same_weights(blind, run)
    assert blind.log["same_class_negatives"].tolist() != run.log["same_class_negatives"].tolist()


def test_a_stratum_is_a_plane_or_a_brain_plane():
    table = pd.DataFrame({"plane": ["Fetal brain", "Fetal femur"], "brain_plane": ["Trans-thalamic", "Not A Brain"]})
    assert strata(table).tolist() == ["Fetal brain/Trans-thalamic", "Fetal femur/Not A Brain"]


def test_a_batch_larger_than_the_pool_takes_the_whole_pool(store):
    run = changed(store, pool="brain_planes", batch_size=4096, n_epochs=1)
    facts = run.record["facts"]
    assert facts["batch_size"] == facts["n_images"] == len(run.settings.pool_rows(store.dataset))
    assert facts["optimiser_steps"] == 1


# --- what it leaves ---


def test_pretraining_changes_every_layer_of_the_encoder(store, run):
    pairs = zip(SETTINGS.encoder(store).parameters(), START.encoder().parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


def test_the_record_counts_images_patients_steps_and_views(run, tiny_dataset):
    in_training = tiny_dataset.metadata["subset"] == "train"
    n_images = int(in_training.sum())
    assert n_images // 40 == 2  # batches of an epoch
    assert run.record["facts"] == {
        "n_images": n_images,
        "n_patients": tiny_dataset.metadata["patient"][in_training].nunique(),
        "n_extra_images": 0,
        "n_extra_left_out": 0,
        "batch_size": 40,
        "optimiser_steps": 3 * 2,
        "views_seen": 3 * 2 * 40 * 2,
        "world_size": 1,
    }


def test_the_log_measures_steps_each_epoch_and_held_out_features_at_the_last(run):
    log = run.log
    every = [*STEP_MEASURES, *RATES, "images_per_s", "share_outside_model"]
    assert list(log.columns) == ["epoch", "seconds", *every, *LOOKS]
    assert log["epoch"].tolist() == [1, 2, 3]
    assert log[every].notna().all(axis=None)
    assert log[LOOKS].notna().any(axis=1).tolist() == [False, False, True]
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "log.csv",
        "projection_head.safetensors",
        "record.json",
        "weights.safetensors",
    ]


def test_what_the_log_says_is_in_range(run):
    shares = [*RATES, "share_outside_model", "top1_accuracy", "knn_macro_f1", "probe_macro_f1"]
    values = run.log[shares].to_numpy()
    assert ((values >= 0) & (values <= 1))[~np.isnan(values)].all()
    assert (run.log["images_per_s"] > 0).all()
    assert 1 <= run.log["effective_rank"].iloc[-1] <= 12  # no more than the held-out images


def test_images_per_second_and_the_share_outside_the_model_follow_from_the_clocks(tiny_dataset, tmp_path, monkeypatch):
    class TurnedClock:
        """A whole epoch takes eight seconds, and the model's part of it six."""

        def __init__(self, device):
            self.seconds = 8.0 if not made else 6.0
            made.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    made = []
    monkeypatch.setattr(pretraining, "Stopwatch", TurnedClock)
    (run,) = new_store(tiny_dataset, tmp_path).get([dataclasses.replace(SETTINGS, n_epochs=1)])
    assert run.log["images_per_s"].tolist() == [2 * 40 / 8]
    assert run.log["share_outside_model"].tolist() == [1 - 6 / 8]


def test_held_out_patients_are_looked_at_every_few_epochs_and_at_the_end(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Pretraining, "look", lambda self: {"looked": 1.0})
    (run,) = new_store(tiny_dataset, tmp_path).get([dataclasses.replace(SETTINGS, n_epochs=2 * LOOK_EVERY + 1)])
    looked = run.log["epoch"][run.log["looked"].notna()].tolist()
    assert looked == [LOOK_EVERY, 2 * LOOK_EVERY, 2 * LOOK_EVERY + 1]


def test_looking_changes_no_weight(tiny_dataset, run, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "LOOK_EVERY", 1)
    (often,) = new_store(tiny_dataset, tmp_path).get([SETTINGS])
    assert often.log[LOOKS].notna().all(axis=None)
    assert same_weights(often, run)
    pd.testing.assert_frame_equal(
        without_times(often.log).tail(1), without_times(run.log).tail(1), check_exact=False, rtol=1e-5
    )


# --- what its settings change ---


@pytest.mark.parametrize(("optimiser", "lr"), [("sgd", 0.05), ("lars", 1.0)])
def test_every_optimiser_learns_another_way(store, run, optimiser, lr):
    other = changed(store, optimiser=optimiser, lr=lr)
    assert other.log["loss"].iloc[-1] < other.log["loss"].iloc[0]
    assert not same_weights(other, run)


def test_images_of_one_patient_are_masked_if_asked_for(tiny_dataset, tmp_path, monkeypatch):
    def watched(*args, not_negatives, **options):
        masks.append(not_negatives)
        return original(*args, not_negatives=not_negatives, **options)

    masks, original = [], pretraining.contrast_step
    monkeypatch.setattr(pretraining, "contrast_step", watched)
    store = new_store(tiny_dataset, tmp_path)
    with_all, masked = (changed(store, n_epochs=1, same_patient_negatives=answer) for answer in (True, False))
    assert masks[:2] == [None, None]
    assert all(mask.shape == (40, 40) and mask.any() for mask in masks[2:])
    assert masked.log["loss"].iloc[0] < with_all.log["loss"].iloc[0]  # fewer negatives to be told from


def test_pieces_as_large_as_the_batch_are_no_other_training_and_smaller_ones_see_other_statistics(store, run):
    assert same_weights(changed(store, chunk_size=80), run)
    small = changed(store, chunk_size=17)
    assert not same_weights(small, run)
    assert small.record["facts"] == run.record["facts"]


def test_a_batch_that_memory_cannot_hold_fails_before_the_first_step_and_says_what_would_fit(
    tiny_dataset, tmp_path, monkeypatch
):
    store = new_store(tiny_dataset, tmp_path)
    monkeypatch.setattr(batch_fit.psutil, "virtual_memory", lambda: SimpleNamespace(available=12 * 2**20))
    with pytest.raises(RunsFailedError, match=r"MemoryError: batch_size=40 of 32 px needs") as error:
        store.get([SETTINGS])
    left = {path.name for path in store.folder(SETTINGS).with_suffix(".partial").iterdir()}
    assert left == {"settings.json", "traceback.txt"}
    largest = int(str(error.value).split("chunk_size=")[1].split(",")[0])
    assert changed(store, n_epochs=1, chunk_size=largest).record["facts"]["batch_size"] == 40


def test_a_training_that_diverges_fails_and_names_its_step(tiny_dataset, tmp_path):
    store = new_store(tiny_dataset, tmp_path)
    with pytest.raises(RunsFailedError, match=r"FloatingPointError: the loss is nan at step \d: .*try a lower lr"):
        changed(store, optimiser="sgd", lr=1e38, n_epochs=2)


# --- the same again ---


def test_the_same_settings_give_the_same_weights_and_another_seed_others(tiny_dataset, run, tmp_path):
    torch.manual_seed(1234)  # no global generator has a say
    same, other = new_store(tiny_dataset, tmp_path).get([SETTINGS, dataclasses.replace(SETTINGS, seed=5)])
    assert same_weights(same, run)
    assert not same_weights(other, run)


@pytest.mark.parametrize("n_steps_done", [2, 3, 5])  # after an epoch, and within one
def test_a_killed_and_resumed_pretraining_ends_like_an_uninterrupted_one(
    tiny_dataset, run, tmp_path, monkeypatch, n_steps_done
):
    store, steps = new_store(tiny_dataset, tmp_path), []

    def killed(self, batch, in_model):
        if len(steps) == n_steps_done:
            raise KeyboardInterrupt
        steps.append(batch)
        return original(self, batch, in_model)

    original = Pretraining.train_batch
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_batch", killed)
        with pytest.raises(KeyboardInterrupt, match=f"{n_steps_done // 2} of 3 epochs are kept"):
            store.get([SETTINGS])
    assert (store.folder(SETTINGS).with_suffix(".partial") / "checkpoint.pt").exists()
    (resumed,) = store.get([SETTINGS])
    assert same_weights(resumed, run)
    assert resumed.record["facts"] == run.record["facts"]
    pd.testing.assert_frame_equal(without_times(resumed.log), without_times(run.log))


def test_whoever_watches_sees_every_epoch_of_it(tiny_dataset, tmp_path):
    seen = []
    store = new_store(tiny_dataset, tmp_path)
    (run,) = store.get([SETTINGS], watch=lambda settings, log: seen.append((settings, log)))
    assert [(settings, len(log)) for settings, log in seen] == [(SETTINGS, n) for n in (1, 2, 3)]
    pd.testing.assert_frame_equal(seen[-1][1], run.log)
