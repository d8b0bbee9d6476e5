"""Look through the images of a data set: all, or those of a plane, a patient, a machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fetal_utils.data_plots import contact_sheet, require_rows
from fetal_utils.palette import short_names
from fetal_utils.row_explorer import RowExplorer

FILTERS = ["plane", "brain_plane", "patient", "machine"]
PAGE = 12  # images
N_COLUMNS = 6


def draw_page(images: np.ndarray, metadata: pd.DataFrame, rows: Sequence[int]) -> Figure:
    """Some images of a data set, each with its plane, patient and machine.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_images, side, side)
        A memory map will do: only what is shown is read.
    metadata : DataFrame, one row per image
        Columns ``plane, patient, machine``.
    rows : sequence of int
        Positions of the images to show.

    Returns
    -------
    Figure
        New, not known to pyplot.

    Raises
    ------
    ValueError
        If there are no rows, lengths differ, or a column is missing.
    """
    require_rows(metadata, ["plane", "patient", "machine"])
    if len(images) != len(metadata):
        raise ValueError(f"{len(images)} images and {len(metadata)} rows of the table: expected one row for each image")
    shown = metadata.iloc[list(rows)]
    titles = [
        f"{plane}, patient {patient}\n{machine}"
        for plane, patient, machine in zip(short_names(shown["plane"]), shown["patient"], shown["machine"], strict=True)
    ]
    return contact_sheet(images[list(rows)], titles, n_columns=N_COLUMNS, panel_inches=1.7)


class ImageBrowser(RowExplorer):
    """A page of images that starts with the one on the slider; the buttons turn the page.

    Parameters
    ----------
    images, metadata
        As for `draw_page`, with the column ``brain_plane`` too.
    """

    def __init__(self, images: np.ndarray, metadata: pd.DataFrame) -> None:
        require_rows(metadata, FILTERS)
        self.images, self.metadata = images, metadata
        super().__init__(metadata[FILTERS].astype(str), what="first image", step=PAGE)

    def draw(self, row: int) -> Figure:
        """The image and those that follow it, of all that are let through."""
        rows = self.slider.options
        start = rows.index(row)
        return draw_page(self.images, self.metadata, rows[start : start + PAGE])
