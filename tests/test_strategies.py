"""The table of strategies, the settings they give, the grid of 04, and how trials are planned and judged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from labelled_data import write_labelled_folder
from safetensors.torch import load_file

from fetal_utils import presets, strategies
from fetal_utils.data import Dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.models import InitialWeights, build_encoder, save_weights
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain
from fetal_utils.strategies import STRATEGIES, Strategy, choose, supervised_run, with_dependencies
from fetal_utils.training import DualTask, FineTune, LinearProbe

SMALL = {"backbone": "test_efficientnet", "image_size": 32}
PRETRAINING = {"n_epochs": 2, "batch_size": 16, "temperature": 0.3}
TRAINING = {"n_views": 48, "batch_size": 8, "contrastive_weight": 0.5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_labelled_folder(tmp_path_factory.mktemp("labelled"), n_train=12, n_test=4)


def ask(dataset, strategy, protocol="fine_tune", **changes):
    about = {"protocol": protocol, "task": "planes", "seed": 3, "pretraining": PRETRAINING, "training": TRAINING}
    return supervised_run(strategy, dataset=dataset, **{**SMALL, **about, **changes})


# --- settings ---


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_starts_where_its_strategy_says_and_takes_the_settings_of_all(dataset, strategy):
    run, about = ask(dataset, strategy, draw=2, label_fraction=0.5), STRATEGIES[strategy]
    start = InitialWeights(backbone="test_efficientnet", init=about.init, seed=3 if about.init == "random" else 0)
    pretraining = Pretrain(start=start, image_size=32, seed=3, **PRETRAINING)
    assert run.source == (pretraining if about.pretrains else start)
    assert (run.task, run.strategy, run.draw, run.seed, run.label_fraction) == ("planes", strategy, 2, 3, 0.5)
    assert (run.batch_size, run.lr, run.augmentation) == (8, about.lr, "weak")
    assert type(run) is (DualTask if about.dual else FineTune)
    if about.dual:
        assert run.contrast == replace(pretraining, lr=Pretrain.lr)
        assert run.contrastive_weight == 0.5
    extra = pretraining.cost(dataset)["views"] if about.same_views else 0
    assert run.n_views == 48 + extra


def test_the_views_of_the_control_are_those_of_pretraining_and_fine_tuning(dataset):
    control, after_simclr = ask(dataset, "imagenet_same_views"), ask(dataset, "simclr_imagenet")
    views = sum(run.cost(dataset)["views"] for run in with_dependencies([after_simclr]))
    assert control.cost(dataset)["views"] == pytest.approx(views, abs=control.batch_size)


def test_rate_and_length_are_those_of_the_strategy_unless_given(dataset, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "scratch", Strategy("random", lr=3e-3, n_views=640))
    run = ask(dataset, "scratch", training={"n_views": 0, "lr": 0.0})
    assert (run.lr, run.n_views) == (3e-3, 640)
    run = ask(dataset, "scratch", training={"n_views": 64, "lr": 1e-4})
    assert (run.lr, run.n_views) == (1e-4, 64)


def test_a_probe_is_of_the_encoder_that_is_fine_tuned_and_counted_once_if_nothing_random_made_it(dataset):
    for strategy, seed in (("scratch", 3), ("imagenet", 0), ("simclr_scratch", 3), ("simclr_imagenet", 3)):
        probe = ask(dataset, strategy, "linear_probe", draw=1, label_fraction=0.5)
        assert type(probe) is LinearProbe
        assert probe.features.source == ask(dataset, strategy).source
        assert (probe.seed, probe.draw) == (seed, 1)


@pytest.mark.parametrize("protocol", ["fine_tune", "linear_probe"])
def test_with_all_labels_there_is_one_draw(dataset, protocol):
    assert ask(dataset, "imagenet", protocol, draw=4) == ask(dataset, "imagenet", protocol, draw=0)


def test_what_is_unknown_or_makes_no_sense_is_refused_by_name(dataset):
    with pytest.raises(ValueError, match=r"strategy='simclr' is unknown; known are .*simclr_imagenet"):
        ask(dataset, "simclr")
    for strategy, protocol in (("dual_imagenet", "linear_probe"), ("imagenet_same_views", "linear_probe")):
        with pytest.raises(ValueError, match=f"'{protocol}' does not go with strategy='{strategy}'"):
            ask(dataset, strategy, protocol)
    with pytest.raises(ValueError, match="protocol='probe'"):
        ask(dataset, "scratch", "probe")
    with pytest.raises(TypeError, match="n_step"):
        ask(dataset, "scratch", training={"n_step": 5})


def test_a_strategy_from_a_file_is_one_entry_and_starts_from_those_weights(dataset, tmp_path, monkeypatch):
    encoder = build_encoder("test_efficientnet", init="random", seed=42)
    save_weights(encoder, tmp_path / "ours.safetensors")
    monkeypatch.setitem(STRATEGIES, "ours", Strategy(str(tmp_path / "ours.safetensors")))
    store = RunStore(tmp_path, dataset, device="cpu", progress=False)
    still = ask(dataset, "ours", training={"n_views": 16, "batch_size": 8, "lr": 1e-9})
    (run,) = store.get([still])
    weights = load_file(run.weights)
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(weights[f"encoder.{name}"], parameter.detach(), atol=1e-6, rtol=0)


def test_a_relative_file_is_looked_for_from_the_repository_root(dataset, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "ours", Strategy("weights/ours.safetensors"))
    with pytest.raises(FileNotFoundError, match=str(PROJECT_ROOT / "weights" / "ours.safetensors")):
        ask(dataset, "ours")


# --- the grid ---


def test_the_grid_pairs_fine_tunings_and_crosses_probes(dataset):
    about = {"strategies": list(STRATEGIES), "tasks": ["planes", "brain_planes"], "protocols": strategies.PROTOCOLS}
    fractions = {"label_fractions": [0.5, 1.0], "fine_tune_fractions": [0.25, 1.0], "dual_fractions": [0.25]}
    runs = strategies.grid(
        dataset, **about, **fractions, n_draws=3, n_pairs=2, n_dual_pairs=1, **SMALL, pretraining=PRETRAINING
    )
    assert len(runs) == len(set(runs))
    found = pd.DataFrame([vars(run) | {"protocol": run.protocol} for run in runs])
    tuned, probes = (found[found["protocol"] == name] for name in strategies.PROTOCOLS)
    assert set(zip(tuned["draw"], tuned["seed"], tuned["label_fraction"], strict=True)) == {
        (0, 0, 0.25), (1, 1, 0.25), (0, 0, 1.0), (0, 1, 1.0),
    }  # fmt: skip
    counts = tuned.groupby("strategy").size()
    assert counts["imagenet"] == 2 * 2 * 2  # tasks x fractions x pairs
    assert counts["dual_imagenet"] == counts["imagenet_same_views"] == 2 * 1 * 1
    counts = probes.groupby("strategy").size()
    assert counts["imagenet"] == 2 * (3 + 1)  # tasks x (draws at 50 %, one at 100 %), one encoder
    assert counts["scratch"] == counts["simclr_imagenet"] == 2 * 2 * (3 + 1)  # as many encoders as pairs
    assert set(runs[: len(runs) // 2]) >= {run for run in runs if run.seed == 0 and run.protocol == "fine_tune"}


def test_a_grid_of_an_unknown_protocol_is_refused(dataset):
    fractions = {name: [1.0] for name in ("label_fractions", "fine_tune_fractions", "dual_fractions")}
    with pytest.raises(ValueError, match="protocols \\['probe'\\] are unknown"):
        strategies.grid(
            dataset,
            strategies=["scratch"],
            tasks=["planes"],
            protocols=["probe"],
            n_draws=1,
            n_pairs=1,
            n_dual_pairs=1,
            **fractions,
        )


def test_the_control_of_cost_has_the_labelled_views_of_what_it_is_a_control_of():
    assert STRATEGIES["imagenet_same_views"].n_views == STRATEGIES["simclr_imagenet"].n_views


# --- trials ---


def test_trials_never_look_at_test_images_and_cost_what_they_may(real_data, tmp_path):
    native = Dataset(real_data / "fetal_planes_native", tmp_path)
    names: dict = {}
    for source, tags in presets.read_cells(presets.NOTEBOOK_DIR / "03_transfer_learning_baselines.ipynb"):
        if tags & presets.BEFORE_RUNS and "setup" not in tags:
            exec(source, names)
        if "imports" in tags:
            names |= {"dataset": native, "image_size": 96}
    planned = names["planned"]
    assert not set(planned) & set(names["wanted"])  # which stay few unless `trials` are asked for
    assert {run.evaluate_on for run in planned} == {"development"}
    assert sum(run.cost(native)["views"] for run in with_dependencies(planned)) <= 3_200_000
    tried = {(run.strategy, setting, run.lr) for run, setting in planned.items() if run.protocol == "fine_tune"}
    for strategy in ("imagenet", "scratch", "simclr_imagenet", "simclr_scratch", "dual_imagenet"):
        found = {setting: lr for name, setting, lr in tried if name == strategy and "SimCLR" not in setting}
        assert {"default", "double length"} < found.keys() and len(found) == 4  # and two rates, as many for every one
        assert min(found.values()) < STRATEGIES[strategy].lr < max(found.values())  # what is kept lies between
    for name in {(run.strategy, setting) for run, setting in planned.items()}:
        cells = [(run.task, run.seed) for run, setting in planned.items() if (run.strategy, setting) == name]
        assert {task for task, _ in cells} == {"planes", "brain_planes"}
        assert {seed for _, seed in cells} == {0, 1} or name[0] == "imagenet"


def trial(strategy, setting, scores, **changes):
    """Rows of four cells with these scores on development patients."""
    cells = {"protocol": "fine_tune", "task": ["planes"] * 4, "label_fraction": 1.0, "draw": 0, "seed": range(4)}
    about = {"lr": 5e-4, "n_views": 100, "pretraining_lr": np.nan, "n_epochs": np.nan, "temperature": np.nan}
    table = pd.DataFrame(cells | about | {"strategy": strategy, "setting": setting} | changes)
    return table.assign(development_macro_f1=scores)


def test_the_default_stays_unless_another_is_better_by_one_standard_error():
    noisy = [0.9, 0.5, 0.6, 0.5]  # gains 0.4, 0, 0.1, 0: mean 0.125, standard error 0.095
    unsure = [0.9, 0.4, 0.5, 0.5]  # gains 0.4, -0.1, 0, 0: mean 0.075, standard error 0.111
    default = trial("imagenet", "default", [0.5, 0.5, 0.5, 0.5])
    for scores, kept in ((noisy, "lr x 2.5"), (unsure, "default")):
        tried = pd.concat([default, trial("imagenet", "lr x 2.5", scores, lr=1e-3)])
        table = choose(tried)
        assert table["kept"].tolist() == [kept]
        assert table["gain"].iloc[0] == pytest.approx(np.mean(scores) - 0.5)
        assert table["standard_error"].iloc[0] == pytest.approx(np.std(np.array(scores) - 0.5, ddof=1) / 2)


def test_what_is_kept_at_the_edge_of_what_was_tried_is_to_be_widened():
    default, low = trial("imagenet", "default", 0.5), trial("imagenet", "lr x 0.4", 0.4, lr=2e-4)
    high, long = trial("imagenet", "lr x 2.5", [0.6, 0.7, 0.6, 0.7], lr=1e-3), trial("imagenet", "double length", 0.5)
    long["n_views"] = 200
    assert choose(pd.concat([default, low, high, long]))["widen"].unique() == ["lr"]
    assert choose(pd.concat([default, low, high.assign(development_macro_f1=0.5), long]))["widen"].unique() == [""]


def test_simclr_is_chosen_apart_from_what_follows_it():
    default = trial("simclr_imagenet", "default", 0.5, pretraining_lr=1e-3, temperature=0.2)
    rate = trial("simclr_imagenet", "lr x 2.5", 0.4, lr=1e-3, pretraining_lr=1e-3, temperature=0.2)
    warm = trial("simclr_imagenet", "SimCLR: temperature 0.5", 0.6, pretraining_lr=1e-3, temperature=0.5)
    table = choose(pd.concat([default, rate, warm])).set_index("setting")
    assert table.loc["lr x 2.5", "kept"] == "default"
    assert table.loc["SimCLR: temperature 0.5", ["kept", "widen"]].tolist() == [
        "SimCLR: temperature 0.5",
        "temperature",
    ]


def test_an_arm_rises_that_gains_more_than_two_hundredths_from_double_the_length_of_either_training():
    scratch = [trial("scratch", "default", 0.5), trial("scratch", "double length", 0.53, n_views=200)]
    imagenet = [trial("imagenet", "default", 0.5), trial("imagenet", "double length", 0.515, n_views=200)]
    simclr = [trial("simclr_imagenet", "default", 0.5, n_epochs=40)]
    simclr += [trial("simclr_imagenet", "SimCLR: n_epochs 80", 0.53, n_epochs=80)]
    simclr += [trial("simclr_imagenet", "SimCLR: temperature 0.5", 0.9, n_epochs=40)]  # better, but no longer
    never = [trial("imagenet_same_views", "default", 0.5), trial("imagenet_same_views", "lr x 2.5", 0.9)]
    found = strategies.still_rising(pd.concat(scratch + imagenet + simclr + never))
    names = {"scratch": True, "imagenet": False, "simclr_imagenet": True}  # of the last it is not known
    assert found == {(name, "fine_tune"): rises for name, rises in names.items()}


def test_warnings_name_what_went_worse_than_before():
    def scores(protocol, strategy, value):
        return trial(strategy, "default", value, protocol=protocol)

    fine = [scores("linear_probe", "imagenet", 0.6), scores("fine_tune", "imagenet", 0.59)]
    assert strategies.training_warnings(pd.concat(fine)) == []
    worse = [scores("linear_probe", "simclr_imagenet", 0.55), scores("fine_tune", "simclr_imagenet", 0.5)]
    probe, tuned = sorted(strategies.training_warnings(pd.concat(fine + worse)))
    assert probe == "simclr_imagenet, planes, 100% of the labels: a probe 0.050 below that before SimCLR"
    assert tuned == "simclr_imagenet, planes, 100% of the labels: fine-tuned 0.050 below its own probe"


def test_warnings_compare_only_draws_that_both_sides_have():
    own = {"protocol": "fine_tune", "label_fraction": 0.1, "draw": range(4)}
    tuned = trial("imagenet", "default", [0.6, 0.6, 0.1, 0.1], **own)  # the last two draws were hard
    probes = trial("imagenet", "default", 0.6, **own | {"protocol": "linear_probe"})
    assert strategies.training_warnings(pd.concat([tuned, probes.iloc[:2]])) == []
    assert len(strategies.training_warnings(pd.concat([tuned, probes]))) == 1


def test_scores_of_trials_come_from_the_records(dataset, tmp_path):
    store = RunStore(tmp_path, dataset, device="cpu", progress=False)
    runs = [ask(dataset, name, evaluate_on="development") for name in ("scratch", "simclr_scratch", "dual_scratch")]
    runs.append(ask(dataset, "simclr_scratch", "linear_probe", evaluate_on="development"))
    table = strategies.development_scores(store.get(runs))
    assert table["strategy"].tolist() == ["scratch", "simclr_scratch", "dual_scratch", "simclr_scratch"]
    assert table["development_macro_f1"].between(0, 1).all()
    assert table["temperature"].fillna(0).tolist() == [0, 0.3, 0.3, 0.3]
    assert table["n_views"].fillna(0).tolist() == [48, 48, 48, 0]
    assert table["views"].tolist() == [run.cost(dataset)["views"] for run in runs]
