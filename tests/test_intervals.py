import numpy as np
import pytest

from fetal_utils.intervals import bootstrap_p_value, draw_patient_weights, percentile_interval


def test_the_first_row_is_the_data_and_each_row_draws_as_many_patients_as_there_are():
    weights = draw_patient_weights(30, n_resamples=500, rng=np.random.default_rng(0))
    assert weights.shape == (501, 30)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 30).all()
    # a binomial of 30 draws at 1/30: variance 29/30
    assert weights[1:].var() == pytest.approx(29 / 30, rel=0.05)


def test_generators_seeded_alike_draw_alike():
    first, second = (draw_patient_weights(9, n_resamples=5, rng=np.random.default_rng([3, 1])) for _ in range(2))
    assert (first == second).all()


def test_a_single_patient_and_no_resamples_are_refused():
    with pytest.raises(ValueError, match="1 test patient"):
        draw_patient_weights(1, n_resamples=10, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="n_resamples=0"):
        draw_patient_weights(5, n_resamples=0, rng=np.random.default_rng(0))


def test_percentiles_of_0_to_1000_are_25_and_975():
    shuffled = np.random.default_rng(0).permutation(1001).astype(float)
    assert percentile_interval(shuffled) == (25, 975)


def test_percentiles_leave_out_nan_and_keep_infinity():
    resampled = np.column_stack(
        [
            np.r_[np.full(500, np.nan), np.arange(1001.0)],
            np.r_[np.zeros(500), np.full(1001, np.inf)],
            np.full(1501, np.nan),
        ]
    )
    low, high = percentile_interval(resampled)
    assert low.tolist()[:2] == [25, 0]
    assert high.tolist()[:2] == [975, np.inf]
    assert np.isnan([low[2], high[2]]).all()


def test_no_resamples_give_a_nan_interval():
    low, high = percentile_interval(np.empty((0, 3)))
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_p_value_is_twice_the_smaller_tail():
    resampled = np.r_[np.full(20, -1.0), np.full(979, 1.0)]
    assert bootstrap_p_value(resampled) == pytest.approx(2 * 21 / 1000)
    assert bootstrap_p_value(-resampled) == pytest.approx(2 * 21 / 1000)
    assert bootstrap_p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(np.zeros(999)) == 1
    assert np.isnan(bootstrap_p_value(np.full(9, np.nan)))
