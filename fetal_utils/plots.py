"""Figures that appear more than once, on seaborn: one theme, one colour for a strategy and for a plane everywhere.

Functions draw on the axes they are given, or on new ones, and return them; `save_figure` is for notebooks to call.
The colours stay apart in gray (lightness differs by 9 of 100 and more) and in simulated colour blindness, which the
tests hold; strategies differ by marker and line too.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fetal_utils.environment import replace_file

# the hue tells what the encoder learned from, the darker of two shades that it started from ImageNet weights
STRATEGY_PALETTE = {
    "scratch": "#949494", "imagenet": "#1E1E1E", "imagenet_same_views": "#206F58",
    "simclr_scratch": "#48B5FB", "simclr_imagenet": "#00288F", "dual_scratch": "#F8BD43", "dual_imagenet": "#951B0B",
}  # fmt: skip
STRATEGY_MARKERS = dict(zip(STRATEGY_PALETTE, ("o", "o", "D", "s", "s", "^", "^"), strict=True))
# of seaborn's `dashes`: dashed from random weights, solid from ImageNet weights, dotted for the control
STRATEGY_DASHES = dict(zip(STRATEGY_PALETTE, ((4, 2), "", (1, 1.2), (4, 2), "", (4, 2), ""), strict=True))
PLANE_PALETTE = {
    "Fetal abdomen": "#B90011", "Fetal brain": "#2206D2", "Fetal femur": "#E69E2D", "Fetal thorax": "#3F1C2F",
    "Maternal cervix": "#53DEFF", "Other": "#858585",
    "Trans-thalamic": "#0C404C", "Trans-cerebellum": "#EFA0D9", "Trans-ventricular": "#B64D07",
}  # fmt: skip
MASK_COLOURS = ("#FFD92F", "#66CCEE", "#EE7733", "#CC79A7", "#00CC99")  # bright, to stand out from gray


def set_theme() -> None:
    """The look of all figures, whatever the notebook's own theme: dark text on white, in constrained layout."""
    rc = {"figure.facecolor": "white", "figure.constrained_layout.use": True, "axes.titlelocation": "left"}
    rc |= {"axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9}
    warnings.filterwarnings("ignore", message="The figure layout has changed to tight")  # by seaborn's grids
    sns.set_theme(style="whitegrid", rc=rc | {"legend.title_fontsize": 9, "legend.frameon": False})


def short_name(plane: str) -> str:
    """A plane's name for a tick: "Fetal brain" is "brain", "Trans-thalamic" "thalamic"; other names stay."""
    return plane.split()[-1].split("-")[-1].lower() if plane in PLANE_PALETTE else plane


def plane_colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class: a plane's own, for any other name one of seaborn's by its place in the sorted names."""
    others = sorted({str(name) for name in classes} - set(PLANE_PALETTE))
    palette = PLANE_PALETTE | dict(zip(others, sns.color_palette("husl", len(others)).as_hex(), strict=True))
    return {name: palette[str(name)] for name in classes}


def contact_sheet(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    n_columns: int = 6,
    masks: Mapping[str, Sequence[np.ndarray]] | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Gray images in a grid, on one gray scale: uint8, or float in 0..1, each (height, width); sizes may differ.

    ``masks`` holds, by the name in the legend, a mask for each image and of its shape, which is outlined where it is
    above 0.5. Axes that are given may be more than the images.
    """
    titles, masks = [""] * len(images) if titles is None else titles, masks or {}
    if axes is None:
        n_rows, n_lines = -(-len(images) // n_columns), max(str(title).count("\n") + 1 for title in titles)
        size = (1.7 * n_columns, (1.75 + 0.15 * n_lines) * n_rows + 0.35 * bool(masks))
        _, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    for ax in np.ravel(axes):
        ax.set_axis_off()
    for index, (ax, image, title) in enumerate(zip(np.ravel(axes)[: len(images)], images, titles, strict=True)):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255 if np.issubdtype(image.dtype, np.integer) else 1)
        ax.set_title(title, fontsize=8)
        for stack, colour in zip(masks.values(), MASK_COLOURS, strict=False):
            if 0 < np.mean(stack[index] > 0.5) < 1:  # an even mask has no outline
                ax.contour(np.asarray(stack[index], float), levels=[0.5], colors=[colour], linewidths=1.2)
    if masks:
        lines = [Line2D([], [], color=colour, label=name) for name, colour in zip(masks, MASK_COLOURS, strict=False)]
        ground = {"frameon": True, "facecolor": "#444444", "edgecolor": "none", "framealpha": 1, "labelcolor": "white"}
        np.ravel(axes)[0].figure.legend(handles=lines, loc="outside lower center", ncols=4, **ground)
    return axes


def plot_log(log: pd.DataFrame, measures: Mapping[str, str], *, hue: str | None = None) -> np.ndarray:
    """Measures of a training, columns of its log by their labels, against the epoch, each on its own axes.

    NaN where one was not measured. Rows of several trainings are told apart by the column ``hue``, say "strategy",
    whose names have their own colours.
    """
    _, axes = plt.subplots(1, len(measures), figsize=(3.6 * len(measures), 3), squeeze=False)
    look = {"hue": hue, "palette": STRATEGY_PALETTE if hue == "strategy" else None, "errorbar": None}
    for ax, (name, label) in zip(axes[0], measures.items(), strict=True):
        measured, legend = log.dropna(subset=[name]), "auto" if hue and ax is axes[0, 0] else False
        marker = {"marker": "o", "markersize": 4} if measured["epoch"].nunique() <= 30 else {}
        sns.lineplot(measured, x="epoch", y=name, legend=legend, ax=ax, **look, **marker)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.set(xlabel="epoch", ylabel=label)
    return axes


def plot_confusion(counts: np.ndarray, classes: Sequence[str], ax: Axes | None = None) -> Axes:
    """Confusion matrix of counts (true, predicted), coloured by the share of the true class, blank without images."""
    counts = np.asarray(counts)
    ax, totals = ax or plt.subplots(figsize=(5.4, 4.4))[1], counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    names = [short_name(name) for name in classes]
    sns.heatmap(
        share, vmin=0, vmax=1, cmap="Blues", annot=counts, fmt=",.0f", linewidths=0.5, ax=ax,
        xticklabels=names, yticklabels=[f"{name} ({n:,.0f})" for name, n in zip(names, totals[:, 0], strict=True)],
        cbar_kws={"label": "share of the true class"},
    )  # fmt: skip
    ax.set(xlabel="predicted", ylabel="true (images)")
    ax.tick_params(axis="x", rotation=35)
    ax.tick_params(axis="y", rotation=0)
    ax.grid(False)
    return ax


def plot_cam_grid(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    titles: Sequence[str],
    *,
    answers: Mapping[str, Sequence[str]] | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Maps over their images: a column for each image, a row for each network, each row on its own scale.

    ``images`` are uint8, (n_images, side, side), ``maps`` of the same shape, by the name of their row and not negative:
    the row's highest value is opaque, 0 shows the image as it is. ``titles`` are the true planes, say; ``answers`` what
    the network of a row says of each image, in red where that is not the title.
    """
    answers = answers or {}
    if axes is None:
        size = (1.45 * len(images) + 0.4, 1.65 * len(maps) + 0.4)
        _, axes = plt.subplots(len(maps), len(images), figsize=size, squeeze=False)
    for n_row, (row, (name, stack)) in enumerate(zip(axes, maps.items(), strict=True)):
        heat = np.clip(stack / max(float(np.max(stack)), 1e-12), 0, 1)
        for index, ax in enumerate(row):
            ax.imshow(images[index], cmap="gray", vmin=0, vmax=255)
            ax.imshow(heat[index], cmap="plasma", vmin=0, vmax=1, alpha=0.6 * np.sqrt(heat[index]))
            ax.set(xticks=[], yticks=[])
            answer = answers[name][index] if name in answers else titles[index]
            title = short_name(titles[index]) if n_row == 0 or name in answers else ""
            title += f"\nsays {short_name(answer)}" if name in answers else ""
            ax.set_title(title, fontsize=8, color="black" if answer == titles[index] else "#B90011")
        row[0].set_ylabel(name.replace("_", "\n"), fontsize=8)
    return axes


def plot_embedding(points: np.ndarray, values: pd.Series, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Points of a map, (n_images, 2), coloured by what they are; no ticks, as distances on such maps have no unit."""
    ax = ax or plt.subplots(figsize=(5, 4))[1]
    names = sorted(values.unique())
    sns.scatterplot(
        x=points[:, 0], y=points[:, 1], hue=values.to_numpy(), hue_order=names, palette=plane_colours(names), s=14,
        linewidth=0, alpha=0.8, legend=legend and len(names) <= 12, ax=ax, rasterized=True,
    )  # fmt: skip
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    if ax.get_legend():
        sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title=str(values.name))
    return ax


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 120) -> None:
    """Write a figure as ``<path>.png`` and ``<path>.svg``, in a folder that is made: same numbers, same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "fetal_utils"}):  # else matplotlib names the parts of an SVG at random
        for ending, metadata in {"png": None, "svg": {"Date": None}}.items():
            write = partial(figure.savefig, format=ending, dpi=dpi, metadata=metadata)
            replace_file(path.with_name(f"{path.name}.{ending}"), write)  # dots stay, as in 04_differences.planes


def draw_panels(table: pd.DataFrame, width: float, height: float) -> tuple[np.ndarray, Iterator[tuple]]:
    """Axes of a new figure, two in a row, and with each of them the rows of one task and protocol."""
    panels = list(table.groupby(["task", "protocol"], sort=False))
    n_rows, n_columns = -(-len(panels) // 2), min(2, len(panels))
    _, axes = plt.subplots(n_rows, n_columns, figsize=(width * n_columns, height * n_rows), squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return axes, zip(axes.flat, panels, strict=False)


def plot_label_efficiency(curves: pd.DataFrame) -> np.ndarray:
    """Rows of ``label_efficiency.csv`` of one metric: mean over pairs, band of one standard deviation over them."""
    axes, panels = draw_panels(curves, 5.2, 3.9)
    names = [name for name in STRATEGY_PALETTE if name in set(curves["strategy"])]
    by = {"hue": "strategy", "style": "strategy", "hue_order": names, "style_order": names}
    look = {"palette": STRATEGY_PALETTE, "markers": STRATEGY_MARKERS, "dashes": STRATEGY_DASHES, "errorbar": None}
    for ax, ((task, protocol), own) in panels:
        sns.lineplot(own, x="n_images", y="value", ax=ax, legend=ax is axes[0, 0], **by, **look)
        for name, arm in own.sort_values("n_images").groupby("strategy"):
            spread = arm["sd_over_pairs"].fillna(0)
            ends = arm["value"] - spread, arm["value"] + spread
            ax.fill_between(arm["n_images"], *ends, color=STRATEGY_PALETTE.get(name), alpha=0.12, linewidth=0)
        ax.set(xscale="log", title=f"{task}, {protocol}", xlabel="labelled images", ylabel="macro-F1, test patients")
        ticks = own.groupby("label_fraction")["n_images"].mean().round().unique()  # arms of fewer pairs have their own
        ax.set_xticks(ticks, [f"{n:.0f}" for n in ticks], minor=False)
        ax.minorticks_off()
    if legend := axes[0, 0].get_legend():
        weak = {text: f"{text} (under-trained)" for text in curves["strategy"][curves["under_trained"].eq(True)]}
        handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        labels = [weak.get(label, label) for label in labels]
        legend.remove()
        axes[0, 0].figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return axes


def plot_differences(comparisons: pd.DataFrame) -> np.ndarray:
    """Rows of ``comparisons.csv`` of one metric: differences with 95 % intervals, filled where resolved."""
    axes, panels = draw_panels(comparisons, 5.6, 1 + 0.22 * comparisons.groupby(["task", "protocol"]).size().max())
    for ax, ((task, protocol), own) in panels:
        own = own.sort_values(["strategy", "baseline", "label_fraction"], ignore_index=True)
        for place, row in enumerate(own.itertuples()):
            colour = STRATEGY_PALETTE.get(row.strategy, "#444444")
            ax.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6)
            fill = colour if bool(row.resolved) else "white"
            ax.plot(row.difference, place, marker="o", color=colour, markerfacecolor=fill, markersize=6)
        names = own["strategy"] + " - " + own["baseline"] + own["label_fraction"].map(", {:.0%}".format)
        names += own["under_trained"].map({True: " (under-trained)", False: ""})
        ax.set_yticks(range(len(own)), names, fontsize=8)
        ax.locator_params(axis="x", nbins=6)
        ax.axvline(0, color="#444444", linewidth=1)
        ax.axvspan(-0.03, 0.03, color="#888888", alpha=0.12, linewidth=0)  # no relevant difference
        ax.set(title=f"{task}, {protocol}", xlabel="difference in macro-F1")
        ax.invert_yaxis()
    return axes


def plot_claim(claim: pd.DataFrame) -> Axes:
    """The claim with its 95 % interval, then what it is made of: rows of ``claim.csv`` on the scale of F1."""
    rows = claim[claim["scale"] == "f1"]
    ax, names = plt.subplots(figsize=(8, 1.0 + 0.32 * len(rows)))[1], []
    for place, row in enumerate(rows.itertuples()):
        colour, is_main = STRATEGY_PALETTE.get(row.strategy, "#444444"), bool(row.primary)
        width, marker, size = (3.5, "D", 9) if is_main else (1.4, "o", 5)
        ax.plot([row.low, row.high], [place, place], color=colour, linewidth=width)
        ax.plot(row.difference_of_gains, place, marker=marker, color=colour, markersize=size)
        shares = [f"{float(part):.0%}" for part in str(row.label_fraction).split(", ") if part]
        at = f"{row.n_images:.0f} images" if row.matching == "number" else f"{', '.join(shares)} of the labels"
        names.append(f"{'CLAIM: ' * is_main}{row.strategy}, {at}{' (under-trained)' * bool(row.under_trained)}")
    ax.set_yticks(range(len(rows)), names, fontsize=9)
    ax.axvline(0, color="#444444", linewidth=1)
    ax.set(xlabel="gain on brain planes minus gain on planes, macro-F1")
    ax.invert_yaxis()
    return ax
