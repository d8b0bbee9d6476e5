"""Which values a notebook is run with: from the preset, its grid and the command line, once or several times."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fetal_utils.command_line import UsageError
from fetal_utils.executions import short_name

AXES = ("backbone", "task")  # given as a list, they make a grid with any preset
NAMING = (*AXES, "seed", "seeds", "draw", "draws", "label_fraction")  # given by hand, they are in a copy's name

Defaults = Mapping[str, Mapping[str, object]]  # notebook -> its parameters with their default values


@dataclass(frozen=True)
class Values:
    """Values of parameters by where they come from.

    Attributes
    ----------
    common : mapping
        The preset's, for every notebook that has the parameter.
    grid : mapping of str to list
        A notebook is run once for each combination.
    own : mapping of str to mapping
        The preset's for one notebook; they go before those.
    given : mapping
        The command line's; they go before all others.
    """

    common: Mapping[str, object]
    grid: Mapping[str, list]
    own: Mapping[str, Mapping[str, object]]
    given: Mapping[str, object]


def collect_values(preset: Mapping, given: Mapping[str, object], defaults: Defaults) -> Values:
    """The values of a preset and of the command line, all names known to a notebook.

    Parameters
    ----------
    preset : mapping
        As from `read_preset`.
    given : mapping of str to object
        A list for one of `AXES` or of the preset's grid replaces that of the grid.
    defaults : mapping of str to mapping
        Of all notebooks.

    Raises
    ------
    UsageError
        If a name is unknown, or a list is given where it makes no grid.
    """
    common, grid = preset.get("parameters", {}), preset.get("grid", {})
    check_known({*common, *grid, *given}, set().union(*defaults.values()), "every notebook")
    own = {find_notebook(prefix, defaults): values for prefix, values in preset.get("notebooks", {}).items()}
    for notebook, values in own.items():
        check_known(values, defaults[notebook], notebook)
    lists = {name for known in defaults.values() for name, value in known.items() if isinstance(value, list)}
    given_grid = {name: value for name, value in given.items() if isinstance(value, list) and name not in lists}
    for name, value in given_grid.items():
        if name not in {*grid, *AXES} or not value:
            axes = " and ".join(dict.fromkeys([*AXES, *grid]))
            raise UsageError(f"-p {name} {value}: expected one value; only of {axes} several make a grid")
    return Values(
        common=common,
        grid={**grid, **given_grid},
        own={notebook: {n: v for n, v in values.items() if n not in given} for notebook, values in own.items()},
        given={name: value for name, value in given.items() if name not in given_grid},
    )


def find_notebook(prefix: str, names: Collection[str]) -> str:
    """The one notebook whose name starts so.

    Raises
    ------
    UsageError
        If none or several do.
    """
    found = [name for name in names if name.startswith(prefix)]
    if len(found) != 1:
        raise UsageError(f"the preset's notebooks have {prefix!r}; expected the start of one of {', '.join(names)}")
    return found[0]


def check_known(names: Collection[str], known: Collection[str], whom: str) -> None:
    """Raise a UsageError that lists the names that are unknown, with what the first may have meant."""
    if unknown := sorted(map(str, set(names) - set(known))):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"parameters {unknown} are unknown to {whom}{meant}; known are {sorted(known)}")


def check_read(given: Collection[str], chosen: Collection[str], defaults: Defaults) -> None:
    """Raise a UsageError for a parameter that no notebook reads that would run, and name those that have it."""
    read = set().union(*(defaults[notebook] for notebook in chosen))
    for name in sorted(set(given) - read):
        readers = [notebook for notebook, known in defaults.items() if name in known]
        raise UsageError(f"-p {name}: no such parameter in {', '.join(chosen)}; it is one of {', '.join(readers)}")


def variants(notebook: str, defaults: Defaults, values: Values) -> Iterator[tuple[dict, str]]:
    """Each combination of the grid's values, with all other values that a notebook has, and its name.

    The tables have a column for the task and for nothing else in a grid. Any other parameter, such as the backbone,
    therefore has a results folder for each of its values, inside the one given, and every notebook is run in each of
    them. The name holds the values of the grid, and those of `NAMING` that the command line gives.
    """
    known = defaults[notebook]
    own = {**values.own.get(notebook, {}), **values.given}
    fixed = {name: value for name, value in {**values.common, **own}.items() if name in known}
    axes = {
        name: [own[name]] if name in own else listed
        for name, listed in values.grid.items()
        if name in known or name != "task"
    }
    by_hand = {name: fixed[name] for name in NAMING if name in fixed and name in values.given and name not in axes}
    for point in itertools.product(*axes.values()):
        chosen = dict(zip(axes, point, strict=True))
        parameters = fixed | {name: value for name, value in chosen.items() if name in known}
        if apart := [short_name(name, value) for name, value in chosen.items() if name != "task"]:
            parameters["results_dir"] = str(Path(fixed.get("results_dir", known["results_dir"]), *apart))
        yield parameters, ".".join(short_name(name, value) for name, value in {**chosen, **by_hand}.items())
