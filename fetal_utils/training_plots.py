"""Figures of a training log: loss and score against the epoch."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fetal_utils.data_plots import require_rows
from fetal_utils.diagnostics import chance_loss
from fetal_utils.palette import INK, add_legend, colours_for, finish, whiten

# columns of a pretraining's log and what their axes say
INSTRUMENTS = {
    "loss": "NT-Xent loss (nats)",
    "top1_accuracy": "other view found first (share)",
    "alignment": "alignment (squared distance)",
    "uniformity": "uniformity (lower is more even)",
    "effective_rank": "effective rank, held-out",
    "knn_macro_f1": "neighbours' macro-F1, held-out",
}


def plot_learning_curves(
    log: pd.DataFrame, ax: Axes, *, columns: Sequence[str] = ("train_loss", "val_loss"), ylabel: str = ""
) -> Axes:
    """Columns of a training log against the epoch, one line each.

    Parameters
    ----------
    log : DataFrame, one row per epoch
        Columns ``epoch`` and those named. NaN (not measured in that epoch) is bridged.
    ax : Axes
        To draw on.
    columns : sequence of str
        What shares one scale: losses on one axes, scores such as ``val_macro_f1`` on another.
    ylabel : str
        Of the common scale; the column's name if there is one column.

    Returns
    -------
    Axes
        The one given.

    Raises
    ------
    ValueError
        If the log is empty or a column is missing.
    """
    require_rows(log, ["epoch", *columns])
    colours = colours_for(
        columns, {"loss": "#004488", "train_loss": "#004488", "val_loss": "#BB5566", "val_macro_f1": "#BB5566"}
    )
    for column in columns:
        measured = log.dropna(subset=[column])
        marker = "o" if len(measured) <= 30 else None
        line = {"color": colours[column], "marker": marker, "markersize": 3.5, "label": _label(column)}
        ax.plot(measured["epoch"], measured[column], **line)
    ax.xaxis.get_major_locator().set_params(integer=True)
    finish(ax, xlabel="epoch", ylabel=ylabel or ", ".join(map(_label, columns)), grid="y")
    if len(columns) > 1:
        add_legend(ax)
    return ax


def _label(column: str) -> str:
    return column.replace("_", " ").replace("f1", "F1")


def plot_simclr_log(log: pd.DataFrame, ax: Axes, *, batch_size: int, column: str = "loss") -> Axes:
    """NT-Xent loss against the epoch, with the loss of projections that all look alike.

    Parameters
    ----------
    log : DataFrame, one row per epoch
        Columns ``epoch`` and the loss, in nats.
    ax : Axes
        To draw on.
    batch_size : int
        Images of a batch, N: an anchor has 2N - 1 candidates, so chance is ln(2N - 1) nats.
    column : str
        Name of the loss.

    Returns
    -------
    Axes
        The one given.

    Raises
    ------
    ValueError
        If the log is empty, a column is missing or the batch has fewer than two images.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: NT-Xent needs at least two images in a batch")
    plot_learning_curves(log, ax, columns=[column], ylabel="NT-Xent loss (nats)")
    chance = chance_loss(batch_size)
    ax.axhline(chance, color=INK, linestyle=":", label=f"chance, ln({2 * batch_size - 1}) = {chance:.2f}")
    add_legend(ax, loc="center right")  # clear of the chance line
    return ax


def plot_cockpit(logs: Mapping[str, pd.DataFrame], *, batch_size: int) -> Figure:
    """Six instruments of a pretraining, a line for each log.

    Parameters
    ----------
    logs : mapping of str to DataFrame
        For each strategy the log of its pretraining, one row per epoch.
    batch_size : int
        Images of a batch, for the chance lines.

    Returns
    -------
    Figure
        New, not known to pyplot.

    Raises
    ------
    ValueError
        If a log is empty or a column is missing.
    """
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    whiten(figure)
    axes = figure.subplots(2, 3)
    colours = colours_for(list(logs))
    for ax, (column, label) in zip(axes.flat, INSTRUMENTS.items(), strict=True):
        for name, log in logs.items():
            require_rows(log, ["epoch", column])
            measured = log.dropna(subset=[column])
            ax.plot(measured["epoch"], measured[column], marker="o", markersize=3.5, color=colours[name], label=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
        finish(ax, xlabel="epoch", ylabel=label, grid="y")
    chance = chance_loss(batch_size)
    axes[0, 0].axhline(chance, color=INK, linestyle=":", label=f"chance, ln({2 * batch_size - 1}) = {chance:.2f}")
    axes[0, 1].axhline(1 / (2 * batch_size - 1), color=INK, linestyle=":")
    axes[0, 1].set_ylim(0, 1)
    add_legend(axes[0, 0])
    return figure
