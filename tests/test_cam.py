"""Target layers, maps that know nothing, and scores on networks so simple that what each pixel is worth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from cam_networks import Weighted, classifier_of, inputs
from data_folders import plane_lines, write_folder
from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from fetal_utils.cam import (
    answer_area,
    energy_inside,
    energy_ratio,
    find_target_layer,
    pointing_game,
    rank_pixels,
    read_masks,
    road,
    scale_per_network,
    score_maps,
    summarise_scores,
)
from fetal_utils.data import Dataset
from fetal_utils.evaluation import patient_weights
from fetal_utils.models import build_encoder

# --- the layer and its maps ---


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("min_side, side", [(1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (16, 16), (32, 32)])
def test_the_maps_are_as_large_as_asked_for_and_no_larger_than_needed(backbone, min_side, side):
    encoder, shapes = build_encoder(backbone, init="random", seed=0), []
    layer, found = find_target_layer(encoder, image_size=64, min_side=min_side)
    layer.register_forward_hook(lambda module, given, output: shapes.append(output.shape[2:]))
    encoder.eval()(inputs(1))
    assert found == side
    assert shapes == [(side, side)]


def test_a_transformer_and_too_large_a_side_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="lower min_side"):
        find_target_layer(build_encoder("test_resnet", init="random", seed=0), image_size=64, min_side=33)
    with pytest.raises(ValueError, match=r"VisionTransformer.*convolutional"):
        find_target_layer(build_encoder("test_vit", init="random", seed=0), image_size=160)


def test_on_the_last_layer_grad_cam_is_the_class_weights_times_the_maps():
    model, images, classes = classifier_of(), inputs(3, 96), [0, 1, 2]
    layer, side = find_target_layer(model.encoder, image_size=96, min_side=3)
    with torch.no_grad():
        features = model.encoder.forward_features(images)  # (3, 96, 3, 3)
        grids = torch.einsum("nc,nchw->nhw", model.head.weight[classes], features).clamp(min=0).numpy()
    with GradCAM(model=model, target_layers=[layer]) as cam:
        maps = cam(images, [ClassifierOutputTarget(k) for k in classes])
        scaled = scale_per_network(cam, maps)
    assert side == 3 and maps.shape == (3, 96, 96)
    # grad-cam stretches each map from its own least to its own highest value; the heights come back
    cells = maps[:, 16::32, 16::32]
    spans = grids - grids.min(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(cells, spans / spans.max(axis=(1, 2), keepdims=True).clip(1e-9), atol=0.03)
    heights = grids.max(axis=(1, 2))
    np.testing.assert_allclose(scaled.max(axis=(1, 2)), heights / heights.max(), rtol=0.02)


@pytest.mark.parametrize("method", [GradCAM, EigenCAM, HiResCAM, LayerCAM])
def test_every_method_can_be_scaled_per_network_and_nothing_stays_nothing(method):
    model, images = classifier_of("test_efficientnet"), inputs(3)
    layer, _ = find_target_layer(model.encoder, image_size=64)
    with method(model=model, target_layers=[layer]) as cam:
        maps = cam(images, [ClassifierOutputTarget(1)] * 3)
        scaled = scale_per_network(cam, maps)
    assert scaled.max() == pytest.approx(1, abs=1e-3)
    assert (scaled <= maps + 1e-6).all()
    assert not any(module._forward_hooks for module in model.modules())


# --- scores of masks ---

MAP = np.array([[[4.0, 1.0], [-5.0, 3.0]]])
LEFT = np.array([[[True, False], [True, False]]])


def test_the_peak_is_inside_or_not_and_equal_peaks_share_the_point():
    assert pointing_game(MAP, LEFT).tolist() == [1]
    assert pointing_game(MAP, ~LEFT).tolist() == [0]
    assert pointing_game(np.ones((1, 2, 2)), np.array([[[True, False], [False, False]]])).tolist() == [0.25]


def test_energy_counts_positive_values_and_its_ratio_is_one_for_an_even_map():
    assert energy_inside(MAP, LEFT).tolist() == [4 / 8]  # the -5 below it counts as 0
    assert energy_ratio(MAP, LEFT).tolist() == [1]
    rng = np.random.default_rng(0)
    masks = rng.random((6, 8, 8)) < rng.random((6, 1, 1))
    np.testing.assert_allclose(energy_ratio(np.full((6, 8, 8), 0.3), masks), 1)
    corner = np.array([[[False, True], [False, False]]])
    assert energy_ratio(np.array([[[0.0, 2.0], [0.0, 0.0]]]), corner).tolist() == [4]


def test_an_empty_mask_and_a_map_without_positive_values_have_no_score():
    assert all(np.isnan(score(MAP, np.zeros_like(LEFT))) for score in (pointing_game, energy_inside, energy_ratio))
    assert np.isnan(energy_inside(-np.abs(MAP), LEFT)) and pointing_game(-np.abs(MAP), LEFT) == [0]


# --- faithfulness ---


def one_pixel(side=4):
    weights = np.zeros((side, side))
    weights[1, 2] = 1
    return weights


def ranks_of(maps, seed=0):
    return rank_pixels(np.asarray(maps, float)[None], rng=np.random.default_rng(seed))


def test_ranks_follow_the_map_and_equal_pixels_come_in_a_drawn_order():
    assert ranks_of([[0.5, -1.0], [3.0, 2.0]]).tolist() == [[[0.25, 0], [0.75, 0.5]]]
    even = [ranks_of(np.zeros((2, 2)), seed) for seed in range(40)]
    assert all(sorted(ranks.ravel()) == [0, 0.25, 0.5, 0.75] for ranks in even)
    assert {ranks[0, 0, 0] for ranks in even} == {0, 0.25, 0.5, 0.75}


def test_deletion_and_insertion_of_the_one_pixel_that_counts_by_hand():
    image = torch.zeros(1, 1, 4, 4)
    image[..., 1, 2] = 1
    gray = torch.full_like(image, 1 / 16)
    model = Weighted(one_pixel())
    # 16 steps, a pixel each; answers 1, m, m ... with m = 1/16 where it goes first; 1 ... 1, m where it goes last
    first = answer_area(model, image, gray, ranks_of(one_pixel()), [0])
    last = answer_area(model, image, gray, ranks_of(-one_pixel()), [0])
    assert first == pytest.approx([((1 + 1 / 16) / 2 + 15 / 16) / 16])
    assert last == pytest.approx([(15 + (1 + 1 / 16) / 2) / 16])
    back = answer_area(model, gray, image, ranks_of(one_pixel()), [0])
    assert back == pytest.approx([((1 + 1 / 16) / 2 + 15) / 16])
    assert answer_area(model, image, gray, ranks_of(one_pixel()), [1]) == pytest.approx(1 - first)


def halves(side=16):
    """A network that reads the left half of an image, the image whose left half is bright, and the perfect map."""
    weights = np.zeros((side, side))
    weights[:, : side // 2] = 2 / side**2  # the answer for a left half of 1 is 1
    image = torch.zeros(1, 1, side, side)
    image[..., : side // 2] = 1
    return Weighted(weights), image, weights


def test_road_is_half_where_the_half_that_counts_goes_and_its_opposite_for_the_opposite_map():
    model, image, weights = halves()
    # the least relevant half gone, the answer stays 1; the most relevant gone, it is filled with the dark other half
    assert road(model, image, ranks_of(weights), [0], [50]) == pytest.approx([0.5], abs=0.02)
    assert road(model, image, ranks_of(-weights), [0], [50]) == pytest.approx([-0.5], abs=0.02)
    rows = np.repeat(np.arange(16.0)[:, None], 16, axis=1)
    assert road(model, image, ranks_of(rows), [0], [20, 50, 80]) == pytest.approx([0], abs=0.05)


def test_the_noise_of_road_is_the_same_each_time_and_torchs_own_generator_is_left_alone():
    state, (model, image, weights) = torch.get_rng_state(), halves()
    assert road(model, image, ranks_of(weights), [0], [20]) == road(model, image, ranks_of(weights), [0], [20])
    assert torch.equal(torch.get_rng_state(), state)


# --- all scores, paired ---


def test_the_right_map_beats_the_random_map_of_the_same_image_and_the_difference_is_paired():
    model, image, weights = halves()
    images = image.repeat(6, 1, 1, 1) * torch.linspace(0.5, 1, 6)[:, None, None, None]  # networks differ in confidence
    rng = np.random.default_rng(0)
    maps = {"model": np.repeat(weights[None], 6, 0), "random": rng.random((6, 16, 16))}
    masks = {"anatomy": np.repeat(weights[None] > 0, 6, 0)}
    scores = score_maps(model, images, maps, [0] * 6, masks=masks, percentiles=[50])
    table = scores.pivot_table(index="image", columns=["score", "map"], values=["value", "difference"])
    names = {"insertion", "deletion", "road", "pointing_game_anatomy", "energy_inside_anatomy", "energy_ratio_anatomy"}
    assert set(scores["score"]) == names
    for name in names:
        value, difference = table["value"][name], table["difference"][name]
        np.testing.assert_allclose(difference["model"], value["model"] - value["random"])
        assert (difference["random"] == 0).all()
    assert (table["difference"]["road"]["model"] > 0.05).all()
    assert (table["difference"]["deletion"]["model"] < -0.05).all()
    assert (table["difference"]["energy_ratio_anatomy"]["model"] > 0.3).all()
    # the confidence of the answer moves the values of a random map more than the maps differ
    assert table["value"]["insertion"]["random"].max() > 1.3 * table["value"]["insertion"]["random"].min()


def test_an_even_map_is_worth_about_as_much_as_a_random_one():
    model, image, _ = halves()
    images, rng = image.repeat(30, 1, 1, 1), np.random.default_rng(1)
    maps = {"model": np.ones((30, 16, 16)), "random": rng.random((30, 16, 16))}
    scores = score_maps(model, images, maps, [0] * 30, masks={})
    mean = scores[scores["map"] == "model"].groupby("score")["difference"].mean()
    assert set(mean.index) == {"insertion", "deletion"}
    assert mean.abs().max() < 0.02


def test_rows_are_means_over_images_with_intervals_over_patients():
    patients = np.array([1, 1, 2, 3])
    scores = pd.DataFrame({"image": range(4), "map": "model", "score": "road", "value": [0.1, 0.3, 0.5, np.nan]})
    scores = scores.assign(difference=scores["value"] - 0.1, patient=patients, plane=["a", "a", "b", "b"])
    rows = summarise_scores(scores, patient_weights([1, 2, 3], n_resamples=500), strategy="imagenet", seed=3)
    of = rows.set_index("plane")
    assert of["value"].to_dict() == pytest.approx({"all": 0.3, "a": 0.2, "b": 0.5})
    assert of["difference"].to_dict() == pytest.approx({"all": 0.2, "a": 0.1, "b": 0.4})
    assert of["n_images"].to_dict() == {"all": 3, "a": 2, "b": 1}
    assert of["n_patients"].to_dict() == {"all": 2, "a": 1, "b": 1}
    assert of.loc["all", ["low", "high", "difference_low", "difference_high"]].tolist() == pytest.approx(
        [0.2, 0.5, 0.1, 0.4]
    )
    assert set(rows["strategy"]) == {"imagenet"} and set(rows["seed"]) == {3}


# --- masks ---


def test_the_phantoms_masks_lie_in_the_geometry_of_its_images(tiny_dataset):
    rows = tiny_dataset.rows("test")[:6]
    masks = read_masks(tiny_dataset, rows, 64)
    assert set(masks) >= {"anatomy", "corner"}
    assert masks["anatomy"].shape == (6, 64, 64) and masks["anatomy"].dtype == bool
    assert masks["anatomy"].any(axis=(1, 2)).sum() >= 3
    assert masks["anatomy"].mean(axis=(1, 2)).max() < 0.7
    padded = replace(tiny_dataset, geometry="pad")
    assert read_masks(padded, rows, 64)["corner"].any(axis=(1, 2)).all()
    bars = (padded.images(64)[rows] == 0).all(axis=2)  # rows of the square above and below the image
    assert bars.any() and not read_masks(padded, rows, 64)["anatomy"][bars].any()


def test_without_any_mask_the_corner_is_left_and_marked_where_it_is_painted_black_too(tmp_path):
    dataset = Dataset(write_folder(tmp_path / "own", plane_lines(), shape=(20, 30)), tmp_path / "cache", geometry="pad")
    masks = read_masks(replace(dataset, blank_text=True), np.arange(2), 30)
    assert list(masks) == ["corner"]
    assert masks["corner"].any(axis=(1, 2)).all()
    rows, columns = np.nonzero(masks["corner"][0])
    assert rows.min() == 5 and columns.max() == 29  # the image's upper right, below the bar
    blank = replace(dataset, blank_text=True).images(30)[:2]
    assert not blank[masks["corner"]].any() and dataset.images(30)[:2][masks["corner"]].any()
