"""What a study executes: its own notebooks with the values of a preset and a command line, names and types checked."""

import ast
import difflib
import inspect
import itertools
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_origin

import yaml

from fetal_utils.environment import PROJECT_ROOT, project_path
from fetal_utils.runs import RunStore, Settings

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
STUDY = (
    "01_data_preparation", "02_simclr_pretraining", "03_transfer_learning_baselines", "04_label_efficiency",
    "05_cam_and_embeddings", "06_study_report",
)  # fmt: skip
BESIDE = ("90_performance",)  # runs only when named
REPORT = STUDY[-1]
OPTIONS = {"data_dir", "results_dir", "scheduler"}  # of the command, for the notebooks that have them
BEFORE_RUNS = {"parameters", "imports", "setup", "wanted"}  # tags of the cells that lead to a notebook's wanted runs
KEYS = {"description": str, "parameters": dict, "grid": dict, "notebooks": dict}  # of a preset's file


class UsageError(ValueError):
    """A command line, preset or value that can't be used; shown without a traceback."""


@dataclass(frozen=True)
class Execution:
    """A notebook with values for parameters of it."""

    path: Path
    name: str  # of the executed copy, with the grid's values
    results_dir: Path
    parameters: dict


@dataclass(frozen=True)
class Wanted:
    """The runs that a notebook asks its store for, whether it looks into their weights, and its image size or 0."""

    store: RunStore
    runs: list[Settings]
    weights: bool
    image_size: int

    def missing(self) -> list[Settings]:
        """Those to compute, with all that they need."""
        return self.store.missing(self.runs, weights=self.weights)


def read_yaml(text: str, source: str) -> object:
    """What a YAML text holds, plain values only; UsageError that names the source if it is not YAML."""
    try:
        return yaml.safe_load(text)
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
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if is_path else NOTEBOOK_DIR / "presets" / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"--preset {name}: there is none; take {', '.join(preset_names())}, or a .yaml file's path")
    found = read_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path)) or {}
    if not isinstance(found, dict) or not found.keys() <= KEYS.keys():
        raise UsageError(f"{path}: expected a mapping with some of {', '.join(KEYS)}")
    return {key: check_type(f"{path}: {key}", found.get(key) or kind(), kind) for key, kind in KEYS.items()}


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
    """The value of a parameter of that type; UsageError if it is of another."""
    kind, of = get_origin(expected) or expected, get_args(expected)
    if kind is float and type(value) in (int, str):  # YAML's 1, and 1e-3, which it takes for text
        with suppress(ValueError):
            value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        shown = "a finite number" if kind is float else inspect.formatannotation(expected)
        raise UsageError(f"{name}={value!r} is of type {type(value).__name__}; expected {shown}")
    if kind is list:
        value = [check_type(f"a value of {name}", one, of[0]) for one in value] if of else value
        if len(set(map(repr, value))) < len(value):
            raise UsageError(f"{name}={value!r} holds a value twice")
    return value


def check_known(names: Collection[str], known: Collection[str], what: str) -> None:
    """UsageError for a name that is unknown, with what may have been meant."""
    if unknown := sorted(set(map(str, names)) - set(known)):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"{unknown[0]}: no such {what}{meant}; there are {', '.join(sorted(known))}")


def plan(
    preset: Mapping, given: Mapping[str, object], *, only: str = "", start: str = "", folder: Path = NOTEBOOK_DIR
) -> list[Execution]:
    """The notebooks to execute with their values, all names and types checked; UsageError for one that is wrong.

    Values ``given`` go before the preset's. ``only`` takes notebooks whose name starts so, ``start`` that notebook and
    those after it; what lies in the folder and is not the study's own is left alone.
    """
    paths = {name: path for name in (*STUDY, *BESIDE) if (path := folder / f"{name}.ipynb").is_file()}
    chosen = [name for name in paths if (name.startswith(only) if only else name in STUDY and name >= start)]
    if not any(name.startswith(start) for name in chosen):
        raise UsageError(f"{only or start or folder}: no such notebook of the study; there are {', '.join(paths)}")
    known = {name: read_parameters(path)[0] for name, path in paths.items()}
    common, grid, own = preset["parameters"], preset["grid"], preset["notebooks"]
    check_known({*common, *grid, *given}, set().union(*known.values()), "parameter in any notebook")
    check_known(given.keys() - OPTIONS, set().union(*(known[name] for name in chosen)), "parameter of those chosen")
    numbers = {name[:2]: name for name in paths}
    check_known(own, numbers, "notebook for a preset, which names them in quotes")
    for number, values in own.items():
        check_known(check_type(number, values, dict), known[numbers[number]], f"parameter in {numbers[number]}")
    for name, values in grid.items():
        if not check_type(name, values, list):
            raise UsageError(f"the grid's {name} is empty; expected at least one value")
    return [one for name in chosen for one in variants(paths[name], common, own.get(name[:2], {}) | given, grid)]


def variants(path: Path, common: Mapping, own: Mapping, grid: Mapping[str, list]) -> Iterator[Execution]:
    """A notebook's executions, one for each combination of the grid's values.

    Tables have a column for the task; any other parameter of a grid, such as the backbone, has a results folder for
    each of its values, in which every notebook is executed.
    """
    defaults, types = read_parameters(path)
    axes = {n: [own[n]] if n in own else values for n, values in grid.items() if n in defaults or n != "task"}
    for point in itertools.product(*axes.values()):
        chosen = dict(zip(axes, point, strict=True))
        values = {name: value for name, value in {**common, **own, **chosen}.items() if name in defaults}
        values = {name: check_type(name, value, types[name]) for name, value in values.items()}
        folders = [file_name(value) for name, value in chosen.items() if name != "task"]
        results_dir = project_path(values.get("results_dir", defaults["results_dir"])).joinpath(*folders)
        name = ".".join([path.stem, *map(file_name, point)])
        yield Execution(path, name, results_dir, values | {"results_dir": str(results_dir)})


def file_name(value: object) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^\w.+-]+", "_", str(value))


def wanted_runs(execution: Execution) -> Wanted | None:
    """What a notebook's cells tagged `BEFORE_RUNS` ask for, executed here; None where they ask for no store.

    They check the notebook's parameters and compute nothing; UsageError with the reason if one of them fails.
    """
    names: dict = {"__name__": "__main__", "display": lambda *shown, **options: None}
    for source, tags in read_cells(execution.path):
        if tags & BEFORE_RUNS:
            try:
                exec(compile(source, execution.path.name, "exec"), names)
            except Exception as error:
                if names.get("wanted") == []:
                    break
                kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
                raise UsageError(f"{execution.name}: {kind}{error}") from error
        names |= execution.parameters if "parameters" in tags else {}
    if not names.get("wanted", True):
        raise UsageError(f"{execution.name} wants no run: a list among its parameters is empty")
    options = {"weights": names.get("wanted_weights", False), "image_size": names.get("image_size", 0)}
    return Wanted(names["store"], names.get("wanted", []), **options) if "store" in names else None
