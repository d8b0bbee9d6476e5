"""Figures of a training log: loss and score against the epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fetal_utils.data_plots import require_rows
from fetal_utils.diagnostics import chance_loss
from fetal_utils.environment import somebody_watches
from fetal_utils.palette import INK, LooseFigure, add_legend, colours_for, finish

if TYPE_CHECKING:
    from fetal_utils.simclr import Pretrain

# columns of a pretraining's log and what their axes say
INSTRUMENTS = {
    "loss": "NT-Xent loss (nats)",
    "top1_accuracy": "other view found first",
    "alignment": "alignment (squared distance)",
    "uniformity": "uniformity (lower is even)",
    "feature_spread": "feature spread, held-out",
    "effective_rank": "effective rank, held-out",
    "knn_macro_f1": "neighbours' F1, held-out",
    "probe_macro_f1": "linear probe's F1, held-out",
    "same_patient_anchors": "anchors meeting their patient",
    "same_class_negatives": "negatives of the same class",
    "images_per_s": "images per second",
    "share_outside_model": "time outside the model",
}


# a pretraining is drawn in the colour of the strategy that it belongs to
STRATEGY_OF = {"random": "simclr_scratch", "imagenet": "simclr_imagenet"}


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
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    finish(ax, xlabel="epoch", ylabel=ylabel or ", ".join(map(_label, columns)), grid="y")
    if len(columns) > 1:
        add_legend(ax)
    return ax


def _label(column: str) -> str:
    return column.replace("_", " ").replace("f1", "F1")


def plot_cockpit(logs: Mapping[str, pd.DataFrame], *, batch_size: int) -> Figure:
    """The instruments of a pretraining, a line for each log.

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
    figure = LooseFigure(15, 8.4)
    axes = figure.subplots(3, 4)
    colours = colours_for(list(logs))
    for ax, (column, label) in zip(axes.flat, INSTRUMENTS.items(), strict=True):
        for name, log in logs.items():
            require_rows(log, ["epoch", "loss"])
            measured = log.reindex(columns=["epoch", column]).dropna()  # some are not measured in every epoch
            ax.plot(measured["epoch"], measured[column], marker="o", markersize=3.5, color=colours[name], label=name)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        finish(ax, xlabel="epoch", ylabel=label, grid="y")
    chance = chance_loss(batch_size)
    axes[0, 0].axhline(chance, color=INK, linestyle=":", label=f"chance, ln({2 * batch_size - 1}) = {chance:.2f}")
    axes[0, 1].axhline(1 / (2 * batch_size - 1), color=INK, linestyle=":")
    axes[0, 0].set_ylim(top=1.4 * chance)  # room for the legend above the lines
    axes[0, 1].set_ylim(0, 1)
    axes[2, 3].set_ylim(bottom=0)
    add_legend(axes[0, 0])
    return figure


class LiveCockpit:
    """The cockpit below a cell while its pretrainings run: give it to ``store.get(..., watch=)``.

    Drawn at most every ``every_s`` seconds, and only where somebody watches.

    Parameters
    ----------
    batch_size : int
        As for `plot_cockpit`.
    every_s : float
    """

    def __init__(self, *, batch_size: int, every_s: float = 5.0) -> None:
        self.batch_size, self.every_s = batch_size, every_s
        self.logs: dict[str, pd.DataFrame] = {}
        self.drawn_at, self.handle = -every_s, None

    def __call__(self, settings: Pretrain, log: pd.DataFrame) -> None:
        """Take a run's log so far; the figure is drawn anew if the last one is old enough."""
        if settings.kind != "simclr" or not somebody_watches():
            return
        self.logs[STRATEGY_OF.get(settings.start.init, settings.start.init)] = log
        if time.monotonic() - self.drawn_at < self.every_s:
            return
        figure = plot_cockpit(self.logs, batch_size=self.batch_size)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn_at = time.monotonic()


def plot_trials(trials: pd.DataFrame, ax: Axes, *, task: str, label_fraction: float) -> Axes:
    """What each change of a pretraining did on validation patients, against the mean of the base's seeds.

    Parameters
    ----------
    trials : DataFrame
        As `fetal_utils.trials` writes it.
    ax : Axes
        To draw on.
    task : str
    label_fraction : float

    Returns
    -------
    Axes
        The one given. The band is where the base with each of its seeds lies.

    Raises
    ------
    ValueError
        If there is no trial of this task and fraction.
    """
    columns = ["change", "task", "label_fraction", "val_macro_f1", "difference", "difference_sd"]
    require_rows(trials, columns)
    chosen = trials[(trials["task"] == task) & (trials["label_fraction"] == label_fraction)]
    require_rows(chosen, columns)
    base = chosen[chosen["change"] == "base"]["difference"]
    changes = chosen[chosen["change"] != "base"].sort_values("difference")
    ax.axvspan(base.min(), base.max(), color="#DDDDDD", label="base, its seeds")
    ax.axvline(0, color=INK, linewidth=0.8)
    places = range(len(changes))
    ax.errorbar(
        changes["difference"],
        places,
        xerr=changes["difference_sd"],
        fmt="o",
        color="#004488",
        label="change, sd of draws",
    )
    ax.set_yticks(places, changes["change"])
    finish(ax, xlabel=f"macro-F1 minus base, {task}, {label_fraction:.0%} of labels", ylabel="", grid="x")
    add_legend(ax, loc="lower right")
    return ax
