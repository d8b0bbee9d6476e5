"""What a study executes: its notebooks with the values of a preset and the command line, all names and types checked."""

from __future__ import annotations

import ast
import difflib
import itertools
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml

from fetal_utils.environment import PROJECT_ROOT, project_path

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
STUDY = (
    "01_data_preparation", "02_simclr_pretraining", "03_transfer_learning_baselines", "04_label_efficiency",
    "05_cam_and_embeddings", "06_study_report",
)  # fmt: skip
BESIDE = ("90_performance",)  # runs only when named
REPORT = STUDY[-1]
KEYS = {"description": str, "parameters": dict, "grid": dict, "notebooks": dict}  # of a preset's file
AXES = ("backbone", "task")  # given as a list, they make a grid with any preset
OPTIONS = {"data_dir", "results_dir", "scheduler"}  # of the command, for the notebooks that have them
BEFORE_RUNS = ("parameters", "imports", "setup", "wanted")  # tags of the cells that lead to a notebook's wanted runs


class UsageError(ValueError):
    """A command line, preset or value that can't be used; shown without a traceback."""


class NumberLoader(yaml.SafeLoader):
    """YAML as PyYAML reads it, with ``1e-3`` a number, as everybody means it."""


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Execution:
    """A notebook with the values that it is executed with.

    Attributes
    ----------
    path : Path
    parameters : dict
        Only what differs from the notebook's defaults.
    results_dir : Path
    variant : str
        The grid's values, which tell its executed copy from others of the same notebook; may be empty.
    """

    path: Path
    parameters: dict
    results_dir: Path
    variant: str

    @property
    def name(self) -> str:
        """Of the executed copy, without ending."""
        return ".".join(filter(None, [self.path.stem, self.variant]))


def read_yaml(text: str, source: str) -> object:
    """What a YAML text holds, plain values only; UsageError that names the source if it is not YAML."""
    try:
        return yaml.load(text, NumberLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not YAML: {' '.join(str(error).split())}") from None


def preset_names() -> list[str]:
    """The study's own presets."""
    return sorted(path.stem for path in (NOTEBOOK_DIR / "presets").glob("*.yaml"))


def read_preset(name: str) -> dict:
    """A preset by its name, or a YAML file of one's own by its path; all `KEYS`, what the file lacks is empty.

    ``parameters`` go to every notebook that has them, ``notebooks`` to one; a notebook that has a parameter of ``grid``
    is executed once for each of its values.
    """
    own = Path(name).expanduser()
    path = own if own.suffix in (".yaml", ".yml") else NOTEBOOK_DIR / "presets" / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"--preset {name}: there is none; take {', '.join(preset_names())}, or a .yaml file's path")
    preset = read_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path)) or {}
    if not isinstance(preset, dict) or not preset.keys() <= KEYS.keys():
        raise UsageError(f"{path}: expected a mapping with some of {', '.join(KEYS)}")
    preset = {key: preset.get(key) or kind() for key, kind in KEYS.items()}
    for key, kind in KEYS.items():
        if not isinstance(preset[key], kind):
            raise UsageError(f"{path}: {key} is {preset[key]!r}; expected a {kind.__name__}")
    for name, values in preset["grid"].items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: the grid's {name} is {values!r}; expected a list")
    for number, values in preset["notebooks"].items():
        if not isinstance(values, dict) or not isinstance(number, str):
            raise UsageError(f'{path}: notebooks has {number!r}: {values!r}; expected "04" in quotes and a mapping')
    return preset


def read_cells(path: Path) -> list[tuple[str, set[str]]]:
    """Source and tags of a notebook's code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), set(cell["metadata"].get("tags", []))) for cell in code]


def read_parameters(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    """Defaults and types of a notebook's parameters."""
    defaults, types = {}, {}
    for source in (source for source, tags in read_cells(path) if "parameters" in tags):
        for line in ast.parse(source).body:
            if isinstance(line, ast.AnnAssign):
                types[line.target.id] = eval(ast.unparse(line.annotation))
                defaults[line.target.id] = eval(ast.unparse(line.value), {}, defaults)
    return defaults, types


def check_type(name: str, value: object, expected: object) -> object:
    """The value of a parameter of that type, a whole number also as a float; UsageError if it is of another."""
    kind, of = getattr(expected, "__origin__", expected), get_args(expected)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        shown = "a finite number" if kind is float else str(expected) if of else kind.__name__
        raise UsageError(f"{name}={value!r} is of type {type(value).__name__}; expected {shown}")
    if kind is list:
        value = [check_type(f"a value of {name}", one, of[0]) for one in value] if of else value
        if len(set(map(repr, value))) < len(value):
            raise UsageError(f"{name}={value!r} holds a value twice")
    return value


def choose_notebooks(only: str = "", start: str = "", *, folder: Path = NOTEBOOK_DIR) -> list[Path]:
    """The study's notebooks in order; or those whose name starts with ``only``; or those from ``start`` on."""
    paths = {name: folder / f"{name}.ipynb" for name in (*STUDY, *BESIDE)}
    there = [name for name, path in paths.items() if path.is_file()]
    chosen = [name for name in there if name.startswith(only) if only or name in STUDY]
    if start:
        first = next((name for name in chosen if name.startswith(start)), None)
        chosen = chosen[chosen.index(first) :] if first else []
    if not chosen:
        asked = f"--only {only}: " if only else f"--from {start}: " if start else ""
        raise UsageError(f"{asked}no such notebook in {folder}; there are {', '.join(there) or 'none of the study'}")
    return [paths[name] for name in chosen]


def check_known(names: Collection[str], known: Collection[str], where: str = "any notebook") -> None:
    """UsageError for a name that is unknown, with what may have been meant."""
    if unknown := sorted(set(map(str, names)) - set(known)):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"{unknown[0]}: no such parameter in {where}{meant}; there are {', '.join(sorted(known))}")


def plan(
    preset: Mapping, given: Mapping[str, object], *, only: str = "", start: str = "", folder: Path = NOTEBOOK_DIR
) -> list[Execution]:
    """The notebooks to execute with their values, all names and types checked.

    Parameters
    ----------
    preset : mapping
        As from `read_preset`.
    given : mapping of str to object
        Values that go before the preset's; a list for one of `AXES`, or of the preset's grid, makes a grid.
    only, start : str
        As for `choose_notebooks`.
    folder : Path
        Of the notebooks.

    Raises
    ------
    UsageError
        If a name is unknown, or not read by a notebook that would run, or a value is of another type.
    """
    known = {name: read_parameters(path) for name in (*STUDY, *BESIDE) if (path := folder / f"{name}.ipynb").is_file()}
    check_known(
        {*preset["parameters"], *preset["grid"], *given}, {n for defaults, _ in known.values() for n in defaults}
    )
    own: dict[str, dict] = {}
    for number, values in preset["notebooks"].items():
        if len(names := [name for name in known if name.startswith(number)]) != 1:
            raise UsageError(f"the preset's notebooks have {number!r}; expected the start of one of {', '.join(known)}")
        check_known(values, known[names[0]][0], names[0])
        own[names[0]] = values
    chosen = choose_notebooks(only, start, folder=folder)
    check_known(set(given) - OPTIONS, {n for path in chosen for n in known[path.stem][0]}, "the chosen notebooks")
    axes = preset["grid"] | {n: v for n, v in given.items() if isinstance(v, list) and n in {*AXES, *preset["grid"]}}
    fixed = {name: value for name, value in given.items() if name not in axes or not isinstance(value, list)}
    return [
        execution
        for path in chosen
        for execution in variants(path, preset["parameters"], {**own.get(path.stem, {}), **fixed}, axes)
    ]


def variants(path: Path, common: Mapping, own: Mapping, axes: Mapping[str, list]) -> Iterator[Execution]:
    """A notebook's executions, one for each combination of the grid's values.

    Tables have a column for the task; any other parameter of a grid, such as the backbone, has a results folder for
    each of its values, in which every notebook is executed.
    """
    defaults, types = read_parameters(path)
    grid = {
        name: [own[name]] if name in own else values
        for name, values in axes.items()
        if name in defaults or name != "task"
    }
    for point in itertools.product(*grid.values()):
        chosen = dict(zip(grid, point, strict=True))
        values = {name: value for name, value in {**common, **own, **chosen}.items() if name in defaults}
        values = {name: check_type(name, value, types[name]) for name, value in values.items()}
        results_dir = project_path(values.get("results_dir", defaults["results_dir"]))
        for name, value in chosen.items():
            results_dir = results_dir if name == "task" else results_dir / file_name(value)
        values["results_dir"] = str(results_dir)
        yield Execution(path, values, results_dir, ".".join(map(file_name, point)))


def file_name(value: object) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^\w.+-]+", "_", str(value))


def wanted_runs(execution: Execution) -> dict[str, object]:
    """What a notebook's cells tagged `BEFORE_RUNS` define, executed here: its ``store`` and ``wanted`` runs among it.

    They check the notebook's parameters and compute nothing that is wanted; UsageError with the reason if one fails.
    """
    names: dict[str, object] = {"__name__": "__main__", "display": lambda *shown, **options: None}
    for source, tags in read_cells(execution.path):
        try:
            exec(compile(source, execution.path.name, "exec"), names) if tags & {*BEFORE_RUNS} else None
        except (ValueError, OSError) as error:
            raise UsageError(f"{execution.name}: {error}") from error
        except Exception as error:
            raise UsageError(f"{execution.name}: {type(error).__name__}: {error}") from error
        if "parameters" in tags:
            names |= execution.parameters
    return names
