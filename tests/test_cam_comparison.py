import numpy as np
import pytest
import torch
from cam_networks import classifier_of, inputs

from fetal_utils.cam import open_cam
from fetal_utils.cam_baselines import gaussian_maps, random_maps
from fetal_utils.cam_comparison import MAPS, map_makers, score_images
from fetal_utils.cam_scores import energy_inside
from fetal_utils.cam_targets import class_targets, target_scores

ABOUT = {"planes": ["brain", "femur", "brain", "femur"], "patients": [1, 1, 2, 3]}
CLASSES = [0, 1, 2, 0]
GENERAL = {"road", "insertion", "deletion", "shift_stability", "speckle_stability"}
OF_A_MASK = {"pointing_game_anatomy", "energy_anatomy", "energy_ratio_anatomy"}


@pytest.fixture(scope="module")
def model():
    return classifier_of("test_resnet")


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((4, 32, 32), dtype=bool)
    mask[:3, 4:20, 10:28] = True  # nothing in the last image
    return mask


def scored(model, explained=CLASSES, *, seed=0, **options):
    return score_images(model, inputs(4, 32), explained, **ABOUT, rng=np.random.default_rng(seed), n_steps=2, **options)


@pytest.fixture(scope="module")
def scores(model, mask):
    return scored(model, masks={"anatomy": mask}, percentiles=[50], layer="layer2")


def values(scores, score, name):
    return scores[(scores["score"] == score) & (scores["map"] == name)].sort_values("image")["value"].to_numpy()


def test_every_image_has_every_score_for_the_networks_map_and_for_those_that_know_nothing(scores):
    assert list(scores) == ["image", "patient", "plane", "map", "score", "value"]
    assert set(scores["score"]) == GENERAL | OF_A_MASK
    assert set(scores["map"]) == set(MAPS) == {"model", "random", "gaussian", "reinitialised"}
    assert len(scores) == 4 * 4 * 8
    assert not scores.duplicated(["image", "map", "score"]).any()
    assert scores.groupby("image")["plane"].first().tolist() == ABOUT["planes"]
    assert scores.groupby("image")["patient"].first().tolist() == ABOUT["patients"]


def test_the_scores_are_those_of_the_maps(scores, model, mask):
    with open_cam(model, image_size=32, layer="layer2") as cam:
        maps = cam.of_classes(inputs(4, 32), CLASSES)
    np.testing.assert_allclose(values(scores, "energy_anatomy", "model"), energy_inside(maps, mask), rtol=1e-5)
    gaussian = gaussian_maps(4, image_size=32)
    np.testing.assert_allclose(values(scores, "energy_anatomy", "gaussian"), energy_inside(gaussian, mask), rtol=1e-6)
    assert np.isnan(values(scores, "energy_anatomy", "gaussian")).tolist() == [False, False, False, True]


def test_the_four_maps_differ(scores):
    found = np.stack([values(scores, "energy_anatomy", name)[:3] for name in MAPS])
    assert len(np.unique(found.round(6), axis=0)) == 4


def test_a_bump_that_never_moves_is_stable_under_speckle_and_noise_is_not(scores):
    np.testing.assert_allclose(values(scores, "speckle_stability", "gaussian"), 1)
    assert (np.abs(values(scores, "speckle_stability", "random")) < 0.9).all()


def test_faithfulness_is_about_the_probability_of_the_class_explained(scores, model):
    with torch.no_grad():
        probability = target_scores(
            model, inputs(4, 32), class_targets(CLASSES, n_images=4, n_classes=3, probability=True)
        )
    # with two steps a quarter of the area is the answer to the whole image
    deletion = values(scores, "deletion", "model")
    assert (deletion >= probability / 4 - 1e-6).all()
    assert (deletion <= probability / 4 + 3 / 4 + 1e-6).all()


def test_the_same_generator_gives_the_same_scores_and_road_can_be_left_out(model):
    tables = [scored(model, percentiles=(), seed=seed) for seed in (1, 1, 2)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert set(tables[0]["score"]) == GENERAL - {"road"}


def test_the_scores_of_masks_alone_are_those_of_the_whole_table(scores, model, mask):
    alone = scored(model, masks={"anatomy": mask}, layer="layer2", only_masks=True)
    whole = scores[scores["score"].isin(OF_A_MASK)].reset_index(drop=True)
    assert set(alone["score"]) == OF_A_MASK
    np.testing.assert_allclose(alone["value"], whole["value"], rtol=1e-5)
    assert alone.drop(columns="value").equals(whole.drop(columns="value"))


def test_random_maps_have_the_layers_grid_and_reinitialised_ones_are_the_other_networks(model):
    other, images = classifier_of("test_resnet", seed=7), inputs(4, 32)
    with open_cam(model, image_size=32, layer="layer3") as cam, open_cam(other, image_size=32) as other_cam:
        makers = map_makers(cam, other_cam, CLASSES, rng=np.random.default_rng(0))
        expected = random_maps(4, side=cam.layer.side, image_size=32, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(makers["random"](images), expected)
        np.testing.assert_array_equal(makers["reinitialised"](images), other_cam.of_classes(images, CLASSES))


def test_an_encoder_is_scored_by_similarity(model):
    encoder = model.encoder
    references = encoder(inputs(4, 32, seed=1)).detach()
    scores = scored(encoder, references, percentiles=(), layer="layer2")
    own = scores[scores["map"] == "model"]
    assert own["value"].notna().all()
    assert values(scores, "deletion", "model").max() <= 1


def test_the_model_is_left_as_it_was(model):
    model.train()
    scored(model, percentiles=())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


def test_what_is_not_one_for_each_image_is_refused(model, mask):
    options = {"rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match="4 images with"):
        score_images(model, inputs(4, 32), CLASSES, planes=["brain"], patients=[1, 2, 3, 4], **options)
    with pytest.raises(ValueError, match="'anatomy': 3"):
        score_images(model, inputs(4, 32), CLASSES, **ABOUT, masks={"anatomy": mask[:3]}, **options)
