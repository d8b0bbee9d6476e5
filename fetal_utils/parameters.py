"""The parameters that notebooks share: what each may be, checked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import timm

from fetal_utils.augmentations import check_preset
from fetal_utils.environment import pick_device
from fetal_utils.images import ImageFormat
from fetal_utils.optimisers import check_optimiser
from fetal_utils.strategies import STRATEGIES, find_strategy


@dataclass(frozen=True)
class Rule:
    """What the value of a parameter, or each value of a list, must be."""

    names: tuple[str, ...]
    holds: Callable[[object], bool]
    expected: str


def is_whole(value: object) -> bool:
    """Whether a value is an integer, NumPy's included."""
    return isinstance(value, Integral)


RULES = (
    Rule(("label_fraction", "label_fractions"), lambda x: 0 < x <= 1, "more than 0 and at most 1 (1 % is 0.01)"),
    Rule(("val_fraction",), lambda x: 0 < x <= 0.5, "more than 0 and at most 0.5"),
    Rule(("seed", "seeds", "draw", "draws"), lambda x: is_whole(x) and x >= 0, "a whole number, 0 or more"),
    Rule(
        ("n_epochs", "n_steps", "n_evaluations", "n_resamples"),
        lambda x: is_whole(x) and x >= 1,
        "a whole number, 1 or more",
    ),
    Rule(
        ("batch_size", "pretraining_batch_size", "contrastive_batch_size"),
        lambda x: is_whole(x) and x >= 2,
        "a whole number of images, 2 or more",
    ),
    Rule(
        ("chunk_size",),
        lambda x: is_whole(x) and (x == 0 or x >= 2),
        "a number of views, 2 or more, or 0 for the whole batch",
    ),
    Rule(("lr", "pretraining_lr", "temperature"), lambda x: x > 0, "more than 0"),
    Rule(
        ("phantom_patients",),
        lambda x: is_whole(x) and x >= 16,
        "16 patients or more, so that every plane can be trained, validated and tested on",
    ),
    Rule(("strategy", "strategies"), lambda x: x in STRATEGIES, f"one of {list(STRATEGIES)}"),
    Rule(("backbone",), timm.is_model, "the name of a timm network, such as tf_efficientnet_lite0 or resnet18"),
)

# parameters whose own module says what is wrong with them
CHECKS: dict[str, Callable[[object], object]] = {
    "image_size": lambda value: ImageFormat(value),
    "geometry": lambda value: ImageFormat(64, value),
    "augmentation": check_preset,
    "optimiser": check_optimiser,
    "device": pick_device,
    "skip_strategies": lambda names: [find_strategy(name) for name in names],
}


def check_parameters(parameters: Mapping[str, object]) -> None:
    """Check the values of a notebook's parameters; names that have no rule are passed over.

    Parameters
    ----------
    parameters : mapping of str to object
        Names and values.

    Raises
    ------
    ValueError
        If a value is out of range; the parameter, its value and what was expected are named.
    """
    for rule in RULES:
        for name in set(rule.names) & set(parameters):
            check_rule(rule, name, parameters[name])
    for name in set(CHECKS) & set(parameters):
        CHECKS[name](parameters[name])


def check_rule(rule: Rule, name: str, value: object) -> None:
    """Apply a rule to a value or to each value of a list."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values:
        raise ValueError(f"{name} is empty: expected at least one value, {rule.expected}")
    for one in values:
        try:
            holds = rule.holds(one)
        except (TypeError, AttributeError):  # text where a number is needed, as YAML reads 1e-3
            holds = False
        if not holds:
            raise ValueError(f"{name}={one!r}: expected {rule.expected}")
