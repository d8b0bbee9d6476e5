"""A graph of named tasks on a Dask cluster, whose package is imported only where it is needed."""

import asyncio
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from typing import Any

import torch

from fetal_utils.environment import StorageError

Client = Future = Any  # of `distributed`
CONNECT_S = 20.0  # s that a scheduler has to answer
POLL_S = 2.0  # s between looks for workers that joined or left
CHECKED: dict[str, str] = {}  # on a worker: what `check` said, for each call of `compute_graph`


def compute_graph(
    dependencies: Mapping[str, Sequence[str]],
    function: Callable[..., str],
    arguments: Mapping[str, tuple],
    *,
    scheduler: str,
    check: Callable[[], str],
    done: Callable[[str], object],
) -> dict[str, str]:
    """Call ``function(*arguments[name])`` on a worker for each name, after those that it depends on.

    ``function`` returns why a task failed, ``check`` why a worker, asked before its first task, can't take part; or an
    empty string. ``scheduler`` is ``local:N``, where each process sees one GPU, or the address of a Dask scheduler.
    ``done`` is called with each name that ended. Returned is why names failed, in one line each.

    Raises
    ------
    ConnectionError, StorageError
        If no scheduler answers, or it is lost; if a worker that is there at the start can't take part (one that joins
        later is sent away); if a disk is full or read-only, which would stop the other tasks too.
    """
    with connect(scheduler) as (client, prepare), client.as_current():
        check_workers(client, check)
        try:
            call = uuid.uuid4().hex[:8]  # another call may want the same names, say in another results folder
            return run_graph(client, dependencies, (call, prepare, check, function), arguments, done)
        except StorageError:
            raise
        except (OSError, CancelledError) as error:
            reason = f"scheduler={scheduler!r} was lost ({type(error).__name__}); ask for the same again to go on"
            raise ConnectionError(reason) from None


@contextmanager
def connect(scheduler: str) -> Iterator[tuple[Client, tuple]]:
    """A client, and for processes of this machine, which end with the block: threads of each, and all GPUs."""
    import dask
    from dask.system import CPU_COUNT  # knows of affinities and control groups
    from distributed import Client, LocalCluster

    if scheduler.startswith("local"):
        if not (match := re.fullmatch(r"local:([1-9]\d*)", scheduler)):
            raise ValueError(f"scheduler={scheduler!r}: expected local:N with N processes of this machine, as local:2")
        n_processes = int(match[1])
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", " ").split()
        gpus = given or [str(number) for number in range(torch.cuda.device_count())]
        options = {"threads_per_worker": 1, "memory_limit": None, "security": True, "silence_logs": logging.ERROR}
        with (
            # after 15 s, the default, a process that died and starts again would be given up
            dask.config.set({"distributed.deploy.lost-worker-timeout": "600s"}),
            LocalCluster(n_workers=n_processes, dashboard_address="127.0.0.1:0", **options) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client, (max(CPU_COUNT // n_processes, 1), gpus)
        return
    try:
        client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, MemoryError) as error:  # the last where something else answers at that port
        reason = f"scheduler={scheduler!r} does not answer ({error}); is that what 'dask scheduler' printed?"
        raise ConnectionError(reason) from None
    with client:
        yield client, ()


def check_workers(client: Client, check: Callable[[], str]) -> None:
    """Ask every worker, once the first is there, whether it can take part; ConnectionError names those that can't."""
    if not client.nthreads():
        start = f"dask worker {client.scheduler.address} --nthreads 1"
        print(f"no worker has joined yet, waiting; start some with '{start}'", flush=True)
        client.wait_for_workers(1)
    answers = client.run(asyncio.to_thread, check, on_error="return")  # in a thread: the worker's heartbeat goes on
    if unfit := [f"worker {worker}: {answer}" for worker, answer in answers.items() if answer != ""]:
        raise ConnectionError(f"{len(unfit)} of {len(answers)} workers can't compute: " + "; ".join(unfit))


def work(call: str, prepare: tuple, check: Callable[[], str], function: Callable[..., str], arguments: tuple) -> str:
    """On a worker: the function's answer; a worker that joined late and can't take part leaves."""
    import distributed

    worker = distributed.get_worker()
    if prepare:  # a process of this machine: its share of the cores and its GPU, before anything is computed
        n_threads, gpus = prepare
        torch.set_num_threads(n_threads)
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]
    if call not in CHECKED:
        CHECKED[call] = check()
    if CHECKED[call]:
        distributed.print(f"worker {worker.address} {CHECKED[call]}; it is sent away")  # here and where runs are wanted
        worker.loop.add_callback(worker.close_gracefully)
        raise distributed.Reschedule
    return function(*arguments)


def run_graph(
    client: Client, dependencies: Mapping[str, Sequence[str]], common: tuple, arguments: Mapping, done: Callable
) -> dict[str, str]:
    """Submit names in their order as they become ready, never more than the workers have threads; why names failed.

    Dask could hold the whole graph, but it hands a worker several tasks at once and blames all of them when that worker
    dies: one that kills workers would take others with it.
    """
    from distributed import wait

    sorter, ready, in_flight, failures = TopologicalSorter(dependencies), [], {}, {}
    sorter.prepare()
    while sorter.is_active():
        ready += sorter.get_ready()
        n_slots, ended = sum(client.nthreads().values()), {}
        while ready and len(in_flight) < n_slots:
            name = ready.pop(0)
            if failed := [needed for needed in dependencies[name] if needed in failures]:
                ended[name] = f"needs {failed[0]}, which failed"
            else:
                in_flight[name] = client.submit(work, *common, arguments[name], key=f"{name}-{common[0]}", pure=False)
        if not in_flight and not ended:
            time.sleep(POLL_S)  # there is no worker left
        elif not ended:
            with suppress(TimeoutError):  # workers may have joined
                wait([*in_flight.values()], timeout=POLL_S, return_when="FIRST_COMPLETED")
        ended |= {name: reason_of(future) for name, future in in_flight.items() if future.done()}
        for name, reason in ended.items():
            in_flight.pop(name, None)
            failures |= {name: reason} if reason else {}
            sorter.done(name)
            done(name)
    return failures


def reason_of(future: Future) -> str:
    """Why a task failed, in one line; empty if it did not."""
    from distributed import KilledWorker

    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise ConnectionError(f"{future.key} is {future.status}")
    error = future.exception()
    if isinstance(error, StorageError):
        raise error
    if isinstance(error, KilledWorker):
        times, last = error.allowed_failures + 1, error.last_worker.address
        return f"its worker died {times} times, last {last}; a lack of memory, or a crash: see the worker's log"
    return f"{type(error).__name__}: {error}".splitlines()[0]
