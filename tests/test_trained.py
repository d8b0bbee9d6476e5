"""Trained encoders in their files; the network is timm's smallest, at 32 px."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fetal_utils.encoders import InitialWeights, extract_features
from fetal_utils.models import Classifier, build_encoder
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain
from fetal_utils.trained import open_encoder
from fetal_utils.training import FineTune
from fetal_utils.weights import read_about, save_weights

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
PRETRAIN = Pretrain(start=START, image_size=32, n_epochs=1, batch_size=40)
FINE_TUNE = FineTune(task="brain_planes", strategy="scratch", source=START, image_size=32, n_steps=2, n_evaluations=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return RunStore(tmp_path_factory.mktemp("results"), tiny_dataset, device="cpu", progress=False)


@pytest.mark.parametrize("settings", [PRETRAIN, FINE_TUNE], ids=["pretraining", "classifier"])
def test_the_file_alone_gives_the_encoder_of_the_run(store, tiny_dataset, settings):
    (run,) = store.get([settings])
    encoder, about = open_encoder(run.weights)
    images = tiny_dataset.images(32, progress=False)[:6]
    here = extract_features(settings.encoder(store), images, image_size=32, device=CPU)
    gray = torch.tensor(images)[:, None] / 255  # (6, 1, 32, 32)
    with torch.no_grad():
        there = encoder((gray - about["mean"]) / about["std"]).numpy()
    np.testing.assert_allclose(there, here, atol=1e-5 * np.abs(here).max())


def test_the_file_says_what_its_network_is_given(store):
    pretrained, tuned = (run.weights for run in store.get([PRETRAIN, FINE_TUNE]))
    # timm's means and deviations for the three channels of ImageNet, averaged
    expected = {
        "backbone": "test_efficientnet",
        "in_chans": 1,
        "image_size": 32,
        "mean": pytest.approx((0.485 + 0.456 + 0.406) / 3),
        "std": pytest.approx((0.229 + 0.224 + 0.225) / 3),
        "geometry": "pad",
        "blank_text": False,
    }
    brain_planes = ["Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"]
    assert read_about(pretrained) == expected
    assert read_about(tuned) == expected | {"classes": brain_planes}


def test_what_a_file_says_is_json_that_every_reader_of_safetensors_sees(tmp_path):
    save_weights(torch.nn.Linear(2, 1), tmp_path / "a.safetensors", about={"b": [1], "a": "x"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"about": '{"a": "x", "b": [1]}'}
        assert json.loads(file.metadata()["about"]) == read_about(tmp_path / "a.safetensors")


def test_a_file_that_says_nothing_is_named_with_the_way_out(tmp_path):
    path = tmp_path / "silent.safetensors"
    save_weights(build_encoder("test_efficientnet", init="random", seed=0), path)
    with pytest.raises(ValueError, match=r"silent.safetensors does not say .*build_encoder\(backbone, init=path\)"):
        open_encoder(path)


def test_a_file_that_is_absent_or_holds_another_network_than_it_says_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        open_encoder(tmp_path / "absent.safetensors")
    path = tmp_path / "other.safetensors"
    classifier = Classifier(build_encoder("test_efficientnet", init="random", seed=0), 3, seed=0)
    save_weights(classifier, path, about={"backbone": "test_resnet"})
    with pytest.raises(ValueError, match=r"other.safetensors does not fit"):
        open_encoder(path)
