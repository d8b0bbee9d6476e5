"""Encoders and their features; the network is timm's smallest, at 32 px."""

import numpy as np
import pytest
import torch
from torch import nn

from fetal_utils.encoders import Features, InitialWeights, extract_features, initial_weights
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain
from fetal_utils.training import LinearProbe

BACKBONE = "test_efficientnet"
CPU = torch.device("cpu")
SIZE = 32  # px


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("results"), tiny_dataset, device="cpu", progress=False)


@pytest.fixture(scope="module")
def features(store):
    settings = Features(source=InitialWeights(backbone=BACKBONE, init="random", seed=1), image_size=SIZE)
    store.get([settings])
    return settings


def same_weights(module, other):
    others = other.state_dict()
    return all(torch.equal(value, others[name]) for name, value in module.state_dict().items())


# --- where encoders come from ---


def test_the_seed_of_initial_weights_counts_only_where_they_are_random():
    def seeds(init):
        return [initial_weights(backbone=BACKBONE, init=init, seed=seed).seed for seed in (0, 7)]

    assert seeds("random") == [0, 7]
    assert seeds("imagenet") == seeds("some/weights.safetensors") == [0, 0]


def test_random_weights_are_those_of_their_seed():
    first, again, other = (InitialWeights(backbone=BACKBONE, init="random", seed=seed).encoder() for seed in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_a_pretraining_is_run_before_the_features_of_its_encoder():
    pretraining = Pretrain(start=InitialWeights(backbone=BACKBONE, init="random"))
    assert Features(source=pretraining, image_size=SIZE).starts_from() == [pretraining]


# --- features ---


def test_rows_of_the_features_are_those_of_a_direct_pass(store, features, tiny_dataset):
    encoder = features.source.encoder().eval()
    images = torch.tensor(tiny_dataset.images(SIZE, progress=False)).unsqueeze(1) / 255  # (n_rows, 1, 32, 32)
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3  # ImageNet's, over the channels
    with torch.no_grad():
        expected = encoder((images - mean) / std).numpy()
    np.testing.assert_allclose(features.load(store), expected, atol=1e-4 * np.abs(expected).max())


def test_features_have_a_row_for_every_image_and_say_so(store, features, tiny_dataset):
    loaded = features.load(store)
    assert loaded.dtype == np.float32
    assert loaded.shape == (len(tiny_dataset.metadata), 256)
    assert store.open(features).record["facts"] == {"n_images": len(tiny_dataset.metadata), "n_features": 256}
    assert len(np.unique(loaded, axis=0)) == len(loaded)  # no row stands for another image


def test_features_are_computed_once_for_all_probes(store, features, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("features were computed again")

    monkeypatch.setattr("fetal_utils.encoders.extract_features", forbidden)
    about = {"task": "planes", "strategy": "scratch", "features": features}
    runs = store.get([LinearProbe(label_fraction=fraction, **about) for fraction in (0.3, 1.0)])
    assert [run.record["settings"]["features"] for run in runs] == [features.to_dict()] * 2


def test_features_do_not_depend_on_the_batches(tiny_dataset, features):
    encoder, images = features.source.encoder(), tiny_dataset.images(SIZE, progress=False)[:10]
    by_size = [extract_features(encoder, images, image_size=SIZE, device=CPU, batch_size=size) for size in (3, 10)]
    np.testing.assert_allclose(*by_size, atol=1e-4 * np.abs(by_size[0]).max())


def test_extracting_features_changes_no_weight_and_no_running_statistic(tiny_dataset, features):
    encoder, untouched = features.source.encoder(), features.source.encoder()
    extract_features(encoder, tiny_dataset.images(SIZE, progress=False)[:10], image_size=SIZE, device=CPU)
    assert same_weights(encoder, untouched)
    assert not encoder.training
    assert not any(weights.is_inference() for weights in encoder.parameters())  # they can still be trained


def test_a_classifier_is_given_the_normalisation_of_its_encoder(tiny_dataset, features):
    encoder, images = features.source.encoder(), tiny_dataset.images(SIZE, progress=False)[:4]
    outer = nn.Sequential(encoder, nn.Identity())  # has no normalisation of its own
    outputs = extract_features(outer, images, image_size=SIZE, device=CPU, encoder=encoder)
    np.testing.assert_array_equal(outputs, extract_features(encoder, images, image_size=SIZE, device=CPU))


@pytest.mark.parametrize("image_size", [4, 5000])
def test_an_image_size_that_nothing_can_use_is_refused_before_the_run(store, features, image_size):
    settings = Features(source=features.source, image_size=image_size)
    with pytest.raises(ValueError, match=f"image_size={image_size}: expected"):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()
