"""Standard planes: where each one cuts the fetus, how far the operator misses it, and what defines it.

The three brain planes are neighbouring slices of one head: the ventricular one lies highest, the thalamic one below
it, and the cerebellar one is the thalamic one tilted backwards and down.
"""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.fetus import HEART, Fetus
from fetal_utils.phantom.solids import Structure as S
from fetal_utils.phantom.solids import turn

PLANES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
BRAIN_PLANES = ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular", "Other")
NOT_A_BRAIN = "Not A Brain"


@dataclass(frozen=True)
class Target:
    """A plane in the frame of one body part, before the operator's error.

    ``centre`` is in units of the part; ``lateral`` and ``depth`` span the slice; ``size`` is the width of what should
    be seen, in the part's first unit. The errors are standard deviations, cut off at two of them: tilt in degrees,
    offset along the slice's normal in units, roll within the slice in degrees.
    """

    part: str
    centre: tuple[float, float, float]
    lateral: tuple[float, float, float]
    depth: tuple[float, float, float]
    size: float
    defining: tuple[S, ...]
    tilt_deg: float = 5.0
    offset: float = 0.05
    roll_deg: float = 180.0


AXIAL = ((1, 0, 0), (0, 1, 0))
TILTED = ((0.93, 0, 0.366), (0, 1, 0))  # 21.5 degrees back and down
SAGITTAL = ((0, 0, 1), (1, 0, 0))
CORONAL = ((0, 0, 1), (0, 1, 0))
ALONG_BONE = ((1, 0, 0), (0, 0, 1))
_BRAIN = {"size": 2.0, "offset": 0.045, "roll_deg": 18.0}
_STRICT = {"tilt_deg": 2.5, "offset": 0.01, "roll_deg": 30.0}
_OFF = {"size": 2.0, "tilt_deg": 14.0, "offset": 0.1, "roll_deg": 60.0, "defining": (S.SKULL, S.FALX)}

HEART_STRUCTURES = (S.HEART_CHAMBER, S.HEART_SEPTUM, S.MYOCARDIUM)

# each name has one target, or several to draw from
TARGETS: dict[str, tuple[Target, ...]] = {
    "Trans-thalamic": (Target("head", (0, 0, -0.04), *AXIAL, defining=(S.THALAMUS, S.CAVUM), **_BRAIN),),
    "Trans-cerebellum": (
        Target("head", (-0.05, 0, -0.22), *TILTED, defining=(S.CEREBELLUM, S.VERMIS, S.CISTERNA_MAGNA), **_BRAIN),
    ),
    "Trans-ventricular": (
        Target("head", (0, 0, 0.25), *AXIAL, defining=(S.LATERAL_VENTRICLE, S.CHOROID_PLEXUS), **_BRAIN),
    ),
    "brain, no standard plane": (
        Target("head", (0, 0, 0.62), *AXIAL, **_OFF),  # too high
        Target("head", (0.1, 0, -0.5), *AXIAL, **_OFF),  # through the base
        Target("head", (-0.2, 0, 0.1), *CORONAL, **_OFF),
        Target("head", (0.1, 0, 0.1), (0.75, 0, -0.66), (0, 1, 0), **_OFF),  # oblique
    ),
    "Fetal abdomen": (
        Target("trunk", (0, 0, 0), *AXIAL, size=2.1, defining=(S.STOMACH, S.UMBILICAL_VEIN), offset=0.03),
    ),
    "Fetal thorax": (Target("trunk", (0.05, 0, HEART[2]), *AXIAL, size=2.0, defining=HEART_STRUCTURES),),
    "Fetal femur": (
        Target("leg", (0, 0, 0.02), *ALONG_BONE, size=1.15, defining=(S.FEMUR,), tilt_deg=2, offset=0.01, roll_deg=16),
    ),
    "Other": (
        Target("trunk", (-0.6, 0, 0.2), *SAGITTAL, size=3.2, defining=(S.SPINE,), **_STRICT),
        Target("trunk", (0, 0.1, 0.2), *SAGITTAL, size=4.2, defining=(S.LIVER, S.LUNG), tilt_deg=9),
        Target("trunk", (0, 0, -0.8), *AXIAL, size=2.1, defining=(S.KIDNEY,), tilt_deg=9),
        Target("head", (0.6, 0, -0.6), *SAGITTAL, size=1.9, defining=(S.BONE,), **_STRICT),  # profile
        Target("leg", (0.62, 0, 0.3), *ALONG_BONE, size=1.5, defining=(S.BONE,), **_STRICT),  # lower leg
    ),
}


def choose_target(plane: str, brain_plane: str, *, rng: np.random.Generator) -> Target:
    """What an operator aims at for a row of the table."""
    if plane == "Fetal brain":
        plane = "brain, no standard plane" if brain_plane == "Other" else brain_plane
    return TARGETS[plane][rng.integers(len(TARGETS[plane]))]


def draw_slice(fetus: Fetus, target: Target, *, rng: np.random.Generator) -> np.ndarray:
    """The slice an operator gets who aims at ``target``: tilted, shifted, rolled, from any side.

    A matrix (4, 3) from ``(x, z, 1)``, in mm from the slice's middle, to ``(x, y, z, 1)`` in the frame of the fetus.
    """
    part = fetus.parts[target.part]
    unit = np.linalg.norm(part.axes, axis=0)
    axes = np.array([target.lateral, target.depth, np.cross(target.lateral, target.depth)], float).T
    axes = part.axes / unit @ axes @ turn("xy", rng.normal(size=2).clip(-2, 2) * target.tilt_deg)
    shift = np.clip(rng.normal(), -2, 2) * target.offset * unit.mean()
    middle = part.origin + part.axes @ target.centre + axes[:, 2] * shift
    # about the usual orientation, or any in one view of ten
    roll = rng.uniform(-180, 180) if rng.random() < 0.1 else rng.normal(0, target.roll_deg)
    axes = axes @ turn("z", roll) * rng.choice([-1, 1], 3)
    return np.vstack([np.column_stack([axes[:, :2], middle]), [0, 0, 1]])
