"""Runs on the workers of a Dask scheduler, which share the results folder and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fetal_utils.dataset import Dataset

if TYPE_CHECKING:
    from fetal_utils.runs import RunStore, Settings


def compute_on_cluster(
    store: RunStore, missing: Sequence[Settings], *, scheduler: str, on_done: Callable[[Settings], object]
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
    on_done : callable
        Called with the settings of each run that ended, well or badly.

    Returns
    -------
    dict of Settings to str
        Why runs failed, in one line each; empty if none did.

    Raises
    ------
    ConnectionError
        If no scheduler answers at that address.
    """
    from distributed import Client, as_completed  # half a second, for those who ask for a cluster

    try:
        client = Client(scheduler, timeout="20s")
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"scheduler={scheduler!r} does not answer ({error}); start one with 'dask scheduler' and give "
            "the address that it prints, or leave scheduler empty to compute here"
        ) from None
    failures: dict[Settings, str] = {}
    with client:
        print(f"{len(missing)} runs on {scheduler}, dashboard {client.dashboard_link}", flush=True)
        futures = {}
        where = (store.results_dir.resolve(), store.dataset, store.requested_device)
        for settings in missing:
            starts = [futures[start] for start in settings.starts_from() if start in futures]
            name = store.name(settings)
            futures[settings] = client.submit(compute_run, *where, settings, starts, key=name, pure=False)
        settings_of = {future.key: settings for settings, future in futures.items()}
        for future in as_completed(futures.values()):
            settings = settings_of[future.key]
            error = future.exception()
            if reason := f"{type(error).__name__}: {error}" if error else future.result():
                failures[settings] = reason
            on_done(settings)
    return failures


def compute_run(results_dir: Path, dataset: Dataset, device: str, settings: Settings, starts: list[str]) -> str:
    """Compute one run on a worker; why it failed in one line, or an empty string.

    ``starts`` are the same of the runs that it starts from: with a failed one it is not tried.
    """
    if any(starts):
        return "starts from a run that failed"
    return open_store(results_dir, dataset, device).compute(settings)


@lru_cache(maxsize=2)
def open_store(results_dir: Path, dataset: Dataset, device: str) -> RunStore:
    """A worker's own store, so that table and images are opened once."""
    from fetal_utils.runs import RunStore  # which imports this module

    return RunStore(results_dir, dataset, device=device, progress=False)
