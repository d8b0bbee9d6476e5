"""Run the study: ``python -m fetal_utils.study --preset demo``.

``status`` shows what a results folder holds. ``archive FILE`` keeps its finished runs and the data set's table, without
weights and images, in a .tar.xz; ``restore FILE`` puts them into a results folder.
"""

import argparse
import logging
import lzma
import os
import re
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from fetal_utils import presets
from fetal_utils.cluster import connect
from fetal_utils.environment import PROJECT_ROOT, check_writable, read_json, replace_file, terminate_as_interrupt
from fetal_utils.presets import Execution, UsageError, Wanted
from fetal_utils.runs import RECORD, RESULTS_VERSION, RunsFailedError, run_key, run_status
from fetal_utils.tables import merge_tables

LOG = logging.getLogger(__name__)
INTERRUPTED = "interrupted; what is finished is kept, and the same command goes on from there"
KEPT = (RECORD, "log.csv", "predictions.csv")  # of a run in an archive
MEMBER = re.compile(r"runs/\w+/[0-9a-f]{16}/(record\.json|(log|predictions)\.csv)|data/[\w.]+\.(csv|json|yaml)")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fetal_utils.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", default="run", choices=("run", "status", "archive", "restore"))
    parser.add_argument("file", nargs="?", help="of archive and restore")
    known = ", ".join(presets.preset_names())
    parser.add_argument("--preset", default="demo", help=f"{known}, or the path of a .yaml file; default: demo")
    parser.add_argument("--data-dir", help="folder with Images/ and FETAL_PLANES_DB_data.csv; default: the phantom")
    parser.add_argument("--results-dir", help="where everything is written; default: results/<preset>")
    parser.add_argument("--scheduler", help="local:N, or the address of a Dask scheduler; default: compute here")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", dest="parameters", help="a notebook parameter, read as YAML; may be repeated", **pair)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="04", default="", help="only the notebooks whose name starts so")
    which.add_argument("--from", metavar="03", default="", dest="start", help="that notebook and those after it")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="count the missing runs and what they cost")
    instead.add_argument("--list", action="store_true", help="show presets, notebooks and parameters")
    instead.add_argument("--runs-only", action="store_true", help="compute the runs, execute no notebook")
    return parser


def main(arguments: Sequence[str] | None = None, *, notebook_dir: Path = presets.NOTEBOOK_DIR) -> int:
    """The command: 0 if all was made, 1 if something failed, 2 if it can't be run as asked, 130 if interrupted."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if (options.command in ("archive", "restore")) != bool(options.file):
        parser.error("archive FILE, restore FILE: only these take a file, and need it")
    try:
        with terminate_as_interrupt():
            return run_command(options, notebook_dir)
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130


def run_command(options: argparse.Namespace, notebook_dir: Path) -> int:
    """What the options ask for; the exit status. All that a user can have mistyped is found before the first run."""
    preview = options.dry_run or options.list
    try:
        given = given_values(options)
        scheduler = presets.check_type("scheduler", given.get("scheduler", ""), str)
        results_dir = Path(given["results_dir"])
        if options.command != "run":
            command = {"status": status, "archive": archive, "restore": restore}[options.command]
            print(command(results_dir, Path(options.file or "").expanduser()))
            return 0
        preset = presets.read_preset(options.preset)
        executions = presets.plan(preset, given, only=options.only, start=options.start, folder=notebook_dir)
        wanted = [] if options.list else list(filter(None, map(presets.wanted_runs, executions)))
        check_inputs(wanted, scheduler=scheduler, preview=bool(preview))
        if preview:
            folders = {execution.results_dir for execution in executions}
            print(describe(executions) if options.list else count_missing(wanted, folders))
            return 0
        open_log(results_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = compute_runs(wanted, scheduler) if options.runs_only or scheduler else []
    for execution in [] if options.runs_only else executions:
        if not any(lost in reason for *_, reason in made for lost in ("StorageError", "ConnectionError")):
            made += make(execution)
    if failed := [row for row in made if row[-1]]:
        width = max(len(name) for name, *_ in failed)
        rows = [f"  {name:{width}} {seconds:>8.1f} s  {reason}" for name, seconds, reason in failed]
        print(f"\n{len(failed)} of {len(made)} failed:", *rows, sep="\n", file=sys.stderr)
    return int(bool(failed))


def given_values(options: argparse.Namespace) -> dict[str, object]:
    """Parameters from the command line; folders count from where it was typed."""
    given = {name: presets.read_yaml(value, f"-p {name} {value}") for name, value in options.parameters}
    asked = {"data_dir": options.data_dir, "results_dir": options.results_dir, "scheduler": options.scheduler}
    given |= {name: value for name, value in asked.items() if value}
    given.setdefault("results_dir", str(PROJECT_ROOT / "results" / Path(options.preset).stem))
    for name in {"data_dir", "results_dir"} & given.keys():
        folder = presets.check_type(name, given[name], str)
        given[name] = folder and str(Path(folder).expanduser().resolve())
    return given


def check_inputs(wanted: list[Wanted], *, scheduler: str, preview: bool) -> None:
    """Check the settings of all missing runs and, unless it is for a preview, every image and the scheduler."""
    for one in wanted:
        for settings in (missing := one.missing()):
            settings.check(one.store.dataset)
        if one.image_size and not preview and (missing or not one.store.dataset.kept):  # tables need no image
            one.store.dataset.images(one.image_size)
    if scheduler and not preview:
        with connect(scheduler):
            pass


def open_log(results_dir: Path) -> None:
    """Say what is done on the screen and, with tracebacks, in ``study.log``."""
    check_writable(results_dir)
    handlers = logging.StreamHandler(sys.stdout), logging.FileHandler(results_dir / "study.log", encoding="utf-8")
    handlers[0].setLevel(logging.INFO)
    logging.basicConfig(handlers=handlers, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", force=True)
    logging.raiseExceptions = False  # a full disk is reported by what can't do without it
    LOG.setLevel(logging.DEBUG)


def compute_runs(wanted: list[Wanted], scheduler: str) -> list[tuple]:
    """Compute what all notebooks want, asked for together, so that no worker waits for the end of a notebook."""
    groups, made = defaultdict(list), []
    for one in wanted:
        groups[one.store.results_dir, one.store.dataset.key, one.weights].append(one)
    for (results_dir, _, weights), group in groups.items():
        runs = [settings for one in group for settings in one.runs]
        get = partial(group[0].store.get, runs, scheduler=scheduler, weights=weights)
        made += attempt(f"runs in {results_dir}", get)
    return made


def make(execution: Execution) -> list[tuple]:
    """Execute a notebook and merge the tables that it adds to; the report's notebook finds them merged."""
    results_dir = execution.results_dir
    merge = partial(attempt, f"tables in {results_dir}", partial(merge_tables, results_dir))
    if execution.path.stem != presets.REPORT:
        return attempt(execution.name, partial(execute, execution)) + merge()
    made = merge() + attempt(execution.name, partial(execute, execution))
    if not made[-1][-1]:
        from fetal_utils.report import write_report  # and nbconvert

        page = results_dir / "report.html"
        made += attempt(str(page), partial(write_report, copy_of(execution), page))
    return made


def attempt(name: str, work: Callable[[], object]) -> list[tuple[str, float, str]]:
    """Do a piece of work; a row, or one for each run that failed, of its name, seconds and why it failed, or ""."""
    started, failures = time.monotonic(), {name: ""}
    LOG.info(f"{name} ...")
    try:
        work()
    except RunsFailedError as error:
        failures = dict(line.strip().split(": ", 1) for line in str(error).splitlines()[1:])
    except Exception as error:  # the rest of the study may not need it
        LOG.debug(name, exc_info=True)
        failures = {name: one_line(error)}
    seconds = round(time.monotonic() - started, 1)
    LOG.info(f"{name}: {seconds} s" + "".join(f"\n  {one} failed: {why}" for one, why in failures.items() if why))
    return [(one, seconds, why) for one, why in failures.items()]


def one_line(error: Exception) -> str:
    """An error in one line, that of a notebook's cell with the cell's number."""
    if type(error).__name__ == "DeadKernelError":
        return "its kernel died, as it does when memory is short; lower image_size or a batch size"
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cell = f"cell {error.exec_count}: " if hasattr(error, "exec_count") else ""
    return f"{cell}{kind}: {' ... '.join(dict.fromkeys(lines[:1] + lines[-1:]))}"


def execute(execution: Execution) -> None:
    """Let papermill execute a notebook; the copy is ``.unfinished`` until it is whole, ``.failed`` after an error."""
    import papermill  # and what kernels need, which `--runs-only` does without

    for name in [name for name in os.environ if name == "JPY_SESSION_NAME" or name.startswith("VSCODE_")]:
        del os.environ[name]  # by which the kernel would think that somebody watches
    unfinished, failed = copy_of(execution, ".unfinished"), copy_of(execution, ".failed")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            escape(execution.path),
            escape(unfinished),
            parameters=execution.parameters,
            kernel_name="python3",
            cwd=str(execution.path.parent),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            start_timeout=300,  # s; on a busy machine papermill's own minute may not do
            extra_arguments=["--log-level=CRITICAL"],  # of the kernel, which else complains of being interrupted
        )
    except Exception:
        if unfinished.exists():  # else no kernel started, or the disk is full
            unfinished.replace(failed)
        raise
    unfinished.replace(copy_of(execution))
    failed.unlink(missing_ok=True)


def escape(path: Path) -> str:
    """A path for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def copy_of(execution: Execution, ending: str = "") -> Path:
    """Where the executed notebook lies."""
    return execution.results_dir / "notebooks" / f"{execution.name}{ending}.ipynb"


def describe(executions: list[Execution]) -> str:
    """Presets, and each notebook's parameters with their values and meaning."""
    import papermill

    lines = [f"{name}: {presets.read_preset(name)['description']}" for name in presets.preset_names()]
    for execution in executions:
        lines.append(f"\n{execution.name}")
        for name, about in papermill.inspect_notebook(escape(execution.path)).items():
            value = repr(execution.parameters[name]) if name in execution.parameters else about["default"]
            lines.append(f"  {name} = {value}  # {about['help']}")
    return "\n".join(lines)


def count_missing(wanted: list[Wanted], folders: set[Path]) -> str:
    """How many runs are missing, by kind, what they cost, and how long finished ones of their kind took."""
    missing = {one.store.folder(run): (run, one.store.dataset) for one in wanted for run in one.missing()}
    rows = [{"kind": run.kind, "missing": 1} | run.cost(dataset) for run, dataset in missing.values()]
    table = pd.DataFrame(rows, columns=["kind", "missing", "views", "images"]).groupby("kind").sum()
    done = pd.concat([run_status(folder).query("state == 'done'") for folder in folders])
    table = table.join(done.groupby("kind")["seconds"].agg(finished="size", mean_seconds="mean"), how="outer")
    table = table.astype(float).fillna(dict.fromkeys(["missing", "views", "images", "finished"], 0))
    table["hours"] = table["missing"] * table["mean_seconds"] / 3600
    text = to_text(table.reset_index().round(2).convert_dtypes())
    total = f"{table['missing'].sum():g} runs are missing, {table['views'].sum():,.0f} views to train on"
    return f"{text}\n{total}; hours as finished runs of the kind took, one after another"


def status(results_dir: Path, _: Path) -> str:
    """Runs by kind and state, and those that are not done; of the folders in this one, too."""
    parts = []
    for folder in [results_dir, *sorted(results_dir.glob("*/"))]:
        if len(table := run_status(folder)):
            counts = pd.crosstab(table["kind"], table["state"]).join(table.groupby("kind")["seconds"].sum())
            rest = table[table["state"] != "done"]
            parts += [str(folder), to_text(counts.reset_index()), *([to_text(rest)] if len(rest) else [])]
    if not parts:
        raise UsageError(f"{results_dir} holds no runs of a study; see --results-dir")
    return "\n\n".join(parts)


def to_text(table: pd.DataFrame) -> str:
    """A table for the terminal; what is missing is left blank."""
    return table.astype(object).where(table.notna(), "").to_string(index=False)


def archive(results_dir: Path, file: Path) -> str:
    """Write the finished runs of a results folder into one file: the same bytes for the same runs."""
    if not file.name.endswith(".tar.xz"):
        raise UsageError(f"{file}: expected a name that ends in .tar.xz")
    found = sorted(path for path in results_dir.glob(f"runs/*/*/{RECORD}") if not path.parent.suffix)
    records = [path for path in found if read_json(path).get("results_version") == RESULTS_VERSION]
    if not records:
        raise UsageError(f"{results_dir} holds no finished runs of results version {RESULTS_VERSION}")
    paths = [path for record in records for path in map(record.with_name, KEPT)] + sorted(results_dir.glob("data/*"))
    nobodys = {"mtime": 0, "mode": 0o644, "uid": 0, "gid": 0, "uname": "", "gname": ""}

    def pack(beside: Path) -> None:
        with tarfile.open(beside, "w:xz", dereference=True) as tar:
            for path in (path for path in paths if path.is_file()):
                tar.add(path, path.relative_to(results_dir), filter=lambda about: about.replace(**nobodys, deep=False))

    replace_file(file, pack)
    return f"{file}: {len(records)} runs, {file.stat().st_size / 1e6:.2f} MB"


def restore(results_dir: Path, file: Path) -> str:
    """Put an archive's runs into a results folder, each whole; those that are there stay as they are."""
    check_writable(results_dir)
    with tempfile.TemporaryDirectory(dir=results_dir, prefix=".restore-") as unpacked:
        try:
            with tarfile.open(file, "r:xz") as opened:
                members = [member for member in opened if not member.isdir()]
                if strange := [one.name for one in members if not (one.isfile() and MEMBER.fullmatch(one.name))]:
                    raise UsageError(f"{file} holds {strange[0]}, which is no part of a run")
                opened.extractall(unpacked, members, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise UsageError(f"{file} is no archive of runs: {error}") from None
        names = {Path(member.name).parent for member in members}
        for name in names - {Path("data")}:
            check_record(Path(unpacked, name))
        new = [name for name in names if not (results_dir / name).exists()]
        for name in new:
            (results_dir / name).parent.mkdir(parents=True, exist_ok=True)
            Path(unpacked, name).rename(results_dir / name)
    return f"{len(new)} folders restored to {results_dir}, {len(names) - len(new)} were there"


def check_record(folder: Path) -> None:
    """UsageError if the record in a folder is of another version, or not of the run that the folder's name says."""
    record = read_json(folder / RECORD)
    identity = {name: record.get(name) for name in ("settings", "data_key", "results_version")}
    if record.get("results_version") != RESULTS_VERSION:
        raise UsageError(f"{folder.name}: results of version {record.get('results_version')}, not {RESULTS_VERSION}")
    if folder.name != run_key(identity):
        raise UsageError(f"{folder.name}: the record is of another run")


if __name__ == "__main__":
    sys.exit(main())
