"""Runs without images, for tests of the store: what they write is known by hand, or trained in milliseconds."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from fetal_utils import epochs
from fetal_utils.environment import replace_file, torch_generator, write_table
from fetal_utils.epochs import run_epochs
from fetal_utils.runs import RunStore, Settings, Work


@dataclass(frozen=True)
class ToyDataset:
    """As much of a data set as the store reads."""

    key: str = "toy"


@dataclass(frozen=True, kw_only=True)
class Sum(Settings):
    """Writes ``term`` plus the total of the run it starts from; a line in ``computed.txt`` tells that it ran.

    ``broken`` makes it fail; with ``waits_for`` it ends only when the results folder holds a file of that name.
    """

    kind: ClassVar[str] = "sum"
    weights: ClassVar[tuple[str, ...]] = ("value.txt",)
    term: int
    start: Sum | None = None
    scale: float = 1.0
    broken: bool = False
    waits_for: str = ""

    def check(self, dataset: ToyDataset) -> None:
        if self.term < 0:
            raise ValueError(f"term={self.term}: expected 0 or more")

    def compute(self, work: Work) -> None:
        with (work.store.results_dir / "computed.txt").open("a") as file:
            file.write(f"{self.term}\n")
        (work.folder / "half.txt").write_text("written before the end")
        while self.waits_for and not (work.store.results_dir / self.waits_for).exists():
            time.sleep(0.01)
        if self.broken:
            raise RuntimeError(f"term {self.term} is broken\nin a second line")
        work.facts["total"] = self.term + (value_of(work.store, self.start) if self.start else 0)
        (work.folder / "value.txt").write_text(str(work.facts["total"]))


@dataclass(frozen=True, kw_only=True)
class Drift(Settings):
    """A layer of ``width ** 2`` weights that learns at random, epoch by epoch, with an optimizer that has a memory."""

    kind: ClassVar[str] = "drift"
    weights: ClassVar[tuple[str, ...]] = ("weights.safetensors",)
    seed: int = 0
    n_epochs: int = 3
    width: int = 8

    def compute(self, work: Work) -> None:
        generator = torch_generator(self.seed, 0)
        layer = torch.nn.Linear(self.width, self.width, bias=False)
        torch.nn.init.zeros_(layer.weight)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)

        def train_epoch(epoch: int) -> dict:
            inputs, target = torch.randn(2, self.width, self.width, generator=generator)
            loss = (layer(inputs) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss.item()}

        parts = {"layer": layer, "optimizer": optimizer, "generator": generator}
        log = run_epochs(work, train_epoch, n_epochs=self.n_epochs, parts=parts, desc="drift")
        replace_file(work.folder / "weights.safetensors", lambda path: save_file(layer.state_dict(), path))
        write_table(log[["loss"]], work.folder / "predictions.csv")


def toy_store(results_dir: Path, *, key: str = "toy") -> RunStore:
    return RunStore(results_dir, ToyDataset(key=key), device="cpu", progress=False)


def value_of(store: RunStore, settings: Sum) -> int:
    return int((store.open(settings).folder / "value.txt").read_text())


def computed(store: RunStore) -> list[int]:
    """Terms of the runs that were really computed, in order."""
    path = store.results_dir / "computed.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def end_epochs(monkeypatch: pytest.MonkeyPatch, errors: dict[int, type[BaseException]]) -> list[int]:
    """The epochs that end from now on, from 1; the errors are raised after the checkpoint of theirs."""
    ended, save = [], epochs.save_checkpoint

    def save_and_raise(work: Work, parts: dict, rows: list[dict]) -> None:
        save(work, parts, rows)
        ended.append(len(rows))
        if len(rows) in errors:
            raise errors[len(rows)]

    monkeypatch.setattr(epochs, "save_checkpoint", save_and_raise)
    return ended


def forkserver() -> multiprocessing.context.BaseContext:
    """Starts processes that may be killed; its server has imported what takes seconds, and forks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no forkserver on this system")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fetal_utils.training", "torch._dynamo"])
    return context


def unfinished(store: RunStore, settings: Settings) -> Path:
    return store.folder(settings).with_suffix(".partial")


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
