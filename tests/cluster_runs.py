"""Runs for tests of clusters: some end their worker, some only take time."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fetal_utils.epochs import run_epochs
from fetal_utils.files import StorageError
from fetal_utils.runs import Work
from fetal_utils.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Fatal(Settings):
    """Ends its worker, every time."""

    kind: ClassVar[str] = "fatal"
    number: int = 0

    def compute(self, work: Work) -> None:
        note(work, f"fatal {self.number}")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class FullDisk(Settings):
    """Finds no room for its files."""

    kind: ClassVar[str] = "full_disk"

    def compute(self, work: Work) -> None:
        raise StorageError(f"{work.folder}: no space left")


@dataclass(frozen=True, kw_only=True)
class Epochs(Settings):
    """Notes every epoch that it begins; ends its worker in one of them, but only the first time."""

    kind: ClassVar[str] = "epochs"
    n_epochs: int
    dies_in: int

    def compute(self, work: Work) -> None:
        def train_epoch(epoch: int) -> dict:
            first_time = f"epoch {epoch + 1}" not in noted(work.store.results_dir)
            note(work, f"epoch {epoch + 1}")
            if epoch + 1 == self.dies_in and first_time:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"loss": float(epoch)}

        run_epochs(work, train_epoch, n_epochs=self.n_epochs, parts={}, desc="epochs")


@dataclass(frozen=True, kw_only=True)
class Pause(Settings):
    """Notes that it began and takes its time, or until there is a file ``wake`` in the results folder."""

    kind: ClassVar[str] = "pause"
    number: int
    seconds: float

    def compute(self, work: Work) -> None:
        note(work, f"pause {self.number}")
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline and not (work.store.results_dir / "wake").exists():
            time.sleep(0.05)


class PickyDataset:
    """As a `ToyDataset`, but other data in a process that is told so by the variable that tells processes their GPU."""

    title = "toy"
    is_phantom = True
    val_fraction = 0.2
    split_seed = 0
    geometry = "pad"
    blank_text = False

    @property
    def key(self) -> str:
        return "other" if os.environ.get("CUDA_VISIBLE_DEVICES") == "other" else "toy"


def note(work: Work, line: str) -> None:
    """Add a line to the notes of a results folder."""
    with (work.store.results_dir / "notes.txt").open("a") as file:
        file.write(line + "\n")


def noted(results_dir: Path) -> list[str]:
    """The lines of the notes, in order."""
    path = Path(results_dir) / "notes.txt"
    return path.read_text().splitlines() if path.exists() else []
