import numpy as np
import pytest
import torch

from fetal_utils.cam_stability import correlation, shift_stability, speckle_stability

BLACK = -1.0  # of images normalised with 0.5 and 0.5


def gray_images(n_images=3, side=32):
    """Network inputs in -1..1, and the map-maker that returns them as they are."""
    return torch.rand(n_images, 1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def as_they_are(images):
    return images[:, 0].numpy()


def generator(seed=0):
    return np.random.default_rng(seed)


def test_correlation_is_pearsons():
    rng = generator()
    a, b = rng.normal(size=(2, 4, 5, 5))
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation(a, b), expected)
    np.testing.assert_allclose(correlation(a, 3 * a + 2), 1)
    np.testing.assert_allclose(correlation(a, -a), -1)


def test_an_even_map_has_no_correlation():
    maps = generator().normal(size=(2, 4, 4))
    maps[1] = 7
    assert np.isnan(correlation(maps, maps)).tolist() == [False, True]


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) and \(3, 4, 4\)"):
        correlation(np.ones((2, 4, 4)), np.ones((3, 4, 4)))


@pytest.mark.parametrize("seed", range(6))
def test_a_map_that_moves_with_its_image_is_stable_in_every_direction(seed):
    images = gray_images()
    stability = shift_stability(as_they_are, images, as_they_are(images), black=BLACK, rng=generator(seed))
    np.testing.assert_allclose(stability, 1)


def test_a_map_that_stays_where_it_is_is_not_stable():
    images, fixed = gray_images(), generator(1).normal(size=(3, 32, 32))
    stability = shift_stability(lambda images: fixed, images, fixed, black=BLACK, rng=generator())
    assert (np.abs(stability) < 0.2).all()  # of neighbouring noise


def test_what_comes_in_at_the_edge_is_black():
    seen = []
    images = torch.ones(1, 1, 16, 16)

    def look(images):
        seen.append(images[0, 0])
        return as_they_are(images)

    shift_stability(look, images, as_they_are(images), black=BLACK, rng=generator(), shift=2 / 16)
    assert (seen[0] == BLACK).sum() == 16 * 16 - 14 * 14
    assert (seen[0] == 1).sum() == 14 * 14


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.6])
def test_a_shift_of_nothing_or_of_too_much_is_refused(shift):
    images = gray_images()
    with pytest.raises(ValueError, match=r"expected 1 px to half of the side"):
        shift_stability(as_they_are, images, as_they_are(images), black=BLACK, rng=generator(), shift=shift)


def test_a_map_is_the_less_stable_the_more_speckle_there_is():
    images = gray_images()
    stability = [
        speckle_stability(
            as_they_are, images, as_they_are(images), mean=0.5, std=0.5, rng=generator(), amount=amount
        ).mean()
        for amount in (0.001, 0.2, 1.0)
    ]
    assert stability[0] == pytest.approx(1, abs=1e-4)
    assert stability[0] > stability[1] > stability[2]


def test_speckle_multiplies_gray_values_so_black_stays_black_and_nothing_leaves_the_range():
    images = gray_images()
    images[:, :, :8] = BLACK
    seen = []

    def look(images):
        seen.append(images)
        return as_they_are(images)

    speckle_stability(look, images, as_they_are(images), mean=0.5, std=0.5, rng=generator(), amount=0.5)
    assert (seen[0][:, :, :8] == BLACK).all()
    assert seen[0].min() >= -1
    assert seen[0].max() <= 1
    factor = (seen[0] + 1) / (images + 1)
    unclipped = (seen[0] < 1) & (seen[0] > -1)
    assert factor[unclipped].std().item() == pytest.approx(0.43, abs=0.08)  # 0.5, but the ends are clipped


def test_generators_seeded_alike_give_the_same_noise():
    images = gray_images()
    values = [
        speckle_stability(as_they_are, images, as_they_are(images), mean=0.5, std=0.5, rng=generator(seed))
        for seed in (4, 4, 5)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).all()


def test_no_speckle_is_refused():
    images = gray_images()
    with pytest.raises(ValueError, match="amount=0"):
        speckle_stability(as_they_are, images, as_they_are(images), mean=0.5, std=0.5, rng=generator(), amount=0)
