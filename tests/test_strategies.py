import pytest

from fetal_utils.encoders import InitialWeights
from fetal_utils.simclr import Pretrain
from fetal_utils.strategies import STRATEGIES, encoder_source

ASKED = {"backbone": "resnet18", "image_size": 96, "seed": 3}


def test_scratch_starts_from_random_weights_of_its_seed():
    assert encoder_source("scratch", **ASKED) == InitialWeights(backbone="resnet18", init="random", seed=3)


def test_imagenet_starts_from_imagenet_weights_whatever_the_seed():
    expected = InitialWeights(backbone="resnet18", init="imagenet", seed=0)
    assert encoder_source("imagenet", **ASKED) == encoder_source("imagenet", **ASKED | {"seed": 4}) == expected


@pytest.mark.parametrize(
    ("strategy", "init", "start_seed"), [("simclr_scratch", "random", 3), ("simclr_imagenet", "imagenet", 0)]
)
def test_simclr_pretrains_from_those_weights_with_its_seed(strategy, init, start_seed):
    start = InitialWeights(backbone="resnet18", init=init, seed=start_seed)
    expected = Pretrain(start=start, image_size=96, seed=3, n_epochs=7, temperature=0.2)
    assert encoder_source(strategy, **ASKED, n_epochs=7, temperature=0.2) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_the_backbone(strategy):
    assert encoder_source(strategy, **ASKED).backbone == "resnet18"


@pytest.mark.parametrize("strategy", ["scratch", "imagenet"])
def test_pretraining_values_do_not_change_a_strategy_without_pretraining(strategy):
    assert encoder_source(strategy, **ASKED, n_epochs=7) == encoder_source(strategy, **ASKED)


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"strategy='simclr' is unknown; known are .*'simclr_imagenet'"):
        encoder_source("simclr", **ASKED)
