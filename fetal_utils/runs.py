"""Runs: settings in, a folder of results out; what exists is never computed again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import ClassVar, Protocol

import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from fetal_utils.environment import (
    StorageError,
    check_writable,
    commit,
    keep_freed_memory,
    pick_device,
    progress_bar,
    read_json,
    read_table,
    replace_file,
    return_freed_memory,
    storage_errors,
    terminate_as_interrupt,
    versions,
    write_json,
)

# Raised by hand when the code gives other numbers for the same settings: older results are then not reused.
RESULTS_VERSION = 3
RECORD, ATTEMPT, TRACEBACK, CHECKPOINT = "record.json", "attempt.json", "traceback.txt", "checkpoint.pt"
NUMBERS = {"int": lambda value: int(operator.index(value)), "float": float}
ABOUT_DATA = ("title", "is_phantom", "development_fraction", "split_seed", "geometry", "blank_text")
ABOUT_RUN = ("task", "strategy", "label_fraction", "draw", "seed")
STATUS_COLUMNS = ("kind", "key", "state", *ABOUT_RUN, "seconds", "epochs", "where", "reason", "folder")


class Dataset(Protocol):
    """As much of `fetal_utils.data.Dataset` as the store reads."""

    key: str
    title: str
    is_phantom: bool
    development_fraction: float
    split_seed: int
    geometry: str
    blank_text: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What makes a run; a subclass adds fields and says how they become results.

    A field may hold the settings of another run, which this run needs; the graph of runs is read off these and kept
    nowhere else. Fields annotated ``int`` and ``float`` are made so, as 1 and 1.0, which both come from YAML, are to
    name the same run; TypeError if they can't be.

    Attributes
    ----------
    kind : str
        Of the class: names the folder of its runs.
    weights : tuple of str
        Of the class: files that only other runs and maps need; a run without them is finished for tables.
    """

    kind: ClassVar[str]
    weights: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            annotation = getattr(entry.type, "__name__", entry.type)  # text where annotations are not evaluated
            if make := NUMBERS.get(annotation):
                value = getattr(self, entry.name)
                try:
                    object.__setattr__(self, entry.name, make(value))
                except (TypeError, ValueError):
                    raise TypeError(f"{entry.name}={value!r}: expected {annotation}") from None

    def check(self, dataset: Dataset) -> None:
        """Raise a ValueError for settings that can't be computed, before any run starts."""

    def compute(self, work: Work) -> None:
        """Do the work and leave its files in ``work.folder``."""
        raise NotImplementedError

    def cost(self, dataset: Dataset) -> dict[str, int]:
        """What the run costs without its dependencies: ``views`` trained on, ``images`` only encoded."""
        return {"views": 0, "images": 0}

    def dependencies(self) -> list[Settings]:
        """The runs whose results this one reads."""
        values = (getattr(self, entry.name) for entry in dataclasses.fields(self))
        return [value for value in values if isinstance(value, Settings)]

    def to_dict(self) -> dict:
        """All fields with the kind, for JSON; a field's object with a ``to_dict`` says itself what it is."""
        return {"kind": self.kind} | {name: plain(getattr(self, name)) for name in field_names(self)}


def field_names(value: object) -> list[str]:
    """Names of a dataclass's fields."""
    return [entry.name for entry in dataclasses.fields(value)]


def plain(value: object) -> object:
    """A field's value as JSON holds it."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in field_names(value)}
    return list(map(plain, value)) if isinstance(value, (tuple, list)) else value


@dataclass
class Work:
    """What a run's `Settings.compute` is given.

    Attributes
    ----------
    folder : Path
        Where the run's files go; it keeps its unfinished name until they are all there.
    dataset : Dataset
    store : RunStore
        For the results of the runs that this one needs.
    device : torch.device
    facts : dict
        What the computation counted (images, patients, optimizer steps, views); goes into the record.
    watch : callable
        Called with the log so far after each epoch.
    earlier_s : float
        Seconds spent by earlier, interrupted attempts; set by whoever reads the checkpoint.
    """

    folder: Path
    dataset: Dataset
    store: RunStore
    device: torch.device
    facts: dict = field(default_factory=dict)
    watch: Callable[[pd.DataFrame], object] = lambda log: None
    earlier_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        """Seconds of work so far, earlier attempts included."""
        return self.earlier_s + time.perf_counter() - self.started


@dataclass(frozen=True)
class Run:
    """A finished run: its settings, its folder and what lies in it."""

    settings: Settings
    folder: Path

    @cached_property
    def record(self) -> dict:
        """What made the run: settings, versions, device, commit, facts, seconds."""
        return read_json(self.folder / RECORD)

    @cached_property
    def log(self) -> pd.DataFrame:
        """One row per epoch."""
        return read_table(self.folder / "log.csv")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per test image: patient, machine, true and predicted class, probabilities."""
        return read_table(self.folder / "predictions.csv")

    @property
    def weights(self) -> Path:
        """The trained weights, as safetensors; not there in a run that was restored from an archive."""
        return self.folder / "weights.safetensors"


class RunsFailedError(RuntimeError):
    """Some of the runs that were asked for failed; the others are finished."""


class RunStore:
    """The runs of one results folder and one data set.

    Parameters
    ----------
    results_dir : path
        Runs lie in ``<results_dir>/runs/<kind>/<hash>/``.
    dataset : Dataset
    device : str
        See `pick_device`.
    progress : bool
        Show bars.
    """

    def __init__(
        self, results_dir: str | Path, dataset: Dataset, *, device: str = "auto", progress: bool = True
    ) -> None:
        self.results_dir = Path(results_dir)
        self.dataset = dataset
        self.requested_device = device  # a worker of a cluster picks its own
        self.device = pick_device(device)
        self.progress = progress
        keep_freed_memory()

    def identity(self, settings: Settings) -> dict:
        """What a result must share to be this run's: settings, data and version of the results."""
        return {
            "settings": settings.to_dict(),
            "data_key": self.dataset.key,
            "results_version": RESULTS_VERSION,
        }

    def folder(self, settings: Settings) -> Path:
        """Where a run's results lie or will lie."""
        text = json.dumps(self.identity(settings), sort_keys=True)
        return self.results_dir / "runs" / settings.kind / hashlib.sha256(text.encode()).hexdigest()[:16]

    def name(self, settings: Settings) -> str:
        """A run's kind and the name of its folder."""
        return f"{settings.kind} {self.folder(settings).name}"

    def has(self, settings: Settings, *, weights: bool = False) -> bool:
        """Whether a run is finished, for tables or with its weights."""
        folder = self.folder(settings)
        return all((folder / name).exists() for name in (RECORD, *(settings.weights if weights else ())))

    def open(self, settings: Settings) -> Run:
        """A finished run, after a look whether its record really holds these settings and this data."""
        run = Run(settings, self.folder(settings))
        if not self.has(settings):
            raise FileNotFoundError(f"{run.folder} is missing: run {settings.kind} has not been computed")
        wanted = json.loads(json.dumps(self.identity(settings)))
        if {name: run.record.get(name) for name in wanted} != wanted:
            raise ValueError(f"{run.folder / RECORD} holds other settings than asked for; delete that folder")
        return run

    def missing(self, wanted: Sequence[Settings], *, weights: bool = False) -> list[Settings]:
        """The runs to compute, each once, after those that it needs; what a finished run needed is not missing."""
        found: dict[str, Settings] = {}

        def visit(settings: Settings, weights: bool) -> None:
            name = self.name(settings)
            if name not in found and not self.has(settings, weights=weights):
                for needed in settings.dependencies():
                    visit(needed, weights=True)
                found[name] = settings

        for settings in wanted:
            visit(settings, weights)
        return list(found.values())

    def get(
        self,
        wanted: Sequence[Settings],
        *,
        scheduler: str = "",
        watch: Callable[[Settings, pd.DataFrame], object] | None = None,
        weights: bool = False,
    ) -> list[Run]:
        """The wanted runs, computing those that are missing and all that they need.

        Parameters
        ----------
        wanted : sequence of Settings
        scheduler : str
            Empty computes here, ``local:N`` in N processes of this machine, else the address of a Dask scheduler.
        watch : callable, optional
            Called with a run's settings and its log so far after each of its epochs, while computing here.
        weights : bool
            Compute those again whose weights are missing, as after `study restore`.

        Returns
        -------
        list of Run
            In the order asked for.

        Raises
        ------
        ValueError
            If any run's settings can't be computed, before the first one starts, or a record is broken.
        StorageError
            If the results folder can't be written, before the first one starts, or later because the disk is full.
        RunsFailedError
            If runs failed, after all others are finished; their ``<hash>.partial`` holds ``traceback.txt``.
        KeyboardInterrupt
            If interrupted or terminated, with how to go on.
        """
        missing = {self.name(settings): settings for settings in self.missing(wanted, weights=weights)}
        for settings in missing.values():
            settings.check(self.dataset)
        if missing:
            failures = self._compute_all(missing, scheduler, watch)
            if failures:
                lines = [f"  {name}: {reason}" for name, reason in failures.items()]
                raise RunsFailedError(f"{len(failures)} of {len(missing)} runs failed:\n" + "\n".join(lines))
        return [self.open(settings) for settings in wanted]

    def _compute_all(self, missing: Mapping[str, Settings], scheduler: str, watch: Callable | None) -> dict[str, str]:
        """Compute runs here or on a cluster; why runs failed, in one line each."""
        check_writable(self.results_dir)
        needs = {
            name: [other for other in map(self.name, settings.dependencies()) if other in missing]
            for name, settings in missing.items()
        }
        with (
            progress_bar(total=len(missing), desc="runs", unit="run", show=self.progress) as bar,
            terminate_as_interrupt(),
        ):
            try:
                if not scheduler:
                    return self._compute_here(missing, needs, bar, watch)
                from fetal_utils.cluster import compute_graph  # `distributed` only for who asks for it

                about = (self.results_dir.resolve(), self.dataset, self.dataset.key, self.requested_device)
                return compute_graph(
                    needs,
                    compute_run,
                    {name: (*about, settings) for name, settings in missing.items()},
                    scheduler=scheduler,
                    check=partial(find_obstacle, *about, commit()),
                    spread_gpus=self.requested_device in ("auto", "cuda"),
                    done=lambda name: bar.update(),
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted: {bar.n} of {len(missing)} runs ended, finished epochs of the others are kept. "
                    "Ask for the same again to go on"
                ) from None

    def _compute_here(
        self, missing: Mapping[str, Settings], needs: Mapping[str, list[str]], bar: tqdm, watch: Callable | None
    ) -> dict[str, str]:
        """Compute runs one after another; those that other processes compute are put off, then waited for."""
        failures: dict[str, str] = {}
        tracebacks = {name: self._traceback_time(settings) for name, settings in missing.items()}
        pending, wait = dict(missing), False
        while pending:
            put_off: dict[str, Settings] = {}
            for name, settings in pending.items():
                bar.set_postfix_str(settings.kind, refresh=False)
                if failed := [other for other in needs[name] if other in failures]:
                    reason = f"needs {failed[0]}, which failed"
                elif any(other in put_off for other in needs[name]):
                    reason = None
                else:
                    reason = self._attempt(settings, wait=wait, traceback_time=tracebacks[name], watch=watch)
                    wait = False
                if reason is None:
                    put_off[name] = settings
                    continue
                if reason:
                    failures[name] = reason
                bar.update()
            wait = len(put_off) == len(pending)  # nothing else is left to do
            pending = put_off
        return failures

    def compute(self, settings: Settings) -> str:
        """Compute one run whose dependencies are finished, or wait for who computes it; why it failed, or ""."""
        return self._attempt(settings, wait=True, traceback_time=self._traceback_time(settings))

    def _attempt(
        self, settings: Settings, *, wait: bool, traceback_time: int, watch: Callable | None = None
    ) -> str | None:
        """Compute a run unless it is there; why it failed in one line, "" if it did not, None if another has it.

        A traceback that is not the one of ``traceback_time`` tells that another process tried meanwhile.
        """
        if self.has(settings, weights=True):
            return ""
        folder = self.folder(settings)
        lock = FileLock(folder.with_suffix(".lock"))
        with storage_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if not wait:
                    return None
                tqdm.write(f"run {self.name(settings)} is being computed {self._whereabouts(settings)}; waiting for it")
                lock.acquire()
        try:
            if self.has(settings, weights=True):  # finished meanwhile
                return ""
            if self._traceback_time(settings) not in (0, traceback_time):
                return last_line(folder.with_suffix(".partial") / TRACEBACK)
            return self._compute_locked(settings, watch)
        finally:
            folder.with_suffix(".lock").unlink(missing_ok=True)  # while it is held: who waits for it notices
            lock.release()
            return_freed_memory()  # the next run's arrays have other sizes

    def _compute_locked(self, settings: Settings, watch: Callable | None) -> str:
        """Compute a run whose lock is held, or go on with it; why it failed in one line, or ""."""
        work = Work(self.folder(settings).with_suffix(".partial"), self.dataset, self, self.device)
        if watch:
            work.watch = partial(watch, settings)
        place = {"device": str(self.device), "host": socket.gethostname()}
        try:
            with storage_errors(work.folder):
                if not (work.folder / RECORD).exists():  # else a killed process had done all but the renaming
                    work.folder.mkdir(exist_ok=True)
                    begun = {"pid": os.getpid(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
                    attempt = json.dumps(self.identity(settings) | place | begun)
                    (work.folder / ATTEMPT).write_text(attempt, encoding="utf-8")
                    (work.folder / TRACEBACK).unlink(missing_ok=True)
                    settings.compute(work)
                    write_json(work.folder / RECORD, self.identity(settings) | self._about(work) | place)
                finish_folder(work.folder)
        except StorageError:
            raise
        except Exception as error:
            text = traceback.format_exc()
            replace_file(work.folder / TRACEBACK, lambda path: path.write_text(text, encoding="utf-8"))
            return reason_of(error)
        return ""

    def _about(self, work: Work) -> dict:
        """What a record says beside the run's identity and place."""
        return {
            "data": {name: getattr(self.dataset, name) for name in ABOUT_DATA},
            "facts": work.facts,
            "seconds": round(work.elapsed_s, 3),
            "n_threads": torch.get_num_threads(),
            "versions": versions(),
            "commit": commit(),
        }

    def _traceback_time(self, settings: Settings) -> int:
        """When the last attempt at a run failed, in ns of its file system; 0 if it did not."""
        try:
            return (self.folder(settings).with_suffix(".partial") / TRACEBACK).stat().st_mtime_ns
        except OSError:
            return 0

    def _whereabouts(self, settings: Settings) -> str:
        """Who computes a run since when, as far as its folder says."""
        try:
            attempt = read_json(self.folder(settings).with_suffix(".partial") / ATTEMPT)
            return f"on {attempt['host']} by process {attempt['pid']} since {attempt['started']}"
        except (OSError, ValueError, KeyError):  # it begins or ends just now
            return "by another process"

    def status(self) -> pd.DataFrame:
        """See `run_status`."""
        return run_status(self.results_dir)


def reason_of(error: Exception) -> str:
    """Why a run failed, in one line."""
    lines = str(error).splitlines() or [""]
    remedy = "; try a smaller batch_size or chunk_size" if isinstance(error, torch.OutOfMemoryError) else ""
    return f"{type(error).__name__}: {lines[0]}{remedy}"


def finish_folder(unfinished: Path) -> None:
    """Give a folder with a record its final name, without what only an unfinished run needs.

    A folder that has the name already, one without weights, goes aside; who is killed in between leaves the record,
    and the next one goes on here.
    """
    remove(unfinished / name for name in (ATTEMPT, TRACEBACK, CHECKPOINT))
    remove(unfinished.glob(".*"))  # half-written files, Jupyter's checkpoints
    folder, aside = unfinished.with_suffix(""), unfinished.with_suffix(".old")
    remove([aside])
    if folder.exists():
        folder.replace(aside)
    unfinished.replace(folder)
    remove([aside])


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders that may not be there."""
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@lru_cache(maxsize=2)
def open_store(results_dir: Path, dataset: Dataset, data_key: str, device: str) -> RunStore:
    """A worker's own store, so that table and images are opened once, as long as ``data_key`` stays the same."""
    return RunStore(results_dir, dataset, device=device, progress=False)


def compute_run(results_dir: Path, dataset: Dataset, data_key: str, device: str, settings: Settings) -> str:
    """On a worker: compute one run whose dependencies are finished; why it failed, or ""."""
    return open_store(results_dir, dataset, data_key, device).compute(settings)


def find_obstacle(results_dir: Path, dataset: Dataset, data_key: str, device: str, wanted_commit: str) -> str:
    """On a worker: why it can't take part, say for other code, data or folders, or ""."""
    if commit() != wanted_commit:
        return f"has code of commit {commit() or 'unknown'}, not {wanted_commit or 'unknown'}"
    if not results_dir.is_dir():
        return f"does not see the results folder {results_dir}"
    try:
        key = dataset.key
    except (OSError, ValueError) as error:
        return f"can't read the data set ({error})"
    return "" if key == data_key else "has other images or another table in the data folder"


def run_status(results_dir: str | Path) -> pd.DataFrame:
    """One row for each run that was begun in a results folder, which is only looked at.

    Returns
    -------
    DataFrame
        Columns `STATUS_COLUMNS`: ``key`` is the hash that names the folder; ``state`` "done", "running" (a live process
        holds its lock), "failed" (a traceback or a broken record; ``reason`` says why) or "interrupted" (ask again and
        it goes on); ``seconds`` of all attempts so far; ``where`` the device and host.
    """
    folders = [path for path in Path(results_dir, "runs").glob("*/*") if path.suffix in ("", ".partial")]
    table = pd.DataFrame([status_row(path) for path in sorted(folders)], columns=list(STATUS_COLUMNS))
    whole = dict.fromkeys(("draw", "seed", "epochs"), "Int64")
    return table.astype(whole | {"label_fraction": float, "seconds": float})


def status_row(folder: Path) -> dict:
    """A run's row of `run_status`."""
    done, known, reason = folder.suffix == "", {}, ""
    try:
        known = read_json(folder / (RECORD if done else ATTEMPT))
    except (OSError, ValueError) as error:
        reason = str(error) if done else ""
    try:
        log = read_table(folder / "log.csv")
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        log = pd.DataFrame()
    if done:
        state = "failed" if reason else "done"
    elif is_held(folder.with_suffix(".lock")):
        state = "running"
    else:
        state = "failed" if (folder / TRACEBACK).exists() else "interrupted"
        reason = last_line(folder / TRACEBACK) if state == "failed" else ""
    settings = known.get("settings", {})
    seconds = log["seconds"].iloc[-1] if "seconds" in log and len(log) else None
    return {
        "kind": folder.parent.name,
        "key": folder.stem,
        "state": state,
        **{name: settings.get(name) for name in ABOUT_RUN},
        "seconds": known.get("seconds", seconds),
        "epochs": len(log) if "epoch" in log else None,
        "where": " on ".join(known[name] for name in ("device", "host") if name in known),
        "reason": reason,
        "folder": str(folder),
    }


def is_held(path: Path) -> bool:
    """Whether a live process holds a lock."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # another user's, or read-only
        return False
    lock.release()
    return False


def last_line(path: Path) -> str:
    """The last line of a text that says something."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
