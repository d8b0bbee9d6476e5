import numpy as np
import pytest
import torch
from cam_networks import PlainEncoder, classifier_of, inputs

from fetal_utils.cam import open_cam
from fetal_utils.cam_baselines import gaussian_maps, random_maps, reinitialised
from fetal_utils.cam_maps import enlarge
from fetal_utils.models import Classifier, build_encoder


def test_random_maps_are_noise_on_the_layers_grid_enlarged_as_its_maps_are():
    maps = random_maps(400, side=3, image_size=24, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(maps, enlarge(np.random.default_rng(0).random((400, 3, 3)), 24))
    centre = maps[:, 11:13, 11:13].mean(axis=(1, 2))
    assert centre.mean() == pytest.approx(0.5, abs=0.05)
    assert centre.std() == pytest.approx(1 / np.sqrt(12), abs=0.05)  # uniform


def test_gaussian_maps_are_the_same_bump_in_the_middle_of_every_image():
    maps = gaussian_maps(3, image_size=64, sigma=0.25)
    assert (maps == maps[0]).all()
    np.testing.assert_array_equal(maps[0], maps[0].T)
    np.testing.assert_allclose(maps[0], maps[0, ::-1, ::-1], rtol=1e-6)
    assert maps[0].max() == maps[0, 31, 31]
    # one standard deviation is 16 px: from pixel centre 0.5 px to 16.5 px right of the middle
    assert maps[0, 31, 48] / maps[0, 31, 32] == pytest.approx(np.exp(-(16.5**2 - 0.5**2) / 16**2 / 2))


def test_reinitialised_weights_have_the_same_shapes_and_nothing_of_the_old_ones():
    model = classifier_of("test_efficientnet", seed=1)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    new = reinitialised(model, seed=2)
    for name, value in new.state_dict().items():
        assert value.shape == kept[name].shape
        if "conv" in name and name.endswith("weight"):
            correlation = np.corrcoef(value.flatten(), kept[name].flatten())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(value.numel())
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_a_seed_decides_the_new_weights_and_no_global_generator_is_touched():
    model, state = classifier_of(), torch.get_rng_state()
    first, again, other = (reinitialised(model, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.layer4.0.conv1.weight"], other["encoder.layer4.0.conv1.weight"])


def test_a_reinitialised_encoder_stays_an_encoder_and_gives_maps_that_vary():
    encoder = build_encoder("tf_efficientnet_lite0", init="random", seed=0)
    with open_cam(reinitialised(encoder, seed=1), image_size=64) as cam:
        maps = cam.of_similarity(inputs(2), torch.ones(1280))
    assert np.isfinite(maps).all()
    assert (maps.std(axis=(1, 2)) > 0).all()


def test_a_network_that_timm_cannot_build_again_is_refused():
    with pytest.raises(ValueError, match="PlainEncoder is no encoder of timm's"):
        reinitialised(Classifier(PlainEncoder(4), 2, seed=0), seed=0)
    with pytest.raises(ValueError, match=r"test_resnet has other weights, first conv1.*give in_chans"):
        reinitialised(build_encoder("test_resnet", init="random", seed=0, in_chans=3), seed=0)
