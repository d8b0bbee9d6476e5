"""The four ``US_Machine`` values: probe, image formation, and what each burns into its images.

Chosen by eye against images of FETAL_PLANES_DB so that the four look different; not the makers' specifications. The
text leaks the plane now and then, as in FETAL_PLANES_DB: a preset named after what is examined.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fetal_utils.phantom.imaging import Scanner

ANATOMY, TEXT, CALIPERS = 1, 2, 3  # values in a mask: what defines the plane, and what was burnt in; 0 is the rest
LEAK = {  # preset named after a plane, and the share of that plane's images that show it
    "Fetal thorax": ("Cardiac", 0.55),
    "Maternal cervix": ("quantusPREM", 0.35),
    "Fetal femur": ("Routine", 0.20),
    "Fetal brain": ("Neuro", 0.10),
}
STRAY_PRESETS, STRAY_SHARE = ("Cardiac", "Routine", "Neuro"), 0.04  # left on from the plane before
CALIPER_SHARE = 0.06  # of the images of every plane but the thorax, where nothing is measured


@dataclass(frozen=True)
class Machine:
    """What sets a machine apart. Pairs are the limits of a uniform draw for each image.

    ``object_share`` is how much of the screen's height is filled by what the operator looks at; ``scanner`` are the
    first seven settings of a `Scanner`; ``text`` stands at the top right, with the fields of `_facts`.
    """

    aspect: float  # width / height of the screen
    probe: tuple[float, float]  # radius of its arc (mm), half the angle of its field (degrees)
    object_share: tuple[float, float]
    scanner: tuple[tuple[float, float], ...]
    text: str
    text_style: tuple[float, int]  # height as a share of the screen, gray value
    bar: tuple[float, float, float]  # of the gray scale: width, top and bottom as shares of the screen


MACHINES = {
    "Voluson E6": Machine(
        aspect=1.45,
        probe=(42, 36),
        object_share=(0.70, 1.20),
        scanner=((2, 3.5), (2.5, 5), (42, 54), (-12, -4), (-72, -56), (0.7, 1.1), (1.15, 1.6)),
        text="{preset}\nHar-mid\n{power}\nGn {gain}\nC6 / M8\nFF2 / E2\nSRI II 3 / CRI 3",
        text_style=(0.028, 185),
        bar=(0.012, 0.02, 0.34),
    ),
    "Aloka": Machine(
        aspect=1.33,
        probe=(60, 30),
        object_share=(0.65, 1.20),
        scanner=((2.5, 4), (3, 5.5), (60, 72), (-17, -8), (-68, -54), (0.3, 0.8), (1.3, 1.7)),
        text="{frame}/{n_frames}\n{hertz}Hz\n{leak}",
        text_style=(0.055, 235),
        bar=(0.055, 0.03, 0.20),
    ),
    "Voluson S10": Machine(
        aspect=1.5,
        probe=(38, 33),
        object_share=(0.60, 1.05),
        scanner=((2.5, 3.5), (2.5, 4.5), (46, 56), (-8, -1), (-76, -64), (1.0, 1.4), (0.95, 1.25)),
        text="{hertz}Hz/{depth:.1f}cm\n{angle}°/1.4\nRoutine {preset}\nAO {power}%\nGn {gain}\nC7/M7\nFF2/E2\nSRI II 4",
        text_style=(0.030, 215),
        bar=(0.010, 0.02, 0.28),
    ),
    "Other": Machine(
        aspect=1.4,
        probe=(50, 31),
        object_share=(0.55, 1.0),
        scanner=((2, 3), (2.5, 5), (46, 56), (-15, -7), (-66, -52), (0.7, 1.1), (1.3, 1.8)),
        text="{angle}°/{hertz}Hz\n{preset}\nHM PI 6.80 - 2.60\nAO {power}%\nGn {gain}\nSRI II 2/CRI 2",
        text_style=(0.026, 165),
        bar=(0.010, 0.06, 0.50),
    ),
}


def draw_scanner(machine: Machine, rng: np.random.Generator) -> Scanner:
    """Settings of one image on one machine."""
    settings = [rng.uniform(*limits) for limits in machine.scanner]
    return Scanner(*settings, rng.uniform(0.45, 0.98), rng.uniform(0.02, 0.10), rng.exponential(5.0))


def burn_in(
    image: np.ndarray, mask: np.ndarray, *, machine: Machine, plane: str, weeks: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask (uint8, height x width) with text, gray scale and perhaps calipers in them.

    The ``plane`` decides how likely calipers and a telling preset are, the ``weeks`` of pregnancy name the trimester.
    """
    marked = np.argwhere(mask == ANATOMY)
    layers = [(TEXT, _draw_text(image.shape, machine, _facts(plane, weeks, rng), rng))]
    if plane != "Fetal thorax" and rng.random() < CALIPER_SHARE and len(marked) >= 12:
        layers.append((CALIPERS, _draw_calipers(image.shape, _ends(marked), dotted=rng.random() < 0.6)))
    for value, layer in layers:
        image, mask = np.maximum(image, layer), np.where(layer > 40, np.uint8(value), mask)
    return image, mask


def _facts(plane: str, weeks: float, rng: np.random.Generator) -> dict[str, object]:
    """What the lines of text may say; ``leak`` is the preset if it names what is examined, else empty."""
    telling, share = LEAK.get(plane, ("", 0.0))
    leak = telling if rng.random() < share else rng.choice(STRAY_PRESETS) if rng.random() < STRAY_SHARE else ""
    n_frames = rng.integers(20, 700)
    return {
        "leak": str(leak).upper(),
        "preset": leak or rng.choice(["2+3.Trim", "2.Trim" if weeks < 28 else "3.Trim"]),
        "power": rng.integers(90, 100),
        "gain": rng.integers(-12, 9),
        "frame": n_frames - 1,
        "n_frames": n_frames,
        "hertz": rng.integers(13, 66),
        "angle": rng.integers(40, 80),
        "depth": rng.uniform(8, 16),
    }


def _draw_text(shape: tuple[int, int], machine: Machine, facts: dict, rng: np.random.Generator) -> np.ndarray:
    """Lines of text at the top right, gray scale and depth ruler at the left, on black."""
    height, width = shape
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    size, gray = machine.text_style
    font, text = _font(max(round(size * height), 5)), machine.text.format(**facts)
    draw.multiline_text((width - 3, 0.02 * height), text, gray, font, anchor="ra", spacing=1, align="right")
    right, top, bottom = (round(share * side) for share, side in zip(machine.bar, (width, height, height), strict=True))
    scale = np.linspace(255, 35, bottom - top).astype(np.uint8)[:, None].repeat(right + 1, axis=1)
    canvas.paste(Image.fromarray(scale), (0, top))
    for row in np.arange(rng.uniform(0.3, 0.5), 1, rng.uniform(0.09, 0.16)) * height:
        draw.line([(0.03 * width, row), (0.03 * width + 1, row)], fill=170)
    return np.asarray(canvas)


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _draw_calipers(shape: tuple[int, int], ends: np.ndarray, *, dotted: bool) -> np.ndarray:
    """A cross at each of two ends (2, 2), as (column, row), and perhaps a dotted line between them, on black."""
    canvas = Image.new("L", shape[::-1])
    draw = ImageDraw.Draw(canvas)
    arm = max(2, shape[0] // 64)
    for column, row in ends:
        draw.line([(column - arm, row), (column + arm, row)], fill=255)
        draw.line([(column, row - arm), (column, row + arm)], fill=255)
    if dotted:
        n_dots = int(np.linalg.norm(ends[1] - ends[0]) / (0.016 * shape[0])) + 2
        draw.point([tuple(dot) for dot in np.linspace(*ends, n_dots)], fill=220)
    return np.asarray(canvas)


def _ends(marked: np.ndarray) -> np.ndarray:
    """The ends of the longest direction of marked pixels: (row, column)s (n, 2) to (column, row)s (2, 2)."""
    centred = marked - marked.mean(axis=0)
    direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ direction
    return marked[[along.argmin(), along.argmax()], ::-1].astype(float)
