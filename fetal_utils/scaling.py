"""How long a study's runs would take on many workers: its graph of runs, played through by a simulation."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from matplotlib.axes import Axes

from fetal_utils.agenda import Agenda, critical_path
from fetal_utils.budgets import Budget
from fetal_utils.estimates import Asked, Speed, seconds_of_budget, with_starts
from fetal_utils.palette import INK, colours_for, finish
from fetal_utils.runs import Work
from fetal_utils.settings import Settings

SCALING_COLUMNS = ("n_workers", "order", "hours", "speedup", "efficiency")
ORDERS = ("notebook by notebook", "all runs at once")

Durations = dict[Settings, float]  # seconds of each run, a start before what starts from it


@dataclass(frozen=True, kw_only=True)
class Nap(Settings):
    """A run that takes its time and nothing else: the shape of a study without its work."""

    kind: ClassVar[str] = "nap"
    number: int
    seconds: float
    start: Nap | None = None

    def compute(self, work: Work) -> None:
        time.sleep(self.seconds)


def stages_of(asked: Asked) -> list[dict[Settings, Budget]]:
    """The runs that each notebook adds to those before it, with what each costs.

    Parameters
    ----------
    asked : mapping of str to (RunStore, sequence of Settings)
        The runs of each notebook, in the order in which notebooks are executed.
    """
    stages, seen = [], set()
    for store, wanted in asked.values():
        new = [run for run in dict.fromkeys(with_starts(wanted)) if run not in seen]
        seen.update(new)
        stages.append({run: run.budget(store.dataset) for run in new})
    return [stage for stage in stages if stage]


def networks_of(stages: Iterable[Mapping[Settings, Budget]]) -> list[tuple[str, int]]:
    """The backbones with their image sizes, each once: what `measure_speed` must time."""
    budgets = [budget for stage in stages for budget in stage.values() if budget.backbone]
    return sorted({(budget.backbone, budget.image_size) for budget in budgets})


def durations_of(stage: Mapping[Settings, Budget], speeds: Mapping[tuple[str, int], Speed]) -> Durations:
    """Seconds that runs would take where their networks have these speeds."""
    return {run: seconds_of_budget(budget, speeds) for run, budget in stage.items()}


def join(stages: Iterable[Durations]) -> Durations:
    """All runs of all stages."""
    return {run: seconds for stage in stages for run, seconds in stage.items()}


def simulate(durations: Durations, n_workers: int, *, dispatch_s: float = 0.0) -> float:
    """Seconds until workers have finished all runs, in the order of an `Agenda`.

    Parameters
    ----------
    durations : dict of Settings to float
        s.
    n_workers : int
        Each computes one run at a time; at least 1.
    dispatch_s : float
        What handing out one run costs the only process that hands them out, s.

    Raises
    ------
    ValueError
        If there is no worker.
    """
    if n_workers < 1:
        raise ValueError(f"n_workers={n_workers}: expected 1 or more")
    agenda = Agenda(list(durations))
    running: list[tuple[float, int, Settings]] = []
    now = handed_out = 0.0
    while agenda or running:
        while len(running) < n_workers and (run := agenda.next()):
            handed_out = max(now, handed_out) + dispatch_s
            heapq.heappush(running, (handed_out + durations[run], len(agenda), run))  # the length breaks ties
        now, _, run = heapq.heappop(running)
        agenda.finish(run)
    return now


def scaling_table(stages: Sequence[Durations], n_workers: Sequence[int], *, dispatch_s: float = 0.0) -> pd.DataFrame:
    """Hours of a study on several numbers of workers, in both `ORDERS`.

    Notebook by notebook, the runs of one begin when those of the one before are finished; at once, only a run's own
    starts hold it up. What the notebooks do beside their runs is not counted.

    Returns
    -------
    DataFrame
        Columns `SCALING_COLUMNS`; ``speedup`` over one worker and ``efficiency`` (speedup per worker).
    """
    orders = dict(zip(ORDERS, (stages, [join(stages)]), strict=True))
    rows = [
        {"n_workers": n, "order": order, "hours": sum(simulate(s, n, dispatch_s=dispatch_s) for s in parts) / 3600}
        for order, parts in orders.items()
        for n in n_workers
    ]
    table = pd.DataFrame(rows)
    alone = sum(join(stages).values()) / 3600
    table["speedup"] = alone / table["hours"]
    table["efficiency"] = table["speedup"] / table["n_workers"]
    return table[list(SCALING_COLUMNS)]


def shape_of(durations: Durations, *, total_s: float) -> dict[Nap, float]:
    """The same graph of runs as naps, which take ``total_s`` one after another; for a rehearsal in real time."""
    factor = total_s / sum(durations.values())
    naps: dict[Settings, Nap] = {}
    for number, (run, seconds) in enumerate(durations.items()):
        start = next((naps[start] for start in run.starts_from() if start in naps), None)
        naps[run] = Nap(number=number, seconds=seconds * factor, start=start)
    return {nap: nap.seconds for nap in naps.values()}


def plot_scaling(table: pd.DataFrame, durations: Durations, ax: Axes) -> Axes:
    """Hours against workers on logarithmic axes, with what no number of workers beats.

    Parameters
    ----------
    table : DataFrame
        As from `scaling_table`.
    durations : dict of Settings to float
        All runs, for the ideal (no run waits for another) and the longest chain.
    ax : Axes
        To draw on; returned.
    """
    for (order, rows), colour in zip(
        table.groupby("order", sort=False), colours_for(list(ORDERS)).values(), strict=True
    ):
        ax.plot(rows["n_workers"], rows["hours"], marker="o", color=colour, label=order)
    workers = sorted(table["n_workers"].unique())
    alone = sum(durations.values()) / 3600
    ax.plot(workers, [alone / n for n in workers], color=INK, linewidth=0.8, linestyle=":", label="ideal")
    longest = sum(durations[run] for run in critical_path(durations)) / 3600
    ax.axhline(longest, color=INK, linewidth=0.8, linestyle="--", label=f"longest chain of runs: {longest:.3g} h")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(workers, [str(n) for n in workers])
    ax.legend(frameon=False)
    return finish(ax, xlabel="workers", ylabel="hours of runs", grid="both")
