"""The processes of one pretraining: started together by torchrun, one of them the first, and ending together."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import ClassVar

import torch
import torch.distributed as dist

from fetal_utils.environment import pick_device

STEP_TIMEOUT = timedelta(minutes=30)  # of what all do in every step; the first may look at held-out patients meanwhile
WAIT_TIMEOUT = timedelta(days=7)  # while the first decodes images, or waits for the lock of the run
NO_ANSWER = "another process was killed or does not answer; whole epochs are kept. Run the same again to go on"


class LostProcessError(RuntimeError):
    """Another process of this training failed, was killed, or no longer answers."""


class Ranks:
    """This process among those that torchrun started; a process that it did not start is alone.

    The first one holds the run's lock, writes all files and shows the progress; the others only compute, in the same
    data and results folders.

    Parameters
    ----------
    rank, world_size : int
        Number of this process from 0, and how many there are.
    board : Store, optional
        Where all of them can leave a note, even one that is about to end.
    """

    joined: ClassVar[Ranks]  # see `current_ranks`

    def __init__(self, rank: int = 0, world_size: int = 1, board: dist.Store | None = None) -> None:
        self.rank, self.world_size, self.board = rank, world_size, board
        self.waiting: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def on_this_machine(self) -> int:
        """How many of the processes run on this machine."""
        return int(os.environ["LOCAL_WORLD_SIZE"]) if self.world_size > 1 else 1

    def join(self, device: str) -> None:
        """Meet the others, each on a device of its own; alone, nothing happens.

        Parameters
        ----------
        device : str
            As for `pick_device`. On a machine with GPUs each process takes the one of its local rank.

        Raises
        ------
        ValueError
            If the processes can't share the device, or there are fewer GPUs than processes.
        LostProcessError
            If the others do not come.
        """
        if self.world_size == 1:
            return
        backend = claim_device(device)
        with self.listening():
            dist.init_process_group(
                backend, store=self.board, rank=self.rank, world_size=self.world_size, timeout=STEP_TIMEOUT
            )
            self.waiting = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
        Ranks.joined = self

    def leave(self) -> None:
        """End what `join` began."""
        Ranks.joined = ALONE
        if self.waiting:
            self.waiting = None
            dist.destroy_process_group()

    @contextmanager
    def first_one_first(self) -> Iterator[None]:
        """A block that the others enter when the first process has left it."""
        if not self.is_first:
            self.hear()
        yield
        if self.is_first:
            self.say("done")

    def say(self, word: str) -> None:
        """Tell the others, who `hear` it; for the first process. Alone, nobody is told."""
        if self.world_size > 1:
            self.hear(word)

    def hear(self, word: str = "") -> str:
        """What the first process says next."""
        said = [word]
        with self.listening():
            dist.broadcast_object_list(said, src=0, group=self.waiting)
        return said[0]

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            with self.listening():
                dist.barrier(group=self.waiting)

    def report(self, message: str) -> None:
        """Print an error unless another process has: the first that fails says why, the others only follow from it.

        It also leaves the message, with the traceback of the error being handled, for those who lose this process.
        """
        if self.board is not None:
            try:
                if self.board.add("reports", 1) > 1:
                    return
                self.board.set("reason", f"process {self.rank}: {message}\n{traceback.format_exc()}")
            except RuntimeError:  # the board went down with the process that kept it
                pass
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turn a broken connection into a `LostProcessError` that says why, as far as the lost process did."""
        try:
            yield
        except torch.OutOfMemoryError:  # this process's own
            raise
        except RuntimeError as error:
            raise LostProcessError(self.reason() or NO_ANSWER) from error

    def reason(self) -> str:
        """Why another process failed, by its own report; empty if it made none."""
        try:
            return self.board.get("reason").decode() if self.board.check(["reason"]) else ""
        except RuntimeError:
            return ""


ALONE = Ranks()
Ranks.joined = ALONE


def meet() -> Ranks:
    """This process among those that torchrun started with it."""
    if not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    board, rank, world_size = next(dist.rendezvous("env://"))
    # torchrun keeps one board for all its restarts, and on it the addresses and reports of processes that are gone
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(rank, world_size, dist.PrefixStore(f"attempt {attempt}", board))


def current_ranks() -> Ranks:
    """The processes that this one has joined; alone unless a command did."""
    return Ranks.joined


def claim_device(device: str) -> str:
    """Make this process's GPU the current one, if it is to compute on GPUs; the backend of torch.distributed."""
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    # `pick_device` tries "cuda" out on the first GPU, where every process would then keep some memory
    kind = "cuda" if device == "cuda" and torch.cuda.is_available() else pick_device(device).type
    if kind == "cpu":
        return "gloo"
    if kind != "cuda" or device not in ("auto", "cuda"):
        raise ValueError(f"device={device!r} can't be shared by {here} processes; give auto, cuda or cpu")
    if here > (n_gpus := torch.cuda.device_count()):
        raise ValueError(f"{here} processes on a machine with {n_gpus} GPUs; start torchrun --nproc-per-node {n_gpus}")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return "cpu:gloo,cuda:nccl"


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
