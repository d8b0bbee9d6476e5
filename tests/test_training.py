"""Linear probes and fine-tuning; the network is timm's smallest, at 32 px."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from fetal_utils.data import CSV_NAME
from fetal_utils.dataset import Dataset
from fetal_utils.encoders import Features, InitialWeights
from fetal_utils.fine_tuning import FineTuning, softmax, steps_of_epochs
from fetal_utils.models import Classifier
from fetal_utils.optimisers import build_optimiser, parameter_groups
from fetal_utils.predictions import check_predictions
from fetal_utils.probes import PROBE_STRENGTHS, choose_probe, fit_probe
from fetal_utils.runs import RunsFailedError, RunStore, Work
from fetal_utils.simclr import Pretrain
from fetal_utils.supervised import LabelledData
from fetal_utils.training import FineTune, LinearProbe
from fetal_utils.weights import load_weights

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
ABOUT = {"task": "planes", "strategy": "scratch"}
FINE_TUNE = FineTune(**ABOUT, source=START, image_size=32, n_steps=7, n_evaluations=3, batch_size=16, lr=2e-3)
PROBE = LinearProbe(**ABOUT, features=Features(source=START, image_size=32))
BOTH = pytest.mark.parametrize("settings", [FINE_TUNE, PROBE], ids=["fine_tune", "linear_probe"])


def new_store(dataset, folder):
    return RunStore(folder, dataset, device="cpu", progress=False)


def probabilities(run):
    return run.predictions.filter(like="probability_")


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return new_store(tiny_dataset, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def tuned(store):
    return store.get([FINE_TUNE])[0]


@pytest.fixture(scope="module")
def shuffled_test_labels(tiny_dataset, tmp_path_factory):
    """The tiny phantom with the labels of its test images exchanged among each other."""
    folder = tmp_path_factory.mktemp("shuffled")
    (folder / "Images").symlink_to(tiny_dataset.data_dir / "Images")
    table = pd.read_csv(tiny_dataset.data_dir / CSV_NAME, sep=";", dtype=str)
    test = np.flatnonzero(table["Train "].str.strip() == "0")
    order = np.random.default_rng(0).permutation(test)
    labels = ["Plane", "Brain_plane"]
    table.loc[test, labels] = table.loc[order, labels].to_numpy()
    table.to_csv(folder / CSV_NAME, sep=";", index=False)
    return dataclasses.replace(tiny_dataset, data_dir=folder)


# --- what both protocols keep ---


@BOTH
def test_test_labels_change_no_probability(store, shuffled_test_labels, tmp_path, settings):
    (run,) = store.get([settings])
    (shuffled,) = new_store(shuffled_test_labels, tmp_path).get([settings])
    assert (run.predictions["true"] != shuffled.predictions["true"]).sum() > 20
    pd.testing.assert_frame_equal(probabilities(shuffled), probabilities(run))
    pd.testing.assert_frame_equal(
        shuffled.log.drop(columns="seconds", errors="ignore"), run.log.drop(columns="seconds", errors="ignore")
    )


@BOTH
def test_only_the_labels_of_the_subset_and_of_the_validation_patients_are_seen(
    tiny_dataset, store, tmp_path, monkeypatch, settings
):
    def blind(self, *args):
        original(self, *args)
        hidden = np.setdiff1d(np.arange(len(self.labels)), np.r_[self.train, self.val, self.test])
        assert len(hidden) > 10
        self.labels[hidden] = -1  # no class: an error if one is read

    original = LabelledData.__init__
    few = dataclasses.replace(settings, label_fraction=0.1)
    (expected,) = store.get([few])
    monkeypatch.setattr(LabelledData, "__init__", blind)
    (run,) = new_store(tiny_dataset, tmp_path).get([few])
    pd.testing.assert_frame_equal(run.predictions, expected.predictions)


@BOTH
def test_images_without_a_label_and_test_images_change_no_log(tiny_dataset, store, tmp_path, monkeypatch, settings):
    def dark(self, image_size, **options):
        images = original(self, image_size, **options).copy()
        images[np.setdiff1d(np.arange(len(images)), seen)] = 0
        return images

    few = dataclasses.replace(settings, label_fraction=0.1)
    data = LabelledData(tiny_dataset, few)
    seen = np.r_[data.train, data.val]
    (expected,) = store.get([few])
    original = Dataset.images
    monkeypatch.setattr(Dataset, "images", dark)
    (run,) = new_store(tiny_dataset, tmp_path).get([few])
    assert not probabilities(run).equals(probabilities(expected))
    scores = [column for column in run.log if column != "seconds"]
    np.testing.assert_allclose(run.log[scores], expected.log[scores], rtol=1e-6)


@BOTH
def test_predictions_and_record_keep_the_contract(store, settings):
    (run,) = store.get([settings])
    facts = run.record["facts"]
    check_predictions(run.predictions, facts["classes"])
    assert list(probabilities(run).columns) == [f"probability_{name}" for name in facts["classes"]]
    assert probabilities(run).sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    table = store.dataset.metadata
    assert run.predictions["image_name"].tolist() == table["image_name"][table["subset"] == "test"].tolist()
    assert facts["n_images"] == (table["subset"] == "train").sum()
    assert facts["n_patients"] == table["patient"][table["subset"] == "train"].nunique()
    assert facts["n_val_images"] == (table["subset"] == "val").sum()
    assert facts["val_macro_f1"] == pytest.approx(run.log["val_macro_f1"].max())


@BOTH
def test_classes_with_one_to_three_labelled_images_are_learned_too(store, settings):
    few = dataclasses.replace(settings, label_fraction=0.1)
    data = LabelledData(store.dataset, few)
    counts = np.bincount(data.labels[data.train])
    assert 1 <= counts.min() <= 3
    (run,) = store.get([few])
    assert np.isfinite(probabilities(run).to_numpy()).all()


@BOTH
def test_the_same_settings_give_the_same_predictions(tiny_dataset, store, tmp_path, settings):
    torch.manual_seed(4321)  # no global generator has a say
    (run,), (again,) = store.get([settings]), new_store(tiny_dataset, tmp_path).get([settings])
    pd.testing.assert_frame_equal(again.predictions, run.predictions)


@BOTH
def test_planes_that_differ_in_brightness_are_told_apart(tiny_dataset, tmp_path, monkeypatch, settings):
    def by_class(self, image_size, **options):
        images = np.random.default_rng(0).integers(0, 56, size=(len(labels), image_size, image_size))
        return (images + 100 * (labels.clip(0) % 3)[:, None, None]).astype(np.uint8)

    easy = dataclasses.replace(settings, task="brain_planes")
    if easy.kind == "fine_tune":
        easy = dataclasses.replace(easy, n_steps=40, n_evaluations=4, augmentation="none")
    labels = LabelledData(tiny_dataset, easy).labels
    monkeypatch.setattr(Dataset, "images", by_class)
    (run,) = new_store(tiny_dataset, tmp_path).get([easy])
    assert (run.predictions["predicted"] == run.predictions["true"]).mean() > 0.9


# --- linear probe ---


@pytest.fixture(scope="module")
def two_groups():
    """Features of 40 images, two classes 3 apart in the first of 5 numbers; 20 train, 10 validate, 10 test."""
    labels = np.tile([0, 1], 20)
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    features[:, 0] += 3 * labels
    rows = np.split(np.arange(40), [20, 30])
    return features, SimpleNamespace(labels=labels, train=rows[0], val=rows[1], test=rows[2])


@pytest.mark.parametrize(
    ("scores", "chosen"), [([0.1, 0.2, 0.9, 0.3, 0.9, 0.1], 2), ([0.5] * 6, 0), ([0, 0, 0, 0, 0, 1], 5)]
)
def test_a_probe_takes_the_strength_with_the_best_validation_score_and_the_strongest_of_equals(
    two_groups, scores, chosen
):
    features, data = two_groups
    asked, remaining = [], list(scores)

    def macro_f1(rows, predicted):
        asked.append(rows)
        return remaining.pop(0)

    probe, log = choose_probe(features, SimpleNamespace(**vars(data) | {"macro_f1": macro_f1}))
    assert PROBE_STRENGTHS.index(probe[-1].C) == chosen
    assert log["val_macro_f1"].tolist() == scores
    assert all(rows is data.val for rows in asked)


def test_strengths_rise_from_strong_to_weak_regularisation():
    np.testing.assert_allclose(PROBE_STRENGTHS, [1e-4, 1e-3, 1e-2, 1e-1, 1, 10])


def test_a_probe_separates_what_a_line_separates(two_groups):
    features, data = two_groups
    probe = fit_probe(features[data.train], data.labels[data.train], strength=1.0)
    assert probe.score(features[data.test], data.labels[data.test]) >= 0.9


def test_a_probe_standardises_by_the_labelled_images_alone(two_groups):
    features, data = two_groups
    train = features[data.train].astype(float)
    probe = fit_probe(train, data.labels[data.train], strength=1.0)
    scaled = (features.astype(float) - train.mean(0)) / train.std(0)
    by_hand = LogisticRegression(class_weight="balanced").fit(scaled[data.train], data.labels[data.train])
    np.testing.assert_allclose(probe.predict_proba(features), by_hand.predict_proba(scaled), atol=1e-3)


def test_a_constant_feature_does_no_harm(two_groups):
    features, data = two_groups
    features = np.c_[features, np.ones(40, dtype=np.float32)]
    probe = fit_probe(features[data.train], data.labels[data.train], strength=1.0)
    assert np.isfinite(probe.predict_proba(features)).all()


def test_a_probe_leaves_the_weights_of_a_pretraining_as_they_were(store):
    pretraining = Pretrain(start=START, image_size=32, n_epochs=1, batch_size=40)
    (pretrained,) = store.get([pretraining])
    before = pretrained.weights.read_bytes()
    store.get([dataclasses.replace(PROBE, features=Features(source=pretraining, image_size=32))])
    assert pretrained.weights.read_bytes() == before


# --- fine-tuning ---


def test_steps_of_the_epochs_are_even_and_sum_to_the_budget():
    assert steps_of_epochs(7, 3) == [2, 2, 3]
    assert steps_of_epochs(200, 10) == [20] * 10
    for n_steps in range(1, 60):
        for n_evaluations in range(1, n_steps + 1):
            steps = steps_of_epochs(n_steps, n_evaluations)
            assert sum(steps) == n_steps
            assert min(steps) >= 1


def test_the_budget_is_steps_whatever_the_number_of_labels(store, tuned):
    (few,) = store.get([dataclasses.replace(FINE_TUNE, label_fraction=0.1)])
    for run in (tuned, few):
        facts = run.record["facts"]
        assert facts["optimiser_steps"] == 7
        assert facts["batch_size"] == 16
        assert facts["views_seen"] == 7 * 16
        assert run.log["epoch"].tolist() == [1, 2, 3]
    assert few.record["facts"]["n_images"] < tuned.record["facts"]["n_images"]


def test_the_weights_and_predictions_are_those_of_the_best_epoch(tiny_dataset, tmp_path, monkeypatch):
    def scored(self, epoch):
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        monkeypatch.setattr(self.data, "macro_f1", lambda rows, predicted: (0.1, 0.9, 0.9)[epoch])
        return original(self, epoch)

    states, original = [], FineTuning.validate
    monkeypatch.setattr(FineTuning, "validate", scored)
    store = new_store(tiny_dataset, tmp_path)
    (run,) = store.get([FINE_TUNE])
    assert run.record["facts"]["best_epoch"] == 2
    saved = load_file(run.weights)
    assert all(torch.equal(value, states[1][name]) for name, value in saved.items())
    assert not all(torch.equal(value, states[2][name]) for name, value in saved.items())
    model = Classifier(START.encoder(), 6, seed=0)
    load_weights(model, run.weights)
    images = torch.tensor(tiny_dataset.images(32, progress=False)[tiny_dataset.rows("test")]).unsqueeze(1) / 255
    with torch.no_grad():
        logits = model.eval()((images - 0.449) / 0.226)  # ImageNet's mean and deviation, over the channels
    np.testing.assert_allclose(probabilities(run), logits.softmax(1).numpy(), atol=1e-4)


def test_fine_tuning_changes_every_layer_and_its_start_not_at_all(tuned):
    weights, start = load_file(tuned.weights), START.encoder()
    for name, parameter in start.named_parameters():
        assert not torch.equal(weights[f"encoder.{name}"], parameter), name


@pytest.mark.parametrize("batch_size", [2, 3, 4096])
def test_batches_of_two_and_batches_larger_than_the_subset_are_safe(store, batch_size):
    settings = dataclasses.replace(FINE_TUNE, task="brain_planes", batch_size=batch_size, label_fraction=0.3)
    (run,) = store.get([settings])
    facts = run.record["facts"]
    assert facts["batch_size"] == min(batch_size, facts["n_images"])
    assert np.isfinite(probabilities(run).to_numpy()).all()
    assert np.isfinite(run.log[["train_loss", "val_loss"]].to_numpy()).all()


def test_a_fine_tuning_that_diverges_fails_and_names_its_step(store):
    with pytest.raises(RunsFailedError, match=r"FloatingPointError: the loss is (nan|inf) at step \d: .*lower lr"):
        store.get([dataclasses.replace(FINE_TUNE, lr=1e36)])


@pytest.mark.parametrize("n_steps_done", [2, 3, 6])  # after an evaluation, and between two
def test_a_killed_and_resumed_fine_tuning_ends_like_an_uninterrupted_one(
    tiny_dataset, tuned, tmp_path, monkeypatch, n_steps_done
):
    store, steps = new_store(tiny_dataset, tmp_path), []

    def killed(self, batch):
        if len(steps) == n_steps_done:
            raise KeyboardInterrupt
        steps.append(batch)
        return original(self, batch)

    original = FineTuning.train_batch
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "train_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            store.get([FINE_TUNE])
    assert (store.folder(FINE_TUNE).with_suffix(".partial") / "checkpoint.pt").exists()
    (resumed,) = store.get([FINE_TUNE])
    assert resumed.weights.read_bytes() == tuned.weights.read_bytes()
    assert resumed.record["facts"] == tuned.record["facts"]
    pd.testing.assert_frame_equal(resumed.predictions, tuned.predictions)
    pd.testing.assert_frame_equal(resumed.log.drop(columns="seconds"), tuned.log.drop(columns="seconds"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_steps": 2},  # fewer than the three evaluations
        {"n_evaluations": 0},
        {"batch_size": 1},
        {"lr": -1.0},
        {"weight_decay": -1.0},
        {"warmup_fraction": 1.0},
        {"image_size": 4},
        {"label_fraction": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name_before_the_run(store, wrong):
    ((name, value),) = wrong.items()
    settings = dataclasses.replace(FINE_TUNE, **wrong)
    with pytest.raises(ValueError, match=f"{name}={value}"):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


def test_an_unknown_augmentation_is_refused_before_the_run(store):
    with pytest.raises(ValueError, match="blurry"):
        store.get([dataclasses.replace(FINE_TUNE, augmentation="blurry")])


def test_softmax_by_hand_and_without_overflow():
    rows = softmax(np.array([[0.0, np.log(3.0)], [1000.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(rows, [[0.25, 0.75], [1.0, 0.0]], atol=1e-7)
    assert rows.sum(1).tolist() == [1.0, 1.0]


# --- rates of encoder and classifier ---


def rates_of(optimiser, module):
    """Learning rates of a module's parameters in an optimiser."""
    own = set(module.parameters())
    return {group["lr"] for group in optimiser.param_groups for p in group["params"] if p in own}


def tuning_of(settings, dataset, folder):
    store = new_store(dataset, folder)
    return settings.begin(Work(folder=folder, dataset=dataset, store=store, device=store.device))


def test_head_lr_factor_scales_the_rate_of_the_linear_layer_alone_at_every_step(tiny_dataset, tmp_path):
    settings = dataclasses.replace(FINE_TUNE, head_lr_factor=10.0, warmup_fraction=0.5)
    tuning = tuning_of(settings, tiny_dataset, tmp_path)
    seen = []
    for _ in range(settings.n_steps):
        (of_encoder,), (of_head,) = (
            rates_of(tuning.optimiser, part) for part in (tuning.model.encoder, tuning.model.head)
        )
        assert of_head == pytest.approx(10 * of_encoder)
        seen.append(of_encoder)
        tuning.optimiser.step()
        tuning.schedule.step()
    # a warm-up of 3 of the 7 steps, then the cosine over the other 4
    cosine = [(1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)]
    assert seen == pytest.approx([FINE_TUNE.lr * share for share in (1 / 3, 2 / 3, 1, *cosine)])


def test_each_parameter_is_in_one_group_and_the_head_keeps_its_rules_of_weight_decay():
    model = Classifier(START.encoder(), 3, seed=0)
    groups = parameter_groups(model, weight_decay=0.1, head=model.head, head_lr_factor=5.0)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, model.parameters()))
    assert [(group["lr_factor"], group["weight_decay"]) for group in groups] == [(1, 0.1), (1, 0), (5, 0.1), (5, 0)]
    assert [len(group["params"]) for group in groups[2:]] == [1, 1]
    assert groups[2]["params"][0] is model.head.weight
    assert groups[3]["params"][0] is model.head.bias


def test_one_step_of_sgd_moves_the_head_by_factor_times_rate_times_gradient():
    module = nn.ModuleDict({"body": nn.Linear(1, 1, bias=False), "head": nn.Linear(1, 1, bias=False)})
    for part in module.values():
        nn.init.constant_(part.weight, 1.0)
    optimiser = build_optimiser(module, lr=0.1, weight_decay=0.0, name="sgd", head=module["head"], head_lr_factor=3.0)
    (0.5 * module["body"].weight + 0.5 * module["head"].weight).sum().backward()
    optimiser.step()
    assert module["body"].weight.item() == pytest.approx(1 - 0.1 * 0.5)
    assert module["head"].weight.item() == pytest.approx(1 - 3 * 0.1 * 0.5)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_no_rate_is_refused_by_name(tiny_dataset, factor):
    with pytest.raises(ValueError, match=f"head_lr_factor={factor}"):
        dataclasses.replace(FINE_TUNE, head_lr_factor=factor).check(tiny_dataset)
