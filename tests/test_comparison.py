import numpy as np
import pandas as pd
import pytest
from prediction_tables import draw_predictions, make_patients_with_hits, make_predictions

from fetal_utils.comparison import add_verdicts, adjust_holm, compare_strategies

CLASSES = ["a", "b"]


def compare(runs, *, metrics=("accuracy",), n_resamples=400, seed=0, classes=CLASSES):
    return compare_strategies(runs, classes, metrics=metrics, n_resamples=n_resamples, rng=np.random.default_rng(seed))


def test_a_strategy_equal_to_the_baseline_differs_by_nothing():
    table = draw_predictions(np.random.default_rng(0), CLASSES)
    runs = {"imagenet": {(0, 0): table}, "simclr_imagenet": {(0, 0): table.sample(frac=1, random_state=1)}}
    row = add_verdicts(compare(runs, metrics=["f1"])).iloc[0]
    assert row[["difference", "low", "high"]].tolist() == pytest.approx([0, 0, 0])
    assert row["p_value"] == 1
    assert not row["resolved"]
    assert row["verdict"] == "not resolved by this test set"


def test_the_same_gain_for_every_patient_has_no_uncertainty_however_different_the_patients_are():
    hits = np.array([1, 3, 5, 7, 8, 2, 6, 4])
    runs = {
        "imagenet": {(0, 0): make_patients_with_hits(hits, 10)},
        "simclr_imagenet": {(0, 0): make_patients_with_hits(hits + 1, 10)},
        "scratch": {(0, 0): make_patients_with_hits(hits - 1, 10)},
    }
    rows = add_verdicts(compare(runs)).set_index("strategy")
    assert rows.loc["simclr_imagenet", ["difference", "low", "high"]].tolist() == pytest.approx([0.1] * 3)
    assert rows.loc["scratch", ["difference", "low", "high"]].tolist() == pytest.approx([-0.1] * 3)
    assert rows["resolved"].all()
    assert rows["verdict"].to_dict() == {
        "simclr_imagenet": "higher than imagenet",
        "scratch": "lower than imagenet",
    }


def test_draws_and_seeds_are_averaged_and_their_spread_is_reported():
    runs = {
        "imagenet": {key: make_patients_with_hits([5] * 4, 10) for key in [(0, 0), (1, 0)]},
        "dual_imagenet": {
            (1, 0): make_patients_with_hits([9] * 4, 10),
            (0, 0): make_patients_with_hits([6] * 4, 10),
        },
    }
    row = compare(runs).iloc[0]
    assert row["difference"] == pytest.approx((0.1 + 0.4) / 2)
    assert row["n_runs"] == 2
    assert row["sd_over_runs"] == pytest.approx(0.3 / np.sqrt(2))


def test_swapping_strategy_and_baseline_mirrors_the_interval():
    rng = np.random.default_rng(0)
    table = draw_predictions(rng, CLASSES, skill=0.5)
    better = table.assign(predicted=table["predicted"].where(rng.random(len(table)) < 0.8, table["true"]))
    forward = compare({"imagenet": {0: table}, "dual_imagenet": {0: better}}, metrics=["f1"]).iloc[0]
    backward = compare({"imagenet": {0: better}, "dual_imagenet": {0: table}}, metrics=["f1"]).iloc[0]
    assert forward["difference"] > 0
    expected = [-backward["difference"], -backward["high"], -backward["low"], backward["p_value"]]
    assert forward[["difference", "low", "high", "p_value"]].tolist() == pytest.approx(expected)


def test_strategies_that_gain_nothing_on_average_are_rarely_called_different():
    rng = np.random.default_rng(0)
    n_patients, n_images, n_simulations = 40, 8, 200
    true = np.tile([0, 1], n_patients * n_images // 2)
    patient = np.repeat(np.arange(n_patients), n_images)
    n_resolved = 0
    for _ in range(n_simulations):
        ease = rng.uniform(0.3, 0.7, size=n_patients)
        gain = 0.3 * rng.choice([-1, 1], size=n_patients)  # helps some patients, harms as many
        runs = {}
        for strategy, hit_rate in [("imagenet", ease), ("simclr_imagenet", ease + gain)]:
            right = rng.random(len(true)) < hit_rate[patient]
            runs[strategy] = {0: make_predictions(true, np.where(right, true, 1 - true), patient, CLASSES)}
        rows = compare(runs, metrics=["f1"], n_resamples=200, seed=rng.integers(2**32))
        n_resolved += add_verdicts(rows)["resolved"].iloc[0]
    assert n_resolved / n_simulations <= 0.09  # nominal 0.05, and less than three standard errors


def test_holm_worked_by_hand():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 -> 0.02, 0.03, 0.06, then not below 0.06
    assert adjust_holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm(np.array([0.6, 0.9])) == pytest.approx([1, 1])


def test_holm_leaves_nan_out_of_the_count():
    adjusted = adjust_holm(np.array([0.02, np.nan, 0.03]))
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04])
    assert np.isnan(adjusted[1])


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"1\.2"):
        adjust_holm(np.array([0.1, 1.2]))


def comparison_rows(p_values, *, n_resamples=999, metric="f1"):
    rows = {"baseline": "imagenet", "metric": metric, "difference": 0.1, "n_resamples": n_resamples}
    return pd.DataFrame({"p_value": p_values}).assign(**rows)


def test_verdicts_depend_on_how_many_comparisons_the_family_has():
    alone = add_verdicts(comparison_rows([0.03]))
    among = add_verdicts(comparison_rows([0.03, 0.5, 0.6]))
    assert alone["resolved"].tolist() == [True]
    assert among["resolved"].tolist() == [False, False, False]
    assert among["p_holm"].tolist() == pytest.approx([0.09, 1, 1])


def test_families_are_corrected_separately():
    rows = pd.concat([comparison_rows([0.03]), comparison_rows([0.03, 0.5, 0.6], metric="auroc")])
    assert add_verdicts(rows)["resolved"].tolist() == [True, False, False, False]


def test_too_few_resamples_for_the_family_are_refused_with_the_number_needed():
    with pytest.raises(ValueError, match="at least 200 resamples"):
        add_verdicts(comparison_rows([0.03] * 5, n_resamples=100))
    add_verdicts(comparison_rows([0.03] * 5, n_resamples=200))


def test_verdicts_need_rows_and_columns():
    with pytest.raises(ValueError, match="p_value"):
        add_verdicts(comparison_rows([0.03]).drop(columns="p_value"))
    with pytest.raises(ValueError, match="0 rows"):
        add_verdicts(comparison_rows([]))


def test_a_difference_that_cannot_be_computed_is_called_so():
    rows = comparison_rows([np.nan, 0.01]).assign(difference=[np.nan, 0.2])
    assert add_verdicts(rows)["verdict"].tolist() == [
        "not computable on this test set",
        "higher than imagenet",
    ]


def test_unpaired_runs_are_refused():
    table = draw_predictions(np.random.default_rng(0), CLASSES)
    with pytest.raises(ValueError, match=r"scratch.*\(1, 0\)"):
        compare({"imagenet": {(0, 0): table}, "scratch": {(1, 0): table}})
    with pytest.raises(ValueError, match="baseline 'imagenet'"):
        compare({"scratch": {(0, 0): table}})
    with pytest.raises(ValueError, match="different test images"):
        compare({"imagenet": {0: table}, "scratch": {0: table.iloc[:-5]}})


def test_one_test_patient_is_refused():
    table = draw_predictions(np.random.default_rng(0), CLASSES).assign(patient=3)
    with pytest.raises(ValueError, match="1 test patient"):
        compare({"imagenet": {0: table}, "scratch": {0: table}})
