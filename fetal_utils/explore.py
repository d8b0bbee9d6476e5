"""Things to move in JupyterLab: one explorer of any table's rows, and the augmentation lab; elsewhere still figures."""

from collections.abc import Callable, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from fetal_utils.environment import somebody_watches
from fetal_utils.plots import contact_sheet

EVERY = "every"  # the choice of a filter that lets all rows through
WIDE, WRAP = {"description_width": "initial"}, {"flex_flow": "row wrap"}  # so that nothing is cut off


def explore(
    table: pd.DataFrame, show: Callable, *, filters: Sequence[str] = (), page: int = 1, still: int = 0
) -> ipywidgets.VBox | None:
    """Step through the rows of a table, all or those of one kind, with a figure of each.

    ``show`` draws a pyplot figure of a row, given by its position; with ``page`` above 1, of a list of positions. Rows
    are chosen by the columns ``filters``; a choice that leaves none sets the other filters back. Where nobody watches,
    there is no widget: the row, or the page, that begins at ``still`` stands in the cell.
    """

    def draw(rows: Sequence[int]) -> None:
        show(rows[0] if page == 1 else list(rows))
        plt.show()

    def pages(rows: Sequence[int]) -> list[tuple]:
        return [(str(rows[start]), tuple(rows[start : start + page])) for start in range(0, len(rows), page)]

    if not somebody_watches():
        return draw(range(len(table))[still : still + page])
    look = {"style": WIDE, "layout": {"width": "max-content"}}
    values = {name: [EVERY, *map(str, table[name].sort_values().unique())] for name in filters}
    choosers = {name: ipywidgets.Dropdown(description=name, options=own, **look) for name, own in values.items()}
    options = pages(range(len(table)))
    slider = ipywidgets.SelectionSlider(description="row", options=options, continuous_update=False, style=WIDE)
    buttons = {name: ipywidgets.Button(description=name) for name in ("previous", "next")}

    def step(button: ipywidgets.Button) -> None:
        slider.index = (slider.index + (1 if button is buttons["next"] else -1)) % len(slider.options)

    def refilter(change: dict) -> None:
        fits = [(table[name].astype(str) == one.value) | (one.value == EVERY) for name, one in choosers.items()]
        if rows := np.flatnonzero(np.all(fits, axis=0)).tolist():
            slider.options = pages(rows)
        elif change["new"] != EVERY:  # the last choice counts
            for one in choosers.values():
                one.value = change["new"] if one is change["owner"] else EVERY

    for button in buttons.values():
        button.on_click(step)
    for one in choosers.values():
        one.observe(refilter, names="value")
    lines = [ipywidgets.HBox(list(one), layout=WRAP) for one in (choosers.values(), [slider, *buttons.values()])]
    return ipywidgets.VBox([*lines, ipywidgets.interactive_output(draw, {"rows": slider})])


def augmentation_lab(
    images: np.ndarray, views: Callable, *, presets: Sequence[str], titles: Sequence[str]
) -> ipywidgets.VBox | None:
    """Sliders over image, preset, strength and draw, with the image and two views; else a figure of all presets.

    ``views(images, preset, strength, seed)`` gives two views of each of the images, uint8 of shape (n_images, side,
    side): two arrays of that shape, gray levels in 0..1. Strength 1 is the preset as it is.
    """
    if not somebody_watches():
        columns = [images / 255, *(view for preset in presets for view in views(images, preset, 1.0, 0))]
        names = ["as stored", *(preset for preset in presets for _ in "ab")]
        panels = [column[row] for row in range(len(images)) for column in columns]
        contact_sheet(panels, names * len(images), n_columns=len(columns))
        return None

    def show_views(image: int = 0, preset: str = presets[0], strength: float = 1.0, draw: int = 0) -> None:
        one = images[image : image + 1]
        view_a, view_b = views(one, preset, strength, draw)
        contact_sheet([one[0] / 255, view_a[0], view_b[0]], [titles[image], "view a", "view b"], n_columns=3)
        plt.show()

    factor = ipywidgets.FloatSlider(description="strength x", value=1.0, max=3.0, step=0.1)
    about = {"image": (0, len(images) - 1), "preset": presets, "strength": factor, "draw": (0, 50)}
    return ipywidgets.interactive(show_views, **about)
