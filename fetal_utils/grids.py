"""A grid of runs as tables: who did how well, against whom, and at what cost."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import pandas as pd

from fetal_utils.comparison import add_verdicts, compare_strategies
from fetal_utils.label_equivalence import label_equivalence
from fetal_utils.runs import Run, RunStore
from fetal_utils.settings import Settings

Predictions = dict[Hashable, pd.DataFrame]  # (draw, seed) -> predictions table


def pair_draws(
    draws: Sequence[int], seeds: Sequence[int], *, label_fraction: float, crossed: bool = True
) -> list[tuple[int, int]]:
    """The repeats of a run, as pairs of draw and seed.

    Parameters
    ----------
    draws, seeds : sequence of int
    label_fraction : float
        All labels, 1, can be drawn in one way only: the first draw then stands for all.
    crossed : bool
        Every draw with every seed; else each seed with one draw, in turn, which is cheaper and spreads over draws and
        seeds at once, without telling them apart.
    """
    draws = draws if label_fraction < 1 else draws[:1]
    if crossed:
        return list(itertools.product(draws, seeds))
    return list(zip(itertools.cycle(draws), seeds, strict=False))


def by_strategy(runs: Sequence[Run], *, protocol: str, label_fraction: float) -> dict[str, Predictions]:
    """Predictions of one protocol and label fraction: strategy -> (draw, seed) -> table."""
    found: dict[str, Predictions] = {}
    for run in runs:
        settings = run.settings
        if (settings.protocol, settings.label_fraction) == (protocol, label_fraction):
            found.setdefault(settings.strategy, {})[settings.draw, settings.seed] = run.predictions
    return found


def points(runs: Sequence[Run]) -> list[tuple[str, float]]:
    """The protocols and label fractions of the runs, sorted."""
    return sorted({(run.settings.protocol, run.settings.label_fraction) for run in runs})


def compare_grid(
    runs: Sequence[Run],
    classes: Sequence[str],
    *,
    n_resamples: int,
    metrics: Sequence[str] = ("f1",),
    baseline: str = "imagenet",
) -> pd.DataFrame:
    """Every strategy against the baseline, under each protocol and with each number of labels.

    Parameters
    ----------
    runs : sequence of Run
        Of one task.
    classes : sequence of str
    n_resamples : int
        Bootstrap resamples of the test patients.
    metrics : sequence of str
        Macro metrics to compare.
    baseline : str

    Returns
    -------
    DataFrame
        Columns of `add_verdicts` with ``task, protocol, label_fraction``. Holm's correction counts all rows of a
        metric as one family. Where the baseline was not run, or nothing else was, there is no row.

    Raises
    ------
    ValueError
        If there is no row at all.
    """
    rows = []
    for protocol, fraction in points(runs):
        tables = by_strategy(runs, protocol=protocol, label_fraction=fraction)
        if baseline in tables and len(tables) > 1:
            rng = np.random.default_rng(0)  # the same resamples of patients at every point
            table = compare_strategies(
                tables, classes, n_resamples=n_resamples, rng=rng, metrics=metrics, baseline=baseline
            )
            rows.append(table.assign(task=runs[0].settings.task, protocol=protocol, label_fraction=fraction))
    if not rows:
        raise ValueError(f"nothing to compare: run {baseline!r} and at least one other strategy at one fraction")
    return add_verdicts(pd.concat(rows, ignore_index=True), family=("metric",))


def equivalence_grid(
    runs: Sequence[Run], classes: Sequence[str], *, n_resamples: int, baseline: str = "imagenet"
) -> pd.DataFrame:
    """Label equivalence of every strategy under each protocol that the baseline was run with.

    Returns
    -------
    DataFrame
        Columns of `label_equivalence` with ``protocol`` and ``strategy``; no row where the baseline has fewer than
        two numbers of labels.
    """
    rows = []
    for protocol in sorted({protocol for protocol, _ in points(runs)}):
        curves = label_curves(runs, protocol=protocol)
        if len(curves.get(baseline, {})) < 2:
            continue
        for strategy in [name for name in curves if name != baseline]:
            table = label_equivalence(
                curves[strategy],
                curves[baseline],
                classes,
                n_resamples=n_resamples,
                rng=np.random.default_rng(0),
            )
            rows.append(table.assign(protocol=protocol, strategy=strategy))
    columns = ["protocol", "strategy", "n_labelled", "score", "n_equivalent", "low", "high", "reading"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def label_curves(runs: Sequence[Run], *, protocol: str) -> dict[str, dict[float, Predictions]]:
    """Predictions of one protocol: strategy -> labelled images (mean of the draws) -> (draw, seed) -> table."""
    curves: dict[str, dict[float, Predictions]] = {}
    for fraction in sorted({fraction for name, fraction in points(runs) if name == protocol}):
        counts = [
            run.record["facts"]["n_images"]
            for run in runs
            if (run.settings.protocol, run.settings.label_fraction) == (protocol, fraction)
        ]
        for strategy, tables in by_strategy(runs, protocol=protocol, label_fraction=fraction).items():
            curves.setdefault(strategy, {})[round(float(np.mean(counts)), 1)] = tables
    return curves


def count_costs(runs: Sequence[Run], store: RunStore) -> pd.DataFrame:
    """What each strategy cost: its supervised runs, and once each what they start from.

    Returns
    -------
    DataFrame
        A row per protocol and strategy: ``n_runs, n_pretrainings, steps_per_run`` (optimiser steps on the way to one
        classifier, pretraining included), ``views_per_run`` (likewise), ``seconds`` (of all its runs and starts).
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.settings.protocol, run.settings.strategy), []).append(run)
    return pd.DataFrame([cost_of(*name, group, store) for name, group in sorted(groups.items())])


def cost_of(protocol: str, strategy: str, runs: Sequence[Run], store: RunStore) -> dict:
    """One row of `count_costs`."""
    starts = {start: store.open(start) for run in runs for start in ancestors(run.settings)}
    ways = [[run.record, *(starts[start].record for start in ancestors(run.settings))] for run in runs]

    def per_run(fact: str) -> float:
        return float(np.mean([sum(record["facts"].get(fact, 0) for record in way) for way in ways]))

    return {
        "protocol": protocol,
        "strategy": strategy,
        "n_runs": len(runs),
        "n_pretrainings": sum(start.kind == "simclr" for start in starts),
        "steps_per_run": per_run("optimiser_steps"),
        "views_per_run": per_run("views_seen"),
        "seconds": sum(run.record["seconds"] for run in [*runs, *starts.values()]),
    }


def ancestors(settings: Settings) -> Iterator[Settings]:
    """All runs that a run starts from, directly or not."""
    for start in settings.starts_from():
        yield start
        yield from ancestors(start)
