"""One process's attempts at runs, some of which other processes may be computing."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from fetal_utils.files import StorageError, replace_file, storage_errors
from fetal_utils.leases import Lease, LeaseLostError, read_owner
from fetal_utils.memory import return_freed_memory
from fetal_utils.records import RECORD, SETTINGS, TRACEBACK, begin_folder, read_json
from fetal_utils.settings import Settings

if TYPE_CHECKING:  # at run time `runs` reads this module, not the other way round
    from fetal_utils.runs import RunStore, Work

POLL_S = 2.0  # between looks at a run that another process computes


def compute_in_turn(
    store: RunStore,
    missing: Sequence[Settings],
    *,
    watch: Callable[[Settings, pd.DataFrame], object] | None = None,
    on_start: Callable[[Settings], object] = lambda settings: None,
    on_done: Callable[[Settings], object] = lambda settings: None,
) -> dict[Settings, str]:
    """Compute runs one after another in this process.

    A run that another process computes is put off, with what starts from it, until nothing else is left to do; then
    it is waited for, and taken up if that process dies.

    Parameters
    ----------
    store : RunStore
    missing : sequence of Settings
        A start before what starts from it.
    watch : callable, optional
        See `RunStore.get`.
    on_start, on_done : callable
        Called with the settings of each run that is looked at, and of each that ended, well or badly.

    Returns
    -------
    dict of Settings to str
        Why runs failed, in one line each.

    Raises
    ------
    StorageError
        If the disk is full or read-only; the runs after it are not tried.
    """
    failures: dict[Settings, str] = {}
    leases: dict[Settings, Lease] = {}  # kept while runs are put off: only who watches a lease sees it run out
    told: set[str] = set()
    pending = list(missing)

    def lease_of(settings: Settings) -> Lease:
        if settings not in leases:
            leases[settings] = Lease(store.folder(settings).with_suffix(".lease"))
        return leases[settings]

    while pending:
        put_off: dict[Settings, None] = {}
        for settings in pending:
            on_start(settings)
            reason = store.failed_start(settings, failures)
            if not reason:
                waits = any(start in put_off for start in settings.starts_from())
                reason = None if waits else attempt(store, settings, lease_of(settings), watch)
            if reason is None:
                put_off[settings] = None
                continue
            leases.pop(settings, None)
            if reason:
                failures[settings] = reason
            on_done(settings)
        if len(put_off) == len(pending):
            wait_a_moment(store, pending[0], told)
        pending = list(put_off)
    return failures


def attempt(store: RunStore, settings: Settings, lease: Lease, watch: Callable | None = None) -> str | None:
    """Compute a run unless it is there; why it failed in one line, "" if it did not, None if another process has it."""
    folder = store.folder(settings)
    if store.has(settings):
        return ""
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not lease.acquire():
            return None
    try:
        if store.has(settings):  # finished between the look and the lease
            return ""
        return compute_alone(store, settings, store.work(settings, lease, watch), lease)
    finally:
        lease.release()
        return_freed_memory()  # the next run's arrays have other sizes


def compute_alone(store: RunStore, settings: Settings, work: Work, lease: Lease) -> str | None:
    """Compute a run whose lease is held; None if it was lost meanwhile."""
    try:
        with storage_errors(work.folder):
            if not (work.folder / RECORD).exists():  # else a killed process had done all but the renaming
                begin_folder(work, store.identity(settings))
                settings.compute(work)
            store.finish(settings, work)
    except StorageError:
        raise
    except Exception as error:
        if not lease.held():  # then whatever went wrong may be the doing of who took the run over
            lost = error if isinstance(error, LeaseLostError) else f"lease {lease.path.name} was lost"
            tqdm.write(f"run {store.name(settings)}: {lost}")
            return None
        text = traceback.format_exc()
        replace_file(work.folder / TRACEBACK, lambda path: path.write_text(text, encoding="utf-8"))
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def wait_a_moment(store: RunStore, settings: Settings, told: set[str]) -> None:
    """Say once who computes a run, and let some time pass."""
    folder = store.folder(settings)
    if owner := read_owner(folder.with_suffix(".lease")):
        line = f"run {store.name(settings)} is being computed by {owner}{since(folder.with_suffix('.partial'))}"
        if line not in told:
            tqdm.write(f"{line}; waiting for it")
            told.add(line)
    time.sleep(POLL_S)


def since(unfinished: Path) -> str:
    """Since when an unfinished run has been computed, as far as its folder says."""
    try:
        return f", since {read_json(unfinished / SETTINGS)['started']}"
    except (OSError, ValueError, KeyError):  # it begins or ends just now
        return ""
