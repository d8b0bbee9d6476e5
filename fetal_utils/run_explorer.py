"""One run at a time out of a study's grid: what it confused, and where it lies on the curve."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from fetal_utils.data_plots import require_rows
from fetal_utils.efficiency_plots import plot_label_efficiency
from fetal_utils.evaluation import count_confusion
from fetal_utils.palette import INK, LooseFigure
from fetal_utils.result_plots import plot_confusion
from fetal_utils.row_explorer import RowExplorer
from fetal_utils.runs import Run

FILTERS = ["protocol", "strategy", "label_fraction", "draw", "seed"]


def draw_run(run: Run, row: int, macro: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """The confusion matrix of a run, beside the curves of its protocol with a ring around the run's score.

    Parameters
    ----------
    run : Run
    row : int
        Position of the run's own score in the table.
    macro : DataFrame
        Rows of ``metrics.csv``: the macro-F1 of every run of one task.
    classes : sequence of str

    Returns
    -------
    Figure
        New, not known to pyplot.
    """
    own = macro.iloc[row]
    figure = LooseFigure(13, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    plot_confusion(count_confusion(run.predictions, classes), classes, left)
    left.set_title(
        f"{own['strategy']}, {own['n_images']:,} labelled images\n{own['protocol']}, draw {own['draw']}, "
        f"seed {own['seed']}, macro-F1 {own['value']:.3f}",
        loc="left",
        color=INK,
        fontsize="medium",
    )
    plot_label_efficiency(macro[macro["protocol"] == own["protocol"]], right)
    right.scatter(own["n_images"], own["value"], s=140, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=5)
    right.set_title(f"{own['task']}, {own['protocol']}; ring: this run", loc="left", color=INK, fontsize="medium")
    return figure


class RunExplorer(RowExplorer):
    """Choose protocol, strategy, label fraction, draw and seed, and see `draw_run` of the run.

    Parameters
    ----------
    runs : sequence of Run
        With predictions.
    macro : DataFrame
        As for `draw_run`, one row for each run, in the same order.
    classes : sequence of str

    Raises
    ------
    ValueError
        If there is not one row for each run, or a column is missing.
    """

    def __init__(self, runs: Sequence[Run], macro: pd.DataFrame, classes: Sequence[str]) -> None:
        require_rows(macro, [*FILTERS, "task", "n_images", "value"])
        if len(runs) != len(macro):
            raise ValueError(f"{len(runs)} runs and {len(macro)} scores: give the macro-F1 of each run, in their order")
        self.runs, self.macro, self.classes = runs, macro, classes
        labels = macro[FILTERS].astype(str).assign(label_fraction=macro["label_fraction"].map("{:.0%}".format))
        super().__init__(labels, what="run")

    def draw(self, row: int) -> Figure:
        """The run's confusion matrix and its place on the curve."""
        return draw_run(self.runs[row], row, self.macro, self.classes)
