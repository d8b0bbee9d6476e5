"""What a study runs: notebooks with the parameters of a preset, all names and values checked."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import nbformat

from fetal_utils.command_line import UsageError, check_type
from fetal_utils.dataset import open_dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.executions import Execution
from fetal_utils.parameters import check_parameters
from fetal_utils.presets import read_preset
from fetal_utils.runs import RunStore
from fetal_utils.settings import Settings
from fetal_utils.tasks import TASKS, find_task
from fetal_utils.variants import check_read, collect_values, variants

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
ASKING = {"parameters", "imports", "setup", "wanted"}  # tags of the cells that lead to a notebook's list of runs
BESIDE = "9"  # notebooks whose number starts so stand beside the study and run only when named
OPTIONS = {"data_dir", "results_dir", "scheduler"}  # of the command, for the notebooks that have them


def all_notebooks() -> list[str]:
    """The numbered notebooks in order, those beside the study included."""
    return sorted(path.stem for path in NOTEBOOK_DIR.glob("[0-9][0-9]_*.ipynb"))


def list_notebooks(only: str | None = None, start: str | None = None) -> list[str]:
    """The study's notebooks in order; or those whose name starts with ``only``; or from the first that starts so on.

    Raises
    ------
    UsageError
        If there is none.
    """
    names = all_notebooks()
    study = [name for name in names if not name.startswith(BESIDE)]
    if only is not None:
        return [name for name in names if name.startswith(only)] or complain(f"--only {only}", names)
    if start is not None:
        first = next((name for name in study if name.startswith(start)), None) or complain(f"--from {start}", study)
        return study[study.index(first) :]
    return study or complain(str(NOTEBOOK_DIR), names)


def complain(asked: str, names: list[str]) -> None:
    """Raise a UsageError that says which notebooks there are."""
    raise UsageError(f"{asked}: no such notebook; there are {', '.join(names)}")


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


def plan(
    preset: str | Mapping, given: Mapping[str, object], *, only: str | None = None, start: str | None = None
) -> list[Execution]:
    """The notebooks to execute with their parameters, all names and types checked.

    Parameters
    ----------
    preset : str or mapping
        A name or path for `read_preset`, or what that returns.
    given : mapping of str to object
        Values that go before the preset's, see `collect_values`.
    only, start : str, optional
        See `list_notebooks`.

    Returns
    -------
    list of Execution

    Raises
    ------
    UsageError
        If a name is no parameter of any notebook, or of none that would run; a notebook is unknown; or a value has
        another type.
    """
    preset = read_preset(preset) if isinstance(preset, str) else preset
    chosen = list_notebooks(only, start)
    defaults = {notebook: read_parameters(notebook) for notebook in all_notebooks()}
    values = collect_values(preset, given, defaults)
    check_read(set(given) - OPTIONS, chosen, defaults)
    return [
        Execution(
            notebook,
            {name: check_type(name, value, defaults[notebook][name]) for name, value in parameters.items()},
            variant,
        )
        for notebook in chosen
        for parameters, variant in variants(notebook, defaults, values)
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
        if values.get("data_dir"):
            dataset = open_dataset(values["data_dir"], results_dir=values["results_dir"])
            if "task" in values:
                dataset.task(values["task"])
            if "image_size" in values:
                dataset.images(values["image_size"])  # decodes every image, so a broken one is found now
        elif "task" in values:
            find_task(values["task"], TASKS)


def asked_runs(execution: Execution) -> tuple[RunStore, list[Settings]] | None:
    """The runs that a notebook would ask for, with the store it would ask; None if it asks for none.

    Its cells tagged `ASKING` are executed here, with the execution's parameters; they say what is wanted and compute
    nothing of it.
    """
    cells = nbformat.read(notebook_path(execution.notebook), as_version=4).cells
    if not any("wanted" in cell.metadata.get("tags", []) for cell in cells):
        return None
    names: dict[str, object] = {}
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if ASKING & {*tags}:
            exec(compile(cell.source, f"{execution.notebook}, cell {cell.id}", "exec"), names)
        if "parameters" in tags:
            names |= execution.parameters
    return names["store"], names["wanted"]
