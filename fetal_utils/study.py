"""Run the study's notebooks in order: ``python -m fetal_utils.study --preset demo``.

``python -m fetal_utils.study status --results-dir DIR`` shows what a study has done so far.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pandas as pd

from fetal_utils.command_line import add_parameters, check_type, parse_value
from fetal_utils.environment import PROJECT_ROOT, commit, versions
from fetal_utils.executions import Execution, execute, one_line
from fetal_utils.plans import asked_runs, check_inputs, notebook_path, plan
from fetal_utils.previews import show_estimate, show_list
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.settings import Settings
from fetal_utils.study_log import Listener, study_log
from fetal_utils.study_status import show_status
from fetal_utils.tables import list_runs, merge_tables, write_table

REPORT = "06"  # the notebook whose executed copy becomes report.html
INTERRUPTED = "interrupted; what is finished is kept, and the same command goes on from there"


def run_study(executions: list[Execution], log: logging.Logger, *, keep_going: bool = True) -> pd.DataFrame:
    """Execute the notebooks in order, merge the tables they add to, and make the report of the last.

    What goes to a cluster is computed beforehand.

    Parameters
    ----------
    executions : list of Execution
    log : Logger
        Takes what is being done.
    keep_going : bool
        Whether the notebooks after one that failed still run.

    Returns
    -------
    DataFrame
        A row for each thing to make: ``made, seconds, failed``, the last the reason in one line, or empty.
    """
    rows = compute_ahead(executions, log)
    for position, execution in enumerate(executions, start=1):
        if not keep_going and any(row["failed"] for row in rows):
            rows.append({"made": execution.name, "seconds": 0.0, "failed": "not run, since one before it failed"})
            continue
        log.info(f"{execution.name} ({position} of {len(executions)}) ...")
        rows += make(execution, log)
    return pd.DataFrame(rows, columns=["made", "seconds", "failed"])


def compute_ahead(executions: list[Execution], log: logging.Logger) -> list[dict]:
    """The runs of all notebooks that have a scheduler, asked for at once; rows for `run_study`.

    One notebook after another, workers would stand idle while the last runs of each are finished.
    """
    elsewhere = [execution for execution in executions if execution.parameters.get("scheduler")]
    return [attempt("runs of all notebooks", partial(compute_runs, elsewhere, log), log)] if elsewhere else []


def compute_runs(executions: list[Execution], log: logging.Logger) -> None:
    """Compute what notebooks ask for; that runs failed is only logged: the notebooks that need them try once more."""
    asked: dict[tuple, tuple[RunStore, list[Settings]]] = {}
    for execution in executions:
        if found := asked_runs(execution):
            store, wanted = found
            key = (execution.parameters["scheduler"], store.results_dir, store.dataset.key, store.requested_device)
            asked.setdefault(key, (store, []))[1].extend(wanted)
    for (scheduler, *_), (store, wanted) in asked.items():
        try:
            store.get(wanted, scheduler=scheduler)
        except RunsFailedError as error:
            log.info(str(error))


def make(execution: Execution, log: logging.Logger) -> list[dict]:
    """A notebook and the tables it adds to; or the tables of earlier calls, the report's notebook and the report."""
    results_dir, source = execution.results_dir, notebook_path(execution.notebook)
    tables = partial(attempt, f"tables in {results_dir}", lambda: write_tables(results_dir), log, level=logging.DEBUG)
    notebook = partial(attempt, execution.name, lambda: execute(execution, source, listener=Listener(log.info)), log)
    if not execution.notebook.startswith(REPORT):
        return [notebook(), tables()]
    rows = [tables(), notebook()]
    if not rows[-1]["failed"]:
        rows.append(attempt(f"{results_dir / 'report.html'}", lambda: make_report(execution), log))
    return rows


def attempt(name: str, work: Callable[[], str | None], log: logging.Logger, *, level: int = logging.INFO) -> dict:
    """Do a piece of work that says or raises why it failed; its row for `run_study`."""
    started = time.monotonic()
    try:
        reason = work() or ""
    except Exception as error:  # the rest of the study does not need it
        log.debug(f"{name} failed", exc_info=True)
        reason = one_line(type(error).__name__, str(error))
    seconds = round(time.monotonic() - started, 1)
    log.log(logging.INFO if reason else level, f"{name}: {seconds} s{', failed: ' + reason if reason else ''}")
    return {"made": name, "seconds": seconds, "failed": reason}


def write_tables(results_dir: Path) -> None:
    """Merge the parts of the tables that are there so far, and list the finished runs."""
    merge_tables(results_dir)
    write_table(list_runs(results_dir), results_dir / "runs.csv")


def make_report(execution: Execution) -> None:
    """The report's page, from the executed copy of its notebook."""
    from fetal_utils.report import write_report  # and nbconvert, for this alone

    write_report(execution.copy(), execution.results_dir / "report.html")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fetal_utils.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="demo", help="smoke, demo, laptop, paper, or the path of a .yaml file")
    parser.add_argument("--data-dir", help="folder with Images/ and FETAL_PLANES_DB_data.csv; default: the phantom")
    parser.add_argument("--results-dir", help="where everything is written; default: results/<preset>")
    parser.add_argument("--scheduler", help="address of a Dask scheduler that computes the runs; default: here")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="04", help="only the notebooks whose name starts so")
    which.add_argument("--from", dest="start", metavar="03", help="that notebook and those after it")
    preview = parser.add_mutually_exclusive_group()
    preview.add_argument("--dry-run", action="store_true", help="only count the runs and estimate their hours")
    preview.add_argument("--list", action="store_true", help="only show presets, notebooks and their parameters")
    parser.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the notebooks after one that failed (the default)",
    )
    add_parameters(parser, help="a notebook parameter, read as YAML; may be repeated")
    return parser.parse_args(arguments)


def given_values(options: argparse.Namespace) -> dict[str, object]:
    """Parameters from the command line; folders count from where it was typed."""
    given = {name: parse_value(value) for name, value in options.parameters}
    asked = {"data_dir": options.data_dir, "results_dir": options.results_dir, "scheduler": options.scheduler}
    given |= {name: value for name, value in asked.items() if value}
    given.setdefault("results_dir", str(PROJECT_ROOT / "results" / Path(options.preset).stem))
    for name in {"data_dir", "results_dir"} & set(given):
        given[name] = str(Path(check_type(name, given[name], "")).resolve()) if given[name] else ""
    return given


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it when the time is up, do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if everything was made, 1 if something failed, 2 if it can't be run, 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["status"]:
        return show_status(arguments[1:])
    options = parse_arguments(arguments)
    try:
        with terminated_as_interrupted():
            return study(options, command=shlex.join(["python", "-m", "fetal_utils.study", *arguments]))
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130


def study(options: argparse.Namespace, *, command: str) -> int:
    """What the command's options ask for; its exit status unless interrupted."""
    with ExitStack() as opened:
        try:
            given = given_values(options)
            executions = plan(options.preset, given, only=options.only, start=options.start)
            if options.list:
                show_list(executions)
                return 0
            check_inputs(executions)
            if options.dry_run:
                show_estimate(executions)
                return 0
            log = opened.enter_context(study_log(Path(given["results_dir"])))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        log.debug(command)
        log.debug(f"{', '.join(f'{name} {version}' for name, version in versions().items())}, commit {commit()}")
        log.info(f"results in {given['results_dir']}")
        try:
            made = run_study(executions, log, keep_going=options.keep_going)
        except KeyboardInterrupt:
            log.debug(INTERRUPTED)
            raise
        return show_failures(made, executions, log)


def show_failures(made: pd.DataFrame, executions: list[Execution], log: logging.Logger) -> int:
    """Print the table of what failed, if anything did, and where the tracebacks are; the exit status."""
    failed = made[made["failed"] != ""]
    log.debug(f"made {len(made) - len(failed)} of {len(made)} in {made['seconds'].sum():.0f} s")
    if failed.empty:
        return 0
    print(f"\n{len(failed)} of {len(made)} failed:\n{failed.to_string(index=False)}", file=sys.stderr)
    for execution in executions:
        if execution.name in set(failed["made"]) and execution.copy(".failed").exists():
            print(f"traceback: {execution.copy('.failed')}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
