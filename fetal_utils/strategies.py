"""The strategies that the study compares: what each one starts from."""

from __future__ import annotations

from dataclasses import dataclass

from fetal_utils.encoders import InitialWeights, initial_weights
from fetal_utils.simclr import Pretrain


@dataclass(frozen=True)
class Strategy:
    """A way to an encoder.

    Attributes
    ----------
    init : str
        Weights before any training of the study: "random", "imagenet" or a safetensors file.
    pretrains : bool
        Whether SimCLR pretraining comes before the labels.
    """

    init: str
    pretrains: bool = False


STRATEGIES = {
    "scratch": Strategy(init="random"),
    "imagenet": Strategy(init="imagenet"),
    "simclr_scratch": Strategy(init="random", pretrains=True),
    "simclr_imagenet": Strategy(init="imagenet", pretrains=True),
}


def encoder_source(
    strategy: str, *, backbone: str, image_size: int, seed: int, **pretraining
) -> InitialWeights | Pretrain:
    """Where a strategy's encoder comes from, before it meets a label.

    Parameters
    ----------
    strategy : str
        A name in `STRATEGIES`.
    backbone : str
        A timm name.
    image_size : int
        px.
    seed : int
        Of random weights and of the pretraining.
    **pretraining
        Further fields of `Pretrain`, for the strategies that pretrain.

    Returns
    -------
    InitialWeights or Pretrain

    Raises
    ------
    ValueError
        If the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is unknown; known are {list(STRATEGIES)}")
    start = initial_weights(backbone=backbone, init=STRATEGIES[strategy].init, seed=seed)
    if not STRATEGIES[strategy].pretrains:
        return start
    return Pretrain(start=start, image_size=image_size, seed=seed, **pretraining)
