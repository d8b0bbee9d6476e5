"""Maps against the formulas of the papers, written out with torch's own gradients, and against the library's maps."""

import gc

import numpy as np
import psutil
import pytest
import pytorch_grad_cam as library
import torch
from cam_networks import PlainEncoder, classifier_of, inputs
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from fetal_utils.cam import open_cam
from fetal_utils.cam_layers import TargetLayer
from fetal_utils.cam_maps import enlarge, rank_pixels, to_common_scale
from fetal_utils.cam_methods import METHODS, grids_of
from fetal_utils.cam_targets import class_targets
from fetal_utils.depthwise import DepthwiseConv2d

CLASSES = [0, 1, 2, 1, 0]
LIBRARY = {
    "gradcam": library.GradCAM,
    "hirescam": library.HiResCAM,
    "gradcam++": library.GradCAMPlusPlus,
    "scorecam": library.ScoreCAM,
    "layercam": library.LayerCAM,
}


@pytest.fixture(scope="module")
def resnet():
    return classifier_of("test_resnet")


def activations_and_gradients(model, layer, images, explain):
    """Output of a layer and the gradient of ``explain(model output)`` with respect to it."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    explained = explain(model(images))
    handle.remove()
    return kept[0].detach(), torch.autograd.grad(explained, kept[0])[0]


def by_hand(method, activations, gradients):
    weights = gradients.mean(dim=(2, 3), keepdim=True) if method == "gradcam" else gradients
    return ((weights.clamp(min=0) if method == "layercam" else weights) * activations).sum(dim=1).numpy()


def grids(maps, side):
    """The grid that enlarged maps came from: a pixel in each cell's middle holds its value if the cells are odd."""
    cell = maps.shape[-1] // side
    return maps[:, cell // 2 :: cell, cell // 2 :: cell]


# --- the maps ---


def test_on_the_last_layer_grad_cam_and_hires_cam_are_the_class_weights_times_the_maps(resnet):
    images = inputs(5, 96)  # 3 x 3 maps, cells of 32 px
    with torch.no_grad():
        features = resnet.encoder.forward_features(images)  # (5, 96, 3, 3)
        weights = resnet.head.weight[CLASSES]
        expected = torch.einsum("nc,nchw->nhw", weights, features).numpy() / 9
    for method in ("gradcam", "hirescam"):
        with open_cam(resnet, image_size=96, method=method) as cam:
            maps = cam.of_classes(images, CLASSES)
        np.testing.assert_allclose(maps, enlarge(expected, 96), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
def test_gradients_through_quickened_depthwise_convolutions_give_the_maps_of_the_formula(method):
    model = classifier_of("test_efficientnet")
    assert any(isinstance(layer, DepthwiseConv2d) for layer in model.encoder.blocks[3].modules())
    images = inputs(5)
    # here the weights are trained too, so the custom gradient is used; in `open_cam` they are frozen
    found = activations_and_gradients(
        model, "encoder.blocks.2", images, lambda logits: logits[torch.arange(5), CLASSES].sum()
    )
    with open_cam(model, image_size=64, method=method, layer="blocks.2") as cam:
        maps = cam.of_classes(images, CLASSES)
    assert cam.layer.side == 8
    np.testing.assert_allclose(maps, enlarge(by_hand(method, *found), 64), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", LIBRARY)
def test_the_maps_are_the_librarys_before_it_clips_and_stretches_them(resnet, method):
    images = inputs(2)
    layer = TargetLayer("layer4", resnet.encoder.layer4, side=2, n_channels=96)
    targets = class_targets([0, 2], n_images=2, n_classes=3)
    ours = grids_of(resnet.requires_grad_(False), images, targets, method=method, layer=layer)
    resnet.requires_grad_(True)
    with LIBRARY[method](resnet, [resnet.encoder.layer4]) as cam:
        theirs = cam(images, [ClassifierOutputTarget(0), ClassifierOutputTarget(2)])
    stretched = scale_cam_image(scale_cam_image(np.maximum(ours, 0), (64, 64)))
    np.testing.assert_allclose(stretched, theirs, atol=1e-3)


def test_eigen_cam_is_the_first_principal_component_with_its_largest_value_positive(resnet):
    images = inputs(3, 96)
    with torch.no_grad():
        features = resnet.encoder.forward_features(images).flatten(2).transpose(1, 2)  # (3, 9, channels)
    centred = features - features.mean(dim=1, keepdim=True)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = (u[:, :, 0] * s[:, :1]).reshape(3, 3, 3).numpy()
    with open_cam(resnet, image_size=96, method="eigencam") as cam:
        maps = grids(cam.of_classes(images, 0), 3)
    np.testing.assert_allclose(np.abs(maps), np.abs(expected), rtol=0.1, atol=0.03 * np.abs(expected).max())
    assert (maps.max(axis=(1, 2)) >= -maps.min(axis=(1, 2))).all()


def test_the_similarity_to_a_reference_is_explained_by_its_gradient(resnet):
    images, references = inputs(4, 96), torch.randn(4, 96, generator=torch.Generator().manual_seed(1))
    found = activations_and_gradients(
        resnet.encoder, "layer4", images, lambda features: F.cosine_similarity(features, references).sum()
    )
    with open_cam(resnet.encoder, image_size=96) as cam:
        maps = cam.of_similarity(images, references)
        of_one = cam.of_similarity(images[:1], references[0].numpy())
    np.testing.assert_allclose(maps, enlarge(by_hand("gradcam", *found), 96), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(of_one, maps[:1], rtol=1e-4, atol=1e-8)


def test_a_layer_whose_output_is_changed_in_place_is_explained_as_it_gave_it():
    encoder = PlainEncoder(width=4).requires_grad_(False).eval()
    layer = TargetLayer("2", encoder[2], side=16, n_channels=4)
    images = inputs(2, 32)
    with torch.no_grad():
        before_relu = encoder[2](encoder[1](encoder[0](images)))
    grid = grids_of(encoder, images, [lambda output: output.sum()] * 2, method="hirescam", layer=layer)
    # the gradient of the mean after ReLU: 1 / 256 where the value is positive
    expected = (before_relu * (before_relu > 0) / 256).sum(dim=1)
    np.testing.assert_allclose(grid, expected, rtol=1e-4, atol=1e-7)
    component = grids_of(encoder, images, [lambda output: output.sum()] * 2, method="eigencam", layer=layer)
    centred = before_relu.flatten(2) - before_relu.flatten(2).mean(dim=2, keepdim=True)
    np.testing.assert_allclose(
        np.linalg.norm(component, axis=(1, 2)), torch.linalg.matrix_norm(centred, ord=2), rtol=1e-3
    )


def test_maps_are_raw_a_classifier_of_three_times_the_weights_has_maps_of_three_times_the_height():
    model = classifier_of("test_resnet")
    images = inputs(2)
    with open_cam(model, image_size=64) as cam:
        maps = cam.of_classes(images, 1)
        with torch.no_grad():
            model.head.weight.mul_(3)
        np.testing.assert_allclose(cam.of_classes(images, 1), 3 * maps, rtol=1e-4)
    assert maps.dtype == np.float32
    assert maps.shape == (2, 64, 64)


def test_the_predicted_class_is_explained_when_none_is_named(resnet):
    images = inputs()
    predicted = resnet(images).argmax(dim=1)
    with open_cam(resnet, image_size=64) as cam:
        np.testing.assert_array_equal(cam.of_classes(images), cam.of_classes(images, predicted.tolist()))
        assert not np.allclose(cam.of_classes(images), cam.of_classes(images, ((predicted + 1) % 3).tolist()))


@pytest.mark.parametrize("method", METHODS)
def test_a_map_does_not_depend_on_its_batch(method):
    model = classifier_of("test_resnet").to(memory_format=torch.channels_last)  # as after `extract_features`
    images = inputs(3, 32)
    maps = {}
    for batch_size in (1, 3):
        with open_cam(model, image_size=32, method=method, batch_size=batch_size, layer="layer1") as cam:
            maps[batch_size] = cam.of_classes(images, [0, 1, 2])
    np.testing.assert_allclose(maps[1], maps[3], rtol=1e-3, atol=1e-5 * np.abs(maps[1]).max())


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_a_frozen_model_and_a_caller_without_gradients_get_the_same_maps(method, capsys):
    model, images = classifier_of("test_resnet"), inputs(1, 32)
    with open_cam(model, image_size=32, method=method, layer="layer1") as cam:
        expected = cam.of_classes(images, 0)
    model.requires_grad_(False)
    with torch.no_grad(), open_cam(model, image_size=32, method=method, layer="layer1") as cam:
        np.testing.assert_array_equal(cam.of_classes(images, 0), expected)
    assert capsys.readouterr().err == ""  # the library's progress bars


# --- what is left behind ---


def test_the_model_is_left_as_it_was_found():
    model = classifier_of("test_resnet").train()
    model.encoder.layer1.eval()
    model.encoder.conv1.requires_grad_(False)
    model(inputs(2)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    needs = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [parameter.grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="stop"), open_cam(model, image_size=64) as cam:
        cam.of_classes(inputs(2))
        raise RuntimeError("stop")
    assert [layer.training for layer in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())


def test_no_hook_outlives_a_pass_that_fails(resnet):
    def broken(output):
        raise RuntimeError("broken target")

    with open_cam(resnet, image_size=64) as cam, pytest.raises(RuntimeError, match="broken target"):
        grids_of(resnet, inputs(1), [broken], method="gradcam", layer=cam.layer)
    assert not any(layer._forward_hooks for layer in resnet.modules())


def test_a_thousand_maps_leave_no_tensor_and_no_memory_behind():
    encoder, images = PlainEncoder(width=8), inputs(20)  # activations and gradients of 1,000 images are 65 MB
    references = torch.ones(8)

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with open_cam(encoder, image_size=64) as cam:
        for _ in range(5):
            cam.of_similarity(images, references)
        n_before, bytes_before = tensors(), psutil.Process().memory_info().rss
        for _ in range(50):
            cam.of_similarity(images, references)
        assert tensors() == n_before
        assert psutil.Process().memory_info().rss - bytes_before < 30e6


# --- what is refused ---


def test_an_unknown_method_is_refused_with_the_near_one(resnet):
    with pytest.raises(ValueError, match=r"'gradcm' is unknown.*layercam.*did you mean 'gradcam'"):
        open_cam(resnet, image_size=64, method="gradcm").__enter__()


@pytest.mark.parametrize("classes", [3, -1, [0, 1, 7, 1, 0]])
def test_a_class_that_is_not_there_is_refused(resnet, classes):
    with open_cam(resnet, image_size=64) as cam, pytest.raises(ValueError, match="has the classes 0 to 2"):
        cam.of_classes(inputs(), classes)


@pytest.mark.parametrize("classes", [[0, 1], "true", [0.5] * 5])
def test_classes_that_are_not_one_for_each_image_are_refused(resnet, classes):
    with open_cam(resnet, image_size=64) as cam, pytest.raises(ValueError, match="one for each"):
        cam.of_classes(inputs(), classes)


@pytest.mark.parametrize(
    "images",
    [
        inputs(2, 32),
        inputs(2)[:, 0],
        inputs(2).expand(2, 3, 64, 64),
        inputs(0),
        inputs(2).byte(),
        inputs(2).numpy(),
        None,
    ],
)
def test_images_of_another_shape_are_refused(resnet, images):
    with open_cam(resnet, image_size=64) as cam, pytest.raises(ValueError, match=r"images are .*\(1, 64, 64\)"):
        cam.of_classes(images, 0)


def test_an_encoder_has_no_classes_and_a_classifier_no_reference(resnet):
    with open_cam(resnet.encoder, image_size=64) as cam, pytest.raises(ValueError, match="test_resnet is an encoder"):
        cam.of_classes(inputs(), 0)
    with open_cam(resnet, image_size=64) as cam, pytest.raises(ValueError, match="open its encoder"):
        cam.of_similarity(inputs(), torch.ones(96))


# --- maps as arrays ---


def test_one_scale_keeps_the_proportions_of_all_maps_and_sets_negative_values_to_zero():
    maps = np.array([[[-2, 1], [0, 2]], [[4, -8], [1, 0]]], dtype=np.float32)
    np.testing.assert_array_equal(to_common_scale(maps), [[[0, 0.25], [0, 0.5]], [[1, 0], [0.25, 0]]])


def test_one_scale_ends_at_the_percentile_and_even_zero_stays_zero():
    maps = np.arange(101, dtype=np.float32).reshape(1, 1, 101)
    scaled = to_common_scale(maps, percentile=50)
    np.testing.assert_allclose(scaled[0, 0, [0, 25, 50, 100]], [0, 0.5, 1, 1])
    assert not to_common_scale(-maps).any()


def test_one_scale_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        to_common_scale(np.array([[[np.nan, 1.0]]]))


def test_enlarging_keeps_an_even_map_and_the_mean_of_any():
    even = enlarge(np.full((1, 3, 3), 2.5), 96)
    assert even.shape == (1, 96, 96)
    assert (even == 2.5).all()
    grid = np.random.default_rng(0).normal(size=(1, 2, 2))
    assert enlarge(grid, 64).mean() == pytest.approx(grid.mean(), abs=1e-6)


def test_ranks_follow_the_map_and_equal_pixels_come_in_a_drawn_order():
    maps = np.array([[[0.5, -1.0], [3.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    drawn = [rank_pixels(maps, rng=np.random.default_rng(seed)) for seed in range(40)]
    assert all(ranks[0].tolist() == [[1, 0], [3, 2]] for ranks in drawn)
    assert all(sorted(ranks[1].ravel()) == [0, 1, 2, 3] for ranks in drawn)
    assert {ranks[1, 0, 0] for ranks in drawn} == {0, 1, 2, 3}
