import numpy as np
import pytest

from fetal_utils.cam_scores import MASK_SCORES, energy_inside, energy_ratio, pointing_game

MAP = np.array([[[4.0, 1.0], [-5.0, 3.0]]])
LEFT = np.array([[[True, False], [True, False]]])
RIGHT = ~LEFT


def test_the_peak_is_inside_or_not():
    assert pointing_game(MAP, LEFT).tolist() == [1]
    assert pointing_game(MAP, RIGHT).tolist() == [0]


def test_equally_high_peaks_share_the_point():
    even = np.ones((1, 2, 2))
    one_pixel = np.array([[[True, False], [False, False]]])
    assert pointing_game(even, one_pixel).tolist() == [0.25]


def test_energy_counts_positive_values_alone():
    assert energy_inside(MAP, LEFT).tolist() == [4 / 8]  # the -5 below it counts as 0
    assert energy_inside(MAP, RIGHT).tolist() == [4 / 8]


def test_the_ratio_is_one_for_an_even_map_and_any_mask():
    rng = np.random.default_rng(0)
    masks = rng.random((6, 8, 8)) < rng.random((6, 1, 1))
    np.testing.assert_allclose(energy_ratio(np.full((6, 8, 8), 0.3), masks), 1)


def test_a_map_inside_of_a_quarter_of_the_image_has_ratio_four():
    mask = np.array([[[False, True], [False, False]]])
    assert energy_ratio(np.array([[[-1.0, 2.0], [0.0, 0.0]]]), mask).tolist() == [4]


@pytest.mark.parametrize("score", MASK_SCORES.values())
def test_without_anything_marked_there_is_no_score(score):
    assert np.isnan(score(MAP, np.zeros((1, 2, 2), dtype=bool))).all()


@pytest.mark.parametrize("score", [energy_inside, energy_ratio])
def test_a_map_without_positive_values_has_no_energy(score):
    maps = np.concatenate([MAP, -np.abs(MAP)])
    assert np.isnan(score(maps, np.repeat(LEFT, 2, axis=0))).tolist() == [False, True]


@pytest.mark.parametrize("score", MASK_SCORES.values())
def test_masks_of_another_shape_are_refused(score):
    with pytest.raises(ValueError, match=r"\(1, 2, 2\) and \(2, 2\)"):
        score(MAP, LEFT[0])
