"""Burnt-in text, gray bars and calipers, as the scanners leave them in the images.

The text leaks the plane now and then, as in FETAL_PLANES_DB: a preset named after what is examined is shown in
``LEAK`` of the images (by plane), and in a few images of other planes.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ANATOMY, TEXT, CALIPERS = 1, 2, 3  # values in a mask: what defines the plane, and what was burnt in; 0 is the rest
LEAK = {
    "Fetal thorax": ("Cardiac", 0.55),
    "Maternal cervix": ("quantusPREM", 0.35),
    "Fetal femur": ("Routine", 0.20),
    "Fetal brain": ("Neuro", 0.10),
}
STRAY_PRESETS = ("Cardiac", "Routine", "Neuro")
STRAY_SHARE = 0.04  # a preset left on from the plane before
CALIPER_SHARE = {
    "Fetal brain": 0.06,
    "Fetal abdomen": 0.06,
    "Fetal femur": 0.08,
    "Maternal cervix": 0.06,
    "Other": 0.08,
}


def draw_overlay(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    layout: str,
    plane: str,
    weeks: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Burn text, bars and perhaps calipers into an image, and mark them in its mask.

    Parameters
    ----------
    image, mask : array, shape (height, width), uint8
        Not changed.
    layout : str
        A key of ``LAYOUTS``.
    plane : str
        Decides how likely calipers and a telling preset are.
    weeks : float
        Gestational age; names the trimester.
    rng : np.random.Generator
        Draws the text.

    Returns
    -------
    image, mask : array, shape (height, width), uint8
        Copies with the overlay; ``TEXT`` and ``CALIPERS`` in the mask.
    """
    height, width = image.shape
    canvas = Image.new("L", (width, height))
    LAYOUTS[layout](ImageDraw.Draw(canvas), width, height, _preset(plane, weeks, rng), rng)
    text = np.asarray(canvas)
    calipers = rng.random() < CALIPER_SHARE.get(plane, 0)
    ends = _ends(mask == ANATOMY) if calipers else None
    image, mask = np.maximum(image, text), np.where(text > 40, np.uint8(TEXT), mask)
    if ends is not None:
        canvas = Image.new("L", (width, height))
        _draw_calipers(ImageDraw.Draw(canvas), ends, height, dotted=rng.random() < 0.6)
        marks = np.asarray(canvas)
        image, mask = np.maximum(image, marks), np.where(marks > 40, np.uint8(CALIPERS), mask)
    return image, mask


def _preset(plane: str, weeks: float, rng: np.random.Generator) -> str:
    telling, share = LEAK.get(plane, ("", 0.0))
    if rng.random() < share:
        return telling
    if rng.random() < STRAY_SHARE:
        return STRAY_PRESETS[rng.integers(len(STRAY_PRESETS))]
    return rng.choice(["2+3.Trim", "2.Trim" if weeks < 28 else "3.Trim"])


def _voluson_e6(draw: ImageDraw.ImageDraw, width: int, height: int, preset: str, rng: np.random.Generator) -> None:
    lines = [
        preset,
        f"Har-{rng.choice(['low', 'mid', 'high', 'intermediate'])}",
        f"{rng.integers(90, 99)}",
        f"Gn {rng.integers(-12, 8)}",
        f"C{rng.integers(5, 8)} / M{rng.integers(7, 11)}",
        f"FF2 / E{rng.integers(1, 4)}",
        "SRI II 3 / CRI 3",
    ]
    _text_right(draw, lines, width - 3, 1, 0.028 * height, 185)
    _text_left(draw, ["Voluson", "E6"], 0.035 * width, 0.03 * height, 0.024 * height, 140)
    _gray_bar(draw, (0, 0.02 * height, 0.012 * width, 0.34 * height))
    _depth_ticks(draw, 0.035 * width, height, rng)


def _aloka(draw: ImageDraw.ImageDraw, width: int, height: int, preset: str, rng: np.random.Generator) -> None:
    n_frames = rng.integers(20, 700)
    lines = [f"{n_frames - 1}/{n_frames}", f"{rng.integers(13, 40)}Hz{rng.choice(['1', '2'])}"]
    _text_right(draw, lines, width - 4, 0.04 * height, 0.055 * height, 235)
    if preset not in ("2.Trim", "3.Trim", "2+3.Trim"):
        _text_left(draw, [preset.upper()], 0.08 * width, 0.03 * height, 0.04 * height, 190)
    _gray_bar(draw, (0, 0.03 * height, 0.055 * width, 0.20 * height))


def _voluson_s10(draw: ImageDraw.ImageDraw, width: int, height: int, preset: str, rng: np.random.Generator) -> None:
    lines = [
        f"{rng.integers(18, 66)}Hz/{rng.uniform(8, 16):.1f}cm",
        f"{rng.integers(40, 80)}°/1.4",
        f"Routine {preset}" if preset.endswith("Trim") else preset,
        f"HI M {rng.uniform(5, 8):.2f} - 4.00",
        f"AO {rng.integers(90, 100)}%",
        f"Gn {rng.integers(-6, 9)}",
        "C7/M7",
        "FF2/E2",
        "SRI II 4/CRI 2",
    ]
    _text_right(draw, lines, width - 3, 1, 0.030 * height, 215)
    _gray_bar(draw, (0, 0.02 * height, 0.010 * width, 0.28 * height))
    _depth_ticks(draw, 0.028 * width, height, rng)


def _generic(draw: ImageDraw.ImageDraw, width: int, height: int, preset: str, rng: np.random.Generator) -> None:
    lines = [
        f"{rng.integers(50, 70)}°/{rng.integers(15, 30)}Hz",
        preset,
        f"HM PI 6.80 - {rng.uniform(2, 4):.2f}",
        f"AO {rng.integers(90, 100)}%",
        f"Gn {rng.integers(-4, 6)}",
        "SRI II 2/CRI 2",
    ]
    _text_right(draw, lines, width - 2, 0.02 * height, 0.026 * height, 165)
    _gray_bar(draw, (0, 0.06 * height, 0.010 * width, 0.5 * height))
    _depth_ticks(draw, 0.022 * width, height, rng)


LAYOUTS = {"voluson_e6": _voluson_e6, "aloka": _aloka, "voluson_s10": _voluson_s10, "generic": _generic}


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _text_right(draw, lines: list[str], right: float, top: float, size: float, gray: int) -> None:
    size = max(round(size), 5)
    for index, line in enumerate(lines):
        draw.text((right, top + 1.15 * size * index), line, fill=gray, font=_font(size), anchor="ra")


def _text_left(draw, lines: list[str], left: float, top: float, size: float, gray: int) -> None:
    size = max(round(size), 5)
    for index, line in enumerate(lines):
        draw.text((left, top + 1.1 * size * index), line, fill=gray, font=_font(size), anchor="la")


def _gray_bar(draw, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = (round(value) for value in box)
    for row in range(top, bottom + 1):
        draw.line([(left, row), (max(right, left + 1), row)], fill=255 - 220 * (row - top) // max(bottom - top, 1))


def _depth_ticks(draw, column: float, height: int, rng: np.random.Generator) -> None:
    for row in np.arange(rng.uniform(0.1, 0.3) * height, height, rng.uniform(0.09, 0.16) * height):
        draw.line([(column, row), (column + 1, row)], fill=170)


def _draw_calipers(draw, ends, height: int, *, dotted: bool) -> None:
    arm = max(2, height // 64)
    for column, row in ends:
        draw.line([(column - arm, row), (column + arm, row)], fill=255)
        draw.line([(column, row - arm), (column, row + arm)], fill=255)
    if dotted:
        start, end = np.array(ends[0], float), np.array(ends[1], float)
        n_dots = int(np.linalg.norm(end - start) / (0.016 * height)) + 2
        for column, row in start + np.linspace(0, 1, n_dots)[:, None] * (end - start):
            draw.point((column, row), fill=220)


def _ends(marked: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The two ends, as (column, row), of the longest direction of the marked region; None if too little is marked."""
    rows, cols = np.nonzero(marked)
    if len(rows) < 12:
        return None
    positions = np.stack([cols, rows], axis=1).astype(float)
    centred = positions - positions.mean(axis=0)
    direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ direction
    return tuple(positions[along.argmin()]), tuple(positions[along.argmax()])
