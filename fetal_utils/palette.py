"""Colours, markers and short names: the same for a plane or a strategy in every figure.

The colours stay apart in normal vision and in simulated protanopia, deuteranopia and tritanopia (Machado et al.
2009, IEEE Trans Vis Comput Graph 15:1291), which the tests hold: by CIEDE2000, where about 2 is just noticeable side
by side, the planes of a task differ by 25 and more, the strategies by 20. Strategies also differ by marker and line.
"""

import io
import zlib
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PLANE_COLOURS = {
    "Fetal abdomen": "#CC1100",
    "Fetal brain": "#2222CC",
    "Fetal femur": "#EEBB55",
    "Fetal thorax": "#551133",
    "Maternal cervix": "#00BBFF",
    "Other": "#888888",
    "Trans-thalamic": "#004477",
    "Trans-cerebellum": "#EE77BB",
    "Trans-ventricular": "#880000",
}

# the hue tells what the encoder learned from, the darker of two shades that it started from ImageNet weights
STRATEGY_COLOURS = {
    "scratch": "#999999",
    "imagenet": "#222222",
    "simclr_scratch": "#56B4E9",
    "simclr_imagenet": "#0072B2",
    "dual_scratch": "#E69F00",
    "dual_imagenet": "#B34400",
}
STRATEGY_MARKERS = {
    "scratch": "o",
    "imagenet": "o",
    "simclr_scratch": "s",
    "simclr_imagenet": "s",
    "dual_scratch": "^",
    "dual_imagenet": "^",
}

FALLBACK_COLOURS = ("#009988", "#AA4499", "#999933", "#EE7733", "#332288", "#117733", "#88CCEE", "#CC6677")

SHORT_NAMES = {
    "Fetal abdomen": "abdomen",
    "Fetal brain": "brain",
    "Fetal femur": "femur",
    "Fetal thorax": "thorax",
    "Maternal cervix": "cervix",
    "Other": "other",
    "Trans-thalamic": "thalamic",
    "Trans-cerebellum": "cerebellum",
    "Trans-ventricular": "ventricular",
}

INK = "#222222"  # of text and axes, on the white that `whiten` sets
FONT_SIZE = 10  # points


def colours_for(names: Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour for each name: its own where it has one, else one of `FALLBACK_COLOURS`.

    Parameters
    ----------
    names : sequence of str
        What is drawn together. Their order does not matter.
    known : mapping of str to str, optional
        Colours by name; those of all planes and strategies if not given.

    Returns
    -------
    dict of str to str
        In the order of the names. An unknown name gets a colour by its checksum, so the same in every figure,
        unless a name that sorts before it has taken that colour: then the next free one.
    """
    known = {**PLANE_COLOURS, **STRATEGY_COLOURS} if known is None else known
    found = {name: known[name] for name in names if name in known}
    for name in sorted({str(name) for name in names} - set(found)):
        start = zlib.crc32(name.encode())
        turns = [FALLBACK_COLOURS[(start + step) % len(FALLBACK_COLOURS)] for step in range(len(FALLBACK_COLOURS))]
        found[name] = next((colour for colour in turns if colour not in found.values()), turns[0])
    return {name: found[str(name)] for name in names}


def short_names(names: Sequence[str]) -> list[str]:
    """Names short enough for a tick label; a name without a short form stays as it is."""
    return [SHORT_NAMES.get(name, name) for name in names]


def line_style(strategy: str) -> dict[str, str]:
    """Marker and line of a strategy: dashed from random weights, solid from ImageNet weights."""
    linestyle = "--" if strategy.endswith("scratch") else "-"
    return {"marker": STRATEGY_MARKERS.get(strategy, "D"), "linestyle": linestyle}


def whiten(figure: Figure) -> None:
    """White background under a figure, so that its dark text is legible in a dark theme too."""
    figure.set_facecolor("white")


def finish(ax: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "", grid: str = "") -> Axes:
    """Label an axes and give it the look of all figures here.

    Parameters
    ----------
    ax : Axes
        Drawn already.
    xlabel, ylabel : str
        With the unit, if there is one.
    title : str
        Left off if empty.
    grid : str
        "x", "y", "both" or empty for none.

    Returns
    -------
    Axes
        The one given.
    """
    whiten(ax.figure)
    ax.set_facecolor("white")
    ax.set_xlabel(xlabel, fontsize=FONT_SIZE, color=INK)
    ax.set_ylabel(ylabel, fontsize=FONT_SIZE, color=INK)
    if title:
        ax.set_title(title, fontsize=FONT_SIZE + 1, color=INK, loc="left")
    ax.tick_params(which="both", labelsize=FONT_SIZE - 1, colors=INK)
    for side, spine in ax.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    if grid:
        ax.grid(axis=grid, color="#DDDDDD", linewidth=0.8)
        ax.set_axisbelow(True)
    return ax


class LooseFigure(Figure):
    """A figure that pyplot does not know and that a cell shows all the same, whether or not pyplot has drawn before.

    Parameters
    ----------
    width, height : float
        In inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        whiten(self)

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, *, dpi: int = 100) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def add_legend(ax: Axes, *, title: str = "", **kwargs) -> None:
    """A frameless legend in dark text."""
    size = FONT_SIZE - 1
    legend = ax.legend(title=title, frameon=False, fontsize=size, title_fontsize=size, labelcolor=INK, **kwargs)
    legend.get_title().set_color(INK)
