"""Probes, fine-tuning and the dual task: which labels they see, what they leave, and each step by hand."""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from labelled_data import write_labelled_folder
from sklearn.linear_model import LogisticRegression

from fetal_utils import models, training
from fetal_utils.data import CSV_NAME, Dataset
from fetal_utils.evaluation import check_predictions
from fetal_utils.losses import nt_xent_loss
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.simclr import Pretrain
from fetal_utils.training import DualTask, FineTune, LinearProbe, dual_step, linear_probe, supervised_step

START = models.initial_weights(backbone="test_efficientnet", init="random", seed=1)
ABOUT = {"task": "planes", "strategy": "scratch"}
TUNED = FineTune(**ABOUT, source=START, image_size=32, n_views=96, batch_size=16, lr=2e-3)
CONTRAST = Pretrain(start=START, image_size=32, n_epochs=2, batch_size=20)
DUAL = DualTask(**ABOUT, source=START, image_size=32, n_views=96, lr=2e-3, contrast=CONTRAST)
PROBE = LinearProbe(**ABOUT, features=models.Features(source=START, image_size=32))
EVERY = pytest.mark.parametrize("settings", [TUNED, DUAL, PROBE], ids=["fine_tune", "dual_task", "linear_probe"])
TRAINED = pytest.mark.parametrize("settings", [TUNED, DUAL], ids=["fine_tune", "dual_task"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """80 official training images of 20 patients, of whom some are development patients, and 32 test images of 8."""
    return write_labelled_folder(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def store(dataset, tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("results"), dataset, device="cpu", progress=False)


def new_store(dataset, folder):
    return RunStore(folder, dataset, device="cpu", progress=False)


def probabilities(run):
    return run.predictions.filter(like="probability_")


# --- the labels that a run may see ---


@pytest.mark.parametrize("task", ["planes", "brain_planes"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_subsets_share_no_patient_and_every_class_is_labelled(dataset, task, fraction):
    labels = dataclasses.replace(TUNED, task=task, label_fraction=fraction).labels(dataset)
    groups = [set(dataset.patients[rows]) for rows in (labels.train, labels.development, labels.evaluated)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert labels.class_counts.min() >= 1
    assert labels.class_counts.sum() == len(labels.train)


def test_a_hidden_label_cannot_be_read(dataset):
    labels = dataclasses.replace(TUNED, label_fraction=0.3).labels(dataset)
    seen = np.concatenate([labels.train, labels.development, labels.evaluated])
    hidden = np.setdiff1d(dataset.rows("train"), labels.train)
    assert len(hidden) > 20
    assert (labels.codes[hidden] == -1).all()
    assert (labels.codes[seen] >= 0).all()


def test_a_trial_sees_no_label_of_a_test_image(dataset):
    labels = dataclasses.replace(TUNED, evaluate_on="development").labels(dataset)
    assert (labels.codes[dataset.rows("test")] == -1).all()
    np.testing.assert_array_equal(labels.evaluated, labels.development)


def test_a_draw_is_one_order_of_patients_for_every_task_strategy_and_seed(dataset):
    drawn = dataclasses.replace(TUNED, label_fraction=0.4, draw=3)
    patients = set(dataset.patients[drawn.labels(dataset).train])
    for same in ({"strategy": "imagenet"}, {"seed": 5}, {"task": "brain_planes"}):  # here every patient has all tasks
        assert set(dataset.patients[dataclasses.replace(drawn, **same).labels(dataset).train]) == patients
    n_chosen = math.ceil(0.4 * len(dataset.patient_order(3)))
    assert patients == set(dataset.patient_order(3)[:n_chosen])
    assert set(dataset.patients[dataclasses.replace(drawn, draw=4).labels(dataset).train]) != patients


def test_class_weights_by_hand():
    codes = np.array([0, 0, 0, 1, 2, 2, -1])
    labels = training.Labels(("a", "b", "c"), np.arange(6), np.array([], int), np.array([], int), codes)
    # 6 images, 3 classes: 6 / (3 * 3), 6 / (3 * 1), 6 / (3 * 2)
    assert labels.class_weights().tolist() == pytest.approx([2 / 3, 2, 1])
    assert math.isnan(labels.development_macro_f1(lambda rows: rows))


def test_macro_f1_by_hand_is_over_the_classes_that_the_development_images_have():
    labels = training.Labels(("a", "b", "c"), np.array([], int), np.arange(4), np.arange(4), np.array([0, 0, 1, 1]))
    # class a: precision 1, recall 1/2, F1 2/3; class b: precision 2/3, recall 1, F1 4/5
    assert labels.development_macro_f1(lambda rows: np.eye(3)[[0, 1, 1, 1]]) == pytest.approx((2 / 3 + 4 / 5) / 2)


# --- what every run leaves ---


@EVERY
def test_predictions_and_record_keep_the_contract(store, settings):
    (run,) = store.get([settings])
    facts, table = run.record["facts"], store.dataset.metadata
    check_predictions(run.predictions, facts["classes"])
    assert list(probabilities(run)) == [f"probability_{name}" for name in facts["classes"]]
    test = table[table["subset"] == "test"]
    for column in ("image_name", "operator", "machine"):
        assert run.predictions[column].tolist() == test[column].tolist()
    assert run.predictions["true"].tolist() == test["plane"].tolist()
    train = table[table["subset"] == "train"]
    assert facts["n_images"] == len(train) == sum(facts["class_counts"])
    assert facts["n_patients"] == train["patient"].nunique()
    assert facts["n_test_images"] == len(test)
    assert facts["views_seen"] == settings.cost(store.dataset)["views"]


@EVERY
def test_test_labels_change_no_probability(dataset, store, tmp_path, settings):
    (tmp_path / "Images").symlink_to(dataset.data_dir / "Images")
    table = pd.read_csv(dataset.data_dir / CSV_NAME, sep=";", dtype=str)
    test = np.flatnonzero(table["Train "].str.strip() == "0")
    columns = ["Plane", "Brain_plane"]
    table.loc[test, columns] = table.loc[np.roll(test, 1), columns].to_numpy()
    table.to_csv(tmp_path / CSV_NAME, sep=";", index=False)
    moved = dataclasses.replace(dataset, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    (run,), (other,) = store.get([settings]), new_store(moved, tmp_path / "results").get([settings])
    assert (run.predictions["true"] != other.predictions["true"]).any()
    pd.testing.assert_frame_equal(probabilities(other), probabilities(run))


@EVERY
def test_development_images_are_watched_and_nothing_follows(dataset, store, tmp_path, monkeypatch, settings):
    def dark(self, image_size, **options):
        images = original(self, image_size, **options).copy()
        images[self.rows("development")] = 0
        return images

    (run,), original = store.get([settings]), Dataset.images
    monkeypatch.setattr(Dataset, "images", dark)
    (other,) = new_store(dataset, tmp_path).get([settings])
    pd.testing.assert_frame_equal(other.predictions, run.predictions)
    watched = [one.record["facts"]["development_macro_f1"] for one in (run, other)]
    assert settings is not PROBE or watched[0] > watched[1]  # the others have hardly learned anything yet


@EVERY
def test_a_trial_predicts_development_patients_by_the_same_network(dataset, store, settings):
    (run,), (trial,) = store.get([settings]), store.get([dataclasses.replace(settings, evaluate_on="development")])
    assert trial.folder != run.folder
    assert trial.predictions["image_name"].isin(dataset.metadata["image_name"][dataset.rows("development")]).all()
    facts = trial.record["facts"]
    assert facts["n_test_images"] == 0
    assert facts["development_macro_f1"] == run.record["facts"]["development_macro_f1"]


@EVERY
def test_classes_of_different_brightness_are_told_apart(store, settings):
    # 80 steps: BatchNorm's running statistics have forgotten what they began with
    changes = {} if settings is PROBE else {"n_views": 80 * 16, "augmentation": "none"}
    if settings is DUAL:
        changes["contrast"] = dataclasses.replace(CONTRAST, n_epochs=10, batch_size=8, augmentation="none")
    (run,) = store.get([dataclasses.replace(settings, task="brain_planes", **changes)])
    assert (run.predictions["predicted"] == run.predictions["true"]).mean() > 0.9


@EVERY
def test_one_to_three_labelled_images_in_a_class_are_enough(store, settings):
    (run,) = store.get([dataclasses.replace(settings, task="brain_planes", label_fraction=0.1)])
    assert min(run.record["facts"]["class_counts"]) <= 3
    assert np.isfinite(probabilities(run).to_numpy()).all()


WRONG = {"label_fraction": 0.0, "draw": -1, "seed": -1, "evaluate_on": "train", "task": "hands", "batch_size": 1}
WRONG |= {"n_views": 8, "lr": -1.0, "weight_decay": -1.0, "warmup_fraction": 1.0, "image_size": 4}
WRONG |= {"augmentation": "blurry", "contrastive_weight": math.inf}


@pytest.mark.parametrize(("name", "value"), WRONG.items(), ids=WRONG)
def test_settings_that_make_no_sense_are_refused_by_name_before_the_run(store, name, value):
    settings = dataclasses.replace(DUAL, **{name: value})
    with pytest.raises(ValueError, match=name):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


# --- linear probe ---


@pytest.fixture(scope="module")
def blobs():
    """30 images of 15 patients, three classes, in 50 dimensions."""
    labels, patients = np.arange(30) % 3, np.arange(30) // 2
    features = np.random.default_rng(0).normal(size=(30, 50))
    features[:, :3] += 2 * np.eye(3)[labels]
    return features, labels, patients


def test_a_probe_in_the_span_of_its_images_is_the_probe_of_all_features(blobs):
    features, labels, patients = blobs
    probe, log = linear_probe(features, labels, patients)
    plain = LogisticRegression(C=probe.C, class_weight="balanced", max_iter=1000, tol=1e-8).fit(features, labels)
    others = np.random.default_rng(1).normal(size=(10, 50))
    np.testing.assert_allclose(probe.predict_proba(others), plain.predict_proba(others), atol=2e-3)
    assert log["C"][log["macro_f1"].idxmax()] == probe.C


def test_folds_are_of_patients():
    patients = np.repeat(np.arange(12), 4)
    labels = patients % 2
    _, log = linear_probe(np.eye(12)[patients], labels, patients)  # the features know the patient and nothing else
    assert log["macro_f1"].max() < 0.6


def test_features_are_standardised_by_the_rows_given_and_a_constant_does_no_harm():
    features = np.array([[1.0, 7.0], [3.0, 7.0], [9.0, 7.0]], dtype=np.float32)
    # of the first two rows: mean 2, deviation 1
    assert training.standardise(features, np.array([0, 1])).tolist() == [[-1, 0], [1, 0], [7, 0]]


def test_a_probe_standardises_by_all_training_images(store):
    few = dataclasses.replace(PROBE, label_fraction=0.2)
    (run,) = store.get([few])
    labels, features = few.labels(store.dataset), np.asarray(few.features.load(store), dtype=float)
    pool = features[store.dataset.rows("train")]
    x = (features - pool.mean(0)) / pool.std(0)
    fit = LogisticRegression(C=run.record["facts"]["C"], class_weight="balanced", max_iter=1000)
    by_hand = fit.fit(x[labels.train], labels.codes[labels.train]).predict_proba(x[labels.evaluated])
    np.testing.assert_allclose(probabilities(run), by_hand, atol=2e-3)


# --- fine-tuning ---


def test_the_loss_by_hand_does_not_depend_on_what_else_is_in_the_batch():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    weights = torch.tensor([2.0, 0.5])
    # weight 2 * log 4 for the first of class 0; 0.5 * log 2 for the second of class 1; halved
    loss = training.classification_loss(logits, torch.tensor([0, 1]), class_weights=weights)
    assert loss.item() == pytest.approx((2 * math.log(4) + 0.5 * math.log(2)) / 2)
    alone = training.classification_loss(logits[:1], torch.tensor([0]), class_weights=weights)
    assert alone.item() == pytest.approx(2 * math.log(4))


@TRAINED
def test_steps_and_views_are_the_same_at_every_fraction(store, settings):
    few, all_labels = store.get([dataclasses.replace(settings, label_fraction=f) for f in (0.1, 1.0)])
    for name in ("optimizer_steps", "labelled_batch", "views_seen"):
        assert few.record["facts"][name] == all_labels.record["facts"][name]
    assert few.record["facts"]["n_images"] < few.record["facts"]["labelled_batch"] * 2
    assert all_labels.log["lr"].iloc[-1] == pytest.approx(0, abs=1e-9)


@TRAINED
def test_the_classifier_of_a_run_gives_its_predictions(store, dataset, settings):
    (run,) = store.get([settings])
    images = torch.tensor(dataset.images(32, progress=False)[dataset.rows("test")]).unsqueeze(1) / 255
    mean, std = models.normalisation(START.encoder())
    with torch.no_grad():
        logits = settings.classifier(store)((images - mean) / std)
    np.testing.assert_allclose(probabilities(run), logits.softmax(1).numpy(), atol=1e-4)
    assert len(run.log) == min(8, run.record["facts"]["optimizer_steps"])


@TRAINED
def test_an_interrupted_run_ends_like_one_that_was_not(dataset, store, tmp_path, monkeypatch, settings):
    def interrupted(*arguments, **options):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(1)
        return original(*arguments, **options)

    steps, other = [], new_store(dataset, tmp_path)
    name = "dual_step" if settings is DUAL else "supervised_step"
    original = getattr(training, name)
    with monkeypatch.context() as patch:
        patch.setattr(training, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.get([settings])
    (run,), (resumed,) = store.get([settings]), other.get([settings])
    assert len(steps) == 3
    assert resumed.weights.read_bytes() == run.weights.read_bytes()
    pd.testing.assert_frame_equal(resumed.log.drop(columns="seconds"), run.log.drop(columns="seconds"))


@TRAINED
def test_a_training_that_diverges_fails_and_names_the_remedy(store, settings):
    with pytest.raises(RunsFailedError, match=r"FloatingPointError: the loss is (nan|inf).*lower lr"):
        store.get([dataclasses.replace(settings, lr=1e36)])


def test_memory_that_runs_out_names_what_to_change(store, monkeypatch):
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "supervised_step", exhausted)
    monkeypatch.setattr(training, "dual_step", exhausted)
    for settings in (TUNED, DUAL):
        with pytest.raises(RunsFailedError, match="out of memory; make batch_size, chunk_size or image_size smaller"):
            store.get([dataclasses.replace(settings, seed=9)])


@pytest.mark.parametrize("batch_size", [2, 64])
def test_batches_of_two_and_batches_larger_than_the_subset_are_safe(store, batch_size):
    settings = dataclasses.replace(TUNED, batch_size=batch_size, n_views=128, label_fraction=0.1)
    (run,) = store.get([settings])
    assert np.isfinite(probabilities(run).to_numpy()).all()
    assert run.record["facts"]["optimizer_steps"] == 128 // batch_size


# --- dual task ---


@pytest.fixture
def parts():
    """A classifier and a projection head on one encoder, their optimizer, labelled images and two views of others."""
    model = models.Classifier(models.build_encoder("test_efficientnet", init="random", seed=0), 3, seed=0)
    head = models.ProjectionHead(model.head.in_features, projection_dim=16, seed=0)
    optimizer = models.build_optimizer(torch.nn.ModuleList([model, head]), lr=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    images, view_a, view_b = (torch.rand(n, 1, 32, 32, generator=generator) for n in (6, 8, 8))
    given = {"images": images, "labels": torch.tensor([0, 1, 2, 0, 1, 2]), "view_a": view_a, "view_b": view_b}
    return model, given | {"projection_head": head, "optimizer": optimizer}


OPTIONS = {"class_weights": torch.tensor([0.5, 1.0, 2.0]), "temperature": 0.2}


def test_a_dual_step_without_weight_is_a_supervised_step_to_the_last_bit(parts):
    model, given = parts
    alone = copy.deepcopy(model)
    own = models.build_optimizer(torch.nn.ModuleList([alone]), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        loss = supervised_step(alone, own, given["images"], given["labels"], class_weights=OPTIONS["class_weights"])
        both = dual_step(model, **given, contrastive_weight=0.0, **OPTIONS)
        assert both[0] == loss
    trained = model.state_dict()
    for name, tensor in alone.state_dict().items():  # BatchNorm's running statistics among them
        assert torch.equal(tensor, trained[name]) or name.endswith("num_batches_tracked"), name


def test_losses_and_gradient_norms_of_a_dual_step_by_hand(parts):
    model, given = parts
    copied, copied_head = copy.deepcopy(model).train(), copy.deepcopy(given["projection_head"]).train()
    weights = OPTIONS["class_weights"]
    loss = F.cross_entropy(copied(given["images"]), given["labels"], weight=weights, reduction="sum") / 6
    z_a, z_b = copied_head(copied.encoder(torch.cat([given["view_a"], given["view_b"]]))).chunk(2)
    contrastive_loss = nt_xent_loss(z_a, z_b, temperature=0.2)
    parameters = list(copied.encoder.parameters())
    gradients = [torch.autograd.grad(part, parameters) for part in (loss, 0.3 * contrastive_loss)]
    norms = [torch.cat([g.flatten() for g in own]).norm().item() for own in gradients]
    found = dual_step(model, **given, contrastive_weight=0.3, **OPTIONS)
    assert found.tolist() == pytest.approx([loss.item(), contrastive_loss.item(), *norms], rel=1e-4)


def test_a_dual_task_without_weight_is_a_fine_tuning_of_as_many_steps_and_views(store):
    (dual,) = store.get([dataclasses.replace(DUAL, contrastive_weight=0.0)])
    n_steps, batch_size = DUAL.steps(store.dataset)
    (tuned,) = store.get([dataclasses.replace(TUNED, n_views=n_steps * batch_size, batch_size=batch_size)])
    pd.testing.assert_frame_equal(dual.predictions, tuned.predictions)
    assert dual.log["development_macro_f1"].tolist() == tuned.log["development_macro_f1"].tolist()


def test_a_dual_task_has_the_steps_and_views_of_its_pretraining_and_does_not_run_it(store):
    (run,) = store.get([DUAL])
    facts, n_steps = run.record["facts"], 2 * (len(store.dataset.rows("train")) // 20)
    assert facts["optimizer_steps"] == n_steps
    assert facts["labelled_batch"] == round(96 / n_steps)
    assert dataclasses.replace(DUAL, n_views=32).steps(store.dataset)[1] == 8  # never fewer
    assert facts["views_seen"] == 2 * 20 * n_steps + facts["labelled_batch"] * n_steps
    assert not store.has(CONTRAST)
    assert {"loss", "contrastive_loss", "gradient_norm", "contrastive_gradient_norm"} <= set(run.log)


def test_a_dual_task_may_follow_a_pretraining_and_mask_images_of_one_patient(store):
    contrast = dataclasses.replace(CONTRAST, same_patient_negatives=False)
    first = dataclasses.replace(CONTRAST, n_epochs=1)
    settings = dataclasses.replace(DUAL, source=first, contrast=contrast)
    (run,) = store.get([settings])
    assert settings.dependencies() == [first]
    assert store.has(first)
    assert run.record["facts"]["pool"]["n_pool_labels"] == 0
