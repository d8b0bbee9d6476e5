"""The figures of a study's report: small enough for a phone, each with words for those who can't see it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from fetal_utils.cam_plots import plot_cam_scores, score_label
from fetal_utils.efficiency_plots import plot_differences, plot_label_efficiency, summarise_label_efficiency
from fetal_utils.palette import FONT_SIZE, INK, whiten
from fetal_utils.result_plots import METRIC_LABELS, plot_per_class

SIZE = (5.4, 4.7)  # inches: at the width of a phone its text is still as large as a newspaper's


def small_figure(draw: Callable[[Axes], object], *, title: str = "", size: tuple[float, float] = SIZE) -> Figure:
    """A figure of one axes whose legend stands below it instead of beside it.

    Parameters
    ----------
    draw : callable
        Takes the axes and draws on it.
    title : str
    size : (width, height)
        In inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    whiten(figure)
    ax = figure.subplots()
    draw(ax)
    ax.set_title(title, fontsize=FONT_SIZE + 1, color=INK, loc="left")
    if beside := ax.get_legend():
        put_below(figure, ax, beside)
    return figure


def put_below(figure: Figure, ax: Axes, beside: Legend) -> None:
    """The legend that an axes has, below the figure instead; a row holds three entries, or two of four."""
    labels = [text.get_text() for text in beside.get_texts()]
    handles = dict(zip(labels, beside.legend_handles, strict=True))
    drawn = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    # of a point with its interval, the legend's own handle is the bar alone
    handles |= {name: drawn[name] for name in labels if isinstance(drawn.get(name), ErrorbarContainer)}
    size = FONT_SIZE - 1
    figure.legend(
        handles.values(),
        labels,
        title=beside.get_title().get_text(),
        loc="outside lower center",
        ncols=2 if len(labels) == 4 else min(3, len(labels)),
        frameon=False,
        fontsize=size,
        title_fontsize=size,
        labelcolor=INK,
    )
    beside.remove()


def draw_curves(points: pd.DataFrame, *, title: str) -> tuple[Figure, str]:
    """The curves of `curve_points`, and the same in words."""
    return small_figure(lambda ax: plot_label_efficiency(points, ax), title=title), describe_curves(points, title)


def describe_curves(points: pd.DataFrame, title: str) -> str:
    """First and last point of each curve."""
    ends = summarise_label_efficiency(points).groupby("strategy", sort=False)
    told = [
        f"{strategy} from {own['value'].iloc[0]:.2f} with {own['n_images'].iloc[0]:.0f} to "
        f"{own['value'].iloc[-1]:.2f} with {own['n_images'].iloc[-1]:.0f} labelled images"
        for strategy, own in ends
    ]
    return f"{title}: macro-F1 against the number of labelled images; {'; '.join(told)}."


def draw_differences(rows: pd.DataFrame, *, title: str, metric: str = "f1") -> tuple[Figure, str]:
    """Differences of `verdicts` for one task and protocol, and the same in words."""
    figure = small_figure(lambda ax: plot_differences(rows, ax), title=title)
    baseline = rows["baseline"].iloc[0]
    figure.axes[0].set_ylabel(f"macro {METRIC_LABELS.get(metric, metric)} minus {baseline}")
    told = [
        f"{row.strategy} at {row.label_fraction:.0%} {row.difference:+.2f}, {row.verdict}" for row in rows.itertuples()
    ]
    return figure, f"{title}: difference to {baseline}; {'; '.join(told)}."


def draw_classes(rows: pd.DataFrame, *, title: str, metric: str = "f1") -> tuple[Figure, str]:
    """A metric of each class from `per_class`, and the same in words."""
    figure = small_figure(lambda ax: plot_per_class(rows, ax, metric=metric), title=title, size=(6.4, 4.7))
    worst = rows.loc[rows.groupby("strategy", sort=False)["value"].idxmin()]
    told = [f"{row.strategy} is lowest on {row.plane} with {row.value:.2f}" for row in worst.itertuples()]
    return figure, f"{title}: {METRIC_LABELS.get(metric, metric)} of each class; {'; '.join(told)}."


def draw_cam_scores(rows: pd.DataFrame, *, score: str, title: str) -> tuple[Figure, str]:
    """One score of all networks' maps beside the maps that know nothing, and the same in words."""
    figure = small_figure(lambda ax: plot_cam_scores(rows, ax, score=score), title=title)
    own = rows[(rows["score"] == score) & (rows["plane"] == "all")]
    table = own.pivot(index="strategy", columns="map", values="value")
    told = [
        f"{strategy} {values['model']:.2f}, its baselines {values.drop('model').min():.2f} to "
        f"{values.drop('model').max():.2f}"
        for strategy, values in table.iterrows()
    ]
    return figure, f"{title}, {score_label(score).replace(chr(10), ' ')}: {'; '.join(told)}."
