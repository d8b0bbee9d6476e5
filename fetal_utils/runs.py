"""Runs: settings in, a folder of results out; what exists is never computed again."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from functools import partial as partial_function
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from fetal_utils.cluster import compute_missing
from fetal_utils.dataset import Dataset
from fetal_utils.environment import commit, peak_memory_mib, pick_device, progress_bar, versions
from fetal_utils.memory import keep_freed_memory, return_freed_memory
from fetal_utils.settings import Settings

# Raised when the code gives other numbers for the same settings: older results are then not reused.
RESULTS_VERSION = 2

Watch = Callable[[Settings, pd.DataFrame], object]


@dataclass
class Work:
    """What a run's `Settings.compute` is given.

    Attributes
    ----------
    folder : Path
        Where the run's files go; it keeps its unfinished name until they are all there.
    dataset : Dataset
    store : RunStore
        For the results of the runs that this one starts from.
    device : torch.device
    facts : dict
        What the computation counted (images, patients, optimiser steps, views); goes into the record.
    earlier_s : float
        Seconds spent by earlier, interrupted attempts; set by whoever reads the checkpoint.
    watch : callable
        Called with the log so far after each epoch.
    """

    folder: Path
    dataset: Dataset
    store: RunStore
    device: torch.device
    facts: dict = field(default_factory=dict)
    earlier_s: float = 0.0
    watch: Callable[[pd.DataFrame], object] = field(default=lambda log: None)
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
        """What made the run: settings, versions, device, commit, facts, seconds, peak memory."""
        return json.loads((self.folder / "record.json").read_text(encoding="utf-8"))

    @cached_property
    def log(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.read_csv(self.folder / "log.csv")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per test image: patient, machine, true and predicted class, probabilities."""
        return pd.read_csv(self.folder / "predictions.csv", keep_default_na=False)

    @property
    def weights(self) -> Path:
        """The trained weights, as safetensors."""
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
        keep_freed_memory()
        self.progress = progress

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

    def has(self, settings: Settings) -> bool:
        """Whether a run is finished."""
        return (self.folder(settings) / "record.json").exists()

    def get(self, wanted: Sequence[Settings], *, scheduler: str = "", watch: Watch | None = None) -> list[Run]:
        """The wanted runs, computing those that are missing and all they start from.

        Parameters
        ----------
        wanted : sequence of Settings
        scheduler : str
            Address of a Dask scheduler whose workers compute; empty computes here, see `compute_missing`.
        watch : callable, optional
            Called with a run's settings and its log so far after each of its epochs, while computing here.

        Returns
        -------
        list of Run
            In the order asked for.

        Raises
        ------
        ValueError
            If any run's settings can't be computed; raised before the first one starts.
        ConnectionError
            If no scheduler answers at the address.
        RunsFailedError
            If runs failed; raised after all others are finished. A failed run's folder
            (``<hash>.partial``) holds ``traceback.txt``.
        """
        missing = self.missing(wanted)
        for settings in missing:
            settings.check(self.dataset)
        with progress_bar(total=len(missing), desc="runs", unit="run", show=self.progress and bool(missing)) as bar:
            failures = compute_missing(self, missing, scheduler=scheduler, bar=bar, watch=watch) if missing else {}
        if failures:
            lines = [f"  {self.name(settings)}: {reason}" for settings, reason in failures.items()]
            raise RunsFailedError(f"{len(failures)} of {len(missing)} runs failed:\n" + "\n".join(lines))
        return [self.open(settings) for settings in wanted]

    def name(self, settings: Settings) -> str:
        """A run's kind and the name of its folder."""
        return f"{settings.kind} {self.folder(settings).name}"

    def compute_here(self, missing: Sequence[Settings], bar: tqdm, watch: Watch | None = None) -> dict[Settings, str]:
        """Compute runs one after another; why runs failed, in one line each."""
        failures: dict[Settings, str] = {}
        for settings in missing:
            bar.set_postfix_str(settings.kind)
            if reason := self.failed_start(settings, failures) or self.compute(settings, watch):
                failures[settings] = reason
            bar.update()
        return failures

    def missing(self, wanted: Sequence[Settings]) -> list[Settings]:
        """The runs to compute, each once, a start before what starts from it; a finished run needs no start."""

        def unfinished(settings: Settings) -> Iterator[Settings]:
            if not self.has(settings):
                for start in settings.starts_from():
                    yield from unfinished(start)
                yield settings

        return list(dict.fromkeys(run for settings in wanted for run in unfinished(settings)))

    def failed_start(self, settings: Settings, failures: dict[Settings, str]) -> str:
        """Why a run can't start: one that it starts from failed. Empty if none did."""
        broken = [start for start in settings.starts_from() if start in failures]
        return f"starts from {self.name(broken[0])}, which failed" if broken else ""

    def compute(self, settings: Settings, watch: Watch | None = None) -> str:
        """Compute one run whose starting runs exist; the reason in one line if it fails, else empty."""
        folder = self.folder(settings)
        partial = folder.with_suffix(".partial")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if self.has(settings):  # another process finished it while this one waited
                return ""
            partial.mkdir(exist_ok=True)
            work = Work(folder=partial, dataset=self.dataset, store=self, device=self.device)
            if watch:
                work.watch = partial_function(watch, settings)
            try:
                settings.compute(work)
                self.finish(settings, work, folder)
            except Exception as error:
                (partial / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            finally:
                return_freed_memory()  # the next run's arrays have other sizes
        return ""

    def finish(self, settings: Settings, work: Work, folder: Path) -> None:
        """Write the record and give the folder its final name."""
        record = self.identity(settings) | {
            "data": {
                "title": self.dataset.title,
                "is_phantom": self.dataset.is_phantom,
                "val_fraction": self.dataset.val_fraction,
                "split_seed": self.dataset.split_seed,
                "geometry": self.dataset.geometry,
                "blank_text": self.dataset.blank_text,
            },
            "facts": work.facts,
            "seconds": round(work.elapsed_s, 3),
            "peak_memory_mib": round(peak_memory_mib(self.device), 1),
            "device": str(self.device),
            "n_threads": torch.get_num_threads(),
            "versions": versions(),
            "commit": commit(),
        }
        (work.folder / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        work.folder.replace(folder)
        # only now: a kill before this line finds the checkpoint again
        half_written = folder.glob(".*.partial")  # by a killed process, see `replace_file`
        for leftover in [folder / "traceback.txt", folder / "checkpoint.pt", *half_written]:
            leftover.unlink(missing_ok=True)

    def open(self, settings: Settings) -> Run:
        """A finished run, after a look whether its record really holds these settings and this data."""
        run = Run(settings, self.folder(settings))
        if not self.has(settings):
            raise FileNotFoundError(f"{run.folder} is missing: run {settings.kind} has not been computed")
        wanted = json.loads(json.dumps(self.identity(settings)))
        if {name: run.record.get(name) for name in wanted} != wanted:
            raise ValueError(f"{run.folder / 'record.json'} holds other settings than asked for; delete that folder")
        return run
