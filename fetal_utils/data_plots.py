"""Figures of a data set: how many images of what, and what they look like."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fetal_utils.palette import FONT_SIZE, INK, LooseFigure, add_legend, colours_for, finish, short_names

# light and strong next to each other, as the parts of one bar are
SPLIT_COLOURS = {"train": "#004488", "val": "#DDAA33", "test": "#BB5566"}
MASK_COLOURS = ("#FFD92F", "#66CCEE", "#EE7733", "#CC79A7", "#00CC99")  # bright, to stand out from gray


def plot_counts(
    metadata: pd.DataFrame,
    ax: Axes,
    *,
    by: str = "split",
    plane_column: str = "plane",
    order: Sequence[str] | None = None,
) -> Axes:
    """Images of each plane as horizontal bars, stacked by another column, with the total at the end.

    Parameters
    ----------
    metadata : DataFrame, one row per image
        With the two columns named below.
    ax : Axes
        To draw on.
    by : str
        Column whose values are stacked, such as ``split`` or ``machine``.
    plane_column : str
        Column with the classes, such as ``plane`` or ``true``.
    order : sequence of str, optional
        Classes from top to bottom; a class without images gets an empty bar. As sorted if not given.

    Returns
    -------
    Axes
        The one given.

    Raises
    ------
    ValueError
        If the table is empty or a column is missing.
    """
    require_rows(metadata, [by, plane_column])
    counts = pd.crosstab(metadata[plane_column], metadata[by])
    counts = counts.reindex(list(order) if order is not None else counts.index, fill_value=0)
    parts = [name for name in SPLIT_COLOURS if name in counts.columns]
    parts += [name for name in counts.columns if name not in parts]
    colours = colours_for(parts, SPLIT_COLOURS)
    left = np.zeros(len(counts))
    positions = np.arange(len(counts))
    for part in parts:
        ax.barh(positions, counts[part], left=left, color=colours[part], label=part, edgecolor="white", height=0.75)
        left += counts[part].to_numpy()
    for position, total in zip(positions, left, strict=True):
        ax.annotate(
            f"{total:,.0f}", (total, position), (4, 0), textcoords="offset points", va="center", color=INK,
            fontsize=FONT_SIZE - 1,
        )  # fmt: skip
    ax.set_yticks(positions, short_names(counts.index))
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    finish(ax, xlabel="images", grid="x")
    add_legend(ax, title=by, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def plot_images_per_patient(metadata: pd.DataFrame, ax: Axes, *, patient_column: str = "patient") -> Axes:
    """Histogram of the images of a patient, patients counted on a log axis.

    Parameters
    ----------
    metadata : DataFrame, one row per image
        With the patient column.
    ax : Axes
        To draw on.
    patient_column : str
        Column that names the patient.

    Returns
    -------
    Axes
        The one given.

    Raises
    ------
    ValueError
        If the table is empty or the column is missing.
    """
    require_rows(metadata, [patient_column])
    images = metadata[patient_column].value_counts().to_numpy()
    step = max(1, int(np.ceil(images.max() / 40)))  # images per bar: whole numbers, at most about 40 bars
    edges = np.arange(1, images.max() + step + 1, step) - 0.5
    ax.hist(images, bins=edges, color="#004488", edgecolor="white", linewidth=0.5)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)  # a bar of one patient is visible
    median = np.median(images)
    ax.axvline(median, color="#BB5566", linestyle="--", label=f"median {median:g}")
    finish(ax, xlabel="images of the patient", ylabel="patients", grid="y")
    add_legend(ax, title=f"{len(images):,} patients, {images.sum():,} images", loc="upper right")
    return ax


def contact_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    n_columns: int,
    *,
    masks: Mapping[str, Sequence[np.ndarray]] | None = None,
    panel_inches: float = 1.6,
) -> Figure:
    """Gray images in a grid, each with a short title, and the outlines of masks over them.

    Parameters
    ----------
    images : sequence of ndarray, each of shape (height, width)
        uint8, or float in 0..1. Sizes may differ.
    titles : sequence of str
        One for each image.
    n_columns : int
        Images in a row.
    masks : mapping of str to sequence of ndarray, optional
        For each name in the legend, one mask per image, of the image's shape; outlined where it is above 0.5.
    panel_inches : float
        Width of a panel, in inches.

    Returns
    -------
    Figure
        New, not known to pyplot: show it as the last line of a cell, or save it.

    Raises
    ------
    ValueError
        If there are no images, counts or shapes differ, or ``n_columns`` is below 1.
    """
    masks = masks or {}
    counts = {"titles": len(titles)} | {f"masks {name!r}": len(stack) for name, stack in masks.items()}
    if len(images) == 0 or n_columns < 1 or set(counts.values()) != {len(images)}:
        raise ValueError(f"got {len(images)} images, {counts} and n_columns={n_columns}: give one each per image")
    n_rows = -(-len(images) // n_columns)
    legend_inches = 0.35 if masks else 0
    tallest = max(image.shape[0] / image.shape[1] for image in images)
    title_inches = 0.1 + 0.15 * max(title.count("\n") + 1 for title in titles)
    size = (panel_inches * n_columns, (panel_inches * tallest + title_inches) * n_rows + legend_inches)
    figure = LooseFigure(*size)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for index, (panel, image, title) in enumerate(zip(panels, images, titles, strict=False)):
        white = 255 if np.issubdtype(image.dtype, np.integer) else 1
        panel.imshow(image, cmap="gray", vmin=0, vmax=white)  # one scale, so brightness can be compared
        panel.set_title(title, fontsize=FONT_SIZE - 2, color=INK)
        for (name, stack), colour in zip(masks.items(), _mask_colours(masks), strict=True):
            _outline(panel, stack[index], image.shape, name, colour)
    if masks:
        handles = [Line2D([], [], color=colour, label=name)
                   for name, colour in zip(masks, _mask_colours(masks), strict=True)]  # fmt: skip
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(masks), fontsize=FONT_SIZE - 1)
        legend.get_frame().set(facecolor="#444444", edgecolor="none")  # bright lines need a dark ground
        for text in legend.get_texts():
            text.set_color("white")
    return figure


def _mask_colours(masks: Mapping) -> list[str]:
    return [MASK_COLOURS[index % len(MASK_COLOURS)] for index in range(len(masks))]


def _outline(panel: Axes, mask: np.ndarray, shape: tuple, name: str, colour: str) -> None:
    if mask.shape != shape:
        raise ValueError(f"mask {name!r} has shape {mask.shape}, its image {shape}: give masks of the image's shape")
    if (mask > 0.5).any() and not (mask > 0.5).all():  # an even mask has no outline
        panel.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)


def require_rows(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse to draw a table that is empty or lacks columns, naming them."""
    missing = [column for column in columns if column not in table.columns]
    if missing or table.empty:
        raise ValueError(
            f"cannot draw {len(table)} rows with the columns {list(table.columns)}: need at least one row and "
            f"{list(columns)} (missing: {missing})"
        )
