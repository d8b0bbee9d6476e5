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
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from fetal_utils import cluster, environment
from fetal_utils.environment import StorageError, commit, read_json, read_table, storage_errors, write_json

# Raised by hand when the code gives other numbers for the same settings: older results are then not reused.
RESULTS_VERSION = 3
RECORD, ATTEMPT, TRACEBACK, CHECKPOINT = "record.json", "attempt.json", "traceback.txt", "checkpoint.pt"
ABOUT_RUN = ("task", "strategy", "label_fraction", "draw", "seed", "n_images", "n_patients", "views_seen")
NUMBERS = {"int": lambda value: int(operator.index(value)), "float": float}

Dataset = Any  # `fetal_utils.data.Dataset`, of which this module needs the key


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What makes a run; a subclass adds fields and says how they become results.

    A field may hold the settings of another run, which this run needs. Fields annotated ``int`` and ``float`` are made
    so, as 1 and 1.0, which both come from YAML, are to name the same run; TypeError if they can't be.
    """

    kind: ClassVar[str]  # names the folder of its runs
    weights: ClassVar[tuple[str, ...]] = ()  # files that only other runs and maps need; tables do without

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            annotation = getattr(entry.type, "__name__", entry.type)  # a type in a notebook, text in a module
            value = getattr(self, entry.name)
            try:
                object.__setattr__(self, entry.name, NUMBERS.get(annotation, lambda value: value)(value))
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
        """All fields with the kind, as JSON holds them."""
        values = {entry.name: as_json(getattr(self, entry.name)) for entry in dataclasses.fields(self)}
        return {"kind": self.kind, **values}


def as_json(value: object) -> object:
    """A field's value as JSON holds it; one with a ``to_dict``, say for a file's content, says itself what it is."""
    if isinstance(value, (tuple, list)):
        return [as_json(one) for one in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def run_key(identity: Mapping) -> str:
    """Name of a run's folder: a hash of what `RunStore.identity` says, also as a record holds it."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Work:
    """What a run's `Settings.compute` is given."""

    folder: Path  # where the run's files go; it keeps its unfinished name until they are all there
    dataset: Dataset
    store: RunStore  # for the results of the runs that this one needs
    device: torch.device
    facts: dict = field(default_factory=dict)  # what was counted (patients, views, ...); goes into the record
    earlier_s: float = 0.0  # spent by earlier, interrupted attempts, as the checkpoint tells
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
        """The trained weights; a run that was restored from an archive has none until something needs them."""
        return self.folder / "weights.safetensors"


class RunsFailedError(RuntimeError):
    """Some of the runs that were asked for failed; the others are finished."""


class RunStore:
    """The runs of one results folder and one data set, in ``<results_dir>/runs/<kind>/<hash>/``."""

    def __init__(
        self, results_dir: str | Path, dataset: Dataset, *, device: str = "auto", progress: bool = True
    ) -> None:
        self.results_dir, self.dataset, self.progress = Path(results_dir), dataset, progress
        self.requested_device = device  # a worker of a cluster picks its own
        self.device = environment.pick_device(device)
        environment.keep_freed_memory()

    def identity(self, settings: Settings) -> dict:
        """What a result must share to be this run's: settings, data and version of the results."""
        return {"settings": settings.to_dict(), "data_key": self.dataset.key, "results_version": RESULTS_VERSION}

    def folder(self, settings: Settings) -> Path:
        """Where a run's results lie or will lie."""
        return self.results_dir / "runs" / settings.kind / run_key(self.identity(settings))

    def name(self, settings: Settings) -> str:
        """A run's kind and the name of its folder."""
        return f"{settings.kind} {self.folder(settings).name}"

    def has(self, settings: Settings, *, weights: bool = False) -> bool:
        """Whether a run is finished, for tables or with its weights."""
        folder = self.folder(settings)
        return all((folder / name).exists() for name in (RECORD, *(settings.weights if weights else ())))

    def open(self, settings: Settings) -> Run:
        """A finished run, after a look whether its record is whole and holds these settings."""
        run = Run(settings, self.folder(settings))
        if not self.has(settings):
            raise FileNotFoundError(f"{run.folder} is missing: run {settings.kind} has not been computed")
        if run.record.get("settings") != settings.to_dict():
            raise ValueError(f"{run.folder / RECORD} holds other settings than asked for; delete that folder")
        return run

    def missing(self, wanted: Sequence[Settings], *, weights: bool = False) -> list[Settings]:
        """The runs to compute, each once, after those that it needs; what a finished run needed is not missing."""
        found: dict[str, Settings] = {}
        for settings in wanted:
            if not self.has(settings, weights=weights) and self.name(settings) not in found:
                needed = self.missing(settings.dependencies(), weights=True)
                found |= {self.name(run): run for run in [*needed, settings]}
        return list(found.values())

    def get(self, wanted: Sequence[Settings], *, scheduler: str = "", weights: bool = False) -> list[Run]:
        """The wanted runs in the order asked for, computing those that are missing and all that they need.

        An empty ``scheduler`` computes here, ``local:N`` in N processes of this machine, else the Dask scheduler of
        that address. ``weights`` asks also for weights, which runs have lost after `study restore`.

        Raises
        ------
        ValueError, OSError
            For settings that can't be computed or a folder that can't be written, before the first run starts.
        RunsFailedError, StorageError, KeyboardInterrupt
            If runs failed, after all others are finished; if the disk is full; if interrupted or terminated.
        """
        missing = {self.name(settings): settings for settings in self.missing(wanted, weights=weights)}
        for settings in missing.values():
            settings.check(self.dataset)
        if missing and (failures := self._compute_missing(missing, scheduler)):
            lines = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
            raise RunsFailedError(f"{len(failures)} of {len(missing)} runs failed:\n{lines}")
        return [self.open(settings) for settings in wanted]

    def _compute_missing(self, missing: Mapping[str, Settings], scheduler: str) -> dict[str, str]:
        """Compute runs here or on a cluster; why runs failed, in one line each, by name."""
        environment.check_writable(self.results_dir)
        for settings in missing.values():  # a traceback found later tells that another process tried meanwhile
            (self.folder(settings).with_suffix(".partial") / TRACEBACK).unlink(missing_ok=True)
        names = {name: map(self.name, settings.dependencies()) for name, settings in missing.items()}
        needs = {name: [needed for needed in others if needed in missing] for name, others in names.items()}
        bar = environment.progress_bar(total=len(missing), desc="runs", unit="run", show=self.progress)
        try:
            with bar:
                if not scheduler:
                    return self._compute_here(missing, needs, bar)
                about = self.results_dir.resolve(), self.dataset, self.requested_device
                calls = {name: (*about, settings) for name, settings in missing.items()}
                check = partial(find_obstacle, *about[:2], self.dataset.key, environment.code_key())
                options = {"scheduler": scheduler, "check": check, "done": lambda name: bar.update()}
                return cluster.compute_graph(needs, compute_run, calls, **options)
        except KeyboardInterrupt:
            n_done = sum(self.has(settings, weights=True) for settings in missing.values())
            said = f"interrupted; {n_done} of {len(missing)} runs are finished, and of the others the epochs that ended"
            raise KeyboardInterrupt(f"{said}. Run the same again to go on") from None

    def _compute_here(self, missing: Mapping, needs: Mapping, bar: tqdm) -> dict[str, str]:
        """Compute runs one after another; those that other processes compute are put off, then waited for."""
        ended: dict[str, str] = {}  # names and why they failed, or ""
        wait = False
        while pending := [name for name in missing if name not in ended]:
            before = len(ended)
            for name in pending:
                if failed := [needed for needed in needs[name] if ended.get(needed)]:
                    ended[name] = f"needs {failed[0]}, which failed"
                elif all(needed in ended for needed in needs[name]):
                    bar.set_postfix_str(missing[name].kind, refresh=False)
                    reason, wait = self.compute(missing[name], wait=wait), False
                    if reason is not None:
                        ended[name] = reason
                bar.update(name in ended)
            wait = len(ended) == before  # nothing else is left to do
        return {name: reason for name, reason in ended.items() if reason}

    def compute(self, settings: Settings, *, wait: bool = True) -> str | None:
        """Compute one run, whose dependencies are finished, unless it is there or failed for another process; why it
        failed in one line, or ""; None if another process computes it and this one does not ``wait``."""
        unfinished = self.folder(settings).with_suffix(".partial")
        lock = FileLock(unfinished.with_suffix(".lock"))  # the system frees it when this process dies
        with storage_errors(unfinished):
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if not wait:
                    return None
                tqdm.write(f"waiting for another process that computes {unfinished}, see {ATTEMPT} there")
                lock.acquire()
        try:
            if self.has(settings, weights=True):  # finished meanwhile by another process
                return ""
            return last_line(unfinished / TRACEBACK) or self._compute_locked(settings, unfinished)
        finally:
            with suppress(OSError):  # a disk that has become read-only
                Path(lock.lock_file).unlink()  # while it is held; filelock lets who waits look again
            lock.release()
            environment.keep_freed_memory(trim=True)  # the next run's arrays have other sizes

    def _compute_locked(self, settings: Settings, unfinished: Path) -> str:
        """Compute a run or go on with it; why it failed in one line, or ""."""
        about = self.identity(settings) | {"device": str(self.device), "host": socket.gethostname()}
        work = Work(unfinished, self.dataset, self, self.device)
        try:
            with storage_errors(unfinished):
                if not (unfinished / RECORD).exists():  # else a killed process had done all but the renaming
                    unfinished.mkdir(exist_ok=True)
                    (unfinished / ATTEMPT).write_text(json.dumps({**about, "pid": os.getpid()}), encoding="utf-8")
                    settings.compute(work)
                    about |= {"facts": work.facts, "seconds": round(work.elapsed_s, 3), "commit": commit()}
                    about |= {"n_threads": torch.get_num_threads(), "versions": environment.versions()}
                    write_json(unfinished / RECORD, about)
                finish_folder(unfinished)
        except StorageError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            if isinstance(error, torch.OutOfMemoryError):
                reason = f"out of memory; make batch_size, chunk_size or image_size smaller; given is {settings}"
            text = f"{traceback.format_exc()}\n{reason}\n"
            environment.replace_file(unfinished / TRACEBACK, lambda path: path.write_text(text, encoding="utf-8"))
            return reason
        return ""


def finish_folder(unfinished: Path) -> None:
    """Give a folder with a record its final name, without what only an unfinished run needs; an older one, of a run
    without weights, goes aside first. Who is killed in between leaves the record, so that the next call goes on."""
    folder, aside = unfinished.with_suffix(""), unfinished.with_suffix(".old")
    needless = (unfinished / name for name in (ATTEMPT, TRACEBACK, CHECKPOINT))
    for path in [*needless, *unfinished.glob(".*"), aside]:  # hidden: half-written files, Jupyter's checkpoints
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if folder.exists():
        folder.replace(aside)
    unfinished.replace(folder)
    shutil.rmtree(aside, ignore_errors=True)


open_store = lru_cache(maxsize=2)(RunStore)  # a worker's own, so that table and images are opened once


def compute_run(results_dir: Path, dataset: Dataset, device: str, settings: Settings) -> str:
    """On a worker: see `RunStore.compute`."""
    return open_store(results_dir, dataset, device=device, progress=False).compute(settings)


def find_obstacle(results_dir: Path, dataset: Dataset, data_key: str, code_key: str) -> str:
    """On a worker, before its first run: why it can't take part, say for other code, data or folders, or ""."""
    open_store.cache_clear()  # the data may have changed since an earlier call
    if environment.code_key() != code_key:
        return f"has other code ({commit() or 'no checkout'}); install the same commit, or restart what asks for runs"
    if not results_dir.is_dir():
        return f"does not see the results folder {results_dir}"
    try:
        return "" if dataset.key == data_key else "has other images or another table in the data folder"
    except (OSError, ValueError) as error:
        return f"can't read the data set ({error})"


def run_status(results_dir: str | Path) -> pd.DataFrame:
    """One row for each run that was begun in a results folder, which is only looked at.

    Column ``key`` is the hash that names the folder; ``state`` "done", "running" (a live process holds its lock),
    "failed" (a traceback or a broken record; ``reason`` says why) or "interrupted" (ask again and it goes on).
    """
    folders = [path for path in Path(results_dir, "runs").glob("*/*") if path.suffix in ("", ".partial")]
    table = pd.DataFrame([status_row(path) for path in sorted(folders)], columns=list(status_row(Path("none"))))
    return table.astype(dict.fromkeys(["draw", "seed", "n_images", "n_patients", "views_seen", "epochs"], "Int64"))


def status_row(folder: Path) -> dict:
    """A run's row of `run_status`."""
    done, log, known, reason = not folder.suffix, folder / "log.csv", {}, last_line(folder / TRACEBACK)
    try:
        known = read_json(folder / (RECORD if done else ATTEMPT))
    except (OSError, ValueError) as error:
        reason = str(error) if done else reason  # a run that just begins has no attempt yet
    stopped = "failed" if reason else "done" if done else "interrupted"
    about = known.get("settings", {}) | known.get("facts", {})
    return {
        "kind": folder.parent.name,
        "key": folder.stem,
        "state": "running" if not done and is_held(folder.with_suffix(".lock")) else stopped,
        **{name: about.get(name) for name in ABOUT_RUN},
        **{name: known.get(name) for name in ("data_key", "results_version", "seconds", "device", "host")},
        "epochs": log.read_text().count("\n") - 1 if log.exists() else None,
        "reason": reason,
    }


def is_held(path: Path) -> bool:
    """Whether a live process holds a lock."""
    try:
        with FileLock(path, timeout=0) if path.exists() else nullcontext():
            return False
    except OSError as error:  # or no process may write there
        return isinstance(error, Timeout)


def last_line(path: Path) -> str:
    """The last line of a text that says something; empty without the file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.strip().rpartition("\n")[2]
