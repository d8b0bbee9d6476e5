"""Both tasks at once; the network is timm's smallest, at 32 px."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fetal_utils.contrast import contrast_step
from fetal_utils.dataset import Dataset
from fetal_utils.dual_step import DUAL_MEASURES, DualNetwork, dual_step
from fetal_utils.dual_task import DualTask, DualTuning
from fetal_utils.encoders import InitialWeights
from fetal_utils.fine_tuning import FineTuning
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import Classifier
from fetal_utils.optimisers import build_optimiser, warmup_cosine
from fetal_utils.predictions import check_predictions
from fetal_utils.runs import RunStore, Work
from fetal_utils.supervised import LabelledData
from fetal_utils.training import FineTune
from fetal_utils.weights import load_weights

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
LABELS = {"task": "planes", "strategy": "dual_scratch", "label_fraction": 0.1, "source": START, "image_size": 32}
STEPS = {"n_steps": 5, "n_evaluations": 3, "batch_size": 12, "lr": 2e-3}
DUAL = DualTask(**LABELS, **STEPS, contrastive_batch_size=20)
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0])


def new_store(dataset, folder):
    return RunStore(folder, dataset, device="cpu", progress=False)


def tuning_of(settings, dataset, folder):
    store = new_store(dataset, folder)
    return settings.begin(Work(folder=folder, dataset=dataset, store=store, device=store.device))


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return new_store(tiny_dataset, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def run(store):
    return store.get([DUAL])[0]


# --- one step ---


@pytest.fixture
def network():
    return DualNetwork(Classifier(START.encoder(), 3, seed=0), projection_dim=16, seed=0)


@pytest.fixture
def batch():
    """Eight labelled images, and two views of ten others."""
    generator = torch.Generator().manual_seed(0)
    images, view_a, view_b = (torch.randn(n, 1, 32, 32, generator=generator) for n in (8, 10, 10))
    return (images, torch.arange(8) % 3), (view_a, view_b)


def adamw(module):
    """Optimiser and schedule of the tests' steps."""
    optimiser = build_optimiser(module, lr=1e-2, weight_decay=0.1)
    return optimiser, warmup_cosine(optimiser, n_steps=10, n_warmup=2)


def take_step(network, optimiser, schedule, *, labelled, views, contrastive_weight=1.0, **options):
    return dual_step(
        network,
        optimiser,
        schedule,
        labelled=labelled,
        views=views,
        class_weights=CLASS_WEIGHTS,
        contrastive_weight=contrastive_weight,
        temperature=0.5,
        **options,
    )


def assert_same_state(module, other):
    state, expected = module.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("chunk_size", [0, 7])
def test_without_labelled_images_a_step_is_a_step_of_simclr(network, batch, chunk_size):
    _, views = batch
    alone = copy.deepcopy(network.simclr)
    head = copy.deepcopy(network.classifier.head)
    ours, theirs = adamw(network), adamw(alone)
    masked = torch.eye(10, dtype=torch.bool).roll(1, 0)
    options = {"not_negatives": masked, "chunk_size": chunk_size}
    for _ in range(3):
        measured = take_step(network, *ours, labelled=None, views=views, **options)
        expected = contrast_step(alone, *theirs, *views, temperature=0.5, **options)
        assert measured[1] == expected[0]  # the loss
    assert_same_state(network.simclr, alone)
    assert_same_state(network.classifier.head, head)


def test_without_views_a_step_is_one_down_the_class_weighted_cross_entropy(network, batch):
    (images, labels), _ = batch
    alone = copy.deepcopy(network.classifier)
    measured = take_step(network, *adamw(network), labelled=(images, labels), views=None)
    optimiser, _ = adamw(alone)
    loss = nn.functional.cross_entropy(alone.train()(images), labels, weight=CLASS_WEIGHTS)
    loss.backward()
    nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
    optimiser.step()
    assert measured[0] == loss
    torch.testing.assert_close(network.classifier.state_dict(), alone.state_dict())


@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
def test_a_step_goes_down_cross_entropy_plus_weight_times_nt_xent(network, batch, weight):
    (images, labels), views = batch
    alone = copy.deepcopy(network).train()
    measured = take_step(
        network, *adamw(network), labelled=(images, labels), views=views, contrastive_weight=weight
    ).tolist()
    optimiser, _ = adamw(alone)
    contrast_loss = nt_xent_loss(*alone.simclr(torch.cat(views)).chunk(2), temperature=0.5)
    train_loss = nn.functional.cross_entropy(alone.classifier(images), labels, weight=CLASS_WEIGHTS)
    shared = list(alone.encoder.parameters())
    norms = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]).norm().item()
        for loss in (train_loss, weight * contrast_loss)
    ]
    (train_loss + weight * contrast_loss).backward()
    nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
    optimiser.step()
    assert measured == pytest.approx([train_loss.item(), contrast_loss.item(), *norms], rel=1e-4)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, alone.get_parameter(name), atol=1e-4, rtol=1e-3)


def test_a_loss_that_was_not_asked_for_is_nan_and_the_other_is_measured_as_in_both(network, batch):
    labelled, views = batch
    asked = [(labelled, views), (labelled, None), (None, views)]
    networks = [copy.deepcopy(network) for _ in asked]
    both, labels, contrast = (
        take_step(each, *adamw(each), labelled=ours, views=theirs).tolist()
        for each, (ours, theirs) in zip(networks, asked, strict=True)
    )
    assert min(both[2:]) > 1  # more than gradients are clipped to: they are measured before
    assert labels == pytest.approx([both[0], np.nan, both[2], 0], nan_ok=True)
    assert contrast == pytest.approx([np.nan, both[1], 0, both[3]], nan_ok=True)


def test_a_step_on_nothing_is_refused(network):
    with pytest.raises(ValueError, match="neither labelled images nor views"):
        take_step(network, *adamw(network), labelled=None, views=None)


@pytest.mark.parametrize("broken", ["labelled", "views"])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(network, batch, broken):
    (images, labels), (view_a, view_b) = batch
    before = copy.deepcopy(network)
    (images if broken == "labelled" else view_a).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        take_step(network, *adamw(network), labelled=(images, labels), views=(view_a, view_b))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name)), name


# --- what it sees ---


def test_with_weight_zero_it_is_supervised_training_to_the_last_bit(tiny_dataset, store):
    zero = dataclasses.replace(DUAL, contrastive_weight=0)
    dual, plain = store.get([zero, FineTune(**LABELS, **STEPS)])
    assert dual.weights.read_bytes() == plain.weights.read_bytes()
    pd.testing.assert_frame_equal(dual.predictions, plain.predictions)
    logged = ["train_loss", "val_loss", "val_macro_f1"]
    pd.testing.assert_frame_equal(dual.log[logged], plain.log[logged])
    assert dual.log["contrast_loss"].isna().all()
    assert (dual.log["contrast_gradient_norm"] == 0).all()
    assert dual.record["facts"]["views_seen"] == plain.record["facts"]["views_seen"] == 5 * 12


def test_with_a_weight_the_same_labelled_images_come_in_the_same_order(tiny_dataset, tmp_path):
    dual, plain = (tuning_of(each, tiny_dataset, tmp_path) for each in (DUAL, FineTune(**LABELS, **STEPS)))
    for (ours, _), (theirs,) in zip(dual.draw(5), plain.draw(5), strict=True):
        assert torch.equal(ours, theirs)
        assert all(map(torch.equal, dual.labelled(ours), plain.labelled(theirs)))


def test_labels_of_images_outside_the_subset_never_reach_the_cross_entropy(tiny_dataset, run, tmp_path, monkeypatch):
    def poisoned(self, *args):
        original(self, *args)
        unlabelled = np.setdiff1d(self.dataset.rows("train"), self.train)
        assert len(unlabelled) > 15
        self.labels[unlabelled] = 10**6  # no class: an error if one is read

    original = LabelledData.__init__
    monkeypatch.setattr(LabelledData, "__init__", poisoned)
    (blind,) = new_store(tiny_dataset, tmp_path).get([DUAL])
    assert blind.weights.read_bytes() == run.weights.read_bytes()
    pd.testing.assert_frame_equal(blind.predictions, run.predictions)


def dark(rows):
    """`Dataset.images` with the images of these rows made black."""
    original = Dataset.images

    def images(self, image_size, **options):
        pictures = original(self, image_size, **options).copy()
        pictures[rows] = 0
        return pictures

    return images


def test_images_without_a_label_are_contrasted(tiny_dataset, run, tmp_path, monkeypatch):
    unlabelled = np.setdiff1d(tiny_dataset.rows("train"), LabelledData(tiny_dataset, DUAL).train)
    monkeypatch.setattr(Dataset, "images", dark(unlabelled))
    (other,) = new_store(tiny_dataset, tmp_path).get([DUAL])
    assert (other.log["contrast_loss"] - run.log["contrast_loss"]).abs().min() > 0.01


def test_test_images_change_no_weight_and_no_log(tiny_dataset, run, tmp_path, monkeypatch):
    monkeypatch.setattr(Dataset, "images", dark(tiny_dataset.rows("test")))
    (blind,) = new_store(tiny_dataset, tmp_path).get([DUAL])
    assert blind.weights.read_bytes() == run.weights.read_bytes()
    pd.testing.assert_frame_equal(blind.log.drop(columns="seconds"), run.log.drop(columns="seconds"))


@pytest.mark.parametrize("pool", ["all", "brain_planes"])
def test_the_pool_holds_the_images_of_training_patients_and_of_nobody_else(tiny_dataset, tmp_path, pool):
    settings = dataclasses.replace(DUAL, pool=pool)
    tuning = tuning_of(settings, tiny_dataset, tmp_path)
    rows = tiny_dataset.rows("train", None if pool == "all" else tiny_dataset.task(pool))
    np.testing.assert_array_equal(tuning.pool.images, tiny_dataset.images(32, progress=False)[rows])
    held_out = np.r_[tiny_dataset.rows("val"), tiny_dataset.rows("test")]
    assert not set(tiny_dataset.patients[rows]) & set(tiny_dataset.patients[held_out])


def test_other_images_of_a_patient_are_negatives_unless_masked(tiny_dataset, tmp_path):
    positions = torch.tensor([0, 1, 5, 40])
    assert tuning_of(DUAL, tiny_dataset, tmp_path).not_negatives(positions) is None
    masking = dataclasses.replace(DUAL, same_patient_negatives=False)
    masked = tuning_of(masking, tiny_dataset, tmp_path).not_negatives(positions)
    patients = tiny_dataset.patients[tiny_dataset.rows("train")][positions]
    expected = (patients[:, None] == patients[None]) & ~np.eye(4, dtype=bool)
    assert expected.any()
    np.testing.assert_array_equal(masked, expected)


# --- what it leaves ---


def test_the_log_has_both_losses_and_the_norms_of_both_gradients(run):
    assert list(run.log.columns) == ["epoch", "seconds", *DUAL_MEASURES, "val_loss", "val_macro_f1"]
    assert run.log["epoch"].tolist() == [1, 2, 3]
    assert (run.log[list(DUAL_MEASURES)] > 0).all(axis=None)


def test_the_record_counts_labels_pool_steps_and_the_views_of_both(run, tiny_dataset):
    facts, data = run.record["facts"], LabelledData(tiny_dataset, DUAL)
    assert facts["n_images"] == len(data.train)
    assert facts["n_pool_images"] == len(tiny_dataset.rows("train")) == 82
    assert facts["n_pool_patients"] == len(set(tiny_dataset.patients[tiny_dataset.rows("train")]))
    assert (facts["batch_size"], facts["contrastive_batch_size"]) == (12, 20)
    assert facts["optimiser_steps"] == 5
    assert facts["views_seen"] == 5 * (12 + 2 * 20)
    assert facts["val_macro_f1"] == run.log["val_macro_f1"].max()


def test_it_is_compared_with_fine_tuning_and_its_predictions_keep_the_contract(run, tiny_dataset):
    assert (DUAL.kind, DUAL.protocol) == ("dual_task", "fine_tune")
    check_predictions(run.predictions, tiny_dataset.task("planes").classes)
    assert len(run.predictions) == len(tiny_dataset.rows("test"))


def test_the_weights_are_the_classifiers_alone_and_its_encoder_has_moved(run):
    model = Classifier(START.encoder(), 6, seed=0)
    load_weights(model, run.weights)
    for name, parameter in START.encoder().named_parameters():
        assert not torch.equal(load_file(run.weights)[f"encoder.{name}"], parameter), name


def test_the_same_settings_give_the_same_weights_and_another_weight_others(tiny_dataset, run, tmp_path):
    torch.manual_seed(99)  # no global generator has a say
    again, other = new_store(tiny_dataset, tmp_path).get([DUAL, dataclasses.replace(DUAL, contrastive_weight=2.0)])
    assert again.weights.read_bytes() == run.weights.read_bytes()
    assert other.weights.read_bytes() != run.weights.read_bytes()


@pytest.mark.parametrize("n_steps_done", [1, 4])  # after an evaluation, and between two
def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one(
    tiny_dataset, run, tmp_path, monkeypatch, n_steps_done
):
    store, steps = new_store(tiny_dataset, tmp_path), []

    def killed(self, *batches):
        if len(steps) == n_steps_done:
            raise KeyboardInterrupt
        steps.append(batches)
        return original(self, *batches)

    original = DualTuning.train_batch
    with monkeypatch.context() as patch:
        patch.setattr(DualTuning, "train_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            store.get([DUAL])
    assert (store.folder(DUAL).with_suffix(".partial") / "checkpoint.pt").exists()
    (resumed,) = store.get([DUAL])
    assert resumed.weights.read_bytes() == run.weights.read_bytes()
    assert resumed.record["facts"] == run.record["facts"]
    pd.testing.assert_frame_equal(resumed.predictions, run.predictions)
    pd.testing.assert_frame_equal(resumed.log.drop(columns="seconds"), run.log.drop(columns="seconds"))


def test_what_is_kept_is_chosen_on_the_validation_patients(tiny_dataset, tmp_path, monkeypatch):
    def scored(self, epoch):
        states.append(copy.deepcopy(self.model.state_dict()))
        monkeypatch.setattr(self.data, "macro_f1", lambda rows, predicted: (0.1, 0.9, 0.2)[epoch])
        return original(self, epoch)

    states, original = [], FineTuning.validate
    monkeypatch.setattr(FineTuning, "validate", scored)
    (run,) = new_store(tiny_dataset, tmp_path).get([DUAL])
    assert run.record["facts"]["best_epoch"] == 2
    assert all(torch.equal(value, states[1][name]) for name, value in load_file(run.weights).items())


def test_three_labelled_images_in_a_class_and_a_batch_larger_than_the_pool_are_enough(tiny_dataset, store):
    settings = dataclasses.replace(
        DUAL, task="brain_planes", pool="brain_planes", label_fraction=0.1, contrastive_batch_size=4096
    )
    data = LabelledData(tiny_dataset, settings)
    assert np.bincount(data.labels[data.train]).min() <= 3
    (run,) = store.get([settings])
    facts = run.record["facts"]
    assert facts["contrastive_batch_size"] == facts["n_pool_images"]
    assert facts["n_images"] < facts["n_pool_images"]
    assert np.isfinite(run.predictions.filter(like="probability_").to_numpy()).all()


# --- what is refused ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"contrastive_weight": -1.0},
        {"contrastive_weight": float("nan")},
        {"contrastive_weight": float("inf")},
        {"contrastive_batch_size": 1},
        {"temperature": 0.0},
        {"projection_dim": 0},
        {"chunk_size": 1},
        {"n_steps": 2},  # fewer than the three evaluations
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name_before_the_run(store, wrong):
    ((name, value),) = wrong.items()
    settings = dataclasses.replace(DUAL, **wrong)
    with pytest.raises(ValueError, match=f"{name}={value}"):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


def test_an_unknown_pool_or_preset_of_views_is_refused_before_the_run(store):
    with pytest.raises(ValueError, match="hands"):
        store.get([dataclasses.replace(DUAL, pool="hands")])
    with pytest.raises(ValueError, match="blurry"):
        store.get([dataclasses.replace(DUAL, contrastive_augmentation="blurry")])
