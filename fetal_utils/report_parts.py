"""The parts of a report's page as HTML: tables that scroll, figures with captions, notices, and what is missing.

They are shown by a notebook as they will stand on the page, so everything a picture needs lies inside it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from fetal_utils.figures import render

PICTURE_QUALITY = 80  # of WebP; text in a figure stays sharp
LONG = 40  # characters, from which a cell breaks into lines
TITLES = {
    "linear_probe": "the encoder frozen",
    "fine_tune": "all weights trained",
    "planes": "which look different",
    "brain_planes": "which look alike",
}


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Attributes
    ----------
    source : str
        A data URI.
    alt : str
        What is to be seen, in words, for those who can't see it.

    Raises
    ------
    ValueError
        If there is no alternative text.
    """

    source: str
    alt: str

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a picture needs alternative text: say in words what is to be seen")

    @classmethod
    def of_figure(cls, figure: Figure, alt: str) -> Panel:
        """A drawn figure, as SVG."""
        return cls(data_uri(render(figure, "svg"), "image/svg+xml"), alt)

    @classmethod
    def of_file(cls, path: str | Path, alt: str) -> Panel:
        """A picture file, packed smaller."""
        buffer = io.BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(buffer, format="WEBP", quality=PICTURE_QUALITY)
        return cls(data_uri(buffer.getvalue(), "image/webp"), alt)


def data_uri(content: bytes, mime: str) -> str:
    """Bytes as an address that needs no network."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def figure_html(panels: Sequence[Panel], caption: str) -> HTML:
    """Pictures side by side, or below each other on a narrow screen, with one caption.

    Raises
    ------
    ValueError
        If there is no picture or no caption.
    """
    if not panels or not caption.strip():
        raise ValueError(f"{len(panels)} pictures and the caption {caption!r}: expected at least one, and a caption")
    images = "".join(f'<img src="{panel.source}" alt="{escape(panel.alt)}">' for panel in panels)
    kind = "pair" if len(panels) > 1 else "single"
    return HTML(f'<figure class="{kind}"><div>{images}</div><figcaption>{escape(caption)}</figcaption></figure>')


def table_html(table: pd.DataFrame, caption: str, *, classes: pd.DataFrame | None = None) -> HTML:
    """A table with its index as row headings, in a box that scrolls sideways where it is too wide.

    Parameters
    ----------
    table : DataFrame
        Values are written as text, missing ones as nothing; a line break in one is kept.
    caption : str
    classes : DataFrame of str, optional
        Of the same shape: the CSS class of each cell.

    Raises
    ------
    ValueError
        If the classes are of another shape, or there is no caption.
    """
    if not caption.strip() or (classes is not None and classes.shape != table.shape):
        raise ValueError(f"table {table.shape}, classes {getattr(classes, 'shape', None)}, caption {caption!r}")
    texts = table.astype(object).where(table.notna(), "").astype(str)
    kinds = classes if classes is not None else texts.map(lambda text: "")
    long = {place for place, values in enumerate(texts.to_numpy().T) if longest_line(values) > LONG}
    heads = [_cell("th", name or "", 'scope="col" class="name"') for name in table.index.names]
    heads += [
        _cell("th", name, f'scope="col"{_class("text" if place in long else "")}')
        for place, name in enumerate(table.columns)
    ]
    rows = []
    for name, values, own in zip(table.index, texts.to_numpy(), kinds.to_numpy(), strict=True):
        cells = [_cell("th", one, 'scope="row"') for one in (name if isinstance(name, tuple) else (name,))]
        cells += [
            _cell("td", text, _class(f"{kind} text" if place in long else kind))
            for place, (text, kind) in enumerate(zip(values, own, strict=True))
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return HTML(
        f'<figure class="table"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></figure>"
    )


def longest_line(texts: Iterable[str]) -> int:
    """Characters of the longest line of some texts."""
    return max((len(line) for text in texts for line in text.split("\n")), default=0)


def _cell(tag: str, text: object, attributes: str) -> str:
    return f"<{tag} {attributes.strip()}>{escape(str(text))}</{tag}>".replace(" >", ">")


def _class(names: str) -> str:
    return f' class="{escape(names.strip())}"' if names.strip() else ""


def tiles_html(facts: Mapping[str, object]) -> HTML:
    """A few large numbers, each above what it counts."""
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    return HTML(f'<dl class="tiles">{tiles}</dl>')


def notice_html(title: str, text: str, *, kind: str = "") -> HTML:
    """A box that is not overlooked; the kind "phantom" is the loudest."""
    return HTML(
        f'<aside class="notice {escape(kind)}"><p class="notice-title">{escape(title)}</p><p>{escape(text)}</p></aside>'
    )


def missing_html(what: str, notebook: str) -> HTML:
    """Says what is not there, and what makes it."""
    command = f"python -m fetal_utils.study --only {notebook[:2]}"
    return HTML(
        f'<p class="missing"><strong>Missing: {escape(what)}.</strong> Notebook <code>{escape(notebook)}</code> makes '
        f"it: <code>{escape(command)}</code> with the same options, then 06 again.</p>"
    )


def with_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """A number with its interval, such as ``0.93 [0.90, 0.95]``; without one where it has none."""
    if pd.isna(value):
        return ""
    spec = "+.3f" if sign else ".3f"
    text = f"{value:{spec}}".replace("-", "\N{MINUS SIGN}")
    if pd.isna(low) or pd.isna(high):
        return text
    return f"{text} [{low:.2f}, {high:.2f}]".replace("-", "\N{MINUS SIGN}")


def named(name: str) -> str:
    """A task or protocol as a caption calls it: its own name, and what it means where the study knows."""
    return f"{name}, {TITLES[name]}" if name in TITLES else name
