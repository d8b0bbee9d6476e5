"""Images behind the points of a map: step through them in JupyterLab, or see a few of them in a still figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fetal_utils.data_plots import require_rows
from fetal_utils.embedding_plots import add_value_legend, plot_map
from fetal_utils.neighbours import find_neighbours
from fetal_utils.palette import FONT_SIZE, INK, LooseFigure, short_names
from fetal_utils.row_explorer import RowExplorer


@dataclass(frozen=True)
class Scene:
    """A map with all that is known of its images; row ``i`` of everything is image ``i``.

    Attributes
    ----------
    points : ndarray, shape (n_images, 2)
        Of the map.
    features : ndarray, shape (n_images, n_features)
        Of the original space, in which neighbours are found (by cosine).
    images : ndarray of uint8, shape (n_images, height, width)
        A memory map will do: only what is shown is read.
    table : DataFrame, one row per image
        Columns ``plane, patient, machine`` and, if there is a classifier, ``predicted``.
    cam : callable, optional
        Takes a row number and gives a heat map, shape (any height, any width), laid over the image.
    n_neighbours : int
        Images shown as the nearest ones.

    Raises
    ------
    ValueError
        If lengths differ, a column is missing, or there are not enough images for the neighbours.
    """

    points: np.ndarray
    features: np.ndarray
    images: np.ndarray
    table: pd.DataFrame
    cam: Callable[[int], np.ndarray] | None = None
    n_neighbours: int = 5

    def __post_init__(self) -> None:
        require_rows(self.table, ["plane", "patient", "machine"])
        lengths = {name: len(getattr(self, name)) for name in ("points", "features", "images", "table")}
        if len(set(lengths.values())) != 1 or not 1 <= self.n_neighbours < len(self.table):
            raise ValueError(
                f"got {lengths} and n_neighbours={self.n_neighbours}: expected one row of each for every image, and "
                "more images than neighbours"
            )

    def neighbours(self, row: int) -> np.ndarray:
        """Rows of the nearest images by features, nearest first, of any patient; shape (n_neighbours,)."""
        others = np.delete(np.arange(len(self.table)), row)
        return find_neighbours(self.features, np.array([row]), others, n_neighbours=self.n_neighbours)[0]

    def right(self) -> pd.Series:
        """Whether the prediction of each image is its plane."""
        return self.table["predicted"] == self.table["plane"]

    def title(self, row: int) -> str:
        """What an image is and, on a line of its own, what it was taken for."""
        known = self.table.iloc[row]
        text = f"{short_names([known['plane']])[0]}, patient {known['patient']}\n{known['machine']}"
        if "predicted" not in known:
            return text
        verdict = "right" if known["predicted"] == known["plane"] else "WRONG"
        return f"{text}\npredicted {short_names([known['predicted']])[0]}: {verdict}"


def draw_points(scene: Scene, rows: Sequence[int]) -> Figure:
    """The map with some points ringed, and beside it each one's image, CAM and nearest images.

    Parameters
    ----------
    scene : Scene
    rows : sequence of int
        Images to show, a line of panels for each; the panels of one alone go on in a second line.

    Returns
    -------
    Figure
        New, not known to pyplot.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    if not len(rows):
        raise ValueError("no rows: name at least one image to show")
    n_panels = scene.n_neighbours + (1 if scene.cam is None else 2)
    n_columns = -(-n_panels // 2) if len(rows) == 1 else n_panels
    figure = LooseFigure(4.6 + 1.7 * n_columns, max(4.9, 2.5 * len(rows)))
    left, right = figure.subfigures(1, 2, width_ratios=[4.6, 1.7 * n_columns])
    size = float(np.clip(3000 / len(scene.points), 6, 40))  # few points are drawn larger
    ax = plot_map(scene.points, scene.table["plane"], left.subplots(), size=size)
    add_value_legend(ax, scene.table["plane"], below=True)
    panels = right.subplots(max(2, len(rows)), n_columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    lines = panels if len(rows) > 1 else [panels.ravel()[:n_panels]]
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), start=1):
        _ring(ax, scene.points[row], f"{number}")
        _draw_line(scene, row, line, f"{number}: ")
    return figure


def choose_rows(scene: Scene, *, n_points: int, rng: np.random.Generator) -> np.ndarray:
    """Images for a still: drawn at random, half of them wrongly predicted as far as there are any.

    Returns
    -------
    ndarray of int, shape (n_points,)
        Sorted; fewer if there are fewer images.
    """
    order = rng.permutation(len(scene.table))
    n_points = min(n_points, len(order))
    if "predicted" not in scene.table.columns:
        return np.sort(order[:n_points])
    right = scene.right().to_numpy()[order]
    wrong = order[~right][: max(n_points // 2, n_points - right.sum())]
    return np.sort(np.concatenate([wrong, order[right][: n_points - len(wrong)]]))


class MapExplorer(RowExplorer):
    """Step through the images of a map, all or some, and walk from each to its nearest images.

    A button whose image is held back by a filter sets the filters back.

    Parameters
    ----------
    scene : Scene

    Attributes
    ----------
    walks : list of Button
        To the nearest image, the second nearest, ...; see `RowExplorer` for the others. There are filters for plane,
        patient, machine and, where there are predictions, prediction ("right" or "wrong").
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.walks = [ipywidgets.Button(description=f"to nearest {n}") for n in range(1, scene.n_neighbours + 1)]
        for position, button in enumerate(self.walks):
            button.on_click(lambda _, position=position: self._walk(position))
        super().__init__(_filter_labels(scene), below=[ipywidgets.HBox(self.walks)])

    def draw(self, row: int) -> Figure:
        """The map with the row's point, its image, CAM and nearest images."""
        return draw_points(self.scene, [row])

    def _walk(self, position: int) -> None:
        self.show_row(int(self.scene.neighbours(self.slider.value)[position]))


def _filter_labels(scene: Scene) -> pd.DataFrame:
    labels = scene.table[["plane", "patient", "machine"]].astype(str).reset_index(drop=True)
    if "predicted" in scene.table.columns:
        labels = labels.assign(prediction=np.where(scene.right(), "right", "wrong"))
    return labels


def _ring(ax: Axes, point: np.ndarray, text: str) -> None:
    ax.scatter(*point, s=160, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=3)
    ax.annotate(text, point, (9, 7), textcoords="offset points", color=INK, fontsize=FONT_SIZE, zorder=4)


def _draw_line(scene: Scene, row: int, panels: Sequence[Axes], prefix: str) -> None:
    """The image, its CAM if there is one, and its nearest images, in this order."""
    shown = [(row, prefix + scene.title(row))]
    if scene.cam is not None:
        shown.append((row, "CAM"))
    shown += [(other, f"nearest {n}\n{scene.title(other)}") for n, other in enumerate(scene.neighbours(row), start=1)]
    for position, (panel, (other, title)) in enumerate(zip(panels, shown, strict=True)):
        image = np.asarray(scene.images[other])
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        if scene.cam is not None and position == 1:
            height, width = image.shape
            heat = np.asarray(scene.cam(row), dtype=float)
            panel.imshow(heat, cmap="inferno", alpha=0.5, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        panel.set_title(title, fontsize=FONT_SIZE - 3, color=INK)
