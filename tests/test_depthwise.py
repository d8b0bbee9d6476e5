"""Depthwise convolution against torch's own, in float64 so that equal means equal."""

import copy
import pickle
from itertools import product

import pytest
import timm
import torch
from torch import nn

from fetal_utils import depthwise
from fetal_utils.depthwise import SMALL_MAP, DepthwiseConv2d, quicken_depthwise
from fetal_utils.models import build_encoder

SIDES = [(1, 1), (2, 3), (4, 4), (5, 3), (7, 6), (13, 9)]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_of_torch(kernel, *, bias=True, n_channels=3, **geometry):
    """A depthwise `torch.nn.Conv2d` with weights from a generator."""
    layer = nn.Conv2d(n_channels, n_channels, kernel, groups=n_channels, bias=bias, dtype=torch.float64, **geometry)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=seeded(1))
    return layer


def results(layer, images):
    """Output of a layer, and the gradients of images, weights and bias for one gradient of the output."""
    images = images.clone().requires_grad_()
    output = layer(images)
    output.backward(torch.randn(output.shape, dtype=output.dtype, generator=seeded(2)))
    gradients = [images.grad, *(parameter.grad for parameter in layer.parameters())]
    return [output.detach(), *gradients]


def output_side(side, kernel, stride, padding, dilation):
    return (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def geometries(kernel):
    """Every stride, padding and dilation with every size of image that leaves an output."""
    for stride, padding, dilation, sides in product([1, 2, 3], [0, 1, 2, 4], [1, 2, 3], SIDES):
        if min(output_side(side, kernel, stride, padding, dilation) for side in sides) >= 1:
            yield {"stride": stride, "padding": padding, "dilation": dilation}, sides


# --- the same as torch ---


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_output_and_all_gradients_are_those_of_torch_in_every_geometry(kernel):
    n_small = n_large = 0
    for geometry, sides in geometries(kernel):
        expected = layer_of_torch(kernel, **geometry)
        layer = quicken_depthwise(copy.deepcopy(expected))
        images = torch.randn(2, 3, *sides, dtype=torch.float64, generator=seeded())
        output, *_ = ours = results(layer, images)
        for value, by_torch in zip(ours, results(expected, images), strict=True):
            torch.testing.assert_close(value, by_torch, **CLOSE, msg=lambda text: f"{geometry}, {sides}: {text}")  # noqa: B023
        small = output.shape[2] * output.shape[3] <= SMALL_MAP
        n_small, n_large = n_small + small, n_large + (not small)
    assert min(n_small, n_large) > 20  # both ways of computing the gradient were asked


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 3)},
        {"kernel_size": (2, 5), "stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
        {"kernel_size": (5, 3), "stride": (3, 2), "padding": (4, 3), "dilation": (1, 2)},
    ],
    ids=str,
)
def test_height_and_width_are_not_confused(geometry):
    expected = layer_of_torch(geometry.pop("kernel_size"), **geometry)
    images = torch.randn(2, 3, 7, 5, dtype=torch.float64, generator=seeded())
    ours = results(quicken_depthwise(copy.deepcopy(expected)), images)
    for value, by_torch in zip(ours, results(expected, images), strict=True):
        torch.testing.assert_close(value, by_torch, **CLOSE)


def test_a_kernel_place_that_only_ever_sees_padding_has_no_gradient():
    layer = quicken_depthwise(layer_of_torch(3, padding=1))
    *_, of_weight, _ = results(layer, torch.ones(2, 3, 1, 1, dtype=torch.float64))
    seen = torch.zeros(3, 3, dtype=torch.bool)
    seen[1, 1] = True  # of one pixel only the middle of the kernel meets an image
    assert ((of_weight != 0) == seen).all()


@pytest.mark.parametrize(("sides", "summed"), [((4, 4), True), ((2, 8), True), ((17, 1), False), ((5, 4), False)])
def test_only_the_gradient_of_a_small_map_is_summed_here(sides, summed, monkeypatch):
    calls = []
    original = depthwise.weight_gradient
    monkeypatch.setattr(depthwise, "weight_gradient", lambda *args: calls.append(1) or original(*args))
    results(quicken_depthwise(layer_of_torch(3, padding=1)), torch.ones(1, 3, *sides, dtype=torch.float64))
    assert bool(calls) == summed


def test_layers_without_bias_and_images_without_gradient_agree_too():
    for sides in [(3, 3), (9, 9)]:
        expected = layer_of_torch(3, bias=False, padding=1)
        layer = quicken_depthwise(copy.deepcopy(expected))
        images = torch.randn(2, 3, *sides, dtype=torch.float64, generator=seeded())
        for module in (layer, expected):
            module(images).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, expected.weight.grad, **CLOSE)
        assert images.grad is None


def test_images_that_lie_channels_last_give_the_same():
    images = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=seeded())
    layer = quicken_depthwise(layer_of_torch(3, padding=1))
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    pairs = zip(
        results(layer, images), results(last, images.contiguous(memory_format=torch.channels_last)), strict=True
    )
    for value, other in pairs:
        torch.testing.assert_close(value, other, **CLOSE)


@pytest.mark.parametrize("sides", [(3, 2), (6, 5)], ids=["small", "large"])
def test_gradients_are_those_of_finite_differences(sides):
    layer = quicken_depthwise(layer_of_torch(3, n_channels=2, stride=1, padding=1))
    images = torch.randn(1, 2, *sides, dtype=torch.float64, generator=seeded()).requires_grad_()
    weight, bias = (parameter.detach().requires_grad_() for parameter in (layer.weight, layer.bias))
    assert torch.autograd.gradcheck(layer._conv_forward, (images, weight, bias))


# --- where there is no gradient to quicken ---


def test_evaluation_and_blocks_without_gradients_give_the_same_output():
    layer = quicken_depthwise(layer_of_torch(3, padding=1))
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=seeded())
    expected = nn.functional.conv2d(images, layer.weight, layer.bias, padding=1, groups=3)
    torch.testing.assert_close(layer.eval()(images), expected, **CLOSE)
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients():
            output = layer(images)
        assert not output.requires_grad
        torch.testing.assert_close(output, expected.detach(), **CLOSE)


def test_a_frozen_layer_passes_the_gradient_of_its_images_on():
    layer = quicken_depthwise(layer_of_torch(3, padding=1)).requires_grad_(False)
    images = torch.ones(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    layer(images).sum().backward()
    assert layer.weight.grad is None
    # a pixel in the middle is met by every place of the kernel once
    torch.testing.assert_close(images.grad[0, :, 1, 1], layer.weight.sum((1, 2, 3)), **CLOSE)


# --- which layers change ---


def test_only_depthwise_layers_change():
    class Own(nn.Conv2d):
        pass

    depthwise_layer = nn.Conv2d(4, 4, 3, groups=4)
    others = [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 8, 3, groups=4),  # two kernels for each channel
        nn.Conv2d(1, 1, 3),  # one channel: nothing to do apart
        nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv1d(4, 4, 3, groups=4),
        Own(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
    ]
    types = [type(layer) for layer in others]
    network = nn.Sequential(*others, nn.Sequential(depthwise_layer))
    assert quicken_depthwise(network) is network
    assert type(depthwise_layer) is DepthwiseConv2d
    assert [type(layer) for layer in others] == types


def test_names_and_values_of_the_parameters_stay():
    network = timm.create_model("test_efficientnet", num_classes=0, in_chans=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = list(network.parameters())
    quicken_depthwise(network)
    assert sum(isinstance(layer, DepthwiseConv2d) for layer in network.modules()) >= 2
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


def test_a_network_trains_as_it_would_with_torch_and_can_be_sent_to_another_process():
    quick = build_encoder("test_efficientnet", init="random", seed=0).double()
    plain = timm.create_model("test_efficientnet", num_classes=0, in_chans=1).double()
    plain.load_state_dict(quick.state_dict())
    images = torch.randn(4, 1, 32, 32, dtype=torch.float64, generator=seeded())
    for network in (quick, plain):
        network.train()(images).square().mean().backward()
    for (name, parameter), other in zip(quick.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-7, atol=1e-9, msg=name)
    arrived = pickle.loads(pickle.dumps(quick))
    assert torch.equal(arrived.eval()(images), quick.eval()(images))
