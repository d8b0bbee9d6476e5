"""What augmentation changes: families of change, and presets of them with a reason for each row."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One family of change in a preset; its strength is in the unit that `FAMILIES` gives."""

    family: str
    strength: float
    probability: float  # the chance that an image is changed by this family
    reason: str


class Family(NamedTuple):
    """What the strength of a family means, the largest one allowed, and how many numbers an image draws."""

    meaning: str
    max_strength: float
    n_draws: int


N_KNOTS = 5  # depths between which the time-gain curve is linear; a scanner has about eight sliders
FAMILIES = {
    "crop": Family("largest share of the area cut away", 0.99, 3),
    "stretch": Family("largest relative change of width to height", 1.0, 1),
    "rotate": Family("largest angle, degrees", 180.0, 1),
    "shift": Family("largest shift, share of the side", 0.5, 2),
    "flip": Family("1: left and right are exchanged", 1.0, 0),
    "speckle": Family("largest standard deviation of the multiplicative noise", 1.0, 1),
    "blur": Family("largest Gaussian sigma, share of the side", 0.05, 1),
    "gain": Family("largest relative change of brightness", 1.0, 1),
    "tgc": Family("largest relative change of brightness at a depth", 1.0, N_KNOTS),
    "contrast": Family("largest relative change of the distance to the mean", 1.0, 1),
    "gamma": Family("largest gamma is 1 + strength, the smallest 1 / (1 + strength)", 2.0, 1),
    "erase": Family("largest share of the area made black", 0.5, 4),
}
GEOMETRY = ("crop", "stretch", "rotate", "shift", "flip")

PRESETS: dict[str, tuple[Row, ...]] = {
    "ultrasound": (
        Row("crop", 0.4, 1.0, "60 % of the area still holds the cavum or cerebellum that names a brain plane"),
        Row("stretch", 0.1, 0.5, "heads differ in shape; more would make a dolichocephalic head of each"),
        Row("rotate", 15.0, 1.0, "the probe and the fetus lie at any small angle; the sector still points down"),
        Row("shift", 0.05, 1.0, "the operator centres the plane by hand"),
        Row("flip", 1.0, 0.5, "the fetus lies to either side; never upside down, since depth runs downwards"),
        Row("speckle", 0.15, 0.5, "speckle differs between two frames of one plane and says nothing about it"),
        Row("blur", 0.006, 0.3, "focus and probe frequency; fine lines such as the falx must stay visible"),
        Row("gain", 0.3, 0.8, "a knob of the scanner"),
        Row("tgc", 0.3, 0.5, "eight knobs of the scanner, one for each depth"),
        Row("contrast", 0.3, 0.8, "the dynamic range chosen on the scanner"),
        Row("gamma", 0.3, 0.5, "the gray map chosen on the scanner"),
        Row("erase", 0.05, 0.2, "a shadow or a caliper hides a part; small and rare, as it can hide the cavum too"),
    ),
    "simclr": (
        Row("crop", 0.92, 1.0, "area from 8 to 100 %, the paper's; may cut out all that names a plane"),
        Row("stretch", 1 / 3, 1.0, "aspect ratio from 3/4 to 4/3, the paper's"),
        Row("flip", 1.0, 0.5, "the paper's"),
        Row("blur", 2 / 224, 0.5, "sigma up to 2 px at 224 px, the paper's"),
        Row("gain", 0.8, 0.8, "brightness at the paper's strength 1; hue and saturation have no gray counterpart"),
        Row("contrast", 0.8, 0.8, "contrast at the paper's strength 1"),
    ),
    "weak": (
        Row("crop", 0.15, 1.0, "supervised training needs the plane's own structures in every image"),
        Row("rotate", 10.0, 1.0, "small angle of the probe"),
        Row("shift", 0.05, 1.0, "the operator centres the plane by hand"),
        Row("flip", 1.0, 0.5, "the fetus lies to either side"),
        Row("gain", 0.1, 1.0, "a knob of the scanner"),
        Row("contrast", 0.1, 1.0, "the dynamic range chosen on the scanner"),
    ),
    "none": (),
}


def check_preset(preset: str | Sequence[Row]) -> tuple[Row, ...]:
    """The rows of a preset, given by name or as rows of one's own.

    Parameters
    ----------
    preset : str or sequence of Row
        A name in `PRESETS`, which may be changed in one family: ``"ultrasound without blur"`` or
        ``"ultrasound with crop 0.7"``, a strength.

    Raises
    ------
    ValueError
        If the name or a family is unknown, a family comes twice, or a strength or probability is out of
        range.
    """
    rows = named_preset(preset) if isinstance(preset, str) else tuple(Row(*row) for row in preset)
    for row in rows:
        if row.family not in FAMILIES:
            raise ValueError(f"unknown family {row.family!r}; there are {', '.join(FAMILIES)}")
        if [other.family for other in rows].count(row.family) > 1:
            raise ValueError(f"family {row.family!r} comes twice in the preset; give it one row")
        meaning, largest, _ = FAMILIES[row.family]
        if not 0 <= row.strength <= largest:
            raise ValueError(f"strength of {row.family!r} is {row.strength} ({meaning}); give 0 to {largest}")
        if not 0 <= row.probability <= 1:
            raise ValueError(f"probability of {row.family!r} is {row.probability}; give 0 to 1")
    return rows


def named_preset(text: str) -> tuple[Row, ...]:
    """The rows that a text like "ultrasound", "ultrasound without blur" or "ultrasound with crop 0.7" stands for."""
    known = "|".join(PRESETS)
    match = re.fullmatch(rf"({known})(?: without (\w+)| with (\w+) (\d*\.?\d+))?", text)
    if match is None:
        raise ValueError(
            f"unknown preset {text!r}; give one of {', '.join(PRESETS)}, changed in one family if wanted: "
            "'ultrasound without blur', 'ultrasound with crop 0.7'; or rows of your own"
        )
    name, removed, changed, strength = match.groups()
    if removed:
        return without(PRESETS[name], removed)
    if changed:
        others = without(PRESETS[name], changed)
        (row,) = set(PRESETS[name]) - set(others)
        return (*others, row._replace(strength=float(strength)))
    return PRESETS[name]


def scaled(preset: str | Sequence[Row], factor: float) -> tuple[Row, ...]:
    """A preset with every strength multiplied, none beyond its family's largest; probabilities stay.

    Raises
    ------
    ValueError
        If the factor is negative.
    """
    if factor < 0:
        raise ValueError(f"factor={factor}: expected 0 or more")
    return tuple(
        row._replace(strength=min(row.strength * factor, FAMILIES[row.family].max_strength))
        for row in check_preset(preset)
    )


def without(preset: str | Sequence[Row], family: str) -> tuple[Row, ...]:
    """A preset with one family left out; the views stay as they were in all other families.

    Raises
    ------
    ValueError
        If the preset has no such family, so that leaving it out would change nothing.
    """
    rows = check_preset(preset)
    if family not in [row.family for row in rows]:
        raise ValueError(f"the preset has no family {family!r}; it has {', '.join(row.family for row in rows)}")
    return tuple(row for row in rows if row.family != family)
