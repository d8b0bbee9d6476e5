"""Tasks for tests of clusters; each notes in a file of a folder that it began."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fetal_utils.environment import StorageError
from fetal_utils.epochs import run_epochs
from fetal_utils.runs import Settings, Work


def note(folder: Path, line: str) -> None:
    with (Path(folder) / "notes.txt").open("a") as file:
        file.write(line + "\n")


def noted(folder: Path) -> list[str]:
    """The lines of the notes, in order."""
    path = Path(folder) / "notes.txt"
    return path.read_text().splitlines() if path.exists() else []


def task(folder: Path, name: str, action: str = "") -> str:
    """Succeed, or do as ``action`` says."""
    first_time = name not in noted(folder)
    note(folder, name)
    if action == "die" or (action == "die once" and first_time):
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "full disk":
        raise StorageError(f"{folder}: no space left")
    if action == "raise":
        raise RuntimeError("on purpose\nsecond line")
    if action.startswith("wait"):
        deadline = time.monotonic() + float(action.split()[1])
        while time.monotonic() < deadline and not (Path(folder) / "wake").exists():
            time.sleep(0.02)
    if action == "environment":
        note(folder, f"{name} sees GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    return "its own reason" if action == "fail" else ""


def fit() -> str:
    return ""


def unfit_where_told() -> str:
    """Not everywhere: processes are told by a variable."""
    return "reads other data" if os.environ.get("TOY_DATA") == "other" else ""


def set_variable(name: str, value: str) -> None:
    os.environ[name] = value


@dataclass(frozen=True, kw_only=True)
class Epochs(Settings):
    """A run that notes every epoch that it begins and ends its process in one of them, but only the first time."""

    kind: ClassVar[str] = "epochs"
    n_epochs: int
    dies_in: int

    def compute(self, work: Work) -> None:
        def train_epoch(epoch: int) -> dict:
            task(work.store.results_dir, f"epoch {epoch + 1}", "die once" if epoch + 1 == self.dies_in else "")
            return {"loss": float(epoch)}

        run_epochs(work, train_epoch, n_epochs=self.n_epochs, parts={}, desc="epochs")
