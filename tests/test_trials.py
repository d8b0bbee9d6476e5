"""Trials of settings: plans, and how they are judged; the network is timm's smallest, at 32 px."""

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from fetal_utils import runs, trials
from fetal_utils.command_line import UsageError
from fetal_utils.encoders import InitialWeights
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.pretraining import Pretraining
from fetal_utils.simclr import Pretrain
from fetal_utils.trials import TABLE, describe, judge, main, plan_trials, read_plan

BASE = {"backbone": "test_efficientnet", "init": "random", "image_size": 32, "n_epochs": 1, "batch_size": 40}
PLAN = {
    "base": BASE,
    "base_seeds": [0, 1],
    "val_fraction": 0.3,
    "tasks": ["planes", "brain_planes"],
    "label_fractions": [0.5, 1.0],
    "draws": [0, 1, 2],
    "changes": [{"temperature": 0.5}, {"n_epochs": 0}, {"batch_size": 20, "n_epochs": 2}],
}


def write(plan, folder) -> Path:
    path = folder / "plan.yaml"
    path.write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan))
    return path


def pretrainings(plan):
    """The pretraining of each trial, or the weights it would start from."""
    return [trial.probes[0].features.source for trial in plan_trials(plan)]


# --- plans ---


def test_a_plan_is_read_as_it_was_written(tmp_path):
    assert read_plan(write(PLAN, tmp_path)) == PLAN


def test_the_plan_of_the_study_can_be_read_and_each_of_its_settings_exists():
    plan = read_plan(PROJECT_ROOT / "notebooks" / "trials.yaml")
    planned = plan_trials(plan)
    assert len(planned) == len(plan["base_seeds"]) + len(plan["changes"])
    assert len({(trial.change, trial.seed) for trial in planned}) == len(planned)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: [", "can't be read as a plan of trials"),
        ("just words", "has exactly"),
        ("", "has exactly"),
        (yaml.safe_dump({name: value for name, value in PLAN.items() if name != "draws"}), "has exactly.*draws"),
        (yaml.safe_dump({**PLAN, "drwas": [0]}), "has exactly"),
    ],
    ids=["not YAML", "a text", "empty", "lacks an entry", "one too many"],
)
def test_a_plan_that_is_none_is_refused_with_its_file(text, named, tmp_path):
    with pytest.raises(UsageError, match=f"plan.yaml.*{named}"):
        read_plan(write(text, tmp_path))


def test_a_plan_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml can't be read"):
        read_plan(tmp_path / "nowhere.yaml")


# --- trials ---


def test_the_base_comes_first_with_each_seed_and_then_each_change_with_the_first():
    named = [(trial.change, trial.seed) for trial in plan_trials(PLAN)]
    changes = ["temperature 0.5", "n_epochs 0", "batch_size 20, n_epochs 2"]
    assert named == [("base", 0), ("base", 1), *((change, 0) for change in changes)]


def test_a_change_reads_as_names_and_values():
    assert describe({"pool": "brain_planes", "n_epochs": 45}) == "pool brain_planes, n_epochs 45"
    assert describe({"augmentation": "ultrasound without blur"}) == "augmentation ultrasound without blur"


def test_a_trial_differs_from_the_base_in_its_change_alone():
    base, other_seed, warmer, untrained, longer = pretrainings(PLAN)
    start = InitialWeights(backbone="test_efficientnet", init="random")
    assert base == Pretrain(start=start, image_size=32, n_epochs=1, batch_size=40)
    assert warmer == dataclasses.replace(base, temperature=0.5)
    assert longer == dataclasses.replace(base, batch_size=20, n_epochs=2)
    assert other_seed == dataclasses.replace(base, seed=1, start=dataclasses.replace(start, seed=1))
    assert untrained == start  # no epochs: the encoder that it would start from


def test_another_start_without_epochs_is_judged_as_it_is():
    changes = [{"init": "random", "n_epochs": 0}, {"init": "random"}]
    base = {"backbone": "tf_efficientnet_lite0", "n_epochs": 3}
    _, bare, trained = pretrainings({**PLAN, "base": base, "base_seeds": [7], "changes": changes})
    random = InitialWeights(backbone="tf_efficientnet_lite0", init="random", seed=7)
    assert (bare, trained) == (random, Pretrain(start=random, n_epochs=3, seed=7))


def test_all_trials_are_judged_by_the_same_probes_each_label_subset_once():
    asked = [[(probe.task, probe.label_fraction, probe.draw) for probe in trial.probes] for trial in plan_trials(PLAN)]
    halves = [(0.5, 0), (0.5, 1), (0.5, 2)]
    # all labels can be drawn in one way
    expected = [(task, *which) for task in ("planes", "brain_planes") for which in [*halves, (1.0, 0)]]
    assert asked == [expected] * 5


def test_a_setting_that_does_not_exist_is_named():
    with pytest.raises(UsageError, match=r"\['temprature'\] are no settings"):
        plan_trials({**PLAN, "changes": [{"temprature": 0.5}]})


# --- judging ---


class FakeStore:
    """Scores by pretraining and probe; reading anything else of a run is an error."""

    def __init__(self, scores, *, missing=()):
        self.scores, self.missing = scores, missing

    def has(self, probe):
        return probe.features.source not in self.missing

    def open(self, settings):
        if isinstance(settings, Pretrain):
            return SimpleNamespace(record={"seconds": 10.0 * settings.n_epochs})
        score = self.scores[settings.features.source][settings.draw]
        return SimpleNamespace(record={"facts": {"val_macro_f1": score}})


SMALL = {**PLAN, "tasks": ["planes"], "label_fractions": [0.5]}


def judged(scores, *, missing=()):
    """The table of `SMALL`, whose trials reach these scores with the draws 0, 1 and 2."""
    table = judge(plan_trials(SMALL), FakeStore(scores, missing=missing))
    return table.set_index(["change", "seed"])


@pytest.fixture
def scores():
    by_hand = [[0.5, 0.6, 0.7], [0.1, 0.1, 0.1], [0.6, 0.6, 0.9], [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]]
    return dict(zip(pretrainings(SMALL), by_hand, strict=True))


def test_scores_are_means_over_draws_and_differences_those_to_the_base_on_the_same_draws(scores):
    table = judged(scores)
    warmer = table.loc[("temperature 0.5", 0)]
    assert warmer["val_macro_f1"] == pytest.approx(0.7)
    assert warmer["difference"] == pytest.approx(0.35)  # of 0.3, 0.25 and 0.5, as the base has 0.3, 0.35 and 0.4
    assert warmer["difference_sd"] == pytest.approx(0.0175**0.5)
    assert warmer["n_draws"] == 3
    untrained = table.loc[("n_epochs 0", 0)]
    assert untrained["difference"] == pytest.approx(-0.05)
    assert untrained["difference_sd"] == pytest.approx(0.05)


def test_the_seeds_of_the_base_lie_around_zero_as_far_as_a_seed_moves_it(scores):
    table = judged(scores)
    for seed, mean, difference in [(0, 0.6, 0.25), (1, 0.1, -0.25)]:
        assert table.loc[("base", seed), "val_macro_f1"] == pytest.approx(mean)
        assert table.loc[("base", seed), "difference"] == pytest.approx(difference)


def test_the_table_keeps_the_order_of_the_plan_and_says_what_a_pretraining_took(scores):
    table = judged(scores)
    assert list(table.index) == [(trial.change, trial.seed) for trial in plan_trials(SMALL)]
    assert table["seconds"].tolist() == [10, 10, 10, 0, 20]  # nothing for the encoder as it starts


def test_a_trial_that_failed_is_not_in_the_table(scores):
    _, _, warmer, *_ = pretrainings(SMALL)
    table = judged(scores, missing=[warmer])
    assert ("temperature 0.5", 0) not in table.index
    assert len(table) == 4


def test_without_its_base_a_trial_keeps_its_score_and_has_no_difference(scores):
    base, other_seed, *_ = [trial.probes[0].features.source for trial in plan_trials(SMALL) if trial.change == "base"]
    table = judged(scores, missing=[base, other_seed])
    assert table.loc[("temperature 0.5", 0), "val_macro_f1"] == pytest.approx(0.7)
    assert math.isnan(table.loc[("temperature 0.5", 0), "difference"])


def test_where_every_trial_failed_the_table_has_its_columns_and_no_row(scores):
    table = judge(plan_trials(SMALL), FakeStore(scores, missing=list(scores)))
    assert len(table) == 0
    assert {"change", "seed", "val_macro_f1", "difference"} <= set(table)


def test_draws_are_compared_one_by_one_and_tasks_apart():
    scores = {source: [0.5, 0.5, 0.5] for source in pretrainings(PLAN)}
    table = judge(plan_trials(PLAN), FakeStore(scores))
    assert len(table) == 5 * 2 * 2
    whole = table[table["label_fraction"] == 1]
    assert (whole["n_draws"] == 1).all()
    assert whole["difference_sd"].isna().all()
    assert (table["difference"] == 0).all()


# --- the command ---


@pytest.fixture
def ask(tiny_phantom, tmp_path):
    """Ask the command for a plan; its exit status and its results folder."""

    def command(plan):
        results_dir = tmp_path / "results"
        arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(results_dir), "--device", "cpu"]
        return main([str(write(plan, tmp_path)), *arguments]), results_dir

    return command


QUICK = {**PLAN, "base_seeds": [0], "tasks": ["planes"], "label_fractions": [1.0]}


def test_a_failing_trial_does_not_stop_the_others_and_no_test_prediction_is_read(ask, monkeypatch, capsys):
    def train_batch(self, *args):
        if self.settings.temperature == 0.5:
            raise RuntimeError("out of luck")
        return original(self, *args)

    def predictions(run):
        pytest.fail("test predictions were read")

    original = Pretraining.train_batch
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_batch", train_batch)
        patch.setattr(runs.Run, "predictions", property(predictions))
        status, results_dir = ask(QUICK)
    assert status == 1
    table = pd.read_csv(results_dir / TABLE)
    assert table["change"].tolist() == ["base", "n_epochs 0", "batch_size 20, n_epochs 2"]
    out, errors = capsys.readouterr()
    assert "RuntimeError: out of luck" in errors
    assert out.splitlines()[-1] == str(results_dir / TABLE)
    # a second call does what is missing, and only that
    trained = []
    monkeypatch.setattr(Pretraining, "train_batch", lambda *args: trained.append(args[0]) or original(*args))
    status, _ = ask(QUICK)
    assert status == 0
    assert {pretraining.settings.temperature for pretraining in trained} == {0.5}
    again = pd.read_csv(results_dir / TABLE)
    assert again["change"].tolist() == ["base", "temperature 0.5", *table["change"].tolist()[1:]]
    others = again[again["change"] != "temperature 0.5"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, table)
    assert again["val_macro_f1"].between(0, 1).all()
    assert np.allclose(again["difference"], again["val_macro_f1"] - again["val_macro_f1"][0], atol=2e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"changes": [{"temprature": 0.5}]}, "temprature"),
        ({"changes": [{"temperature": 0}]}, "temperature=0"),
        ({"changes": [{"lr": "fast"}]}, "lr='fast'"),
        ({"tasks": ["hands"]}, "hands"),
        ({"base": {**BASE, "backbone": "resnet19"}}, "resnet19"),
        ({"label_fractions": [2.0]}, "2.0"),
    ],
)
def test_a_plan_that_cannot_be_run_ends_with_status_2_before_the_first_trial(change, named, ask, capsys):
    status, results_dir = ask({**copy.deepcopy(QUICK), **change})
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert error.startswith("error: ") and named in error
    assert not (results_dir / "runs").exists()


def test_a_plan_or_a_data_folder_that_is_missing_ends_with_status_2(tmp_path, capsys):
    arguments = ["--data-dir", str(tmp_path / "no_data"), "--results-dir", str(tmp_path)]
    assert main([str(tmp_path / "nowhere.yaml"), *arguments]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    assert main([str(write(QUICK, tmp_path)), *arguments]) == 2
    assert "no_data" in capsys.readouterr().err
    assert trials.TABLE not in [path.name for path in tmp_path.iterdir()]
