"""Figures of features: maps side by side with their scores, one map under many settings, and CKA between stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fetal_utils.data_plots import require_rows
from fetal_utils.embeddings import EmbeddingMap
from fetal_utils.palette import FONT_SIZE, INK, LooseFigure, add_legend, colours_for, finish, short_names

# Okabe and Ito 2008, "Color universal design", without yellow and black; there are more patients than colours
PATIENT_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
PATIENT_MARKERS = ("o", "^", "s", "D", "v", "P", "X")
MOST_NAMES = 12  # in a legend
METHOD_NAMES = {"original": "features", "pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
SCORE_NAMES = {
    "knn_accuracy": "kNN",
    "silhouette": "silhouette",
    "separability": "separable",
    "trustworthiness": "trust",
    "continuity": "continuity",
}


def plot_map(points: np.ndarray, values: pd.Series, ax: Axes, *, title: str = "", size: float = 8.0) -> Axes:
    """Points of a map, coloured by what they are.

    Parameters
    ----------
    points : ndarray, shape (n_images, 2)
    values : Series, one per image
        Named "patient" for the colours and markers of patients, else any label, such as "plane".
    ax : Axes
        To draw on.
    title : str
    size : float
        Area of a marker, square points.

    Returns
    -------
    Axes
        The one given, without ticks: distances on these maps have no unit.

    Raises
    ------
    ValueError
        If there is not one value for each point.
    """
    if len(values) != len(points) or not len(points):
        raise ValueError(f"{len(points)} points and {len(values)} values: give one each, at least one")
    styles = point_styles(values)
    colours = np.array([styles[value][0] for value in values])
    markers = np.array([styles[value][1] for value in values])
    for marker in dict.fromkeys(markers):
        own = markers == marker  # in the order of the table, so that no class lies over all others
        ax.scatter(*points[own].T, s=size, c=colours[own], marker=marker, alpha=0.75, linewidths=0, rasterized=True)
    finish(ax)
    ax.set_title(title, fontsize=FONT_SIZE - 1, color=INK, loc="left")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def point_styles(values: pd.Series) -> dict[object, tuple[str, str]]:
    """Colour and marker of each distinct value.

    Patients, who are many, take the colours in turn and with each round the next marker; after
    ``len(PATIENT_COLOURS) * len(PATIENT_MARKERS)`` patients both repeat.
    """
    names = sorted(values.unique())
    if values.name != "patient":
        return {name: (colour, "o") for name, colour in colours_for(names).items()}
    n_colours, n_markers = len(PATIENT_COLOURS), len(PATIENT_MARKERS)
    return {
        name: (PATIENT_COLOURS[index % n_colours], PATIENT_MARKERS[index // n_colours % n_markers])
        for index, name in enumerate(names)
    }


def add_value_legend(ax: Axes, values: pd.Series, *, below: bool = False) -> None:
    """Beside the axes or below: each value with its look, or for many patients how their looks are to be read."""
    styles = point_styles(values)
    where = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 3} if below else {
        "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)
    }  # fmt: skip
    if len(styles) > MOST_NAMES:
        n_styles = len(set(styles.values()))
        again = "" if n_styles == len(styles) else f"\nsame look: not always\nthe same {values.name}"
        text = f"{len(styles)} {values.name}s,\n{n_styles} colours and\nmarkers{again}"
        styles = {text: ("none", "o")}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5, label=name)
        for name, (colour, marker) in zip(short_names([str(name) for name in styles]), styles.values(), strict=True)
    ]
    add_legend(ax, title=str(values.name), handles=handles, alignment="left", **where)


def plot_maps(
    maps: Sequence[EmbeddingMap],
    metadata: pd.DataFrame,
    *,
    labels: Sequence[str] = ("plane", "patient", "machine"),
    scores: pd.DataFrame | None = None,
    panel_inches: float = 3.6,
) -> Figure:
    """Maps side by side, a column for each, and a row for each label that colours them.

    Parameters
    ----------
    maps : sequence of EmbeddingMap
        Of the same images.
    metadata : DataFrame, one row per image
        With a column for each label.
    labels : sequence of str
    scores : DataFrame, optional
        From `embedding_scores`, of one task and strategy: written in the titles, with intervals over patients.
    panel_inches : float
        Side of a panel.

    Returns
    -------
    Figure
        New, not known to pyplot.

    Raises
    ------
    ValueError
        If there is no map or label, a column is missing, or the scores are of several strategies.
    """
    if not maps or not labels:
        raise ValueError(f"{len(maps)} maps and the labels {list(labels)}: give at least one of each")
    require_rows(metadata, list(labels))
    if scores is not None and scores.duplicated(["method", "setting", "label", "score"]).any():
        raise ValueError("the scores repeat for one map and label: choose the rows of one task and strategy")
    size = (panel_inches * len(maps) + 1.6, (panel_inches + 0.7) * len(labels))
    figure = LooseFigure(*size)
    panels = figure.subplots(len(labels), len(maps), squeeze=False)
    for row, label in zip(panels, labels, strict=True):
        for column, (ax, one) in enumerate(zip(row, maps, strict=True)):
            title = f"{METHOD_NAMES.get(one.method, one.method)}, {one.setting}"
            # trustworthiness and continuity look at no label: they stand in the first row
            lines = _score_lines(scores, one, [label, "all"] if label == labels[0] else [label])
            plot_map(one.points, metadata[label], ax, title=f"{title}\n{lines}".rstrip())
            if column == 0:
                ax.set_ylabel(f"by {label}")
        add_value_legend(row[-1], metadata[label])
    return figure


def plot_settings(
    maps: Sequence[EmbeddingMap],
    values: pd.Series,
    *,
    scores: pd.DataFrame | None = None,
    panel_inches: float = 2.2,
) -> Figure:
    """One method under many settings: a row for each perplexity or number of neighbours, a column for each seed.

    Parameters
    ----------
    maps : sequence of EmbeddingMap
        Of one method and the same images.
    values : Series, one per image
        What colours the points, see `plot_map`.
    scores : DataFrame, optional
        As for `plot_maps`.
    panel_inches : float
        Side of a panel.

    Returns
    -------
    Figure
        New, not known to pyplot.

    Raises
    ------
    ValueError
        If the maps are of several methods, or two have the same setting.
    """
    methods = sorted({one.method for one in maps})
    if len(methods) != 1 or len({one.setting for one in maps}) != len(maps):
        raise ValueError(
            f"{len(maps)} maps of the methods {methods}: give those of one method, each with its own setting and seed"
        )
    placed = {(_without_seed(one), one.options.get("seed", 0)): one for one in maps}
    settings = list(dict.fromkeys(setting for setting, _ in placed))
    seeds = sorted({seed for _, seed in placed})
    size = (panel_inches * len(seeds) + 1.4, (panel_inches + 0.3) * len(settings) + 0.3)
    figure = LooseFigure(*size)
    panels = figure.subplots(len(settings), len(seeds), squeeze=False)
    for (row, column), ax in np.ndenumerate(panels):
        if (one := placed.get((settings[row], seeds[column]))) is None:
            ax.set_axis_off()
            continue
        plot_map(one.points, values, ax, size=4.0)
        lines = _score_lines(scores, one, [str(values.name)], intervals=False)
        ax.set_title(lines, fontsize=FONT_SIZE - 3, color=INK, loc="left")
        if column == 0:
            ax.set_ylabel(settings[row], fontsize=FONT_SIZE - 1)
        if row == len(settings) - 1:
            ax.set_xlabel(f"seed {seeds[column]:g}", fontsize=FONT_SIZE - 1)
    figure.suptitle(f"{METHOD_NAMES.get(methods[0], methods[0])} by {values.name}", fontsize=FONT_SIZE + 1, color=INK)
    add_value_legend(panels[0, -1], values)
    return figure


def plot_cka(matrix: pd.DataFrame, ax: Axes, *, names: tuple[str, str] = ("", "")) -> Axes:
    """CKA between the stages of two encoders as a heat map, with its numbers.

    Parameters
    ----------
    matrix : DataFrame
        From `similarity.cka_matrix`.
    ax : Axes
        To draw on.
    names : tuple of str
        Of the encoders in the rows and in the columns.

    Returns
    -------
    Axes
        The one given. The first stage is at the lower left; a stage without a value (NaN) is blank.

    Raises
    ------
    ValueError
        If the matrix is empty.
    """
    if matrix.empty:
        raise ValueError(f"a matrix of shape {matrix.shape}: expected at least one stage of each encoder")
    values = matrix.to_numpy(float)
    image = ax.imshow(values, cmap="viridis", vmin=0, vmax=1, origin="lower")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = INK if value > 0.55 else "white"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=FONT_SIZE - 1)
    ax.set_xticks(range(matrix.shape[1]), matrix.columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(matrix.shape[0]), matrix.index)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.04)
    bar.set_label("linear CKA", fontsize=FONT_SIZE - 1, color=INK)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
    rows, columns = (f"stage of {name}" if name else "stage" for name in names)
    return finish(ax, xlabel=columns, ylabel=rows)


def _without_seed(one: EmbeddingMap) -> str:
    options = {name: value for name, value in one.options.items() if name != "seed"}
    return EmbeddingMap(one.method, one.points, options).setting


def _score_lines(
    scores: pd.DataFrame | None, one: EmbeddingMap, labels: Sequence[str], *, intervals: bool = True
) -> str:
    """The scores of a map for some labels: one in a line with intervals, two without; empty if none are given."""
    if scores is None:
        return ""
    own = scores[(scores["method"] == one.method) & (scores["setting"] == one.setting)]
    own = own[own["label"].isin(labels) & own["score"].isin(SCORE_NAMES)]
    texts = [_score_text(row, intervals=intervals) for row in own.itertuples()]
    n_in_line = 1 if intervals else 2
    return "\n".join(", ".join(texts[start : start + n_in_line]) for start in range(0, len(texts), n_in_line))


def _score_text(row: tuple, *, intervals: bool) -> str:
    interval = f" ({row.low:.2f} to {row.high:.2f})" if intervals and np.isfinite(row.low) else ""
    return f"{SCORE_NAMES[row.score]} {row.value:.2f}{interval}"
