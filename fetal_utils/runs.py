"""Runs: settings in, a folder of results out; what exists is never computed again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from fetal_utils.attempts import compute_in_turn
from fetal_utils.cluster import compute_missing
from fetal_utils.dataset import Dataset
from fetal_utils.environment import pick_device, progress_bar
from fetal_utils.files import check_writable
from fetal_utils.leases import Lease
from fetal_utils.memory import keep_freed_memory
from fetal_utils.records import RECORD, name_folder, read_json, write_record
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
    check_lease : callable
        To be called before anything is written that a later step builds on; raises a LeaseLostError if another
        process has taken the run over meanwhile, see `fetal_utils.leases`.
    """

    folder: Path
    dataset: Dataset
    store: RunStore
    device: torch.device
    facts: dict = field(default_factory=dict)
    earlier_s: float = 0.0
    watch: Callable[[pd.DataFrame], object] = field(default=lambda log: None)
    check_lease: Callable[[], None] = field(default=lambda: None)
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
        return read_json(self.folder / RECORD)

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
        return (self.folder(settings) / RECORD).exists()

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
        StorageError
            If the results folder can't be written, found before the first one starts, or later because the disk
            is full; then the others, which it would stop too, are not tried.
        RunsFailedError
            If runs failed; raised after all others are finished. A failed run's folder
            (``<hash>.partial``) holds ``traceback.txt``.
        """
        missing = self.missing(wanted)
        for settings in missing:
            settings.check(self.dataset)
        if missing:
            check_writable(self.results_dir)
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
        """Compute runs one after another in this process; why runs failed, in one line each."""
        return compute_in_turn(
            self,
            missing,
            watch=watch,
            on_start=lambda settings: bar.set_postfix_str(settings.kind),
            on_done=lambda _: bar.update(),
        )

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

    def compute(self, settings: Settings) -> str:
        """Compute one run whose starting runs exist, or wait for who computes it; why it failed in one line, or "".

        Raises
        ------
        StorageError
            If the disk is full or read-only.
        """
        return compute_in_turn(self, [settings]).get(settings, "")

    def work(self, settings: Settings, lease: Lease, watch: Watch | None = None) -> Work:
        """What the run's `Settings.compute` is given by a process that holds its lease."""
        folder = self.folder(settings).with_suffix(".partial")
        work = Work(folder=folder, dataset=self.dataset, store=self, device=self.device, check_lease=lease.check)
        if watch:
            work.watch = partial(watch, settings)
        return work

    def finish(self, settings: Settings, work: Work) -> None:
        """Write the record and give the folder its final name."""
        work.check_lease()
        if not (work.folder / RECORD).exists():
            write_record(work, self.identity(settings))
        work.check_lease()
        name_folder(work.folder, self.folder(settings))

    def open(self, settings: Settings) -> Run:
        """A finished run, after a look whether its record really holds these settings and this data."""
        run = Run(settings, self.folder(settings))
        if not self.has(settings):
            raise FileNotFoundError(f"{run.folder} is missing: run {settings.kind} has not been computed")
        wanted = json.loads(json.dumps(self.identity(settings)))
        if {name: run.record.get(name) for name in wanted} != wanted:
            raise ValueError(f"{run.folder / 'record.json'} holds other settings than asked for; delete that folder")
        return run
