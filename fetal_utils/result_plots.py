"""Figures of results: what was confused, each class with its interval, and the score against the labels."""

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
