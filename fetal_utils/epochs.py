"""Training epoch by epoch: logged, checkpointed, and continued where it was interrupted."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Protocol

import pandas as pd
import torch
from tqdm.auto import tqdm

from fetal_utils.environment import progress_bar
from fetal_utils.files import replace_file
from fetal_utils.ranks import current_ranks
from fetal_utils.runs import Work


class Stateful(Protocol):
    """Whatever a checkpoint must hold: a module, an optimiser, a schedule, `Best`."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


class GeneratorState:
    """A random generator as a part of a checkpoint."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["state"])


class Best:
    """The weights of the epoch with the highest score so far; the earliest of equals.

    Parameters
    ----------
    module : Module
        Whose weights are kept, on the CPU.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.score, self.epoch, self.weights = -math.inf, -1, {}

    def update(self, score: float, epoch: int) -> None:
        """Keep the module's present weights if the score is higher than any before."""
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.weights = {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def restore(self) -> None:
        """Give the module back the weights of its best epoch."""
        if self.weights:
            self.module.load_state_dict(self.weights)

    def state_dict(self) -> dict:
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.score, self.epoch, self.weights = state["score"], state["epoch"], state["weights"]


def run_epochs(
    work: Work,
    train_epoch: Callable[[int], dict],
    *,
    n_epochs: int,
    parts: Mapping[str, Stateful],
    desc: str,
) -> pd.DataFrame:
    """Call ``train_epoch`` for each epoch, with a log row and a checkpoint after each.

    A checkpoint in ``work.folder`` is taken up: the epochs it holds are not trained again, and
    as it restores every part, random generators included, the rest comes out as it would have.

    Parameters
    ----------
    work : Work
        Its folder gets ``log.csv`` and ``checkpoint.pt``, each written whole or not at all.
    train_epoch : callable
        Takes the epoch's number from 0 and returns its log row.
    n_epochs : int
    parts : mapping of str to Stateful
        All that changes while training.
    desc : str
        Label of the progress bar.

    Returns
    -------
    DataFrame
        The log: ``epoch`` from 1, ``seconds`` since the start, and the columns of the rows.

    Raises
    ------
    FloatingPointError
        By ``train_epoch``, if the training diverged; the last checkpoint stays.
    KeyboardInterrupt
        If interrupted, with how to go on.
    """
    rows = load_checkpoint(work, parts)
    with progress_bar(
        total=n_epochs, initial=len(rows), desc=desc, unit="epoch", show=work.store.progress, leave=False
    ) as bar:
        try:
            for epoch in range(len(rows), n_epochs):
                row = train_epoch(epoch)
                row = {"epoch": epoch + 1, "seconds": round(work.elapsed_s, 3), **row}
                work.check_lease()
                save_checkpoint(work, parts, [*rows, row])
                rows.append(row)  # kept only now: an interrupt may come while the checkpoint is written
                work.watch(pd.DataFrame(rows))
                bar.set_postfix({name: f"{value:.3f}" for name, value in row.items() if "loss" in name})
                bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{desc} was interrupted; {len(rows)} of {n_epochs} epochs are kept. Run the same again to go on"
            ) from None
    return write_log(work, rows)


def load_checkpoint(work: Work, parts: Mapping[str, Stateful]) -> list[dict]:
    """Restore the parts from the run's checkpoint; the log rows so far, none without one or with a broken one."""
    path = work.folder / "checkpoint.pt"
    if not path.exists():
        return []
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, UnpicklingError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch's word for a file that ends too early
            raise
        tqdm.write(f"{path} is broken ({type(error).__name__}); beginning again")
        return []
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    work.earlier_s = state["elapsed_s"]
    return state["rows"]


def save_checkpoint(work: Work, parts: Mapping[str, Stateful], rows: list[dict]) -> None:
    """Write the parts and the log so far, whole or not at all; of several processes only the first one does."""
    if not current_ranks().is_first:
        return
    state = {
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "rows": rows,
        "elapsed_s": work.elapsed_s,
    }
    replace_file(work.folder / "checkpoint.pt", lambda path: torch.save(state, path))
    write_log(work, rows)


def write_log(work: Work, rows: list[dict]) -> pd.DataFrame:
    """Write the rows as the run's ``log.csv``; returns them as a table."""
    log = pd.DataFrame(rows)
    if current_ranks().is_first:
        replace_file(work.folder / "log.csv", lambda path: log.to_csv(path, index=False))
    return log
