"""What makes a run: a frozen record of settings, from which its results follow."""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fetal_utils.budgets import Budget
from fetal_utils.dataset import Dataset

if TYPE_CHECKING:  # at run time `runs` reads this module, not the other way round
    from fetal_utils.runs import Work

# A field's annotation, text as ``from __future__ import annotations`` leaves it, and what makes a value so.
NUMBERS = {"int": operator.index, "float": float}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What makes a run; a subclass adds fields and says how they become results.

    A field may hold the settings of another run, which this run starts from; the graph of runs
    is read off these and kept nowhere else. Fields annotated ``int`` and ``float`` are made so, as
    1 and 1.0, which both come from YAML, are to name the same run.

    Raises
    ------
    TypeError
        If a field is not the number that its annotation promises.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if entry.type in NUMBERS:
                object.__setattr__(self, entry.name, as_number(entry, getattr(self, entry.name)))

    def check(self, dataset: Dataset) -> None:
        """Raise a ValueError for settings that can't be computed, before any run starts."""

    def compute(self, work: Work) -> None:
        """Do the work and leave its files in ``work.folder``."""
        raise NotImplementedError

    def budget(self, dataset: Dataset) -> Budget:
        """What the run costs, without those it starts from."""
        return Budget()

    def starts_from(self) -> list[Settings]:
        """The runs whose results this one reads."""
        values = (getattr(self, entry.name) for entry in dataclasses.fields(self))
        return [value for value in values if isinstance(value, Settings)]

    def to_dict(self) -> dict:
        """All fields with the kind, nested where a field holds settings; for JSON."""
        return {"kind": self.kind} | {
            entry.name: plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)
        }


def as_number(entry: dataclasses.Field, value: object) -> int | float:
    """A field's value as the number that its annotation promises, or a TypeError that names the field."""
    try:
        return NUMBERS[entry.type](value)
    except (TypeError, ValueError):
        raise TypeError(f"{entry.name}={value!r}: expected {entry.type}") from None


def plain(value: object) -> object:
    """A field's value as JSON holds it."""
    if isinstance(value, Settings):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    return list(map(plain, value)) if isinstance(value, (tuple, list)) else value
