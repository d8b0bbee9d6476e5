"""Paired comparison of strategies: the same test patients, label draws and seeds on both sides."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from fetal_utils.evaluation import draw_shared_weights, mean_metrics
from fetal_utils.intervals import bootstrap_p_value, percentile_interval

Runs = Mapping[Hashable, pd.DataFrame]  # (draw, seed) -> predictions table


def compare_strategies(
    runs: Mapping[str, Runs],
    classes: Sequence[str],
    *,
    n_resamples: int,
    rng: np.random.Generator,
    baseline: str = "imagenet",
    metrics: Sequence[str] = ("f1",),
) -> pd.DataFrame:
    """Macro metrics of every strategy minus those of the baseline, with an interval over patients.

    Each metric is averaged over the draws and seeds, and the same resamples of patients serve all
    strategies, so what is hard about a patient cancels. `add_verdicts` turns a whole study into verdicts.

    Parameters
    ----------
    runs : mapping of str to mapping of (draw, seed) to DataFrame
        For each strategy, its predictions tables; all with the same keys and the same test images.
    classes : sequence of str
        Class names in the fixed order of the task.
    n_resamples : int
        Bootstrap resamples of the test patients. A p-value cannot fall below ``2 / (n_resamples + 1)``.
    rng : numpy Generator
        Draws the resamples.
    baseline : str
        The strategy that the others are compared with.
    metrics : sequence of str
        Names out of `metrics.METRICS`; a difference in ``calibration_error`` is better when negative.

    Returns
    -------
    DataFrame
        Columns ``strategy, baseline, metric, difference, low, high, p_value, n_runs, sd_over_runs,
        n_resamples``: 95 % percentile interval and two-sided p-value, neither corrected for the number of
        comparisons. ``sd_over_runs`` is the standard deviation of the difference over draws and seeds (NaN
        with one run). The interval leaves that spread out: it speaks of other patients, not of other draws.

    Raises
    ------
    ValueError
        If the baseline is missing or alone, draws and seeds differ between strategies, a table is malformed,
        test images differ, or there is only one test patient.
    """
    keys = _shared_keys(runs, baseline)
    tables = [runs[strategy][key] for strategy in runs for key in keys]
    weights = draw_shared_weights(tables, classes, n_resamples=n_resamples, rng=rng)
    scores = {
        strategy: [mean_metrics([runs[strategy][key]], classes, weights, metrics=metrics) for key in keys]
        for strategy in runs
    }
    rows = []
    for strategy in [name for name in runs if name != baseline]:
        for metric in metrics:
            pairs = zip(scores[strategy], scores[baseline], strict=True)
            by_run = np.stack([ours[metric][:, 0] - theirs[metric][:, 0] for ours, theirs in pairs])
            row = {"strategy": strategy, "baseline": baseline, "metric": metric}
            rows.append(row | _summarise_difference(by_run) | {"n_resamples": n_resamples})
    return pd.DataFrame(rows)


def _shared_keys(runs: Mapping[str, Runs], baseline: str) -> list[Hashable]:
    if baseline not in runs or len(runs) < 2:
        raise ValueError(f"got strategies {list(runs)}, expected the baseline {baseline!r} and at least one other")
    keys = list(runs[baseline])
    for strategy, tables in runs.items():
        unshared = sorted(map(str, set(keys) ^ set(tables)))
        if unshared or not keys:
            raise ValueError(
                f"{strategy!r} has the draws and seeds {list(tables)}, {baseline!r} has {keys}: differences "
                f"are paired, so train both with the same ones (unshared: {unshared}) or leave the others out"
            )
    return keys


def _summarise_difference(by_run: np.ndarray) -> dict[str, float]:
    """Mean over runs of differences of shape (n_runs, 1 + n_resamples), whose first column is as observed."""
    difference = by_run.mean(axis=0)
    low, high = percentile_interval(difference[1:])
    n_runs = len(by_run)
    return {
        "difference": float(difference[0]),
        "low": float(low),
        "high": float(high),
        "p_value": bootstrap_p_value(difference[1:]),
        "n_runs": n_runs,
        "sd_over_runs": float(by_run[:, 0].std(ddof=1)) if n_runs > 1 else float("nan"),
    }


def adjust_holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values: at most ``alpha`` of one false verdict in the family, however they depend.

    Parameters
    ----------
    p_values : ndarray, shape (n_comparisons,)
        NaN counts for nothing and stays NaN.

    Returns
    -------
    ndarray, shape (n_comparisons,)
        The k-th smallest of m, times m - k + 1, made non-decreasing and at most 1.

    Raises
    ------
    ValueError
        If a p-value is outside 0..1.

    References
    ----------
    Holm 1979, Scand J Stat 6:65.
    """
    p_values = np.asarray(p_values, dtype=float)
    if ((p_values < 0) | (p_values > 1)).any():
        raise ValueError(f"p-values must lie in 0..1, got {p_values}")
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]  # NaN sorts last
    adjusted = np.full(p_values.shape, np.nan)
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def add_verdicts(
    comparisons: pd.DataFrame, *, family: Sequence[str] = ("metric",), alpha: float = 0.05
) -> pd.DataFrame:
    """Say which differences this test set resolves, after Holm's correction for how many were looked at.

    Parameters
    ----------
    comparisons : DataFrame
        Rows of `compare_strategies`, all those a reader will look at together (every label fraction).
    family : sequence of str
        Columns that part the rows into families corrected separately, such as ``("task", "metric")``.
    alpha : float
        Chance of any false verdict within a family, in 0..1.

    Returns
    -------
    DataFrame
        The rows with ``p_holm``, ``resolved`` (bool) and ``verdict`` (in words). Since ``low`` and ``high``
        are not corrected, an interval just clear of 0 can belong to a difference that is not resolved.

    Raises
    ------
    ValueError
        If the table is empty, a column is missing, or the resamples are too few for any row to be resolved.
    """
    needed = [*family, "baseline", "difference", "p_value", "n_resamples"]
    missing = [column for column in needed if column not in comparisons.columns]
    if comparisons.empty or missing:
        raise ValueError(f"need rows of compare_strategies, got {len(comparisons)} rows lacking columns {missing}")
    out = comparisons.reset_index(drop=True)
    out["p_holm"] = np.nan
    for name, group in out.groupby(list(family), sort=False):
        rows = group.index
        smallest = 2 / (out.loc[rows, "n_resamples"].min() + 1)
        if len(rows) * smallest > alpha:
            raise ValueError(
                f"family {name} has {len(rows)} comparisons, and the smallest p-value that "
                f"{out.loc[rows, 'n_resamples'].min()} resamples can show is {smallest:.2g}: none could be "
                f"resolved at {alpha}; use at least {int(np.ceil(2 * len(rows) / alpha))} resamples"
            )
        out.loc[rows, "p_holm"] = adjust_holm(out.loc[rows, "p_value"].to_numpy())
    out["resolved"] = (out["p_holm"] <= alpha).astype(bool)
    out["verdict"] = [_verdict(row.difference, row.resolved, row.baseline) for row in out.itertuples()]
    return out


def _verdict(difference: float, resolved: bool, baseline: str) -> str:
    if np.isnan(difference):
        return "not computable on this test set"
    if not resolved:
        return "not resolved by this test set"
    return f"{'higher' if difference > 0 else 'lower'} than {baseline}"
