"""Figures of class activation maps: where networks look, and what their maps score beside those that know nothing."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fetal_utils.cam_maps import to_common_scale
from fetal_utils.data_plots import require_rows
from fetal_utils.palette import FONT_SIZE, INK, LooseFigure, add_legend, colours_for, finish, short_names

HEAT = "plasma"
OPACITY = 0.6  # of the highest value; where a map is 0 the image is seen as it is
WRONG = "#CC3311"  # a prediction that is not the true plane
BASELINE_STYLE = {
    "random": {"marker": "x", "color": "#777777"},
    "gaussian": {"marker": "+", "color": "#777777", "markersize": 8},
    "reinitialised": {"marker": "D", "color": "#777777", "markerfacecolor": "none", "markersize": 4},
}
SCORE_LABELS = {
    "road": "ROAD (higher is better)",
    "insertion": "insertion area (higher is better)",
    "deletion": "deletion area (lower is better)",
    "shift_stability": "correlation with the shifted image's map",
    "speckle_stability": "correlation with the speckled image's map",
    "pointing_game": "peak inside {}, share of images",
    "energy": "share of the map inside {}",
    "energy_ratio": "share of the map inside {}\nover its share of the image",
}
KIND_LABELS = {"leak": "the leaked text", "corner": "the scanner's corner"}
EVEN = {"energy_ratio": 1.0, "road": 0.0}  # what a map that knows nothing scores


def plot_cams(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    true: Sequence[str],
    predicted: Mapping[str, Sequence[str]],
    *,
    percentile: float = 99.5,
    panel_inches: float = 1.5,
) -> Figure:
    """Maps over their images: a column for each image, a row for each network or kind of map, one scale for all.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_images, side, side)
    maps : mapping of str to ndarray, shape (n_images, side, side)
        Raw maps of one method, by the name of the row.
    true : sequence of str, length n_images
        True planes.
    predicted : mapping of str to sequence of str, each of length n_images
        Predicted planes by the name of the row; a row without any has none written.
    percentile : float
        As for `to_common_scale`.
    panel_inches : float
        Width of a panel, in inches.

    Returns
    -------
    Figure
        New, not known to pyplot: show it as the last line of a cell, or save it.

    Raises
    ------
    ValueError
        If there is no image or map, or counts or shapes differ.
    """
    counts = {"true": len(true)} | {f"predicted of {name!r}": len(planes) for name, planes in predicted.items()}
    shapes = {name: stack.shape for name, stack in maps.items()}
    if not len(images) or set(shapes.values()) != {images.shape} or set(counts.values()) != {len(images)}:
        raise ValueError(
            f"images {images.shape}, maps {shapes}, {counts}: give maps of the images' shape, one name each"
        )
    if unknown := [name for name in predicted if name not in maps]:
        raise ValueError(f"predictions of {unknown}, maps of {list(maps)}: give them the same names")
    scaled = to_common_scale(np.stack(list(maps.values())), percentile=percentile)  # (n_rows, n_images, side, side)
    height = max(2.6, (panel_inches + 0.35) * len(maps))  # the labels of a single row and of the bar need that
    figure = LooseFigure(panel_inches * len(images) + 1.1, height)
    panels = figure.subplots(len(maps), len(images), squeeze=False)
    for row, (name, row_panels) in enumerate(zip(maps, panels, strict=True)):
        for column, panel in enumerate(row_panels):
            _draw_map(panel, images[column], scaled[row, column])
            said = predicted[name][column] if name in predicted else None
            _write_title(panel, true[column], said, with_true=row == 0 or bool(said))
        row_panels[0].set_ylabel(name, fontsize=FONT_SIZE - 1, color=INK)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colormaps[HEAT]), ax=panels, fraction=0.03, pad=0.02)
    bar.set_label("map, of the highest value of all", fontsize=FONT_SIZE - 1, color=INK)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
    return figure


def _draw_map(panel: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    panel.imshow(image, cmap="gray", vmin=0, vmax=255)
    panel.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=OPACITY * np.sqrt(heat))  # low values are seen, zero is not
    panel.set_xticks([])
    panel.set_yticks([])


def _write_title(panel: Axes, true: str, predicted: str | None, *, with_true: bool) -> None:
    names = short_names([name for name in (true, predicted) if name])
    colour = WRONG if predicted and predicted != true else INK
    if with_true:
        text = names[0] if predicted is None else f"{names[0]}\npredicted {names[1]}"
        panel.set_title(text, fontsize=FONT_SIZE - 2, color=colour)


def plot_cam_scores(rows: pd.DataFrame, ax: Axes, *, score: str, plane: str = "all") -> Axes:
    """One score of each strategy's maps, with its interval, beside the three maps that know nothing.

    Parameters
    ----------
    rows : DataFrame
        From `cam_rows`, of one task, protocol, label fraction, seed and method; strategies below each other.
    ax : Axes
        To draw on.
    score : str
        Which score to draw.
    plane : str
        A plane, or "all".

    Returns
    -------
    Axes
        The one given.

    Raises
    ------
    ValueError
        If there is no such row, a column is missing, or rows repeat (several runs or methods at once).
    """
    require_rows(rows, ["strategy", "map", "plane", "score", "value", "low", "high"])
    own = rows[(rows["score"] == score) & (rows["plane"] == plane)]
    if own.empty:
        raise ValueError(
            f"no row of score={score!r} and plane={plane!r}: there are {sorted(set(rows['score']))} and "
            f"{sorted(set(rows['plane']))}"
        )
    if own.duplicated(["strategy", "map"]).any():
        raise ValueError("several rows for one strategy and map: choose one task, protocol, fraction, seed and method")
    strategies = list(dict.fromkeys(own["strategy"]))
    colours = colours_for(strategies)
    model = own[own["map"] == "model"].set_index("strategy").reindex(strategies)
    for place, strategy in enumerate(strategies):
        style = {"marker": "o", "color": colours[strategy], "markersize": 6}
        _draw_interval(ax, [place - 0.24], model.loc[[strategy]], **style)
    for offset, (name, style) in zip((-0.08, 0.08, 0.24), BASELINE_STYLE.items(), strict=True):
        baseline = own[own["map"] == name].set_index("strategy").reindex(strategies)
        _draw_interval(ax, np.arange(len(strategies)) + offset, baseline, label=name, **style)
    if (known := _find(EVEN, score)) is not None:
        ax.axhline(known, color="#BBBBBB", linewidth=0.8, zorder=0)
    ax.plot([], [], "o", color=INK, label="the network's map")
    ax.set_xticks(range(len(strategies)), strategies, rotation=20, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, len(strategies) - 0.5)
    finish(ax, ylabel=score_label(score), grid="y", title="" if plane == "all" else short_names([plane])[0])
    add_legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def score_label(score: str) -> str:
    """What an axis calls a score: of a mask, its kind is part of the name."""
    if score in SCORE_LABELS:
        return SCORE_LABELS[score]
    name = _prefix(SCORE_LABELS, score)
    kind = score.removeprefix(f"{name}_")
    return SCORE_LABELS[name].format(KIND_LABELS.get(kind, f"the {kind}")) if name else score


def _prefix(names: Mapping, score: str) -> str:
    """The longest of the names that the score begins with, or an empty string."""
    return max((name for name in names if score == name or score.startswith(f"{name}_")), key=len, default="")


def _find(values: Mapping[str, float], score: str) -> float | None:
    return values.get(_prefix(values, score))


def _draw_interval(ax: Axes, x: Sequence[float], rows: pd.DataFrame, **style) -> None:
    below, above = (rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)
    ax.errorbar(x, rows["value"], yerr=[below, above], linestyle="none", capsize=2, elinewidth=1, **style)
