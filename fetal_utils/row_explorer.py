"""Step through the rows of a table, all or those of one kind, with a picture of each: the frame of every explorer."""

from __future__ import annotations

from collections.abc import Iterable

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fetal_utils.palette import png

EVERY = "every"  # the choice of a filter that lets all rows through
WIDE = {"description_width": "initial"}  # of a label, so that none is cut off


class RowExplorer(ipywidgets.VBox):
    """Filters, a slider over the rows they let through, two buttons to step, and a picture of the row.

    A filter under which no row is left sets the other filters back. A kind of explorer is a subclass that has a
    method ``draw``.

    Parameters
    ----------
    labels : DataFrame of str
        A filter for each column.
    what : str
        A row, for the slider.
    step : int
        Rows that the buttons move by.
    below : list of Widget
        Shown under the picture.

    Attributes
    ----------
    filters : dict of str to Dropdown
        By column.
    slider : SelectionSlider
        Its value is the row shown, its options are the rows let through.
    previous, following : Button
    picture : Image
        `draw` of the row.

    Raises
    ------
    ValueError
        If there is no row.
    """

    def __init__(
        self, labels: pd.DataFrame, *, what: str = "image", step: int = 1, below: Iterable[ipywidgets.Widget] = ()
    ) -> None:
        if labels.empty:
            raise ValueError(f"a table with no rows, columns {list(labels.columns)}: there is nothing to step through")
        self.labels, self.step = labels.reset_index(drop=True), step
        self.filters = {name: _filter(self.labels[name]) for name in self.labels.columns}
        rows = list(range(len(self.labels)))
        self.slider = ipywidgets.SelectionSlider(description=what, options=rows, continuous_update=False, style=WIDE)
        self.previous, self.following = (ipywidgets.Button(description=name) for name in ("previous", "next"))
        self.picture = ipywidgets.Image(format="png")
        self._connect()
        super().__init__(
            [
                _line(self.filters.values()),
                _line([self.slider, self.previous, self.following]),
                self.picture,
                *below,
            ]
        )

    def draw(self, row: int) -> Figure:
        """The picture of a row."""
        raise NotImplementedError

    def show_row(self, row: int) -> None:
        """Show a row, with the filters set back if they hold it back."""
        if row not in self.slider.options:
            self._clear(self.filters.values())
            self._offer(self._let_through())
        self.slider.value = row

    def _connect(self) -> None:
        for one in self.filters.values():
            one.observe(self._refilter, names="value")
        self.slider.observe(self._show, names="value")
        self.previous.on_click(lambda _: self._step(-self.step))
        self.following.on_click(lambda _: self._step(self.step))
        self._show()

    def _show(self, _: object = None) -> None:
        self.picture.value = png(self.draw(self.slider.value))

    def _let_through(self) -> list[int]:
        through = np.ones(len(self.labels), dtype=bool)
        for name, one in self.filters.items():
            through &= ((self.labels[name] == one.value) | (one.value == EVERY)).to_numpy()
        return np.flatnonzero(through).tolist()

    def _refilter(self, change: dict) -> None:
        if not (rows := self._let_through()):  # the last choice counts
            self._clear([one for one in self.filters.values() if one is not change["owner"]])
            rows = self._let_through()
        self._offer(rows)

    def _offer(self, rows: list[int]) -> None:
        here = self.slider.value
        self.slider.unobserve(self._show, names="value")  # new options move the slider: draw once, when all is set
        self.slider.options = rows
        self.slider.value = here if here in rows else rows[0]
        self.slider.observe(self._show, names="value")
        self._show()

    def _clear(self, filters: Iterable[ipywidgets.Dropdown]) -> None:
        for one in filters:
            one.unobserve(self._refilter, names="value")
            one.value = EVERY
            one.observe(self._refilter, names="value")

    def _step(self, by: int) -> None:
        rows = self.slider.options
        self.slider.value = rows[(rows.index(self.slider.value) + by) % len(rows)]


def _line(widgets: Iterable[ipywidgets.Widget]) -> ipywidgets.HBox:
    return ipywidgets.HBox([*widgets], layout={"flex_flow": "row wrap"})  # goes on below where the page is narrow


def _filter(labels: pd.Series) -> ipywidgets.Dropdown:
    choices = [EVERY, *sorted(labels.unique(), key=_numbers_first)]
    return ipywidgets.Dropdown(description=labels.name, options=choices, style=WIDE, layout={"width": "max-content"})


def _numbers_first(name: str) -> tuple[float, str]:
    return (float(name), name) if name.isdecimal() else (float("inf"), name)
