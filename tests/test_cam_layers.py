import pytest
import torch
from torch import nn

from fetal_utils.cam_layers import encoder_name, find_layer, left_as_found
from fetal_utils.models import build_encoder

DEEPEST = {
    "test_resnet": "layer4",
    "test_efficientnet": "bn2",
    "test_convnext": "stages",
    "mobilenetv3_small_050": "blocks",
    "tf_efficientnet_lite0": "bn2",
}


def encoder_of(backbone):
    return build_encoder(backbone, init="random", seed=0)


@pytest.fixture(scope="module")
def resnet():
    return encoder_of("test_resnet")


class Residual(nn.Module):
    """A branch that ends in a map, beside a path around it; one of its layers runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.twice = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        x = self.twice(self.stem(images))
        return self.pool(self.twice(x + self.branch(x))).flatten(1)


# --- the deepest layer ---


@pytest.mark.parametrize("backbone", DEEPEST)
def test_the_deepest_layer_is_the_last_map_before_pooling_and_follows_the_size_of_the_image(backbone):
    encoder = encoder_of(backbone)
    found = {size: find_layer(encoder, image_size=size) for size in (64, 96)}
    assert {layer.name for layer in found.values()} == {DEEPEST[backbone]}
    assert [layer.side for layer in found.values()] == [2, 3]  # all of them reduce a side 32 times
    assert found[64].module is encoder.get_submodule(DEEPEST[backbone])


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_has_the_same_layer(resnet, frozen):
    layer = find_layer(resnet.requires_grad_(not frozen), image_size=64, min_side=4)
    assert (layer.name, layer.side, layer.n_channels) == ("layer3", 4, 192)


@pytest.mark.parametrize("min_side", [1, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_the_maps_are_at_least_as_large_as_asked_for_and_no_larger_than_needed(backbone, min_side):
    sides = (2, 4, 8, 16)
    assert find_layer(encoder_of(backbone), image_size=64, min_side=min_side).side == min(
        side for side in sides if side >= min_side
    )


def test_the_inside_of_a_residual_branch_and_a_layer_that_runs_twice_are_not_chosen():
    assert find_layer(Residual(), image_size=32).name == "stem"


def test_even_an_image_that_the_network_reduces_to_one_pixel_has_a_layer(resnet):
    layer = find_layer(resnet, image_size=16)
    assert (layer.name, layer.side) == ("layer4", 1)


def test_a_layer_can_be_named(resnet):
    layer = find_layer(resnet, image_size=64, name="layer2", min_side=64)
    assert (layer.name, layer.side) == ("layer2", 8)


# --- what is refused ---


def test_an_encoder_without_maps_at_its_end_is_named():
    with pytest.raises(ValueError, match="test_vit has no feature maps"):
        find_layer(encoder_of("test_vit"), image_size=160)


def test_a_wrong_name_gets_near_ones(resnet):
    with pytest.raises(ValueError, match=r"'layr4' does not exist in test_resnet.*layer4"):
        find_layer(resnet, image_size=64, name="layr4")


def test_a_layer_without_maps_is_refused(resnet):
    with pytest.raises(ValueError, match=r"'global_pool' gives maps 0 times.*layer4"):
        find_layer(resnet, image_size=64, name="global_pool")


def test_a_layer_that_runs_twice_is_refused():
    with pytest.raises(ValueError, match="'twice' gives maps 2 times"):
        find_layer(Residual(), image_size=32, name="twice")


def test_too_large_a_side_is_refused_with_the_largest_there_is(resnet):
    with pytest.raises(ValueError, match=r"min_side=65: the largest maps of test_resnet .* are \d+ px"):
        find_layer(resnet, image_size=64, min_side=65)


# --- the model is left as it was ---


def test_the_search_leaves_no_hook_and_changes_no_statistics(resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    find_layer(resnet.train(), image_size=64)
    assert not any(layer._forward_hooks for layer in resnet.modules())
    assert all(torch.equal(before[name], value) for name, value in resnet.state_dict().items())


def test_modes_gradients_and_what_needs_them_come_back_even_after_an_error():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    gradient = network[0].weight.grad = torch.ones(2, 2)
    with pytest.raises(KeyError), left_as_found(network):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        network.zero_grad()
        raise KeyError
    assert [layer.training for layer in network.modules()] == [True, True, False]
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, False, True, True]
    assert network[0].weight.grad is gradient
    assert network[0].bias.grad is None


def test_a_network_of_ones_own_is_called_by_its_class(resnet):
    assert encoder_name(resnet) == "test_resnet"
    assert encoder_name(Residual()) == "Residual"
