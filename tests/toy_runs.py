"""Runs without images or networks, for tests of the store: what they write is known by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fetal_utils.runs import RunStore, Settings, Work


@dataclass(frozen=True)
class ToyDataset:
    """As much of a data set as the store reads."""

    key: str = "toy"
    title: str = "toy"
    is_phantom: bool = True
    development_fraction: float = 0.2
    split_seed: int = 0
    geometry: str = "crop"
    blank_text: bool = False


@dataclass(frozen=True, kw_only=True)
class Sum(Settings):
    """Writes ``term`` plus the sum of the run it starts from; a line in ``computed.txt`` tells that it ran."""

    kind: ClassVar[str] = "sum"
    weights: ClassVar[tuple[str, ...]] = ("value.txt",)
    term: int
    start: Sum | None = None
    scale: float = 1.0
    broken: bool = False

    def check(self, dataset: ToyDataset) -> None:
        if self.term < 0:
            raise ValueError(f"term={self.term}: expected 0 or more")

    def compute(self, work: Work) -> None:
        with (work.store.results_dir / "computed.txt").open("a") as file:
            file.write(f"{self.term}\n")
        (work.folder / "half.txt").write_text("written before the end")
        if self.broken:
            raise RuntimeError(f"term {self.term} is broken")
        total = self.term + (value_of(work.store, self.start) if self.start else 0)
        (work.folder / "value.txt").write_text(str(total))
        work.facts["total"] = total


def toy_store(results_dir: Path, *, key: str = "toy") -> RunStore:
    return RunStore(results_dir, ToyDataset(key=key), device="cpu", progress=False)


def value_of(store: RunStore, settings: Sum) -> int:
    return int((store.open(settings).folder / "value.txt").read_text())


def computed(store: RunStore) -> list[int]:
    """Terms of the runs that were really computed, in order."""
    path = store.results_dir / "computed.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
