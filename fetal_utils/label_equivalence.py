"""Label equivalence: how many labelled images the baseline needs to do as well as a strategy."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from fetal_utils.evaluation import draw_shared_weights, mean_metrics
from fetal_utils.intervals import percentile_interval

Curve = Mapping[float, Mapping[Hashable, pd.DataFrame]]  # n_images -> (draw, seed) -> predictions table
HIGHER_IS_BETTER = ("f1", "sensitivity", "precision", "specificity", "auroc", "balanced_accuracy", "accuracy")


def label_equivalence(
    strategy: Curve,
    baseline: Curve,
    classes: Sequence[str],
    *,
    n_resamples: int,
    rng: np.random.Generator,
    metric: str = "f1",
) -> pd.DataFrame:
    """Labelled images with which the baseline reaches each score of the strategy, with an interval.

    Parameters
    ----------
    strategy, baseline : mapping of number of labelled images to mapping of (draw, seed) to DataFrame
        Predictions tables of one test set, averaged over draws and seeds at each number of labelled images.
        Where draws differ a little in size, give their mean.
    classes : sequence of str
        Class names in the fixed order of the task.
    n_resamples : int
        Bootstrap resamples of the test patients, shared by both curves.
    rng : numpy Generator
        Draws the resamples.
    metric : str
        Macro metric to reach; one of `HIGHER_IS_BETTER`.

    Returns
    -------
    DataFrame
        One row per number of labelled images of the strategy: ``n_labelled, score, n_equivalent, low, high,
        reading``. ``n_equivalent`` is interpolated on the logarithm of the number (see `first_crossing`);
        infinity says that the baseline did not reach the score with all it was given, 0 that it was there at
        its smallest number already. ``reading`` says the same in words.

    Raises
    ------
    ValueError
        If the metric is better when lower or unknown, the baseline has fewer than two numbers of labelled
        images, a number is not positive, or the tables are malformed or of different test images.

    Notes
    -----
    A lucky draw of the baseline at few labels is a crossing too, so a noisy baseline makes ``n_equivalent`` too
    small: average several draws and seeds, and look at the curve. As in `metrics_table`, the interval is about
    other test patients, not about other draws.
    """
    if metric not in HIGHER_IS_BETTER:
        raise ValueError(f"metric {metric!r}: expected one of {HIGHER_IS_BETTER}, which are better when higher")
    if len(baseline) < 2 or not strategy or min([*baseline, *strategy]) <= 0:
        raise ValueError(
            f"labelled images of the baseline {sorted(baseline)} and of the strategy {sorted(strategy)}: "
            "give at least two positive numbers for the baseline and one for the strategy"
        )
    if not all(curve[n] for curve in (baseline, strategy) for n in curve):
        raise ValueError("a number of labelled images has no predictions tables: leave it out or run it")
    tables = [table for curve in (baseline, strategy) for runs in curve.values() for table in runs.values()]
    weights = draw_shared_weights(tables, classes, n_resamples=n_resamples, rng=rng)
    n_baseline, n_strategy = sorted(baseline), sorted(strategy)

    def score(runs: Mapping[Hashable, pd.DataFrame]) -> np.ndarray:
        return mean_metrics(list(runs.values()), classes, weights, metrics=[metric])[metric][:, 0]

    baseline_scores = np.column_stack([score(baseline[n]) for n in n_baseline])  # (1 + n_resamples, n_sizes)
    rows = []
    for n_labelled in n_strategy:
        targets = score(strategy[n_labelled])
        reached = first_crossing(np.array(n_baseline, dtype=float), baseline_scores, targets)
        low, high = percentile_interval(reached[1:])
        reading = _reading(reached[0], n_baseline)
        rows.append((n_labelled, targets[0], reached[0], float(low), float(high), reading))
    return pd.DataFrame(rows, columns=["n_labelled", "score", "n_equivalent", "low", "high", "reading"])


def first_crossing(n_images: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Smallest number of images at which a curve, straight between its points in log n, reaches a target.

    Parameters
    ----------
    n_images : ndarray, shape (n_sizes,)
        Numbers of labelled images, increasing, > 0.
    scores : ndarray, shape (n_curves, n_sizes)
        Scores of each curve; they may dip, the first crossing counts.
    targets : ndarray, shape (n_curves,)
        Score to reach on each curve.

    Returns
    -------
    ndarray, shape (n_curves,)
        Infinity where no point reaches the target; 0 where the first point is above it already; NaN where the
        target or a score is NaN.
    """
    log_n = np.log(n_images)
    reaches = scores >= targets[:, None]
    after = np.argmax(reaches, axis=1)  # first point at or above the target
    before = np.maximum(after - 1, 0)
    curve = np.arange(len(scores))
    rise = scores[curve, after] - scores[curve, before]
    share = np.divide(targets - scores[curve, before], rise, out=np.zeros_like(rise), where=rise > 0)
    reached = np.exp(log_n[before] + share * (log_n[after] - log_n[before]))
    reached = np.where((after == 0) & (scores[:, 0] > targets), 0.0, reached)
    reached = np.where(reaches.any(axis=1), reached, np.inf)
    return np.where(np.isnan(targets) | np.isnan(scores).any(axis=1), np.nan, reached)


def _reading(n_equivalent: float, n_baseline: Sequence[float]) -> str:
    if np.isnan(n_equivalent):
        return "not computable on this test set"
    if np.isinf(n_equivalent):
        return f"not reached with {n_baseline[-1]:g} labelled images"
    if n_equivalent == 0:
        return f"fewer than {n_baseline[0]:g} labelled images"
    return f"{n_equivalent:.0f} labelled images"
