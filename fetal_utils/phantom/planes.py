"""Standard planes: where each one cuts the fetus, how far the operator misses it, and what defines it.

The three brain planes are neighbouring slices of one head: the ventricular one lies highest, the thalamic one below
it, and the cerebellar one is the thalamic one tilted backwards and down.
"""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.fetus import Fetus
from fetal_utils.phantom.shapes import rotation_about
from fetal_utils.phantom.structures import Structure as S
from fetal_utils.phantom.trunk import HEART

PLANES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
BRAIN_PLANES = ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular", "Other")
NOT_A_BRAIN = "Not A Brain"


@dataclass(frozen=True)
class Target:
    """A plane in the frame of one body part, before the operator's error.

    ``centre`` is in units of ``unit`` (see ``_units``); ``lateral`` and ``depth`` span the slice; ``size`` is the
    width of what should be seen, in the first unit. The errors are standard deviations, cut off at two of them.
    """

    part: str
    unit: str
    centre: tuple[float, float, float]
    lateral: tuple[float, float, float]
    depth: tuple[float, float, float]
    size: float
    defining: tuple[S, ...]
    tilt_deg: float = 6.0
    offset: float = 0.05
    roll_deg: float = 180.0


@dataclass(frozen=True)
class View:
    """A slice of the fetus: its centre and two unit axes in the fetus (mm), its size (mm) and what defines it."""

    centre: np.ndarray
    lateral: np.ndarray
    depth: np.ndarray
    size_mm: float
    defining: tuple[S, ...]

    def to_body(self, x_mm: np.ndarray, z_mm: np.ndarray) -> np.ndarray:
        """Points (3, n_rows, n_cols) of the fetus at ``x_mm``, ``z_mm`` (n_rows, n_cols) from the slice's centre."""
        axes = np.stack([self.lateral, self.depth], axis=1).astype(np.float32)
        points = axes @ np.stack([x_mm.ravel(), z_mm.ravel()])
        points += self.centre[:, None].astype(np.float32)
        return points.reshape(3, *x_mm.shape)


_AXIAL = {"lateral": (1.0, 0.0, 0.0), "depth": (0.0, 1.0, 0.0)}
_TILTED = {"lateral": (0.93, 0.0, 0.366), "depth": (0.0, 1.0, 0.0)}  # 21.5 degrees back and down
_SAGITTAL = {"lateral": (0.0, 0.0, 1.0), "depth": (1.0, 0.0, 0.0)}
_ALONG_PALM = {"lateral": (1.0, 0.0, 0.0), "depth": (0.0, 1.0, 0.0)}
_ALONG_BONE = {"lateral": (1.0, 0.0, 0.0), "depth": (0.0, 0.0, 1.0)}
_BRAIN = {"part": "head", "unit": "head", "size": 2.0, "tilt_deg": 5.0, "offset": 0.045, "roll_deg": 18.0}

BRAIN_TARGETS = {
    "Trans-thalamic": Target(centre=(0.0, 0, -0.04), defining=(S.THALAMUS, S.CAVUM), **_BRAIN, **_AXIAL),
    "Trans-cerebellum": Target(
        centre=(-0.05, 0, -0.22), defining=(S.CEREBELLUM, S.VERMIS, S.CISTERNA_MAGNA), **_BRAIN, **_TILTED
    ),
    "Trans-ventricular": Target(
        centre=(0.0, 0, 0.25), defining=(S.LATERAL_VENTRICLE, S.CHOROID_PLEXUS), **_BRAIN, **_AXIAL
    ),
}
# brain, but no standard plane: too high, coronal, oblique, through the base
_OFF = {**_BRAIN, "tilt_deg": 14.0, "offset": 0.1, "roll_deg": 60.0, "defining": (S.SKULL, S.FALX)}
OFF_BRAIN_TARGETS = (
    Target(centre=(0, 0, 0.62), **_OFF, **_AXIAL),
    Target(centre=(-0.2, 0, 0.1), **_OFF, lateral=(0.0, 0.0, 1.0), depth=(0.0, 1.0, 0.0)),
    Target(centre=(0.1, 0, 0.1), **_OFF, lateral=(0.75, 0.0, -0.66), depth=(0.0, 1.0, 0.0)),
    Target(centre=(0.0, 0, 0.1), **_OFF, lateral=(0.8, 0.0, 0.6), depth=(0.0, 1.0, 0.0)),
    Target(centre=(0.1, 0, -0.5), **_OFF, **_AXIAL),
)
TARGETS = {
    "Fetal abdomen": Target(
        "trunk",
        "abdomen",
        (0, 0, 0),
        size=2.1,
        defining=(S.STOMACH, S.UMBILICAL_VEIN),
        tilt_deg=5.0,
        offset=0.03,
        **_AXIAL,
    ),
    "Fetal thorax": Target(
        "trunk",
        "abdomen",
        (0.05, 0, HEART[2]),
        size=2.0,
        defining=(S.HEART_CHAMBER, S.HEART_SEPTUM, S.MYOCARDIUM),
        tilt_deg=5.0,
        **_AXIAL,
    ),
    "Fetal femur": Target(
        "left leg",
        "femur",
        (0, 0, 0.02),
        size=1.15,
        defining=(S.FEMUR,),
        tilt_deg=2.0,
        offset=0.01,
        roll_deg=16.0,
        **_ALONG_BONE,
    ),
}
_FREE = {"tilt_deg": 9.0, "offset": 0.06}
_STRICT = {"tilt_deg": 2.5, "offset": 0.01, "roll_deg": 30.0}
_CHEST = {"tilt_deg": 6.0, "offset": 0.02}
OTHER_TARGETS = {
    "spine": Target("trunk", "abdomen", (-0.6, 0, 0.2), size=3.2, defining=(S.SPINE,), **_STRICT, **_SAGITTAL),
    "trunk": Target("trunk", "abdomen", (0, 0.1, 0.2), size=4.2, defining=(S.LIVER, S.LUNG), **_FREE, **_SAGITTAL),
    "profile": Target("head", "head", (0.6, 0, -0.6), size=1.9, defining=(S.SMALL_BONE,), **_STRICT, **_SAGITTAL),
    "orbits": Target("head", "head", (0.55, 0, -0.48), size=1.9, defining=(S.EYE,), **_STRICT, **_AXIAL),
    "kidneys": Target("trunk", "abdomen", (0, 0, -0.8), size=2.1, defining=(S.KIDNEY,), **_FREE, **_AXIAL),
    "outflow": Target("trunk", "abdomen", (0.05, 0, 1.42), size=2.0, defining=(S.VESSEL,), **_CHEST, **_AXIAL),
    "pelvis": Target("trunk", "abdomen", (0, 0, -1.45), size=2.1, defining=(S.BLADDER,), **_FREE, **_AXIAL),
    "cord": Target("cord", "abdomen", (0.6, 0, 0), size=1.3, defining=(S.CORD_VESSEL, S.CORD_WALL), **_FREE, **_AXIAL),
    "arm": Target("left arm", "femur", (0.2, 0, 0.1), size=1.4, defining=(S.LONG_BONE,), **_STRICT, **_ALONG_BONE),
    "hand": Target(
        "right hand", "femur", (0.2, 0, 0), size=0.9, defining=(S.SMALL_BONE, S.SKIN), **_STRICT, **_ALONG_PALM
    ),
    "foot": Target("right foot", "femur", (0.1, 0, 0.2), size=1.1, defining=(S.SMALL_BONE,), **_STRICT, **_ALONG_BONE),
}


def draw_view(fetus: Fetus, target: Target, *, rng: np.random.Generator) -> View:
    """The slice an operator gets who aims at ``target``: tilted, shifted, rolled, from either side."""
    part = fetus.parts[target.part]
    unit = _units(fetus)[target.unit]
    tilt = [np.clip(rng.normal(), -2, 2) * target.tilt_deg for _ in range(2)]
    axes = np.array([target.lateral, target.depth, np.cross(target.lateral, target.depth)]).T
    axes = axes @ rotation_about(0, tilt[0]) @ rotation_about(1, tilt[1])
    shift = axes[:, 2] * np.clip(rng.normal(), -2, 2) * target.offset * unit.mean()
    axes = axes @ rotation_about(2, _draw_roll(target.roll_deg, rng)) * rng.choice([-1, 1], 3)
    return View(
        centre=part.to_body(np.array(target.centre) * unit + shift),
        lateral=part.rotation @ axes[:, 0],
        depth=part.rotation @ axes[:, 1],
        size_mm=target.size * unit[0],
        defining=target.defining,
    )


def choose_target(plane: str, brain_plane: str, *, rng: np.random.Generator) -> Target:
    """The target of a row's plane; off-standard and ``Other`` ones are drawn from their families."""
    if plane == "Fetal brain":
        return BRAIN_TARGETS.get(brain_plane) or OFF_BRAIN_TARGETS[rng.integers(len(OFF_BRAIN_TARGETS))]
    if plane == "Other":
        return list(OTHER_TARGETS.values())[rng.integers(len(OTHER_TARGETS))]
    return TARGETS[plane]


def _draw_roll(roll_deg: float, rng: np.random.Generator) -> float:
    """Rotation within the slice: about the usual orientation, or any in one view of ten."""
    if roll_deg >= 180 or rng.random() < 0.1:
        return rng.uniform(-180, 180)
    return rng.normal(0, roll_deg)


def _units(fetus: Fetus) -> dict[str, np.ndarray]:
    """Lengths in mm along x, y, z that the centres of targets are multiples of."""
    sizes = fetus.biometry
    front, radius = sizes.occipitofrontal_mm / 2, sizes.abdominal_circumference_mm / (2 * np.pi)
    return {
        "head": np.array([front, sizes.biparietal_mm / 2, 0.84 * front]),
        "abdomen": np.full(3, radius),
        "femur": np.full(3, sizes.femur_mm),
    }
