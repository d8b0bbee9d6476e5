"""What a study runs: notebooks with the parameters of a preset, all names and values checked."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

from fetal_utils.command_line import UsageError, check_type
from fetal_utils.dataset import open_dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.parameters import check_parameters
from fetal_utils.runs import RunStore
from fetal_utils.settings import Settings

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"


PRESET_DIR = NOTEBOOK_DIR / "presets"


PRESET_KEYS = {"description", "parameters", "grid", "notebooks"}


ASKING = {"parameters", "imports", "setup", "wanted"}  # tags of the cells that lead to a notebook's list of runs

BESIDE = "9"  # notebooks whose number starts so stand beside the study and run only when named


@dataclass(frozen=True)
class Execution:
    """One notebook with the parameters it is run with.

    Attributes
    ----------
    notebook : str
        File name without ending.
    parameters : dict
        Only those that differ from the notebook's own.
    variant : str
        The values that tell this execution from others of the same notebook; may be empty.
    """

    notebook: str
    parameters: dict
    variant: str

    @property
    def name(self) -> str:
        """Name of the executed copy, without ending."""
        return f"{self.notebook}.{self.variant}" if self.variant else self.notebook


def list_notebooks(only: str | None = None) -> list[str]:
    """The study's notebooks in order, or of all those whose name starts with ``only``.

    Raises
    ------
    UsageError
        If none does.
    """
    names = all_notebooks()
    chosen = [name for name in names if (name.startswith(only) if only else not name.startswith(BESIDE))]
    if not chosen:
        raise UsageError(f"--only {only}: no such notebook; there are {', '.join(names)}")
    return chosen


def all_notebooks() -> list[str]:
    """The numbered notebooks in order, those beside the study included."""
    return sorted(path.stem for path in NOTEBOOK_DIR.glob("[0-9][0-9]_*.ipynb"))


def notebook_path(name: str) -> Path:
    """The file of a notebook."""
    return NOTEBOOK_DIR / f"{name}.ipynb"


def read_parameters(notebook: str) -> dict[str, object]:
    """Names and default values in a notebook's ``parameters`` cell."""
    cells = nbformat.read(notebook_path(notebook), as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    return {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.AnnAssign)
    }


def read_preset(name: str) -> dict:
    """A preset of the study by its name, or a YAML file of one's own by its path.

        ``parameters`` go to every notebook that has a parameter of that name, ``notebooks`` to one
    notebook, and a notebook that has a parameter of ``grid`` is run once for each of its values, unless it
        has a value of its own.

        Raises
        ------
        UsageError
            If there is no such preset, or the file is not of that form.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESET_DIR / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESET_DIR.glob("*.yaml")))
        raise UsageError(f"--preset {name}: no such preset; there are {known}, or give the path of a .yaml file")
    try:
        preset = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    if unknown := sorted(set(preset) - PRESET_KEYS):
        raise UsageError(f"{path}: {unknown} are unknown; a preset has {sorted(PRESET_KEYS)}")
    return preset


def plan(preset: Mapping, given: Mapping[str, object], *, only: str | None = None) -> list[Execution]:
    """The notebooks to execute with their parameters, all names and types checked.

    Parameters
    ----------
    preset : mapping
        As from `read_preset`.
    given : mapping of str to object
        Values that go before the preset's; a given value also replaces a grid.
    only : str, optional
        Start of a notebook's name.

    Returns
    -------
    list of Execution

    Raises
    ------
    UsageError
        If a name is no parameter of any notebook, a notebook is unknown, or a value has another type.
    """
    defaults = {notebook: read_parameters(notebook) for notebook in all_notebooks()}
    known = set().union(*defaults.values())
    common = {**preset.get("parameters", {}), **given}
    grid = {name: values for name, values in preset.get("grid", {}).items() if name not in given}
    own = {next(iter(list_notebooks(prefix))): values for prefix, values in preset.get("notebooks", {}).items()}
    if unknown := sorted({*common, *grid} - known):
        raise UsageError(f"parameters {unknown} are unknown to every notebook; known are {sorted(known)}")
    for notebook, values in own.items():
        if unknown := sorted(set(values) - set(defaults[notebook])):
            raise UsageError(f"parameters {unknown} are unknown to {notebook}; it has {sorted(defaults[notebook])}")
    return [
        Execution(
            notebook,
            {name: check_type(name, value, defaults[notebook][name]) for name, value in values.items()},
            variant,
        )
        for notebook in list_notebooks(only)
        for values, variant in variants(defaults[notebook], common, own.get(notebook, {}), grid, given)
    ]


def check_inputs(executions: list[Execution]) -> None:
    """Check every value and the data set, before the first notebook starts.

    Raises
    ------
    ValueError, FileNotFoundError
        With what was given, what was expected and what to do.
    """
    for execution in executions:
        values = read_parameters(execution.notebook) | execution.parameters
        check_parameters(values)
        if values["data_dir"]:
            dataset = open_dataset(values["data_dir"], results_dir=values["results_dir"])
            if "task" in values:
                dataset.task(values["task"])
            dataset.images(values["image_size"])  # decodes every image, so a broken one is found now


def asked_runs(execution: Execution) -> tuple[RunStore, list[Settings]] | None:
    """The runs that a notebook would ask for, with the store it would ask; None if it asks for none.

    Its cells tagged `ASKING` are executed here, with the execution's parameters; they say what is wanted and compute
    nothing of it.
    """
    notebook = nbformat.read(notebook_path(execution.notebook), as_version=4)
    names: dict[str, object] = {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if ASKING & {*tags}:
            exec(compile(cell.source, f"{execution.notebook}, cell {cell.id}", "exec"), names)
        if "parameters" in tags:
            names |= execution.parameters
    return (names["store"], names["wanted"]) if "wanted" in names else None


def variants(
    defaults: Mapping, common: Mapping, own: Mapping, grid: Mapping[str, list], given: Mapping
) -> Iterator[tuple[dict, str]]:
    """Each combination of the grid's values that a notebook knows, with all its other values.

    Backbones have a results folder each, inside the one given.
    """
    fixed = {name: value for name, value in {**common, **own, **given}.items() if name in defaults}
    axes = {name: values for name, values in grid.items() if name in defaults and name not in own}
    for point in itertools.product(*axes.values()):
        values = {**fixed, **dict(zip(axes, point, strict=True))}
        if "backbone" in axes:  # the tables have no column for it
            values["results_dir"] = str(Path(values.get("results_dir", defaults["results_dir"])) / values["backbone"])
        yield values, ".".join(map(str, point))
