"""Figures as files: PNG to look at, SVG to print, and the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from fetal_utils.files import replace_file

FORMATS = ("png", "svg")
DPI = 120  # of the PNG, and of what is an image inside the SVG
SVG_SALT = "fetal_utils"  # else matplotlib names the parts of an SVG at random


def render(figure: Figure, ending: str, *, dpi: int = DPI) -> bytes:
    """A figure as the bytes of a file; without a date, so the same figure gives the same bytes.

    Parameters
    ----------
    figure : Figure
        Known to pyplot or not.
    ending : str
        One of `FORMATS`.
    dpi : int
        Pixels per inch.

    Raises
    ------
    ValueError
        If the ending is another.
    """
    if ending not in FORMATS:
        raise ValueError(f"ending={ending!r}: expected one of {list(FORMATS)}")
    metadata = {"Date": None} if ending == "svg" else None
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": SVG_SALT}):
        figure.savefig(buffer, format=ending, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def save_figure(figure: Figure, folder: str | Path, name: str, *, dpi: int = DPI) -> None:
    """Write a figure as ``<folder>/<name>.png`` and ``.svg``, both drawn before either is written.

    The figure's layout is that of the PNG from then on.

    Parameters
    ----------
    figure : Figure
    folder : path
        Made if need be.
    name : str
        Without ending; dots in it are kept, as in ``04_differences.planes``.
    dpi : int
        Pixels per inch.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for ending in FORMATS:
        drawn[folder / f"{name}.{ending}"] = render(figure, ending, dpi=dpi)
        figure.set_layout_engine("none")  # all stays where it is; arranging it anew takes as long as drawing it
    for path, content in drawn.items():
        replace_file(path, _writer(content))


def _writer(content: bytes) -> Callable[[Path], int]:
    return lambda beside: beside.write_bytes(content)
