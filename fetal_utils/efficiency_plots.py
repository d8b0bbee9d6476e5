"""Figures of the study's question: the score against the labels, and the differences to the baseline."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fetal_utils.data_plots import require_rows
from fetal_utils.palette import INK, add_legend, colours_for, finish, line_style
from fetal_utils.result_plots import METRIC_LABELS


def plot_label_efficiency(metrics: pd.DataFrame, ax: Axes, *, metric: str = "f1", plane: str = "macro") -> Axes:
    """A metric against the number of labelled images, a line for each strategy.

    Parameters
    ----------
    metrics : DataFrame
        Rows of ``metrics.csv`` for one task and protocol: columns ``strategy, label_fraction, n_images, plane,
        metric, value, low, high``.
    ax : Axes
        To draw on.
    metric : str
        Which metric to draw.
    plane : str
        A class, or ``macro``.

    Returns
    -------
    Axes
        The one given. The line is the mean over draws and seeds, the band their range; with one run at every
        point, the band is its 95 % interval over patients. The legend says which.

    Raises
    ------
    ValueError
        If there is no such row, a column is missing, or there is more than one task or protocol.
    """
    require_rows(metrics, ["strategy", "label_fraction", "n_images", "plane", "metric", "value", "low", "high"])
    for column in ("task", "protocol"):
        if column in metrics.columns and len(metrics[column].unique()) > 1:
            raise ValueError(f"{column} holds {sorted(metrics[column].unique())}: choose one before drawing")
    rows = metrics[(metrics["metric"] == metric) & (metrics["plane"] == plane)]
    require_rows(rows, ["strategy"])
    points = summarise_label_efficiency(rows)
    strategies = list(dict.fromkeys(points["strategy"]))
    colours = colours_for(strategies)
    for strategy in strategies:
        own = points[points["strategy"] == strategy]
        ax.plot(
            own["n_images"], own["value"], color=colours[strategy], label=strategy, markersize=5, **line_style(strategy)
        )
        ax.fill_between(own["n_images"], own["low"], own["high"], color=colours[strategy], alpha=0.13, linewidth=0)
    _tick_numbers(ax, points)
    name = METRIC_LABELS.get(metric, metric)
    finish(ax, xlabel="labelled training images", ylabel=f"{plane} {name}", grid="both")
    fewest, most = points["n_runs"].min(), points["n_runs"].max()
    runs = f"{most} runs" if fewest == most else f"{fewest} to {most} runs"
    band = f"range of {runs}" if most > 1 else "95 % over patients"
    add_legend(ax, title=f"band: {band}", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def plot_differences(comparisons: pd.DataFrame, ax: Axes, *, baseline: str = "imagenet") -> Axes:
    """Paired differences to the baseline with their intervals; filled where this test set resolves them.

    Parameters
    ----------
    comparisons : DataFrame
        Rows of `add_verdicts` for one task, protocol and metric: columns ``strategy, label_fraction, difference, low,
        high, resolved``.
    ax : Axes
        To draw on.
    baseline : str
        For the axis.

    Returns
    -------
    Axes
        The one given.

    Raises
    ------
    ValueError
        If there is no row or a column is missing.
    """
    require_rows(comparisons, ["strategy", "label_fraction", "difference", "low", "high", "resolved"])
    strategies = list(dict.fromkeys(comparisons["strategy"]))
    fractions = sorted(comparisons["label_fraction"].unique())
    colours = colours_for(strategies)
    for place, strategy in enumerate(strategies):
        rows = comparisons[comparisons["strategy"] == strategy].sort_values("label_fraction")
        shift = (place - (len(strategies) - 1) / 2) * 0.8 / len(strategies)  # side by side within a fraction
        x = [fractions.index(fraction) + shift for fraction in rows["label_fraction"]]
        marker = line_style(strategy)["marker"]
        ax.vlines(x, rows["low"], rows["high"], color=colours[strategy], linewidth=1.5)
        faces = [colours[strategy] if resolved else "white" for resolved in rows["resolved"]]
        ax.scatter(
            x, rows["difference"], marker=marker, c=faces, edgecolors=colours[strategy], zorder=3, label=strategy
        )
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
    finish(ax, xlabel="share of the labels", ylabel=f"macro-F1 minus {baseline}", grid="y")
    handles = [
        Line2D([], [], marker=line_style(name)["marker"], color=colours[name], linestyle="", label=name)
        for name in strategies
    ]
    add_legend(ax, handles=handles, title="filled: resolved", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def summarise_label_efficiency(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and band of a metric over draws and seeds, for each strategy and label fraction.

    Returns
    -------
    DataFrame
        Columns ``strategy, n_images, value, low, high, n_runs``, ordered by images within a strategy.
        ``n_images`` is the mean of the draws, which differ a little since patients differ in images.
    """
    several = rows.groupby(["strategy", "label_fraction"])["value"].size().max() > 1
    low, high = ("value", "value") if several else ("low", "high")
    points = rows.groupby(["strategy", "label_fraction"], sort=False).agg(
        n_images=("n_images", "mean"), value=("value", "mean"), low=(low, "min"), high=(high, "max"),
        n_runs=("value", "size"),
    )  # fmt: skip
    order = {name: position for position, name in enumerate(dict.fromkeys(rows["strategy"]))}
    points = points.reset_index().drop(columns="label_fraction")
    return points.sort_values(["strategy", "n_images"], key=lambda c: c.map(order) if c.name == "strategy" else c)


def _tick_numbers(ax: Axes, points: pd.DataFrame) -> None:
    """Ticks at the numbers of images that were run, on a log axis."""
    ax.set_xscale("log")
    numbers = sorted(points.groupby(points["n_images"].round())["n_images"].mean().round().unique())
    far = [numbers[0]]
    for number in numbers[1:]:
        if math.log(number / far[-1]) > 0.06 * math.log(numbers[-1] / numbers[0]):  # labels that do not touch
            far.append(number)
    ax.set_xticks(far, [f"{number:,.0f}" for number in far])
    ax.minorticks_off()
