"""Where runs are computed: here, in processes of this machine, or on the workers of a Dask scheduler."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from fetal_utils.agenda import Agenda
from fetal_utils.dataset import Dataset
from fetal_utils.files import StorageError
from fetal_utils.settings import Settings
from fetal_utils.worker_checks import Site, UnfitWorkerError, check_workers, find_obstacle, open_site
from fetal_utils.workforce import Workforce, asked_processes, choose_workforce, open_processes, this_machine

if TYPE_CHECKING:
    from distributed import Client, Future

    from fetal_utils.runs import RunStore, Watch

POLL_S = 2.0  # s between looks for workers that joined or left


class RunFailedError(RuntimeError):
    """On a worker: the run failed, for the reason given; its traceback lies in its folder."""


def compute_missing(
    store: RunStore, missing: Sequence[Settings], *, scheduler: str, bar: tqdm, watch: Watch | None = None
) -> dict[Settings, str]:
    """Compute runs where ``scheduler`` says; why runs failed, in one line each.

    Parameters
    ----------
    store : RunStore
    missing : sequence of Settings
        A start before what starts from it.
    scheduler : str
        Empty: here, in as many processes as `choose_workforce` says. ``local:N``: in at most N processes of this
        machine. Else the address of a Dask scheduler.
    bar : tqdm
        Advanced by one for each run that ended.
    watch : callable, optional
        Called after each epoch of runs of this very process; where ``scheduler`` is empty, it keeps them all here.
    """
    n_asked = asked_processes(scheduler)
    if n_asked is None:
        return compute_on_cluster(store, missing, scheduler=scheduler, bar=bar)
    workforce = Workforce()
    if n_asked or not watch:
        machine = this_machine(store.requested_device)
        workforce = choose_workforce(missing, store.dataset, machine=machine, n_asked=n_asked)
    if workforce.n_processes == 1:
        return store.compute_here(missing, bar, watch)
    with open_processes(workforce) as address:
        if store.progress:
            print(f"{workforce.n_processes} processes of this machine, {workforce.n_threads} threads each", flush=True)
        return compute_on_cluster(store, missing, scheduler=address, bar=bar)


def compute_on_cluster(
    store: RunStore, missing: Sequence[Settings], *, scheduler: str, bar: tqdm
) -> dict[Settings, str]:
    """Compute runs on a cluster; each starts as soon as those that it starts from are finished.

    Parameters
    ----------
    store : RunStore
        Its results folder and data folder must be found under the same paths by every worker.
    missing : sequence of Settings
        A start before what starts from it.
    scheduler : str
        Address, such as ``tcp://10.0.0.1:8786``.
    bar : tqdm
        Advanced by one for each run that ended, well or badly.

    Returns
    -------
    dict of Settings to str
        Why runs failed, in one line each; empty if none did.

    Raises
    ------
    ConnectionError
        If no scheduler answers at that address, or it is lost on the way.
    UnfitWorkerError
        If a worker does not share folders, data and code; before the first run starts.
    KeyboardInterrupt
        If interrupted: what no worker has begun is not started.
    """
    with connect(scheduler) as client, open_site(store) as site:
        if store.progress:
            print(f"{len(missing)} runs on {scheduler}, dashboard {client.dashboard_link}", flush=True)
        dispatch = Dispatch(client, store, missing, site, bar)
        try:
            dispatch.wait_for_first_worker()
            check_workers(client, site)
            return dispatch.run()
        except StorageError:
            raise
        except OSError as error:
            raise ConnectionError(f"scheduler={scheduler!r} was lost ({error}); {dispatch.left()}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; runs that workers have begun may go on; {dispatch.left()}") from None


def connect(scheduler: str) -> Client:
    """A client of the scheduler at that address, or a ConnectionError."""
    from distributed import Client  # half a second, for those who ask for a cluster

    try:
        return Client(scheduler, timeout="20s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"scheduler={scheduler!r} does not answer ({error}); start one with 'dask scheduler' and give "
            "the address that it prints, or leave scheduler empty to compute here"
        ) from None


class Dispatch:
    """Runs on their way to the workers, never more of them than these have threads.

    Dask could hold the whole graph itself, but it hands every worker several runs at once, and blames all of them when
    that worker dies: a run that kills its workers would take others with it.

    Parameters
    ----------
    client : Client
    store : RunStore
    missing : sequence of Settings
        A start before what starts from it.
    site : Site
    bar : tqdm
    """

    def __init__(self, client: Client, store: RunStore, missing: Sequence[Settings], site: Site, bar: tqdm) -> None:
        self.client, self.store, self.site, self.bar = client, store, site, bar
        self.n_runs, self.agenda = len(missing), Agenda(missing)
        self.in_flight: dict[Future, Settings] = {}
        self.ended: SimpleQueue[Future] = SimpleQueue()
        self.failures: dict[Settings, str] = {}
        self.kinds_left = Counter(settings.kind for settings in missing)
        self.n_slots, self.counted = 0, 0.0

    def run(self) -> dict[Settings, str]:
        """Compute them all; why runs failed, in one line each."""
        while self.agenda or self.in_flight:
            self.count_slots()
            while len(self.in_flight) < self.n_slots and (settings := self.agenda.next()):
                self.submit(settings)
            try:
                self.settle(self.ended.get(timeout=POLL_S))
            except Empty:
                continue
        return self.failures

    def wait_for_first_worker(self) -> None:
        """Return once a worker is there."""
        if not self.client.nthreads():
            address = self.client.scheduler.address
            print(
                f"no worker has joined yet, waiting; start some with 'dask worker {address} --nthreads 1'", flush=True
            )
            self.client.wait_for_workers(1)

    def count_slots(self) -> None:
        """Count the workers' threads, not more often than every few seconds."""
        if self.n_slots and time.monotonic() < self.counted + POLL_S:
            return
        n_slots = sum(self.client.nthreads().values())
        if self.n_slots and not n_slots:
            print("no worker is left; the runs wait for new ones", flush=True)
        self.n_slots, self.counted = n_slots, time.monotonic()

    def submit(self, settings: Settings) -> None:
        """Hand a run whose starts are finished to the cluster."""
        name = self.store.name(settings)
        device = self.store.requested_device  # each worker picks its own
        future = self.client.submit(compute_run, self.site, device, settings, key=name, pure=False)
        self.in_flight[future] = settings
        future.add_done_callback(self.ended.put)

    def settle(self, future: Future) -> None:
        """Note how a run ended."""
        settings = self.in_flight.pop(future)
        if future.cancelled() or future.status == "lost":
            raise ConnectionError(f"it no longer knows {self.store.name(settings)}")
        error = future.exception() if future.status == "error" else None
        if isinstance(error, UnfitWorkerError):
            self.dismiss(*error.args)
            self.agenda.put_back(settings)
        elif isinstance(error, StorageError):  # the others would fail in the same way
            raise error
        elif error:
            self.fail(settings, reason_of(error))
        else:
            self.agenda.finish(settings)
            self.tick(settings)

    def dismiss(self, address: str, reason: str) -> None:
        """Do without a worker that joined later and can't compute."""
        print(f"worker {address} {reason}; it is sent away", flush=True)
        self.client.retire_workers([address], close_workers=True)
        if not self.client.nthreads():
            raise UnfitWorkerError(address, f"{reason}; it was the last worker")
        self.n_slots = 0

    def fail(self, settings: Settings, reason: str) -> None:
        """A run failed, and with it all that start from it."""
        self.failures[settings] = reason
        self.tick(settings)
        for follower in self.agenda.fail(settings):
            self.failures[follower] = self.store.failed_start(follower, self.failures)
            self.tick(follower)

    def tick(self, settings: Settings) -> None:
        """Show that a run ended, and what is left."""
        self.kinds_left[settings.kind] -= 1
        left = ", ".join(f"{n} {kind}" for kind, n in self.kinds_left.items() if n)
        self.bar.set_postfix_str(f"left: {left}" if left else "", refresh=False)
        self.bar.update()

    def left(self) -> str:
        """What is finished and how to go on."""
        n_ended = self.n_runs - self.kinds_left.total()
        return f"{n_ended} of {self.n_runs} runs ended. Ask for the same again to go on"


def reason_of(error: BaseException) -> str:
    """Why a run failed, in one line."""
    from distributed import KilledWorker

    if isinstance(error, RunFailedError):
        return str(error)
    if isinstance(error, KilledWorker):
        return (
            f"its worker died {error.allowed_failures + 1} times, last {error.last_worker.address}; a lack of memory, "
            "or a crash: see the worker's log"
        )
    return f"{type(error).__name__}: {error}".splitlines()[0]


def compute_run(site: Site, device: str, settings: Settings) -> None:
    """On a worker: compute one run whose starts are finished."""
    from distributed import get_worker

    if obstacle := find_obstacle(site):  # it may have joined after the others were asked
        raise UnfitWorkerError(get_worker().address, obstacle)
    store = open_store(site.results_dir, site.dataset, site.data_key, device)
    if reason := store.compute(settings):
        raise RunFailedError(reason)


@lru_cache(maxsize=2)
def open_store(results_dir: Path, dataset: Dataset, data_key: str, device: str) -> RunStore:
    """A worker's own store, so that table and images are opened once, as long as ``data_key`` stays the same."""
    from fetal_utils.runs import RunStore  # which imports this module

    return RunStore(results_dir, dataset, device=device, progress=False)
