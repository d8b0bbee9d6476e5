"""Figures of results: what was confused, each class with its interval, and the score against the labels."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fetal_utils.data_plots import require_rows
from fetal_utils.palette import FONT_SIZE, INK, add_legend, colours_for, finish, line_style, short_names

METRIC_LABELS = {
    "f1": "F1",
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "calibration_error": "expected calibration error",
}


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], ax: Axes) -> Axes:
    """Confusion matrix: counts written, colour by the share of the row's true class.

    Parameters
    ----------
    matrix : ndarray, shape (n_classes, n_classes)
        Counts; rows are true classes, columns predicted ones.
    class_names : sequence of str
        Shortened where `palette.SHORT_NAMES` knows them.
    ax : Axes
        To draw on.

    Returns
    -------
    Axes
        The one given. A class without test images has a blank row.

    Raises
    ------
    ValueError
        If the matrix is not square with a row for each name, or holds no image.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(class_names),) * 2 or matrix.sum() <= 0:
        raise ValueError(
            f"matrix of shape {matrix.shape} and sum {matrix.sum()}: expected counts, {len(class_names)} square"
        )
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if share[row, column] > 0.55 else INK
        ax.text(column, row, f"{matrix[row, column]:,.0f}", ha="center", va="center", color=colour, fontsize=FONT_SIZE)
    names = short_names(class_names)
    ticks = range(len(names))
    ax.set_xticks(ticks, names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, [f"{name} ({total:,.0f})" for name, total in zip(names, totals[:, 0], strict=True)])
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.04)
    bar.set_label("share of the true class", fontsize=FONT_SIZE - 1, color=INK)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
    return finish(ax, xlabel="predicted", ylabel="true (images)")


def plot_per_class(metrics: pd.DataFrame, ax: Axes, *, metric: str = "f1") -> Axes:
    """A metric of each class, a point with its interval for each strategy.

    Parameters
    ----------
    metrics : DataFrame
        Columns ``strategy, plane, metric, value, low, high``, one row for each of the first three.
    ax : Axes
        To draw on.
    metric : str
        Which metric to draw.

    Returns
    -------
    Axes
        The one given. A class without test images keeps its place, empty and marked so.

    Raises
    ------
    ValueError
        If there is no row of the metric, a column is missing, or rows repeat (several runs at once).
    """
    require_rows(metrics, ["strategy", "plane", "metric", "value", "low", "high"])
    rows = metrics[metrics["metric"] == metric]
    require_rows(rows, ["strategy"])
    if rows.duplicated(["strategy", "plane"]).any():
        raise ValueError(
            "several rows for one strategy and plane: choose one task, protocol, label fraction, draw and seed, or "
            "average the runs first (metrics_table takes a list of predictions tables)"
        )
    planes, strategies = list(dict.fromkeys(rows["plane"])), list(dict.fromkeys(rows["strategy"]))
    colours = colours_for(strategies)
    offsets = (np.arange(len(strategies)) - (len(strategies) - 1) / 2) * 0.7 / len(strategies)
    for strategy, offset in zip(strategies, offsets, strict=True):
        own = rows[rows["strategy"] == strategy].set_index("plane").reindex(planes)
        _draw_points(ax, np.arange(len(planes)) + offset, own, strategy, colours[strategy])
    empty = rows.groupby("plane", sort=False)["value"].count().reindex(planes) == 0
    names = [f"{name}\n(no test images)" if none else name
             for name, none in zip(short_names(planes), empty, strict=True)]  # fmt: skip
    ax.set_xticks(range(len(planes)), names)
    ax.set_xlim(-0.5, len(planes) - 0.5)
    for boundary in np.arange(1, len(planes)) - 0.5:
        ax.axvline(boundary, color="#DDDDDD", linewidth=0.8, zorder=0)
    finish(ax, ylabel=f"{METRIC_LABELS.get(metric, metric)} (95 % interval over patients)", grid="y")
    add_legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def _draw_points(ax: Axes, x: np.ndarray, rows: pd.DataFrame, strategy: str, colour: str) -> None:
    # an interval need not hold its value (that of a calibration error leans high), a bar cannot be negative
    below, above = (rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)
    marker = line_style(strategy)["marker"]
    ax.errorbar(
        x, rows["value"], yerr=[below, above], fmt=marker, color=colour, markersize=5, capsize=2, label=strategy
    )


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
