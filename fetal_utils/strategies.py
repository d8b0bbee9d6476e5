"""The strategies that the study compares: where the encoder starts, and what it learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fetal_utils.dual_task import DualTask, contrast_settings
from fetal_utils.encoders import EncoderSource, Features, initial_weights
from fetal_utils.environment import project_path
from fetal_utils.simclr import Pretrain
from fetal_utils.supervised import Supervised
from fetal_utils.training import FineTune, LinearProbe

PROTOCOLS = ("fine_tune", "linear_probe")


@dataclass(frozen=True)
class Strategy:
    """A way from first weights to a classifier.

    Attributes
    ----------
    init : str
        Weights before any training of the study: "random", "imagenet" or a safetensors file, its path absolute or
        from the repository root.
    pretraining : callable, optional
        What comes before the labels: `Pretrain`, or another class of settings that gives an encoder. Called with
        ``start``, ``image_size``, ``seed`` and the study's settings of pretraining.
    supervised : type
        What the labels are learned by, all weights together: `FineTune`, `DualTask` or a subclass.
    """

    init: str
    pretraining: Callable[..., EncoderSource] | None = None
    supervised: type[FineTune] = FineTune

    @property
    def pretrains(self) -> bool:
        """Whether a pretraining comes before the labels."""
        return self.pretraining is not None

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that make sense: an encoder that is learned with its classifier can't be probed before."""
        return PROTOCOLS if self.supervised is FineTune else PROTOCOLS[:1]


# A strategy of one's own is one entry more, before the runs are asked for:
#     STRATEGIES["fetal_net"] = Strategy(init="weights/fetal_net.safetensors")
STRATEGIES = {
    "scratch": Strategy(init="random"),
    "imagenet": Strategy(init="imagenet"),
    "simclr_scratch": Strategy(init="random", pretraining=Pretrain),
    "simclr_imagenet": Strategy(init="imagenet", pretraining=Pretrain),
    "dual_scratch": Strategy(init="random", supervised=DualTask),
    "dual_imagenet": Strategy(init="imagenet", supervised=DualTask),
}


def find_strategy(name: str) -> Strategy:
    """The strategy of that name, or a ValueError with the known ones."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy={name!r} is unknown; known are {list(STRATEGIES)}")
    return STRATEGIES[name]


def encoder_source(strategy: str, *, backbone: str, image_size: int, seed: int, **pretraining) -> EncoderSource:
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
    about = find_strategy(strategy)
    init = about.init if about.init in ("random", "imagenet") else str(project_path(about.init))
    start = initial_weights(backbone=backbone, init=init, seed=seed)
    if not about.pretraining:
        return start
    return about.pretraining(start=start, image_size=image_size, seed=seed, **pretraining)


def supervised_run(
    strategy: str,
    *,
    protocol: str,
    task: str,
    backbone: str,
    image_size: int,
    label_fraction: float = 1.0,
    draw: int = 0,
    seed: int = 0,
    pretraining: Mapping[str, object] | None = None,
    training: Mapping[str, object] | None = None,
    extra_steps: int = 0,
) -> Supervised:
    """The settings of a supervised run, with all it starts from.

    One set of settings serves every strategy: those of a step that a strategy does not take are not used.

    Parameters
    ----------
    strategy : str
        A name in `STRATEGIES`.
    protocol : str
        "fine_tune" (all weights) or "linear_probe" (frozen encoder).
    task : str
    backbone : str
        A timm name.
    image_size : int
        px.
    label_fraction, draw, seed
        See `Supervised`; the seed is also that of random weights and of the pretraining.
    pretraining : mapping, optional
        Fields of `Pretrain`; a ``seed`` among them lets supervised runs of several seeds share one pretraining.
        Strategies that learn both tasks at once take what they share with it, see `contrast_settings`.
    training : mapping, optional
        Fields of `FineTune`, and of `DualTask` for the strategies that have it.
    extra_steps : int
        Optimiser steps beyond those of ``training``: give those of a pretraining, and a strategy that does not pretrain
        has the budget of one that does. Its runs are then called ``<strategy>_equal_steps``, so that tables keep both.

    Returns
    -------
    LinearProbe, FineTune or DualTask

    Raises
    ------
    ValueError
        If strategy or protocol are unknown or don't go together, or steps are added where there are none to equal.
    TypeError
        If a setting is unknown.
    """
    about, pretraining, training = find_strategy(strategy), dict(pretraining or {}), dict(training or {})
    check_protocol(strategy, protocol, extra_steps)
    name = f"{strategy}_equal_steps" if extra_steps else strategy
    asked = {"task": task, "strategy": name, "label_fraction": label_fraction, "draw": draw, "seed": seed}
    values = {"image_size": image_size, "seed": seed} | (pretraining if about.pretrains else {})
    source = encoder_source(strategy, backbone=backbone, **values)
    if protocol == "linear_probe":
        return LinearProbe(**asked, features=Features(source=source, image_size=image_size))
    shared = contrast_settings(pretraining) if issubclass(about.supervised, DualTask) else {}
    own = own_settings(about.supervised, shared | training)
    run = about.supervised(**asked, source=source, image_size=image_size, **own)
    return dataclasses.replace(run, n_steps=run.n_steps + extra_steps)


def check_protocol(strategy: str, protocol: str, extra_steps: int) -> None:
    """Raise a ValueError for a protocol or further steps that make no sense for a strategy."""
    about = STRATEGIES[strategy]
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown; known are {PROTOCOLS}")
    if protocol not in about.protocols:
        raise ValueError(
            f"protocol={protocol!r} does not go with strategy={strategy!r}, which learns encoder and classifier "
            f"together and so has no encoder to freeze; use {about.protocols}"
        )
    if extra_steps < 0 or (extra_steps and (about.pretrains or protocol == "linear_probe")):
        raise ValueError(
            f"extra_steps={extra_steps} with strategy={strategy!r} and protocol={protocol!r}: expected 0, or the steps "
            "of a pretraining for a fine-tuning without one"
        )


def own_settings(supervised: type[FineTune], training: Mapping[str, object]) -> dict[str, object]:
    """The settings without those that only other strategies' training has; an unknown name stays, to be refused."""
    known = {entry.name for strategy in STRATEGIES.values() for entry in dataclasses.fields(strategy.supervised)}
    own = {entry.name for entry in dataclasses.fields(supervised)}
    return {name: value for name, value in training.items() if name in own or name not in known}
