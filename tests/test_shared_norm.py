"""Batch normalisation of a batch that two processes share unevenly, against torch's on the whole batch; in float64."""

import copy

import pytest
import timm
import torch
from processes import together
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import nn

from fetal_utils.ranks import meet
from fetal_utils.shared_norm import SharedBatchNorm, share_statistics

CPU = torch.device("cpu")
LAYERS = {
    "maps": nn.BatchNorm2d(4),
    "features": nn.BatchNorm1d(4),
    "mean of all batches": nn.BatchNorm1d(4, momentum=None),
    "with activation": BatchNormAct2d(4),
}
N_STEPS = 2  # the second starts from statistics that ran


def layer_of(name):
    """The layer with weights that matter."""
    layer = copy.deepcopy(LAYERS[name]).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer


def batch_for(layer, step):
    """Seven rows and the gradient of what the layer makes of them."""
    shape = (7, 4) if isinstance(layer, nn.BatchNorm1d) else (7, 4, 3, 2)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(2 + step), dtype=torch.float64)


def outcome(name, rows, share):
    """What a layer, shared or not, gives for these rows of the batches, and all that it changes."""
    layer = layer_of(name)
    batches = [batch_for(layer, step) for step in range(N_STEPS)]
    layer = share(layer)
    found = {}
    for step, (x, gradient) in enumerate(batches):
        x = 5 + 2 * x[rows]
        x.requires_grad_()
        output = layer(x)
        output.backward(gradient[rows])
        found |= {f"output {step}": output.detach(), f"gradient {step}": x.grad}
    whole = {name: value.clone() for name, value in layer.named_buffers()}
    sums = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return found, whole, sums


def all_outcomes():
    """What each process does."""
    ranks = meet()
    ranks.join("cpu")
    rows = [slice(0, 5), slice(5, 7)][ranks.rank]
    outcomes = {name: outcome(name, rows, lambda layer: share_statistics(layer, CPU)) for name in LAYERS}
    ranks.leave()
    return outcomes


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    ended = together(all_outcomes, n_processes=2, folder=tmp_path_factory.mktemp("shared") / "norm")
    assert [process.status for process in ended] == [0, 0], ended
    return [process.result for process in ended]


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_gradients_and_statistics_are_those_of_the_whole_batch(shared, name):
    by_row, whole, sums = outcome(name, slice(None), lambda layer: layer)
    first, second = (outcomes[name] for outcomes in shared)
    close = {"rtol": 1e-10, "atol": 1e-12}
    for key, expected in by_row.items():
        torch.testing.assert_close(torch.cat([first[0][key], second[0][key]]), expected, **close)
    for key, expected in whole.items():
        torch.testing.assert_close(first[1][key], expected, **close)
        assert torch.equal(first[1][key], second[1][key])
    for key, expected in sums.items():
        torch.testing.assert_close(first[2][key] + second[2][key], expected, **close)


def test_a_network_keeps_its_weights_their_names_and_what_it_predicts():
    network = timm.create_model("test_resnet", num_classes=0, in_chans=1).eval()
    network.load_state_dict({name: value + 0.1 for name, value in network.state_dict().items()})
    before = copy.deepcopy(network)
    shared = share_statistics(network, CPU)
    assert shared is network
    assert any(isinstance(layer, SharedBatchNorm) for layer in shared.modules())
    assert list(shared.state_dict()) == list(before.state_dict())
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shared(images), before(images))


def test_activations_in_normalisation_layers_stay():
    layer = BatchNormAct2d(4).eval()
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    assert expected.min() == 0  # a ReLU
    assert torch.equal(share_statistics(nn.Sequential(layer), CPU).eval()(x), expected)


def test_on_a_gpu_the_layers_are_those_of_torch():
    network = share_statistics(nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4)), torch.device("cuda"))
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in network)
    assert not any(isinstance(layer, SharedBatchNorm) for layer in network)


def test_a_layer_whose_statistics_cannot_be_shared_is_named():
    with pytest.raises(ValueError, match=r"layers \['EvoNorm2dB0'\].*one process, or take another backbone"):
        share_statistics(nn.Sequential(nn.BatchNorm2d(4), EvoNorm2dB0(4)), CPU)


def test_a_network_without_batch_statistics_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.LayerNorm(3))
    before = list(network)
    assert list(share_statistics(network, CPU)) == before
