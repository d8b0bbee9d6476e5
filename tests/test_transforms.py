"""Views: what their generator decides, and what the strength of each operation means in the picture."""

import math

import pytest
import torch

from fetal_utils.transforms import LARGEST, PRESETS, Augment, Row, two_views

SIZE = 48
AS_IS = {"mean": 0.0, "std": 1.0}  # views stay in [0, 1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy_images(n_images=4, side=SIZE, seed=0):
    return torch.randint(0, 256, (n_images, side, side), dtype=torch.uint8, generator=seeded(seed))


def constant_images(value, n_images=64):
    return torch.full((n_images, SIZE, SIZE), value, dtype=torch.uint8)


def dot_images(n_images=64):
    """A bright square of 3 px in the middle of black, side 49."""
    images = torch.zeros(n_images, 49, 49, dtype=torch.uint8)
    images[:, 23:26, 23:26] = 255
    return images


def ramp_images(n_images=64):
    """Gray value 64 + x + 2 y in px of the image: its slopes (1, 2) tell where a view came from."""
    x = torch.arange(SIZE)
    return (64 + x + 2 * x[:, None]).to(torch.uint8).expand(n_images, SIZE, SIZE)


def view(images, operation, strength, probability=1.0, seed=0):
    augment = Augment([Row(operation, strength, probability, "")], image_size=images.shape[-1], **AS_IS)
    return augment(images, seeded(seed))


def slopes(views):
    """Slope along x and y in the middle of each view, in gray values for each px."""
    middle = 255 * views[:, 0, 16:-16, 16:-16]
    return middle.diff(dim=2).mean((1, 2)), middle.diff(dim=1).mean((1, 2))


# --- what every preset keeps ---


@pytest.mark.parametrize("preset", PRESETS)
def test_views_are_finite_float32_of_the_size_asked_for_and_in_range(preset):
    for side in (64, SIZE, 30):
        views = Augment(preset, image_size=SIZE, mean=0.25, std=0.5)(noisy_images(side=side), seeded())
        assert views.shape == (4, 1, SIZE, SIZE)
        assert views.dtype == torch.float32
        assert (0 - 0.25) / 0.5 <= views.min() <= views.max() <= (1 - 0.25) / 0.5


@pytest.mark.parametrize("preset", PRESETS)
def test_the_generator_alone_decides_the_views(preset):
    augment, images = Augment(preset, image_size=SIZE, **AS_IS), noisy_images()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment(images, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(augment(images, seeded()), first)
    assert torch.equal(augment(images, seeded(9)), first) == (preset == "none")


def test_two_views_are_two_draws_of_the_same_images():
    augment, images = Augment("ultrasound", image_size=SIZE, **AS_IS), noisy_images()
    view_a, view_b = two_views(images, augment, seeded())
    generator = seeded()
    assert torch.equal(view_a, augment(images, generator))
    assert torch.equal(view_b, augment(images, generator))
    assert not torch.equal(view_a, view_b)


@pytest.mark.parametrize("operation", LARGEST)
def test_each_image_draws_its_own_numbers_and_some_are_left_alone(operation):
    images = noisy_images(1).expand(64, SIZE, SIZE)
    views = view(images, operation, LARGEST[operation], probability=0.5)
    changed = ((views - images[:, None] / 255).abs() > 1e-4).flatten(1).any(1)
    if operation != "crop":  # of every image
        assert 16 < changed.sum() < 48  # half of 64, +- 4 standard deviations
    assert len(views.unique(dim=0)) > (1 if operation == "flip" else 16)


@pytest.mark.parametrize("operation", LARGEST)
def test_a_strength_of_zero_changes_nothing(operation):
    images = ramp_images(4)
    torch.testing.assert_close(view(images, operation, 0.0), images[:, None] / 255, atol=1e-4, rtol=0)


def test_the_preset_none_only_normalises_and_needs_no_generator():
    augment, images = Augment("none", image_size=SIZE, mean=0.3, std=0.2), noisy_images()
    torch.testing.assert_close(augment(images), (images[:, None] / 255 - 0.3) / 0.2)
    assert torch.equal(augment(images, seeded()), augment(images))


# --- each operation against what its strength says ---


def test_flip_exchanges_left_and_right():
    images = noisy_images()
    torch.testing.assert_close(view(images, "flip", 1.0), images.flip(-1)[:, None] / 255)


def test_zoom_keeps_the_aspect_ratio_and_cuts_away_at_most_its_strength():
    slope_x, slope_y = slopes(view(ramp_images(), "zoom", 0.6))
    torch.testing.assert_close(slope_y, 2 * slope_x, rtol=1e-3, atol=0)
    area = slope_x * slope_y / 2
    assert 0.4 - 1e-3 < area.min() < 0.45
    assert 0.9 < area.max() < 1 + 1e-3


def test_crop_cuts_away_at_most_its_strength_at_an_aspect_ratio_within_the_papers():
    slope_x, slope_y = slopes(view(ramp_images(256), "crop", 0.6))
    area, ratio = slope_x * slope_y / 2, slope_x / (slope_y / 2)
    assert area.min() > 0.36 and area.max() < 1.02  # sides are whole px
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.37


def test_rotation_keeps_lengths_and_turns_by_at_most_its_strength():
    slope_x, slope_y = slopes(view(ramp_images(), "rotate", 20.0))
    torch.testing.assert_close(slope_x.hypot(slope_y), torch.full((64,), math.sqrt(5)), rtol=1e-2, atol=0)
    turned = torch.rad2deg(torch.atan2(slope_y, slope_x) - math.atan2(2, 1))
    assert -20.1 < turned.min() < -15 and 15 < turned.max() < 20.1


def test_shift_moves_by_at_most_its_strength_in_each_direction():
    views = view(dot_images(), "shift", 0.2)
    places = (torch.arange(49) - 24.0) / 49
    mass = views.sum((1, 2, 3))
    for moved in (views.sum((1, 2)) @ places / mass, views.sum((1, 3)) @ places / mass):
        assert -0.201 < moved.min() < -0.15 and 0.15 < moved.max() < 0.201


@pytest.mark.parametrize("operation", ["gain", "time_gain"])
def test_gains_scale_brightness_by_at_most_their_strength_and_leave_black_black(operation):
    factor = view(constant_images(100), operation, 0.3)[:, 0] * 255 / 100  # (n, depth, width)
    torch.testing.assert_close(factor, factor[:, :, :1].expand_as(factor))
    assert 0.7 - 1e-5 <= factor.min() < 0.75 and 1.25 < factor.max() <= 1.3 + 1e-5
    assert (factor[:, :, 0].std(1) > 1e-3).all() == (operation == "time_gain")
    assert view(constant_images(0), operation, 0.3).max() == 0


def test_contrast_keeps_the_mean_and_scales_the_distance_to_it():
    images = constant_images(100)
    images[:, :, ::2] = 140
    views = 255 * view(images, "contrast", 0.4)
    torch.testing.assert_close(views.mean((1, 2, 3)), torch.full((64,), 120.0))
    factor = (views[:, 0, 0, 0] - 120) / 20
    assert 0.6 <= factor.min() < 0.66 and 1.34 < factor.max() <= 1.4


def test_gamma_keeps_black_and_white_and_stays_between_its_bounds():
    images = constant_images(102)  # 0.4
    images[:, 0, 0], images[:, 0, 1] = 0, 255
    views = view(images, "gamma", 0.5)[:, 0]
    assert (views[:, 0, 0] == 0).all() and (views[:, 0, 1] == 1).all()
    gamma = views[:, 5, 5].log() / math.log(0.4)
    assert 1 / 1.5 - 1e-4 <= gamma.min() < 0.72 and 1.4 < gamma.max() <= 1.5 + 1e-4


def test_blur_spreads_a_dot_by_its_sigma_and_keeps_its_brightness():
    views = view(dot_images(), "blur", 0.04)
    torch.testing.assert_close(views.sum((1, 2, 3)), torch.full((64,), 9.0), rtol=1e-3, atol=0)
    places = torch.arange(49) - 24.0
    for spread in (views.sum((1, 2)), views.sum((1, 3))):  # along x, along y
        variance = spread @ places**2 / 9 - 2 / 3  # of the dot itself: (1 + 0 + 1) / 3
        sigma = variance.clamp(min=0).sqrt() / 49
        assert 0.036 < sigma.max() < 0.04
        assert sigma.mean().item() == pytest.approx(0.02, abs=0.006)  # uniform: sd 0.012 / 8 = 0.0015


def test_speckle_has_the_deviation_asked_for_and_leaves_black_black():
    noise = view(constant_images(100, n_images=256), "speckle", 0.3)[:, 0] * 255 / 100 - 1
    deviation = noise.std((1, 2))
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert deviation.max() < 0.33  # 0.3, estimated from about 600 independent grains
    assert deviation.mean().item() == pytest.approx(0.15, abs=0.02)
    assert view(constant_images(0), "speckle", 0.3).max() == 0


# --- the presets ---


def test_ultrasound_views_keep_depth_downwards_and_the_middle_of_the_plane():
    depth = (2 * torch.arange(SIZE)[:, None]).to(torch.uint8).expand(1000, SIZE, SIZE)
    rows = [row for row in PRESETS["ultrasound"] if row.operation in ("zoom", "rotate", "shift", "flip")]
    augment = Augment(rows, image_size=SIZE, **AS_IS)
    assert slopes(augment(depth, seeded()))[1].min() > 0
    for corner in ((-5, -5), (-5, 5), (5, -5), (5, 5)):  # of the middle fifth of the side
        dots = torch.zeros(300, SIZE, SIZE, dtype=torch.uint8)
        dots[:, SIZE // 2 + corner[0], SIZE // 2 + corner[1]] = 255
        assert augment(dots, seeded()).amax((1, 2, 3)).min() > 0.05


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("ultrasonic", "augmentation='ultrasonic' is unknown; known are ultrasound, simclr, weak, none"),
        ([Row("hue", 0.1, 1.0, "")], "operation 'hue' at strength 0.1, .*: expected each at most once"),
        ([Row("crop", 1.5, 1.0, "")], r"'crop' at strength 1.5, .* from 0 to .*'crop': 0.99"),
        ([Row("gain", math.nan, 1.0, "")], "'gain' at strength nan"),
        ([Row("gain", 0.1, 1.2, "")], "'gain' at strength 0.1, probability 1.2"),
        ([Row("gain", 0.1, 1.0, ""), Row("gain", 0.2, 1.0, "")], "operation 'gain' .*: expected each at most once"),
    ],
)
def test_a_preset_that_makes_no_sense_is_named(preset, message):
    with pytest.raises(ValueError, match=message):
        Augment(preset, image_size=SIZE, **AS_IS)


def test_images_of_another_kind_are_named():
    for images in (torch.zeros(2, 8, 8), torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2, 8, 9).byte()):
        with pytest.raises(ValueError, match=r"images: torch\..*; expected uint8 \(n_images, side, side\)"):
            Augment("weak", image_size=8, **AS_IS)(images, seeded())
