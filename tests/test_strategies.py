import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from fetal_utils.dual_task import DualTask
from fetal_utils.encoders import Features, InitialWeights
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.models import build_encoder
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain
from fetal_utils.strategies import STRATEGIES, Strategy, encoder_source, supervised_run
from fetal_utils.training import FineTune, LinearProbe
from fetal_utils.unlabelled import open_unlabelled
from fetal_utils.weights import save_weights

ASKED = {"backbone": "resnet18", "image_size": 96, "seed": 3}
ABOUT = {"task": "planes", "label_fraction": 0.25, "draw": 2, **ASKED}
SETTINGS = {
    "pretraining": {"n_epochs": 7, "batch_size": 48, "temperature": 0.2, "pool": "planes", "augmentation": "simclr"},
    "training": {"n_steps": 50, "n_evaluations": 5, "lr": 1e-3, "contrastive_weight": 0.5},
}
START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
DUAL = ("dual_scratch", "dual_imagenet")
EVERY = pytest.mark.parametrize("strategy", STRATEGIES)


# --- where the encoder starts ---


def test_the_strategies_are_the_six_of_the_study():
    names = ["scratch", "imagenet", "simclr_scratch", "simclr_imagenet", "dual_scratch", "dual_imagenet"]
    assert list(STRATEGIES) == names
    assert [STRATEGIES[name].init for name in names] == ["random", "imagenet"] * 3
    assert [STRATEGIES[name].pretrains for name in names] == [False, False, True, True, False, False]
    assert [STRATEGIES[name].supervised for name in names] == [FineTune] * 4 + [DualTask] * 2


def test_scratch_starts_from_random_weights_of_its_seed():
    assert encoder_source("scratch", **ASKED) == InitialWeights(backbone="resnet18", init="random", seed=3)


def test_imagenet_starts_from_imagenet_weights_whatever_the_seed():
    expected = InitialWeights(backbone="resnet18", init="imagenet", seed=0)
    assert encoder_source("imagenet", **ASKED) == encoder_source("imagenet", **ASKED | {"seed": 4}) == expected


@pytest.mark.parametrize(
    ("strategy", "init", "start_seed"), [("simclr_scratch", "random", 3), ("simclr_imagenet", "imagenet", 0)]
)
def test_simclr_pretrains_from_those_weights_with_its_seed(strategy, init, start_seed):
    start = InitialWeights(backbone="resnet18", init=init, seed=start_seed)
    expected = Pretrain(start=start, image_size=96, seed=3, n_epochs=7, temperature=0.2)
    assert encoder_source(strategy, **ASKED, n_epochs=7, temperature=0.2) == expected


@EVERY
def test_every_strategy_keeps_the_backbone(strategy):
    assert encoder_source(strategy, **ASKED).backbone == "resnet18"


@pytest.mark.parametrize("strategy", ["scratch", "imagenet", *DUAL])
def test_pretraining_values_do_not_change_the_start_of_a_strategy_without_pretraining(strategy):
    assert encoder_source(strategy, **ASKED, n_epochs=7) == encoder_source(strategy, **ASKED)


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"strategy='simclr' is unknown; known are .*'simclr_imagenet'"):
        encoder_source("simclr", **ASKED)
    with pytest.raises(ValueError, match=r"strategy='simclr' is unknown"):
        supervised_run("simclr", protocol="fine_tune", **ABOUT)


# --- the supervised run ---


@EVERY
def test_one_set_of_settings_serves_every_strategy_and_the_run_says_what_it_was_asked_by(strategy):
    run = supervised_run(strategy, protocol="fine_tune", **ABOUT, **SETTINGS)
    assert (run.task, run.strategy, run.label_fraction, run.draw, run.seed) == ("planes", strategy, 0.25, 2, 3)
    assert run.protocol == "fine_tune"
    assert (run.n_steps, run.n_evaluations, run.lr, run.image_size) == (50, 5, 1e-3, 96)
    pretraining = SETTINGS["pretraining"] if STRATEGIES[strategy].pretrains else {}
    assert run.source == encoder_source(strategy, **ASKED, **pretraining)


def test_fine_tuning_without_contrast_is_a_plain_fine_tuning():
    run = supervised_run("imagenet", protocol="fine_tune", **ABOUT, **SETTINGS)
    assert type(run) is FineTune
    source = InitialWeights(backbone="resnet18", init="imagenet")
    about = {"task": "planes", "strategy": "imagenet", "label_fraction": 0.25, "draw": 2, "seed": 3}
    assert run == FineTune(**about, source=source, image_size=96, n_steps=50, n_evaluations=5, lr=1e-3)


@pytest.mark.parametrize("strategy", DUAL)
def test_both_tasks_at_once_take_what_they_share_with_the_pretraining_and_their_own_weight(strategy):
    run = supervised_run(strategy, protocol="fine_tune", **ABOUT, **SETTINGS)
    assert type(run) is DualTask
    assert (run.temperature, run.pool, run.contrastive_batch_size) == (0.2, "planes", 48)
    assert (run.augmentation, run.contrastive_augmentation) == ("weak", "simclr")
    assert run.contrastive_weight == 0.5
    own = SETTINGS["training"] | {"contrastive_batch_size": 16, "temperature": 0.5}
    run = supervised_run(strategy, protocol="fine_tune", **ABOUT, **SETTINGS | {"training": own})
    assert (run.contrastive_batch_size, run.temperature) == (16, 0.5)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in DUAL])
def test_a_linear_probe_is_of_the_features_of_the_same_encoder_that_is_fine_tuned(strategy):
    probe, tuned = (
        supervised_run(strategy, protocol=protocol, **ABOUT, **SETTINGS) for protocol in ("linear_probe", "fine_tune")
    )
    assert type(probe) is LinearProbe
    assert probe.features == Features(source=tuned.source, image_size=96)
    assert (probe.task, probe.strategy, probe.label_fraction, probe.draw) == ("planes", strategy, 0.25, 2)


def test_supervised_runs_of_several_seeds_share_a_pretraining_that_has_a_seed_of_its_own():
    shared = {"pretraining": SETTINGS["pretraining"] | {"seed": 0}}
    runs = [
        supervised_run("simclr_scratch", protocol="fine_tune", **ABOUT | {"seed": seed}, **shared) for seed in (1, 2)
    ]
    assert runs[0].source == runs[1].source
    assert runs[0].source.seed == runs[0].source.start.seed == 0
    assert [run.seed for run in runs] == [1, 2]


@pytest.mark.parametrize("strategy", DUAL)
def test_a_linear_probe_of_what_is_learned_together_is_refused(strategy):
    with pytest.raises(ValueError, match=rf"'linear_probe' does not go with strategy='{strategy}'.*\('fine_tune',\)"):
        supervised_run(strategy, protocol="linear_probe", **ABOUT)


def test_an_unknown_protocol_and_an_unknown_setting_are_refused_by_name():
    with pytest.raises(ValueError, match="protocol='probe' is unknown; known are"):
        supervised_run("scratch", protocol="probe", **ABOUT)
    for strategy in STRATEGIES:
        with pytest.raises(TypeError, match="n_step"):
            supervised_run(strategy, protocol="fine_tune", **ABOUT, training={"n_step": 5})
    with pytest.raises(TypeError, match="epochs"):
        supervised_run("simclr_scratch", protocol="fine_tune", **ABOUT, pretraining={"epochs": 5})


# --- strategies of one's own ---


def test_a_strategy_from_a_file_is_one_entry_and_starts_from_those_weights(tiny_dataset, tmp_path, monkeypatch):
    encoder = build_encoder("test_efficientnet", init="random", seed=42)
    save_weights(encoder, tmp_path / "ours.safetensors")
    monkeypatch.setitem(STRATEGIES, "ours", Strategy(init=str(tmp_path / "ours.safetensors")))
    about = {"task": "brain_planes", "backbone": "test_efficientnet", "image_size": 32}
    training = {"n_steps": 2, "n_evaluations": 1, "batch_size": 8, "lr": 1e-9}  # a rate that moves nothing visibly
    wanted = [
        supervised_run("ours", protocol="fine_tune", **about, training=training),
        supervised_run("ours", protocol="linear_probe", **about),
    ]
    tuned, probed = RunStore(tmp_path, tiny_dataset, device="cpu", progress=False).get(wanted)
    weights = load_file(tuned.weights)
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(weights[f"encoder.{name}"], parameter.detach(), atol=1e-6, rtol=0)
    assert len(probed.predictions) == len(tuned.predictions)


def test_a_file_by_a_relative_path_is_looked_for_from_the_repository_root(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "ours", Strategy(init="weights/ours.safetensors"))
    assert encoder_source("ours", **ASKED).init == str(PROJECT_ROOT / "weights" / "ours.safetensors")


def test_another_contrastive_objective_takes_the_place_of_simclr(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Momentum(Pretrain):
        kind: ClassVar[str] = "momentum"
        momentum: float = 0.99

    monkeypatch.setitem(STRATEGIES, "momentum_imagenet", Strategy(init="imagenet", pretraining=Momentum))
    settings = {"pretraining": {"n_epochs": 7, "momentum": 0.9}}
    run = supervised_run("momentum_imagenet", protocol="fine_tune", **ABOUT, **settings)
    assert run.source == Momentum(
        start=InitialWeights(backbone="resnet18", init="imagenet"), image_size=96, seed=3, n_epochs=7, momentum=0.9
    )
    assert run.starts_from() == [run.source]


def test_both_tasks_at_once_may_follow_a_pretraining(monkeypatch):
    about = Strategy(init="imagenet", pretraining=Pretrain, supervised=DualTask)
    monkeypatch.setitem(STRATEGIES, "simclr_then_dual", about)
    run = supervised_run("simclr_then_dual", protocol="fine_tune", **ABOUT, **SETTINGS)
    assert type(run) is DualTask
    assert run.source == encoder_source("simclr_imagenet", **ASKED, **SETTINGS["pretraining"])
    assert run.temperature == run.source.temperature == 0.2


# --- equal budget ---


@pytest.mark.parametrize("batch_size", [32, 4096])
def test_steps_of_a_pretraining_are_those_that_its_record_counts(tiny_dataset, tmp_path, batch_size):
    settings = Pretrain(start=START, image_size=32, n_epochs=2, batch_size=batch_size)
    (run,) = RunStore(tmp_path, tiny_dataset, device="cpu", progress=False).get([settings])
    # 82 training images: two whole batches of 32, or one of all
    assert settings.budget(tiny_dataset).optimiser_steps == (4 if batch_size == 32 else 2)
    assert run.record["facts"]["optimiser_steps"] == settings.budget(tiny_dataset).optimiser_steps


def test_steps_of_a_pretraining_count_further_images_without_those_of_held_out_patients(tiny_phantom, tiny_dataset):
    # every image of the phantom once more, of which those of its 82 training images are taken: 164 in all
    extra = open_unlabelled(tiny_phantom / "Images")
    settings = Pretrain(start=START, image_size=32, n_epochs=3, batch_size=20, extra_images=extra)
    assert settings.budget(tiny_dataset).optimiser_steps == 3 * (164 // 20)


def test_an_equal_budget_is_the_steps_of_pretraining_and_fine_tuning_under_a_name_of_its_own(tiny_dataset):
    small = ABOUT | {"backbone": "test_efficientnet", "image_size": 32}
    simclr = supervised_run("simclr_imagenet", protocol="fine_tune", **small, **SETTINGS)
    extra_steps = simclr.source.budget(tiny_dataset).optimiser_steps
    n_pool = len(tiny_dataset.rows("train", tiny_dataset.task("planes")))
    assert extra_steps == 7 * (n_pool // 48)
    for strategy in ("scratch", "imagenet"):
        plain = supervised_run(strategy, protocol="fine_tune", **small, **SETTINGS)
        equal = supervised_run(strategy, protocol="fine_tune", **small, **SETTINGS, extra_steps=extra_steps)
        assert equal.n_steps == 50 + extra_steps
        assert equal.strategy == f"{strategy}_equal_steps"
        assert dataclasses.replace(equal, strategy=strategy, n_steps=50) == plain


def test_steps_and_images_of_an_equal_budget_are_in_the_records(tiny_dataset, tmp_path):
    small = {"task": "planes", "backbone": "test_efficientnet", "image_size": 32, "protocol": "fine_tune"}
    settings = {
        "pretraining": {"n_epochs": 2, "batch_size": 32},
        "training": {"n_steps": 3, "n_evaluations": 1, "batch_size": 16},
    }
    simclr = supervised_run("simclr_scratch", **small, **settings)
    extra_steps = simclr.source.budget(tiny_dataset).optimiser_steps
    wanted = [simclr.source, simclr, supervised_run("scratch", **small, **settings, extra_steps=extra_steps)]
    facts = [run.record["facts"] for run in RunStore(tmp_path, tiny_dataset, device="cpu", progress=False).get(wanted)]
    pretrained, tuned, equal = ((each["optimiser_steps"], each["views_seen"]) for each in facts)
    assert pretrained == (2 * 2, 2 * 2 * 2 * 32)
    assert tuned == (3, 3 * 16)
    assert equal == (4 + 3, 7 * 16)


@pytest.mark.parametrize(
    ("strategy", "protocol", "extra_steps"),
    [("imagenet", "linear_probe", 5), ("simclr_imagenet", "fine_tune", 5), ("imagenet", "fine_tune", -1)],
)
def test_steps_are_not_added_where_there_are_none_to_equal(strategy, protocol, extra_steps):
    with pytest.raises(ValueError, match=f"extra_steps={extra_steps} with strategy='{strategy}'"):
        supervised_run(strategy, protocol=protocol, **ABOUT, extra_steps=extra_steps)
