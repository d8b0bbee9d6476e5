"""Run the study's notebooks in order: ``python -m fetal_utils.study --preset demo``."""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from fetal_utils.dataset import open_dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.parameters import check_parameters
from fetal_utils.tables import merge_tables

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
PRESET_DIR = NOTEBOOK_DIR / "presets"
PRESET_KEYS = {"description", "parameters", "grid", "notebooks"}


class UsageError(ValueError):
    """A command line or preset that can't be run; shown without a traceback."""


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
    """The numbered notebooks in order, or those whose name starts with ``only``.

    Raises
    ------
    UsageError
        If none does.
    """
    names = sorted(path.stem for path in NOTEBOOK_DIR.glob("[0-9][0-9]_*.ipynb"))
    chosen = [name for name in names if name.startswith(only or "")]
    if not chosen:
        raise UsageError(f"--only {only}: no such notebook; there are {', '.join(names)}")
    return chosen


def read_parameters(notebook: str) -> dict[str, object]:
    """Names and default values in a notebook's ``parameters`` cell."""
    cells = nbformat.read(NOTEBOOK_DIR / f"{notebook}.ipynb", as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    return {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.AnnAssign)
    }


def read_preset(name: str) -> dict:
    """A preset of the study by its name, or a YAML file of one's own by its path.

    ``parameters`` go to every notebook that has a parameter of that name, ``notebooks`` to one
    notebook, and a notebook that has a parameter of ``grid`` is run once for each of its values.

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


def parse_value(text: str) -> object:
    """A value from the command line, read as YAML; ``1e-3`` is a number too."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"-p: {text!r} is not YAML ({error})") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def check_type(name: str, value: object, default: object) -> object:
    """The value as the default's type, a whole number also as a float; the same for each value of a list.

    Raises
    ------
    UsageError
        If it is of another type.
    """
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UsageError(
            f"parameter {name}={value!r} is a {type(value).__name__}; "
            f"expected a {type(default).__name__}, as the default {default!r}"
        )
    return [check_type(name, one, default[0]) for one in value] if isinstance(value, list) else value


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
    notebooks = list_notebooks()
    defaults = {notebook: read_parameters(notebook) for notebook in notebooks}
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
            dataset = open_dataset(values["data_dir"], results_dir=values["results_dir"], phantom_patients=0)
            if "task" in values:
                dataset.task(values["task"])
            dataset.images(values["image_size"])  # decodes every image, so a broken one is found now


def variants(
    defaults: Mapping, common: Mapping, own: Mapping, grid: Mapping[str, list], given: Mapping
) -> Iterator[tuple[dict, str]]:
    """Each combination of the grid's values that a notebook knows, with all its other values."""
    fixed = {name: value for name, value in {**common, **own, **given}.items() if name in defaults}
    axes = {name: values for name, values in grid.items() if name in defaults}
    for point in itertools.product(*axes.values()):
        yield {**fixed, **dict(zip(axes, point, strict=True))}, ".".join(map(str, point))


def execute(execution: Execution, results_dir: Path) -> str:
    """Run one notebook; an empty string, or why it failed in one line.

    The executed copy, with the traceback where it failed, lies in ``<results_dir>/notebooks``.
    """
    output = results_dir / "notebooks" / f"{execution.name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_suffix(".unfinished.ipynb")
    print(f"{execution.name} ...", flush=True)
    try:
        papermill.execute_notebook(
            str(NOTEBOOK_DIR / f"{execution.notebook}.ipynb"),
            str(unfinished),
            parameters=execution.parameters,
            kernel_name="python3",
            cwd=str(NOTEBOOK_DIR),
            progress_bar=False,
            extra_arguments=["--log-level=ERROR"],  # of the kernel, which else warns of its own transport
        )
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}".splitlines()[0]
    except Exception as error:  # a kernel that died or never started; the other notebooks still run
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        if unfinished.exists():
            unfinished.replace(output)
    return ""


def run_study(executions: list[Execution], results_dir: Path) -> pd.DataFrame:
    """Execute the notebooks in order, then merge their tables; a row per notebook.

    A notebook that fails does not stop the others.
    """
    rows = []
    for execution in executions:
        started = pd.Timestamp.now()
        reason = execute(execution, results_dir)
        seconds = round((pd.Timestamp.now() - started).total_seconds(), 1)
        rows.append({"notebook": execution.name, "seconds": seconds, "failed": reason})
        print(f"{execution.name}: {seconds} s{', failed: ' + reason if reason else ''}", flush=True)
    merge_tables(results_dir)
    return pd.DataFrame(rows)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.study", description=__doc__)
    parser.add_argument("--preset", default="demo", help="smoke, demo, laptop, or the path of a .yaml file")
    parser.add_argument("--data-dir", help="folder with Images/ and FETAL_PLANES_DB_data.csv; default: the phantom")
    parser.add_argument("--results-dir", help="where everything is written; default: results/<preset>")
    parser.add_argument("--scheduler", help="address of a Dask scheduler that computes the runs; default: here")
    parser.add_argument("--only", metavar="04", help="only the notebooks whose name starts so")
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a notebook parameter, read as YAML; may be repeated",
    )  # fmt: skip
    return parser.parse_args(arguments)


def given_values(options: argparse.Namespace) -> dict[str, object]:
    """Parameters from the command line; folders count from where it was typed."""
    given = {name: parse_value(value) for name, value in options.parameters}
    results_dir = options.results_dir or given.get("results_dir")
    default = PROJECT_ROOT / "results" / Path(options.preset).stem
    given["results_dir"] = str(Path(results_dir).resolve() if results_dir else default)
    if data_dir := options.data_dir or given.get("data_dir"):
        given["data_dir"] = str(Path(data_dir).resolve())
    if options.scheduler:
        given["scheduler"] = options.scheduler
    return given


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if everything was made, 1 if a notebook failed, 2 if it can't be run."""
    options = parse_arguments(arguments)
    try:
        given = given_values(options)
        executions = plan(read_preset(options.preset), given, only=options.only)
        check_inputs(executions)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results_dir = Path(given["results_dir"])
    print(f"results in {results_dir}", flush=True)
    report = run_study(executions, results_dir)
    failed = report[report["failed"] != ""]
    if len(failed):
        print(f"{len(failed)} of {len(report)} notebooks failed:\n{failed.to_string(index=False)}", file=sys.stderr)
        print(f"their tracebacks are in {results_dir / 'notebooks'}", file=sys.stderr)
    return 1 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
