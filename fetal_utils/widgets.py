"""Things to move in JupyterLab; under papermill each notebook shows a still figure in their place."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from fetal_utils.augmentations import PRESETS, Row, check_preset, scaled
from fetal_utils.data_plots import contact_sheet
from fetal_utils.environment import torch_generator
from fetal_utils.palette import png
from fetal_utils.transforms import Augment, two_views


def draw_views(
    images: np.ndarray, preset: str | Sequence[Row], *, image_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two views of each image for the eye: gray levels in 0..1, not normalised.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_images, side, side)
    preset : str or sequence of Row
        See `check_preset`.
    image_size : int
        px.
    seed : int

    Returns
    -------
    view_a, view_b : ndarray of float32, shape (n_images, image_size, image_size)
    """
    augment = Augment(preset, image_size=image_size, mean=0.0, std=1.0)
    views = two_views(torch.from_numpy(images.copy()), augment, torch_generator(seed, 99))
    view_a, view_b = (view[:, 0].clamp(0, 1).numpy() for view in views)
    return view_a, view_b


def compare_presets(images: np.ndarray, presets: Sequence[str], *, image_size: int, seed: int) -> Figure:
    """A still of the augmentation lab: a row for each image, with two views by each preset."""
    views = [view for preset in presets for view in draw_views(images, preset, image_size=image_size, seed=seed)]
    columns = [images, *views]
    titles = ["as stored", *(preset for preset in presets for _ in "ab")]
    panels = [column[row] for row in range(len(images)) for column in columns]
    return contact_sheet(panels, titles * len(images), n_columns=len(columns))


def augmentation_lab(images: np.ndarray, titles: Sequence[str], *, image_size: int) -> ipywidgets.VBox:
    """Sliders over image, preset, strength and draw; the image and its two views follow.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_images, side, side)
    titles : sequence of str
        One for each image.
    image_size : int
        px, of the views.

    Returns
    -------
    VBox
        Its children: image, preset, strength, draw, picture, table.
    """
    picture, table = ipywidgets.Image(format="png"), ipywidgets.HTML()
    table.add_class("jp-RenderedHTMLCommon")  # looks as a table of a cell's output does, in a dark theme too
    image = ipywidgets.IntSlider(description="image", max=len(images) - 1)
    preset = ipywidgets.Dropdown(description="preset", options=list(PRESETS))
    strength = ipywidgets.FloatSlider(description="strength x", value=1.0, max=3.0, step=0.1)
    draw = ipywidgets.IntSlider(description="draw", max=50)
    controls = (image, preset, strength, draw)

    def show(_: object = None) -> None:
        rows = scaled(check_preset(preset.value), strength.value)
        one = images[image.value : image.value + 1]
        views = draw_views(one, rows, image_size=image_size, seed=draw.value)
        panels = [one[0], *(view[0] for view in views)]
        sheet = contact_sheet(panels, [titles[image.value], "view a", "view b"], n_columns=3, panel_inches=2.6)
        picture.value = png(sheet)
        table.value = pd.DataFrame(rows, columns=Row._fields).to_html(index=False, float_format="%.3g", border=0)

    for control in controls:
        control.observe(show, names="value")
    show()
    return ipywidgets.VBox([*controls, picture, table])
