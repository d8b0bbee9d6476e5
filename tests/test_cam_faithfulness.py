"""Scores on networks so simple that what each pixel is worth is known."""

import numpy as np
import pytest
import torch
from torch import nn

from fetal_utils.cam_faithfulness import blurred, deletion_area, insertion_area, road
from fetal_utils.cam_maps import rank_pixels


class Weighted(nn.Module):
    """The sum of an image's pixels, each with its weight: (n, 1, side, side) to (n, 1)."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, images):
        return (images * self.weights).sum(dim=(2, 3))


def answer(output):
    return output[0]


def one_pixel(side=4):
    weights = np.zeros((side, side))
    weights[1, 2] = 1
    return weights


def ranks_of(maps):
    return rank_pixels(np.asarray(maps)[None], rng=np.random.default_rng(0))


def bright_images(n_images=1, side=4):
    images = torch.zeros(n_images, 1, side, side)
    images[:, :, 1, 2] = 1  # mean gray: 1 / 16
    return images


def test_deleting_the_one_pixel_that_counts_first_leaves_the_mean_gray_at_once():
    area = deletion_area(Weighted(one_pixel()), bright_images(), ranks_of(one_pixel()), [answer], n_steps=4)
    # answers 1, m, m, m, m with m = 1/16, by the trapezoidal rule
    assert area == pytest.approx([((1 + 1 / 16) / 2 + 3 / 16) / 4])


def test_deleting_it_last_keeps_the_answer_to_the_end():
    area = deletion_area(Weighted(one_pixel()), bright_images(), ranks_of(-one_pixel()), [answer], n_steps=4)
    assert area == pytest.approx([(3 + (1 + 1 / 16) / 2) / 4])


def test_inserting_the_one_pixel_that_counts_first_gives_the_answer_at_once():
    images = bright_images()
    start = blurred(images)[0, 0, 1, 2].item()
    area = insertion_area(Weighted(one_pixel()), images, ranks_of(one_pixel()), [answer], n_steps=4)
    assert area == pytest.approx([((start + 1) / 2 + 3) / 4], rel=1e-5)
    last = insertion_area(Weighted(one_pixel()), images, ranks_of(-one_pixel()), [answer], n_steps=4)
    assert last == pytest.approx([(3 * start + (start + 1) / 2) / 4], rel=1e-5)


def test_deleting_into_the_blurred_image_is_inserting_backwards():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 8, 8, generator=generator)
    model = Weighted(torch.randn(8, 8, generator=generator))
    ranks = rank_pixels(np.random.default_rng(1).random((3, 8, 8)), rng=np.random.default_rng(0))
    deleted = deletion_area(model, images, ranks, [answer] * 3, baseline="blur", n_steps=8)
    inserted = insertion_area(model, images, 63 - ranks, [answer] * 3, n_steps=8)
    np.testing.assert_allclose(deleted, inserted, rtol=1e-4, atol=1e-5)


def test_areas_do_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 8, 8, generator=generator)
    model = Weighted(torch.randn(8, 8, generator=generator))
    ranks = rank_pixels(np.random.default_rng(1).random((5, 8, 8)), rng=np.random.default_rng(0))
    for area in (insertion_area, deletion_area):
        small, large = (area(model, images, ranks, [answer] * 5, n_steps=4, batch_size=size) for size in (1, 1000))
        np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)


def test_a_blur_keeps_an_even_image_and_the_larger_it_is_the_evener_it_makes_another():
    even = torch.full((1, 1, 16, 16), 0.4)
    torch.testing.assert_close(blurred(even, 0.2), even)
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    deviations = [blurred(image, blur).std().item() for blur in (0.01, 0.05, 0.1, 0.3)]
    assert deviations == sorted(deviations, reverse=True)


# --- ROAD ---


def halves(side=16):
    """A network that reads the left half of an image whose left half is bright, its image and its perfect map."""
    weights = np.zeros((side, side))
    weights[:, : side // 2] = 2 / side**2  # the answer for a left half of 1 is 1
    image = torch.zeros(1, 1, side, side)
    image[..., : side // 2] = 1
    return Weighted(weights), image, weights


def road_of(maps, *, seed=0, percentiles=(20, 50, 80)):
    model, image, _ = halves()
    return road(model, image, ranks_of(maps), [answer], rng=np.random.default_rng(seed), percentiles=percentiles).item()


def test_a_map_of_what_counts_scores_above_zero_and_the_opposite_map_as_much_below():
    weights = halves()[2]
    perfect, opposite = road_of(weights), road_of(-weights)
    assert perfect > 0.2
    # exchanging the most and the least relevant changes the sign, but for the filling's noise
    assert opposite == pytest.approx(-perfect, abs=0.05)


def test_removing_the_half_that_counts_halves_the_combined_score():
    # the least relevant half gone, the answer stays 1; the most relevant gone, it is filled with the dark other half
    assert road_of(halves()[2], percentiles=[50]) == pytest.approx(0.5, abs=0.02)


def test_a_map_across_what_counts_scores_about_nothing():
    rows = np.repeat(np.arange(16.0)[:, None], 16, axis=1)
    assert abs(road_of(rows)) < 0.05


def test_the_noise_comes_from_the_generator_given_and_torchs_own_is_left_alone():
    state = torch.get_rng_state()
    weights = halves()[2]
    assert road_of(weights, seed=1) == road_of(weights, seed=1)
    assert road_of(weights, seed=1) != road_of(weights, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


# --- what is refused ---


def test_shapes_that_do_not_match_are_refused():
    model, images = Weighted(one_pixel()), bright_images(2)
    for score in (insertion_area, deletion_area, lambda *args: road(*args, rng=np.random.default_rng(0))):
        with pytest.raises(ValueError, match="expected a map of its size"):
            score(model, images, ranks_of(one_pixel()), [answer] * 2)
        with pytest.raises(ValueError, match="1 targets"):
            score(model, images, np.repeat(ranks_of(one_pixel()), 2, axis=0), [answer])


def test_settings_without_meaning_are_refused():
    arguments = Weighted(one_pixel()), bright_images(), ranks_of(one_pixel()), [answer]
    with pytest.raises(ValueError, match="n_steps=0"):
        insertion_area(*arguments, n_steps=0)
    with pytest.raises(ValueError, match="baseline='black'"):
        deletion_area(*arguments, baseline="black")
    for percentiles in ([], [0], [100], [20, 120]):
        with pytest.raises(ValueError, match="percentiles"):
            road(*arguments, rng=np.random.default_rng(0), percentiles=percentiles)
