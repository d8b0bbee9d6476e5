"""A grid of runs as tables, on runs whose predictions and records are made by hand."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from prediction_tables import make_patients_with_hits

from fetal_utils.grids import (
    ancestors,
    by_strategy,
    compare_grid,
    count_costs,
    equivalence_grid,
    label_curves,
    pair_draws,
    points,
)

CLASSES = ["a", "b"]


@dataclass(frozen=True)
class Start:
    """Settings of a run that others start from."""

    kind: str
    earlier: tuple = ()

    def starts_from(self):
        return list(self.earlier)


PRETRAINING = Start("simclr")
FEATURES = Start("features", (PRETRAINING,))


def make_run(strategy, hits, *, protocol="fine_tune", fraction=1.0, draw=0, seed=0, n_images=100, starts=()):
    """A run that has the given number of every patient's 10 test images right."""
    settings = SimpleNamespace(
        task="planes", strategy=strategy, protocol=protocol, label_fraction=fraction, draw=draw, seed=seed,
        kind=protocol, starts_from=lambda: list(starts),
    )  # fmt: skip
    facts = {"n_images": n_images, "optimiser_steps": 10, "views_seen": 80}
    predictions = make_patients_with_hits([hits] * 6, 10)
    return SimpleNamespace(settings=settings, predictions=predictions, record={"facts": facts, "seconds": 2.0})


def test_predictions_are_parted_by_protocol_fraction_and_strategy_and_keyed_by_draw_and_seed():
    runs = [
        make_run("imagenet", 5, draw=0),
        make_run("imagenet", 6, draw=1, seed=2),
        make_run("scratch", 4),
        make_run("scratch", 3, fraction=0.1),
        make_run("scratch", 2, protocol="linear_probe"),
    ]
    tables = by_strategy(runs, protocol="fine_tune", label_fraction=1.0)
    assert {name: list(found) for name, found in tables.items()} == {"imagenet": [(0, 0), (1, 2)], "scratch": [(0, 0)]}
    assert points(runs) == [("fine_tune", 0.1), ("fine_tune", 1.0), ("linear_probe", 1.0)]


def test_every_strategy_is_compared_with_the_baseline_at_every_point_that_has_it():
    runs = [
        make_run(strategy, hits, fraction=fraction)
        for fraction, hits_of in {
            0.1: {"imagenet": 5, "simclr_imagenet": 8},
            1.0: {"imagenet": 9, "scratch": 7},
        }.items()
        for strategy, hits in hits_of.items()
    ]
    table = compare_grid([*runs, make_run("scratch", 5, fraction=0.5)], CLASSES, n_resamples=400, metrics=("accuracy",))
    rows = table.set_index(["label_fraction", "strategy"])["difference"]
    assert rows.to_dict() == pytest.approx({(0.1, "simclr_imagenet"): 0.3, (1.0, "scratch"): -0.2})
    assert set(table["task"]) == {"planes"}
    assert table["resolved"].all()  # every patient says the same, so no resample can change the sign


def test_holms_correction_counts_the_points_of_a_metric_together():
    few = [make_run(name, hits) for name, hits in {"imagenet": 5, "scratch": 6}.items()]
    more = few + [make_run(name, hits, fraction=0.5) for name, hits in {"imagenet": 5, "scratch": 6}.items()]
    alone, together = (compare_grid(runs, CLASSES, n_resamples=400, metrics=("accuracy",)) for runs in (few, more))
    assert together["p_holm"].iloc[0] == pytest.approx(2 * alone["p_holm"].iloc[0])


def test_curves_run_over_the_mean_number_of_labelled_images():
    runs = [
        make_run("imagenet", 5, fraction=0.1, draw=0, n_images=10),
        make_run("imagenet", 5, fraction=0.1, draw=1, n_images=13),
        make_run("imagenet", 9, n_images=100),
    ]
    curves = label_curves(runs, protocol="fine_tune")
    assert {n: sorted(tables) for n, tables in curves["imagenet"].items()} == {11.5: [(0, 0), (1, 0)], 100.0: [(0, 0)]}


def test_a_strategy_is_worth_the_labels_with_which_the_baseline_does_as_well():
    runs = [
        make_run("imagenet", 5, fraction=0.1, n_images=10),
        make_run("imagenet", 9, fraction=1.0, n_images=1000),
        make_run("simclr_imagenet", 7, fraction=0.1, n_images=10),
    ]
    table = equivalence_grid(runs, CLASSES, n_resamples=20)
    assert table[["protocol", "strategy"]].to_numpy().tolist() == [["fine_tune", "simclr_imagenet"]]
    assert table["n_equivalent"].item() == pytest.approx(100, rel=0.05)  # nearly halfway up, in log n


def test_without_two_points_of_the_baseline_there_is_no_equivalence():
    runs = [make_run("imagenet", 5), make_run("scratch", 4)]
    assert equivalence_grid(runs, CLASSES, n_resamples=20).empty


def test_a_start_is_paid_once_but_counts_on_the_way_to_every_classifier():
    records = {
        PRETRAINING: {"facts": {"optimiser_steps": 100, "views_seen": 1000}, "seconds": 50.0},
        FEATURES: {"facts": {"n_images": 7}, "seconds": 5.0},
    }
    store = SimpleNamespace(open=lambda settings: SimpleNamespace(record=records[settings]))
    runs = [make_run("simclr_imagenet", 5, draw=draw, starts=[FEATURES]) for draw in (0, 1)]
    costs = count_costs([*runs, make_run("imagenet", 5)], store).set_index("strategy")
    assert costs.loc["simclr_imagenet"].to_dict() == {
        "protocol": "fine_tune",
        "n_runs": 2,
        "n_pretrainings": 1,
        "steps_per_run": 110,
        "views_per_run": 1080,
        "seconds": 59.0,
    }
    assert costs.loc["imagenet", ["steps_per_run", "seconds"]].tolist() == [10, 2.0]


def test_ancestors_are_all_runs_behind_a_run():
    run = make_run("simclr_imagenet", 5, starts=[FEATURES])
    assert list(ancestors(run.settings)) == [FEATURES, PRETRAINING]
    assert np.array_equal(list(ancestors(PRETRAINING)), [])


def test_without_the_baseline_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="run 'imagenet' and at least one other"):
        compare_grid([make_run("scratch", 5)], CLASSES, n_resamples=20)


def test_draws_and_seeds_are_crossed_or_taken_in_turn():
    assert pair_draws([0, 1], [5, 6], label_fraction=0.1) == [(0, 5), (0, 6), (1, 5), (1, 6)]
    assert pair_draws([0, 1, 2], [5, 6], label_fraction=0.1, crossed=False) == [(0, 5), (1, 6)]
    assert pair_draws([0, 1], [5, 6, 7], label_fraction=0.1, crossed=False) == [(0, 5), (1, 6), (0, 7)]


@pytest.mark.parametrize("crossed", [True, False])
def test_all_labels_are_one_draw(crossed):
    assert pair_draws([3, 4], [5, 6], label_fraction=1.0, crossed=crossed) == [(3, 5), (3, 6)]
