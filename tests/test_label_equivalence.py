import numpy as np
import pytest
from prediction_tables import make_patients_with_hits

from fetal_utils.label_equivalence import first_crossing, label_equivalence

N_IMAGES = np.array([10.0, 100.0, 1000.0])


def curve(hits_by_n, *, n_patients=5):
    """Tables in which every patient has the given number of 10 images right."""
    return {n: {0: make_patients_with_hits([hits] * n_patients, 10)} for n, hits in hits_by_n.items()}


def equivalence(strategy, baseline, **kwargs):
    settings = {"metric": "accuracy", "n_resamples": 50, "rng": np.random.default_rng(0)} | kwargs
    return label_equivalence(strategy, baseline, ["a", "b"], **settings)


def test_crossing_lies_halfway_in_log_n_for_a_score_halfway():
    scores = np.array([[0.5, 0.7, 0.8]])
    assert first_crossing(N_IMAGES, scores, np.array([0.6])) == pytest.approx([10**1.5])
    assert first_crossing(N_IMAGES, scores, np.array([0.75])) == pytest.approx([10**2.5])


def test_the_points_of_a_rising_curve_are_their_own_equivalents():
    scores = np.tile([0.5, 0.7, 0.8], (3, 1))
    assert first_crossing(N_IMAGES, scores, scores[0]) == pytest.approx(N_IMAGES)


def test_above_the_curve_is_infinite_and_below_it_is_zero():
    scores = np.tile([0.5, 0.7, 0.8], (2, 1))
    assert first_crossing(N_IMAGES, scores, np.array([0.81, 0.4])).tolist() == [np.inf, 0]


def test_where_a_curve_dips_the_first_crossing_counts():
    scores = np.array([[0.5, 0.7, 0.6]])
    assert first_crossing(N_IMAGES, scores, np.array([0.65])) == pytest.approx([10**1.75])


def test_nan_stays_nan():
    scores = np.array([[0.5, 0.7, 0.8], [0.5, np.nan, 0.8]])
    assert np.isnan(first_crossing(N_IMAGES, scores, np.array([np.nan, 0.6]))).all()


def test_equivalence_from_tables_of_alike_patients_has_no_uncertainty():
    baseline = curve({10: 5, 100: 7, 1000: 8})
    table = equivalence(curve({10: 6, 100: 8}), baseline)
    assert table["n_labelled"].tolist() == [10, 100]
    assert table["score"].tolist() == pytest.approx([0.6, 0.8])
    for column in ("n_equivalent", "low", "high"):
        assert table[column].tolist() == pytest.approx([10**1.5, 1000])
    assert table["reading"].tolist() == ["32 labelled images", "1000 labelled images"]


def test_scores_off_the_curve_are_said_in_words():
    table = equivalence(curve({10: 3, 100: 9}), curve({10: 5, 1000: 8}))
    assert table["reading"].tolist() == [
        "fewer than 10 labelled images",
        "not reached with 1000 labelled images",
    ]
    assert table["n_equivalent"].tolist() == [0, np.inf]


def test_draws_and_seeds_are_averaged_before_interpolating():
    strategy = {
        10: {0: make_patients_with_hits([5] * 5, 10), 1: make_patients_with_hits([7] * 5, 10)},
    }
    table = equivalence(strategy, curve({10: 5, 100: 7, 1000: 8}))
    assert table["n_equivalent"].tolist() == pytest.approx([10**1.5])


def test_a_score_that_other_patients_would_put_above_the_curve_has_an_interval_open_above():
    # means 0.5 and 0.7 of the baseline and 0.65 of the strategy, which wins on every second patient
    baseline = {
        10: {0: make_patients_with_hits([5] * 12, 10)},
        1000: {0: make_patients_with_hits([9, 5] * 6, 10)},
    }
    row = equivalence({10: {0: make_patients_with_hits([5, 8] * 6, 10)}}, baseline).iloc[0]
    assert row["n_equivalent"] == pytest.approx(10 ** (1 + 2 * 0.75))
    assert row["low"] < row["n_equivalent"]
    assert row["high"] == np.inf


def test_bad_curves_and_metrics_are_refused():
    baseline = curve({10: 5, 100: 7})
    with pytest.raises(ValueError, match="calibration_error"):
        equivalence(curve({10: 6}), baseline, metric="calibration_error")
    with pytest.raises(ValueError, match="two positive numbers"):
        equivalence(curve({10: 6}), curve({10: 5}))
    with pytest.raises(ValueError, match="no predictions tables"):
        equivalence({10: {}}, baseline)
    with pytest.raises(ValueError, match="different test images"):
        equivalence(curve({10: 6}, n_patients=4), baseline)
