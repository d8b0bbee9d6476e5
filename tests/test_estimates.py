"""What runs cost before they run, against what their records then say."""

import dataclasses

import pandas as pd
import pytest
import torch

from fetal_utils import estimates
from fetal_utils.budgets import Budget
from fetal_utils.dual_task import DualTask
from fetal_utils.encoders import Features, InitialWeights
from fetal_utils.estimates import RUN_SECONDS, Speed, count_runs, estimate, measure_speed
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain
from fetal_utils.training import FineTune, LinearProbe
from fetal_utils.unlabelled import open_unlabelled

START = InitialWeights(backbone="test_efficientnet", init="random", seed=0)
PRETRAIN = Pretrain(start=START, image_size=32, n_epochs=2, batch_size=32)
ASKED = {"task": "planes", "strategy": "any"}
FINE_TUNE = {**ASKED, "source": START, "image_size": 32, "n_steps": 3, "n_evaluations": 2, "batch_size": 16}


@pytest.fixture
def store(tiny_dataset, tmp_path) -> RunStore:
    return RunStore(tmp_path, tiny_dataset, device="cpu", progress=False)


@pytest.mark.parametrize(
    "settings",
    [
        PRETRAIN,
        dataclasses.replace(PRETRAIN, batch_size=4096),
        FineTune(**FINE_TUNE),
        FineTune(**FINE_TUNE | {"batch_size": 512}, label_fraction=0.5),
        DualTask(**FINE_TUNE, contrastive_batch_size=20),
        DualTask(**FINE_TUNE, contrastive_batch_size=4096),
        DualTask(**FINE_TUNE, contrastive_weight=0.0),
    ],
    ids=["simclr", "simclr-large-batch", "fine-tune", "few-labels", "dual", "dual-large-batch", "dual-no-weight"],
)
def test_a_budget_is_what_the_record_counts_afterwards(store, settings):
    budget = settings.budget(store.dataset)
    (run,) = store.get([settings])
    counted = {name: run.record["facts"][name] for name in ("optimiser_steps", "views_seen")}
    assert counted == {"optimiser_steps": budget.optimiser_steps, "views_seen": budget.views_seen}
    assert (budget.backbone, budget.image_size) == ("test_efficientnet", 32)


def test_a_fine_tuning_encodes_the_validation_images_at_each_look_and_the_test_images_once(store):
    # 12 validation and 80 test images
    assert FineTune(**FINE_TUNE).budget(store.dataset).images_encoded == 2 * 12 + 80


def test_features_encode_every_image_and_a_probe_has_no_network(store):
    features = Features(source=START, image_size=32)
    assert features.budget(store.dataset).images_encoded == len(store.dataset.metadata) == 174
    assert LinearProbe(**ASKED, features=features).budget(store.dataset) == Budget()


def test_further_images_count_without_those_of_held_out_patients(tiny_phantom, store):
    # every image of the phantom once more, of which those of its 82 training images are taken: 164 in all
    settings = dataclasses.replace(PRETRAIN, batch_size=20, extra_images=open_unlabelled(tiny_phantom / "Images"))
    assert settings.budget(store.dataset).optimiser_steps == 2 * (164 // 20)


def test_every_run_is_counted_once_with_what_it_starts_from_and_finished_ones_are_told(store):
    features = Features(source=PRETRAIN, image_size=32)
    probes = [LinearProbe(**ASKED, features=features, label_fraction=fraction) for fraction in (0.5, 1.0)]
    store.get([PRETRAIN])
    runs = count_runs({"02": (store, probes), "04": (store, [*probes, FineTune(**FINE_TUNE)])})
    assert runs[["notebook", "kind", "done"]].to_numpy().tolist() == [
        ["02", "simclr", True],
        ["02", "features", False],
        ["02", "linear_probe", False],
        ["02", "linear_probe", False],
        ["04", "fine_tune", False],
    ]


def test_hours_are_of_what_is_missing_at_the_measured_speed(monkeypatch):
    rows = [
        ("02", "simclr", True, Budget(backbone="net", image_size=32, optimiser_steps=9, views_seen=900)),
        ("02", "simclr", False, Budget(backbone="net", image_size=32, optimiser_steps=5, views_seen=7200)),
        ("02", "features", False, Budget(backbone="net", image_size=64, images_encoded=36000)),
        ("04", "linear_probe", False, Budget()),
    ]
    runs = pd.DataFrame([{"notebook": n, "kind": k, "done": d, **vars(b)} for n, k, d, b in rows])
    speeds = {32: Speed(views_per_s=2, images_per_s=8), 64: Speed(views_per_s=1, images_per_s=5)}
    monkeypatch.setattr(estimates, "measure_speed", lambda backbone, image_size, device: speeds[image_size])
    table = estimate(runs, torch.device("cpu")).set_index("kind")
    assert table.loc["simclr", ["n_runs", "n_done", "optimiser_steps", "views_seen"]].tolist() == [2, 1, 5, 7200]
    assert table["hours"].tolist() == pytest.approx(
        [1 + RUN_SECONDS / 3600, 2 + RUN_SECONDS / 3600, RUN_SECONDS / 3600]
    )


def test_nothing_is_timed_where_nothing_is_missing(monkeypatch):
    row = {"notebook": "02", "kind": "simclr", "done": True, **vars(Budget(backbone="net", views_seen=900))}
    monkeypatch.setattr(estimates, "measure_speed", None)
    assert estimate(pd.DataFrame([row]), torch.device("cpu"))["hours"].tolist() == [0]


def test_a_networks_speed_is_measured_and_training_is_the_slower(monkeypatch):
    speed = measure_speed("test_efficientnet", 32, torch.device("cpu"))
    assert 0 < speed.views_per_s < speed.images_per_s < float("inf")
