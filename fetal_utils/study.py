"""Run the study's notebooks in order: ``python -m fetal_utils.study --preset demo``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import papermill
from papermill.exceptions import PapermillExecutionError

from fetal_utils.command_line import add_parameters, parse_value
from fetal_utils.environment import PROJECT_ROOT, pick_device
from fetal_utils.estimates import N_ROUNDS, count_runs, estimate
from fetal_utils.plans import Execution, asked_runs, check_inputs, notebook_path, plan, read_preset
from fetal_utils.tables import list_runs, merge_tables, write_table


def execute(execution: Execution) -> str:
    """Run one notebook; an empty string, or why it failed in one line.

    The executed copy, with the traceback where it failed, lies in ``<results_dir>/notebooks``.
    """
    output = Path(execution.parameters["results_dir"]) / "notebooks" / f"{execution.name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_suffix(".unfinished.ipynb")
    source = notebook_path(execution.notebook)
    print(f"{execution.name} ...", flush=True)
    try:
        papermill.execute_notebook(
            str(source),
            str(unfinished),
            parameters=execution.parameters,
            kernel_name="python3",
            cwd=str(source.parent),
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


def run_study(executions: list[Execution]) -> pd.DataFrame:
    """Execute the notebooks in order, then merge their tables; a row per notebook.

    A notebook that fails does not stop the others.
    """
    rows = []
    for execution in executions:
        started = pd.Timestamp.now()
        reason = execute(execution)
        seconds = round((pd.Timestamp.now() - started).total_seconds(), 1)
        rows.append({"notebook": execution.name, "seconds": seconds, "failed": reason})
        print(f"{execution.name}: {seconds} s{', failed: ' + reason if reason else ''}", flush=True)
    for results_dir in {execution.parameters["results_dir"] for execution in executions}:
        merge_tables(results_dir)
        write_table(list_runs(results_dir), Path(results_dir) / "runs.csv")
    return pd.DataFrame(rows)


def show_estimate(executions: list[Execution]) -> None:
    """Print what is still to be computed, and how long that would take here; nothing is trained."""
    asked = {execution.name: runs for execution in executions if (runs := asked_runs(execution))}
    runs = count_runs(asked)
    device = pick_device(next((store.requested_device for store, _ in asked.values()), "auto"))
    table = estimate(runs, device)
    print(table.to_string(index=False, formatters={"hours": "{:.2f}".format}))
    to_do = table[["optimiser_steps", "views_seen", "hours"]].sum()
    print(
        f"{len(runs)} runs, {runs['done'].sum()} of them finished. To do: {to_do['optimiser_steps']:,.0f} optimiser "
        f"steps, {to_do['views_seen']:,.0f} views."
    )
    print(
        f"About {to_do['hours']:.1f} hours on this machine's {device}, one run after another, by {N_ROUNDS} timed "
        "steps of each network; drawing and reading of images, tables and figures come on top."
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.study", description=__doc__)
    parser.add_argument("--preset", default="demo", help="smoke, demo, laptop, or the path of a .yaml file")
    parser.add_argument("--data-dir", help="folder with Images/ and FETAL_PLANES_DB_data.csv; default: the phantom")
    parser.add_argument("--results-dir", help="where everything is written; default: results/<preset>")
    parser.add_argument("--scheduler", help="address of a Dask scheduler that computes the runs; default: here")
    parser.add_argument("--dry-run", action="store_true", help="only count the runs and estimate their hours")
    parser.add_argument("--only", metavar="04", help="only the notebooks whose name starts so")
    add_parameters(parser, help="a notebook parameter, read as YAML; may be repeated")
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
    if options.dry_run:
        show_estimate(executions)
        return 0
    results_dir = Path(given["results_dir"])
    print(f"results in {results_dir}", flush=True)
    report = run_study(executions)
    failed = report[report["failed"] != ""]
    if len(failed):
        print(f"{len(failed)} of {len(report)} notebooks failed:\n{failed.to_string(index=False)}", file=sys.stderr)
        print(f"their tracebacks are in {results_dir / 'notebooks'}", file=sys.stderr)
    return 1 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
