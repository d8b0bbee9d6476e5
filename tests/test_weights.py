"""Weights on disk."""

import pytest
import torch

from fetal_utils.models import Classifier, ProjectionHead, build_encoder
from fetal_utils.weights import load_weights, save_weights


def test_a_tensor_of_another_shape_is_refused_by_name_and_shapes(tmp_path):
    encoder = build_encoder("resnet18", init="random", seed=0)
    path = tmp_path / "three_planes.safetensors"
    save_weights(Classifier(encoder, 3, seed=0), path)
    with pytest.raises(ValueError, match=r"2 tensors differ \(head.weight: \(3, 512\) there, \(6, 512\) here"):
        load_weights(Classifier(encoder, 6, seed=0), path)


def test_saved_weights_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(ProjectionHead(4, seed=0), path)
    before = path.read_bytes()

    def breaks_off(tensors, file, metadata):
        file.write_bytes(b"half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr("fetal_utils.weights.save_file", breaks_off)
    with pytest.raises(OSError, match="no space left"):
        save_weights(ProjectionHead(4, seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_come_back_as_they_were_saved(tmp_path):
    head, other = ProjectionHead(6, seed=0), ProjectionHead(6, seed=1)
    head(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))  # moves the running statistics
    save_weights(head, tmp_path / "head.safetensors")
    load_weights(other, tmp_path / "head.safetensors")
    assert all(torch.equal(tensor, head.state_dict()[name]) for name, tensor in other.state_dict().items())
    assert other[1].num_batches_tracked == 1
