"""One fetus: sizes for its gestational age, its own variations, and what lies at any point of it."""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.head import HeadSize, build_head
from fetal_utils.phantom.limbs import build_arm, build_cord, build_leg
from fetal_utils.phantom.painting import Part, blocks_within
from fetal_utils.phantom.shapes import rotation_about
from fetal_utils.phantom.trunk import TrunkSize, build_trunk
from fetal_utils.phantom.warp import Warp, draw_warp

WEEKS_RANGE = (18.0, 36.0)  # gestational ages the growth curves are used for


@dataclass(frozen=True)
class Biometry:
    """Gestational age in weeks and the measured lengths of a fetus in mm."""

    weeks: float
    biparietal_mm: float
    occipitofrontal_mm: float
    abdominal_circumference_mm: float
    femur_mm: float
    cerebellum_mm: float


@dataclass(frozen=True)
class Fetus:
    """Body parts in one frame (mm), and a smooth warp that makes no two fetuses alike."""

    biometry: Biometry
    parts: dict[str, Part]
    warp: Warp

    def paint(self, labels: np.ndarray, points: np.ndarray) -> None:
        """Write the structure at each of ``points`` (3, n_rows, n_cols; mm) into ``labels`` where the fetus is."""
        points = self.warp(points)
        parts = tuple(self.parts.values())
        for part, block in zip(parts, blocks_within(points, tuple(part.bounds for part in parts)), strict=True):
            if block is not None:
                part.paint(labels[block], points[(slice(None), *block)])


def mean_biometry(weeks: float) -> Biometry:
    """Mean size at a gestational age.

    Parameters
    ----------
    weeks : float
        Gestational age, within ``WEEKS_RANGE``.

    Returns
    -------
    Biometry
        Means of the INTERGROWTH-21st standards; the cerebellum is as many mm wide as the fetus is weeks old,
        the rule of thumb for the second trimester.

    Raises
    ------
    ValueError
        If ``weeks`` is outside ``WEEKS_RANGE``.

    References
    ----------
    Papageorghiou et al. 2014, Lancet 384:869-879, equations for BPD, OFD, AC and FL.
    """
    low, high = WEEKS_RANGE
    if not low <= weeks <= high:
        raise ValueError(f"weeks={weeks}: give a gestational age from {low} to {high} weeks")
    log_weeks = np.log(weeks)
    return Biometry(
        weeks=weeks,
        biparietal_mm=5.60878 + 0.158369 * weeks**2 - 0.00256379 * weeks**3,
        occipitofrontal_mm=-12.4097 + 0.626342 * weeks**2 - 0.148075 * weeks**2 * log_weeks,
        abdominal_circumference_mm=-81.3243 + 11.6772 * weeks - 0.000561865 * weeks**3,
        femur_mm=-39.9616 + 4.32298 * weeks - 0.0380156 * weeks**2,
        cerebellum_mm=weeks,
    )


def draw_weeks(rng: np.random.Generator) -> float:
    """Gestational age: the 20 to 23 week scan for two thirds of patients, later growth scans for the rest."""
    weeks = rng.normal(21.5, 1.3) if rng.random() < 0.65 else rng.normal(30, 3.0)
    return float(np.clip(weeks, *WEEKS_RANGE))


def draw_fetus(rng: np.random.Generator) -> Fetus:
    """A fetus of random age, size (spread of 3 % about the mean), posture and inner proportions."""
    mean = mean_biometry(draw_weeks(rng))
    spread = np.clip(rng.normal(1, 0.03, 5), 0.92, 1.08)
    sizes = Biometry(
        mean.weeks,
        mean.biparietal_mm * spread[0],
        mean.occipitofrontal_mm * spread[1],
        mean.abdominal_circumference_mm * spread[2],
        mean.femur_mm * spread[3],
        mean.cerebellum_mm * spread[4],
    )
    parts = _parts(sizes, rng)
    warp = draw_warp(0.014 * sizes.biparietal_mm, sizes.biparietal_mm, rng=rng)
    return Fetus(sizes, {part.name: part for part in parts}, warp)


def _parts(sizes: Biometry, rng: np.random.Generator) -> list[Part]:
    radius = sizes.abdominal_circumference_mm / (2 * np.pi)
    trunk = TrunkSize(radius, rng.uniform(0.25, 1.0), sizes.weeks, rng.normal(45, 8))
    parts = [
        build_cord(radius_mm=0.10 * radius + 2.0, origin=radius * np.array([1.0, 0, -0.6]), rng=rng),
        *_limbs(sizes, radius, rng),
        build_trunk(trunk, rng=rng),
    ]
    half_height = 0.42 * sizes.occipitofrontal_mm
    head = HeadSize(
        front=sizes.occipitofrontal_mm / 2,
        side=sizes.biparietal_mm / 2,
        crown=half_height,
        skull=0.7 + 0.045 * sizes.weeks,
        cerebellum=sizes.cerebellum_mm,
        weeks=sizes.weeks,
    )
    flexion = rotation_about(1, rng.normal(12, 10)) @ rotation_about(2, rng.normal(0, 15))
    origin = np.array([0.25 * radius, 0, 2.15 * radius + 1.15 * half_height])
    return [*parts, build_head(head, origin=origin, rotation=flexion, rng=rng)]


def _limbs(sizes: Biometry, radius: float, rng: np.random.Generator) -> list[Part]:
    """Legs folded in front of the belly, arms beside the chest; every fetus in its own posture."""
    limbs = []
    for side, name in ((-1, "right"), (1, "left")):
        # x of the limb's frame points from the hip forwards and up, or down where the leg is stretched
        raised = rng.uniform(-75, 40)
        turn = rotation_about(2, side * rng.uniform(-5, 25)) @ rotation_about(1, -raised)
        hip = radius * np.array([0.05, 0.62 * side, -1.75])
        origin = hip + turn[:, 0] * 0.62 * sizes.femur_mm
        limbs += build_leg(name, femur_mm=sizes.femur_mm, origin=origin, rotation=turn, rng=rng)
        humerus_mm = 0.95 * sizes.femur_mm
        turn = rotation_about(2, side * rng.uniform(10, 60)) @ rotation_about(1, rng.uniform(20, 75))
        shoulder = radius * np.array([0.1, 1.02 * side, 1.6])
        origin = shoulder + turn[:, 0] * 0.5 * humerus_mm
        limbs += build_arm(name, humerus_mm=humerus_mm, origin=origin, rotation=turn, rng=rng)
    return limbs
