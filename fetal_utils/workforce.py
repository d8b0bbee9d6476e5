"""How many processes of this machine compute runs, with how many threads or which GPU each."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import dask
import psutil
import torch
from dask.system import CPU_COUNT  # knows of affinities and control groups, as does MEMORY_LIMIT

from fetal_utils.agenda import width
from fetal_utils.budgets import Budget
from fetal_utils.dataset import Dataset
from fetal_utils.environment import pick_device
from fetal_utils.settings import Settings

THREADS_PER_PROCESS = 4  # below twice as many cores, one process with all of them does: see `choose_workforce`
PROCESS_GIB = 8  # the largest pretraining of the laptop preset takes 6.7
# Pixels that make a process worth its start of some seconds, those of training counted three times, and what a run
# without a network, such as a linear probe, counts for.
WORTH_PIXELS = 20_000_000
QUICK_PIXELS = 400_000


@dataclass(frozen=True)
class Workforce:
    """Processes of this machine.

    Attributes
    ----------
    n_processes : int
        1 is this very process.
    n_threads : int
        Of each process, for its arithmetic.
    gpus : tuple of str
        What each process is given as ``CUDA_VISIBLE_DEVICES``; empty without GPUs.
    """

    n_processes: int = 1
    n_threads: int = 1
    gpus: tuple[str, ...] = ()

    def environments(self) -> list[dict[str, str]]:
        """Environment variables of each process, beside the number of threads."""
        return [{"CUDA_VISIBLE_DEVICES": self.gpus[i]} if self.gpus else {} for i in range(self.n_processes)]


@dataclass(frozen=True)
class Machine:
    """What there is to compute with.

    Attributes
    ----------
    n_cores : int
        That this process may use.
    free_gib : float
        Memory that is free, GiB.
    gpus : tuple of str
        Names by which ``CUDA_VISIBLE_DEVICES`` knows the GPUs that this process sees.
    """

    n_cores: int
    free_gib: float
    gpus: tuple[str, ...] = ()


def this_machine(device: str = "auto") -> Machine:
    """What this process may use; a batch system or container may give it less than the machine has.

    Parameters
    ----------
    device : str
        As for `pick_device`; GPUs count if it leaves open which.
    """
    from distributed.system import MEMORY_LIMIT

    free = min(psutil.virtual_memory().available, MEMORY_LIMIT)
    open_choice = pick_device(device).type == "cuda" and ":" not in device
    return Machine(CPU_COUNT, free / 2**30, visible_gpus(torch.cuda.device_count()) if open_choice else ())


def visible_gpus(n_gpus: int) -> tuple[str, ...]:
    """The names of this process's GPUs: those it was given, else 0, 1, ..."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(given[:n_gpus]) if given else tuple(map(str, range(n_gpus)))


def choose_workforce(missing: Sequence[Settings], dataset: Dataset, *, machine: Machine, n_asked: int = 0) -> Workforce:
    """How many processes compute these runs here.

    A process for each GPU; without GPUs, one for every `THREADS_PER_PROCESS` cores that has `PROCESS_GIB` of free
    memory; and never more than `worthwhile`.

    Parameters
    ----------
    missing : sequence of Settings
        A start before what starts from it.
    dataset : Dataset
    machine : Machine
    n_asked : int
        Processes that are asked for, whatever the cores and the memory, if as many runs can go at the same time; 0
        leaves the choice to the rule.

    Notes
    -----
    On two cores, 46 runs of the demo took two processes of one thread 203 s, and one of two threads 194 s, each process
    with 2 to 6 GiB. That more cores than four are of little use to one such run is an assumption;
    `notebooks/90_performance` times both ways on any machine.
    """
    n_most = (
        n_asked or len(machine.gpus) or min(machine.n_cores // THREADS_PER_PROCESS, machine.free_gib // PROCESS_GIB)
    )
    n = int(n_most)
    if n > 1:
        n = min(n, width(missing)) if n_asked else worthwhile(missing, dataset, n_most=n)
    n = max(n, 1)
    gpus = tuple(machine.gpus[i % len(machine.gpus)] for i in range(n)) if machine.gpus else ()
    return Workforce(n, max(machine.n_cores // n, 1), gpus)


def worthwhile(missing: Sequence[Settings], dataset: Dataset, *, n_most: int) -> int:
    """How many of ``n_most`` processes these runs keep busy for longer than they need to start; 0 if not even one."""
    n_most = min(n_most, width(missing))
    pixels = 0
    for settings in missing:  # not all of thousands, if a few show that there is work enough
        pixels += pixels_of(settings.budget(dataset))
        if pixels >= n_most * WORTH_PIXELS:
            return n_most
    return pixels // WORTH_PIXELS


def pixels_of(budget: Budget) -> int:
    """What a run costs, roughly."""
    if not budget.backbone:
        return QUICK_PIXELS
    return (3 * budget.views_seen + budget.images_encoded) * budget.image_size**2


def asked_processes(scheduler: str) -> int | None:
    """How many processes of this machine a notebook's ``scheduler`` asks for.

    Returns
    -------
    int or None
        N of ``"local:N"``, 0 for an empty text, which leaves it to `choose_workforce`; None for an address.

    Raises
    ------
    ValueError
        If N is no number of 1 or more.
    """
    if not scheduler.startswith("local"):
        return None if scheduler else 0
    if not (match := re.fullmatch(r"local:([1-9]\d*)", scheduler)):
        raise ValueError(f"scheduler={scheduler!r}: expected local:N with N processes of this machine, such as local:2")
    return int(match[1])


@contextmanager
def open_processes(workforce: Workforce) -> Iterator[str]:
    """Start the processes as workers of a Dask scheduler of their own; its address.

    A process that dies is started again. On exit all are ended, whatever they do: a script that uses this must have
    its work under ``if __name__ == "__main__":``, as its processes import it.
    """
    from distributed import Nanny, Scheduler, SpecCluster

    quiet = {"silence_logs": logging.ERROR}
    common = {"nthreads": 1, "memory_limit": 0} | quiet  # a run's memory is not Dask's to manage
    workers = {
        i: {"cls": Nanny, "options": common | {"env": environment}}
        for i, environment in enumerate(workforce.environments())
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(workforce.n_threads))
    behaviour = {
        "distributed.nanny.pre-spawn-environ": threads,
        "distributed.deploy.lost-worker-timeout": "600s",  # after 15 s a process that starts again would be given up
    }
    with (
        own_environment(threads),
        dask.config.set(behaviour),
        SpecCluster(workers=workers, scheduler=scheduler, **quiet) as cluster,
    ):
        yield cluster.scheduler_address


@contextmanager
def own_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process's environment, as long as the block lasts.

    What a process inherits goes before what Dask is told of it, and Dask leaves what it is told behind: the processes
    of a second workforce would have the threads of the first.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
