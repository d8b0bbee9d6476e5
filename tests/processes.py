"""Several processes that meet as those of torchrun do, for tests of what they compute together."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, what it printed, and what it returned, if it did."""

    status: int
    output: str
    errors: str
    result: object = None


def together(work: Callable, *arguments: object, n_processes: int, folder: Path, timeout: float = 300) -> list[Ended]:
    """Call ``work(*arguments)`` in several processes, each with the environment that torchrun gives it.

    As torchrun does, this process keeps the board where they meet; unlike it, one that ends takes no other along.
    ``work`` is a function of a test module; what it returns is what `torch.save` can write.
    """
    folder.mkdir(parents=True)
    board = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "WORLD_SIZE": n_processes,
        "LOCAL_WORLD_SIZE": n_processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": board.port,
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RESTART_COUNT": 0,
    }
    context = multiprocessing.get_context("forkserver")  # which imports torch once, and forks before any thread runs
    context.set_forkserver_preload(["fetal_utils.simclr", "pytest"])
    started = []
    for rank in range(n_processes):
        of_rank = environment | {"RANK": rank, "LOCAL_RANK": rank}
        process = context.Process(target=enter, args=(of_rank, folder / str(rank), work, arguments))
        process.start()
        started.append(process)
    try:
        return [ending(process, folder / str(rank), timeout) for rank, process in enumerate(started)]
    finally:
        for process in started:
            process.kill()


def enter(environment: dict, files: Path, work: Callable, arguments: tuple) -> None:
    """What each process does."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    for stream, ending in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        with files.with_suffix(ending).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    torch.save(work(*arguments), files.with_suffix(".pt"))


def ending(process: multiprocessing.Process, files: Path, timeout: float) -> Ended:
    """Wait for a process."""
    process.join(timeout)
    result = files.with_suffix(".pt")
    return Ended(
        process.exitcode,
        files.with_suffix(".out").read_text(),
        files.with_suffix(".err").read_text(),
        torch.load(result, weights_only=False) if result.exists() else None,
    )
