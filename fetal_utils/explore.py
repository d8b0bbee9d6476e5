"""Things to move in JupyterLab: one explorer of any table's rows, and the augmentation lab; elsewhere still figures."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from fetal_utils.plots import contact_sheet

EVERY = "every"  # the choice of a filter that lets all rows through
WIDE, WRAP = {"description_width": "initial"}, {"flex_flow": "row wrap"}  # so that nothing is cut off


def somebody_watches() -> bool:
    """Whether an application with a screen, Jupyter's server or VS Code, started this kernel."""
    return any(name == "JPY_SESSION_NAME" or name.startswith("VSCODE_") for name in os.environ)


def explore(
    table: pd.DataFrame, show: Callable, *, filters: Sequence[str] = (), page: int = 1, still: int = 0
) -> ipywidgets.VBox | None:
    """Step through the rows of a table, all or those of one kind, with a figure of each.

    Where nobody watches, the figure of one row stands in the cell, and there is no widget. A filter under which no row
    is left sets the other filters back.

    Parameters
    ----------
    table : DataFrame
    show : callable
        Draws a pyplot figure of a row, which it is given by its position in the table; with ``page`` above 1, of the
        list of positions on a page.
    filters : sequence of str
        Columns by which rows can be chosen.
    page : int
        Rows shown at once, by which the buttons move.
    still : int
        Position of the row (the first of the page) that is drawn where nobody watches.

    Raises
    ------
    ValueError
        If there is no row or a column is missing.
    """
    if table.empty or not set(filters) <= set(table.columns):
        raise ValueError(f"{len(table)} rows, columns {list(table.columns)}: expected a row or more, and {filters}")
    everything = list(range(len(table)))

    def draw(rows: Sequence[int], first: int) -> None:
        start = rows.index(first) if first in rows else 0
        show(rows[start] if page == 1 else list(rows[start : start + page]))

    if not somebody_watches():
        return draw(everything, still)
    choosers = {name: choose(name, [EVERY, *map(str, table[name].sort_values().unique())]) for name in filters}
    slider = ipywidgets.SelectionSlider(description="row", options=everything, continuous_update=False, style=WIDE)
    buttons = [ipywidgets.Button(description=name) for name in ("previous", "next")]

    def step(button: ipywidgets.Button) -> None:
        rows, by = slider.options, page if button is buttons[1] else -page
        slider.value = rows[(rows.index(slider.value) + by) % len(rows)]

    def refilter(change: dict) -> None:
        fits = [(table[name].astype(str) == one.value) | (one.value == EVERY) for name, one in choosers.items()]
        rows = np.flatnonzero(np.all(fits, axis=0)).tolist()
        if rows:
            slider.options = rows
        elif change["new"] != EVERY:  # the last choice counts
            for one in choosers.values():
                one.value = change["new"] if one is change["owner"] else EVERY

    for button in buttons:
        button.on_click(step)
    for one in choosers.values():
        one.observe(refilter, names="value")
    picture = follow([slider], lambda: draw(slider.options, slider.value))
    lines = [ipywidgets.HBox(widgets, layout=WRAP) for widgets in (list(choosers.values()), [slider, *buttons])]
    return ipywidgets.VBox([*lines, picture])


def augmentation_lab(
    images: np.ndarray, views: Callable, *, presets: Sequence[str], titles: Sequence[str] | None = None
) -> ipywidgets.VBox | None:
    """Sliders over image, preset, strength and draw, with the image and two views; else a figure of all presets.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_images, side, side)
    views : callable
        ``views(images, preset, strength, seed)`` gives two views of each image, gray levels in 0..1: two arrays of
        shape (n_images, height, width). Strength 1 is the preset as it is.
    presets, titles : sequence of str
        Names of presets; a title for each image.
    """
    titles = list(titles or [f"image {number}" for number in range(len(images))])
    if not somebody_watches():
        columns = [images / 255, *(view for preset in presets for view in views(images, preset, 1.0, 0))]
        names = ["as stored", *(preset for preset in presets for _ in "ab")]
        panels = [column[row] for row in range(len(images)) for column in columns]
        contact_sheet(panels, names * len(images), n_columns=len(columns))
        return None
    image = ipywidgets.IntSlider(description="image", max=len(images) - 1, style=WIDE)
    strength = ipywidgets.FloatSlider(description="strength x", value=1.0, max=3.0, step=0.1, style=WIDE)
    preset, seed = choose("preset", presets), ipywidgets.IntSlider(description="draw", max=50, style=WIDE)

    def draw() -> None:
        one = images[image.value : image.value + 1]
        view_a, view_b = views(one, preset.value, strength.value, seed.value)
        contact_sheet([one[0] / 255, view_a[0], view_b[0]], [titles[image.value], "view a", "view b"], n_columns=3)

    controls = [image, preset, strength, seed]
    return ipywidgets.VBox([*controls, follow(controls, draw)])


def follow(controls: Sequence[ipywidgets.Widget], draw: Callable[[], None]) -> ipywidgets.Image:
    """A picture that is drawn anew, as a pyplot figure, whenever the value of a control changes."""
    picture, shown = ipywidgets.Image(format="png"), []

    def redraw(_: object = None) -> None:
        state = [(control.value, getattr(control, "options", None)) for control in controls]
        if state == shown:  # one move of a slider with new options is two events
            return
        shown[:] = state
        draw()
        buffer, figure = io.BytesIO(), plt.gcf()
        figure.savefig(buffer, format="png", dpi=90)
        plt.close(figure)  # or the cell would show it once more
        picture.value = buffer.getvalue()

    for control in controls:
        control.observe(redraw, names=["value", "options"])
    redraw()
    return picture


def choose(name: str, options: Sequence[str]) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(description=name, options=options, style=WIDE, layout={"width": "max-content"})
