"""The fetal trunk as solids: abdomen, thorax with the four-chamber heart, spine and ribs.

Frame of the trunk: x to the front, y to the left, z to the head; origin in the plane of the abdominal circumference.
Distances are multiples of the abdominal radius. Proportions follow the drawings of the ISUOG guidelines for
biometry (Ultrasound Obstet Gynecol 53:715-723, 2019) and for the heart (41:348-359, 2013); plausible, not measured.
"""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.painting import Part
from fetal_utils.phantom.shapes import BLUNT, BOX, Repeated, Solid, Without, ellipsoid, rotation_about, tube
from fetal_utils.phantom.structures import Structure as S

HEART = (0.30, 0.22, 1.05)  # centre of the heart, abdominal radii


@dataclass(frozen=True)
class TrunkSize:
    """Radius of the abdomen (mm), stomach filling (0 to 1), gestational age and the angle of the heart's axis."""

    radius: float
    stomach: float
    weeks: float
    heart_axis_deg: float

    def at(self, x: float, y: float, z: float) -> np.ndarray:
        """Multiples of the abdominal radius to mm, shape (3,)."""
        return self.radius * np.array([x, y, z])


def build_trunk(size: TrunkSize, *, rng: np.random.Generator) -> Part:
    """The trunk, at the origin of the fetus; ``rng`` varies its organs a little."""
    solids = [*_body(size), *_chest(size), *_abdomen(size, rng), *_pelvis(size), *_heart(size, rng), *_skeleton(size)]
    return Part("trunk", np.zeros(3), np.eye(3), tuple(solids))


def _body(size: TrunkSize) -> list[Solid]:
    at = size.at
    outer, skin = at(0.98, 1.04, 2.15), 0.6 + 0.03 * size.weeks
    return [
        ellipsoid(S.SKIN, at(0, 0, 0.05), outer + skin, powers=BLUNT),
        ellipsoid(S.SOFT_TISSUE, at(0, 0, 0.05), outer - 0.3, powers=BLUNT),
        ellipsoid(S.BOWEL, at(0.12, 0, -0.95), at(0.74, 0.84, 0.95), powers=BLUNT),
    ]


def _abdomen(size: TrunkSize, rng: np.random.Generator) -> list[Solid]:
    at, radius = size.at, size.radius
    filled = 0.65 + 0.35 * size.stomach
    stomach = at(0.36 * filled, 0.21 * filled, 0.30 * filled)
    lie = rotation_about(2, rng.uniform(-25, 40))
    solids = [
        ellipsoid(S.LIVER, at(0.10, -0.02, 0.05), at(0.80, 0.90, 0.50), powers=BLUNT),
        ellipsoid(S.BOWEL, at(-0.36, 0.40, -0.05), at(0.16, 0.22, 0.2)),  # spleen
        ellipsoid(S.STOMACH, at(*rng.normal([0.02, 0.48, 0.02], 0.03)), stomach, rotation=lie),
    ]
    vein = max(1.3, 0.062 * radius)
    sinus = at(*rng.normal([0.18, -0.04, 0.0], 0.03))
    solids += [
        *_vessel(S.UMBILICAL_VEIN, at(0.95, 0.0, -0.55), at(0.55, 0.0, -0.08), vein),
        *_vessel(S.UMBILICAL_VEIN, at(0.55, 0.0, -0.08), sinus, vein),
        *_vessel(S.UMBILICAL_VEIN, sinus, at(0.02, -0.26, 0.02), 0.8 * vein),
        *_vessel(S.VESSEL, at(-0.50, 0.07, -1.6), at(-0.46, 0.10, 1.3), 0.055 * radius),  # aorta
        *_vessel(S.VESSEL, at(-0.34, -0.20, -1.4), at(0.05, -0.14, 0.8), 0.05 * radius),  # vena cava
    ]
    for _ in range(6):  # hepatic veins
        start = at(rng.uniform(-0.2, 0.6), rng.uniform(-0.7, 0.3), rng.uniform(-0.3, 0.4))
        solids.append(tube(S.VESSEL, start, start + radius * rng.normal(0, 0.15, 3), 0.018 * radius))
    return solids


def _vessel(label: int, start: np.ndarray, end: np.ndarray, thickness: float) -> list[Solid]:
    """A vessel with its thin bright wall."""
    return [tube(S.CORD_WALL, start, end, thickness + 0.45), tube(label, start, end, thickness)]


def _pelvis(size: TrunkSize) -> list[Solid]:
    at = size.at
    solids = [ellipsoid(S.BLADDER, at(0.45, 0, -1.45), at(0.2, 0.2, 0.24))]
    for side in (-1, 1):
        kidney = at(-0.48, 0.42 * side, -0.80)
        turn = rotation_about(0, 8 * side)
        solids += [
            ellipsoid(S.SULCUS, kidney, at(0.25, 0.27, 0.42) + 0.5, rotation=turn),
            ellipsoid(S.KIDNEY, kidney, at(0.25, 0.27, 0.42), rotation=turn),
            ellipsoid(S.SULCUS, kidney, at(0.12, 0.12, 0.26), rotation=turn),
            ellipsoid(S.BLADDER, kidney + at(0.03, -0.06 * side, 0), at(0.05, 0.05, 0.12)),  # renal pelvis
            # ilium
            tube(S.SMALL_BONE, at(-0.62, 0.25 * side, -1.35), at(-0.25, 0.66 * side, -1.5), 0.08 * size.radius),
        ]
    return solids


def _chest(size: TrunkSize) -> list[Solid]:
    at = size.at
    return [
        ellipsoid(S.LUNG, at(-0.02, 0, 1.12), at(0.78, 0.86, 0.72), powers=BLUNT),
        ellipsoid(S.LIVER, at(0.12, -0.05, 0.25), at(0.72, 0.82, 0.32)),  # the dome under the diaphragm
        *_vessel(S.VESSEL, at(-0.46, 0.10, 0.5), at(-0.40, 0.08, 1.6), 0.06 * size.radius),  # thoracic aorta
    ]


def _heart(size: TrunkSize, rng: np.random.Generator) -> list[Solid]:
    """Apex to the left front; two ventricles before the valves, two atria behind them, one cross between."""
    at, radius = size.at, size.radius
    turn = rotation_about(2, size.heart_axis_deg)
    scale = radius * rng.uniform(1.0, 1.18)

    def place(x: float, y: float, z: float = 0.0) -> np.ndarray:
        """From the axes of the heart to the frame of the trunk, mm."""
        return at(*HEART) + turn @ (scale * np.array([x, y, z]))

    chamber = rng.uniform(0.9, 1.1)
    solids = [ellipsoid(S.MYOCARDIUM, at(*HEART), scale * np.array([0.58, 0.46, 0.48]), rotation=turn)]
    for side, grown in ((1, 1.0), (-1, 1.08)):
        solids += [
            ellipsoid(
                S.HEART_CHAMBER,
                place(0.14, 0.185 * side),
                scale * chamber * grown * np.array([0.31, 0.155, 0.26]),
                rotation=turn @ rotation_about(2, -9 * side),
            ),
            ellipsoid(
                S.HEART_CHAMBER,
                place(-0.29, 0.19 * side),
                scale * chamber * grown * np.array([0.19, 0.175, 0.24]),
                rotation=turn,
            ),
            tube(S.HEART_SEPTUM, place(-0.10, 0.03 * side), place(-0.06, 0.30 * side), 0.5),  # valves
        ]
    solids += [
        ellipsoid(S.HEART_SEPTUM, place(0.16, 0), scale * np.array([0.34, 0.035, 0.26]), rotation=turn),
        ellipsoid(S.HEART_SEPTUM, place(-0.34, 0), scale * np.array([0.14, 0.018, 0.2]), rotation=turn),
        tube(S.HEART_SEPTUM, place(0.34, -0.24), place(0.40, -0.08), 0.03 * radius),  # moderator band
        *_vessel(S.VESSEL, place(0.0, 0.05, 0.30), place(-0.30, 0.1, 0.62), 0.085 * radius),  # outflow
        *_vessel(S.VESSEL, place(0.12, -0.10, 0.30), place(-0.38, 0.22, 0.55), 0.085 * radius),
    ]
    return solids


def _skeleton(size: TrunkSize) -> list[Solid]:
    at, radius = size.at, size.radius
    pitch, n_vertebrae = 0.145 * radius, 14
    bead = 0.36 * pitch
    centra = ellipsoid(S.SPINE, at(-0.66, 0, 0), [0.085 * radius, 0.085 * radius, bead])
    solids = [
        tube(S.SOFT_TISSUE, at(-0.80, 0, -2.0), at(-0.80, 0, 2.0), 0.17 * radius),
        tube(S.BLADDER, at(-0.79, 0, -2.0), at(-0.79, 0, 2.0), 0.055 * radius),  # spinal canal
        Repeated(centra, pitch, n_vertebrae),
    ]
    for side in (-1, 1):
        lamina = ellipsoid(S.SPINE, at(-0.85, 0.135 * side, 0), [0.055 * radius, 0.05 * radius, bead])
        solids.append(Repeated(lamina, pitch, n_vertebrae))
    solids += _ribs(size)
    clavicle = 0.05 * radius
    return [
        *solids,
        tube(S.SMALL_BONE, at(0.55, 0.08, 1.86), at(0.3, 0.75, 1.9), clavicle),
        tube(S.SMALL_BONE, at(0.55, -0.08, 1.86), at(0.3, -0.75, 1.9), clavicle),
    ]


def _ribs(size: TrunkSize) -> list[Solid]:
    """Slanted rings of bone around the chest, open in front."""
    at, radius = size.at, size.radius
    pitch, slope = 0.27 * radius, -0.35
    thickness, middle = 0.05 * radius, at(-0.03, 0, 1.05)
    outer = ellipsoid(S.RIB, middle, [0.90 * radius, 0.95 * radius, 1.1 * thickness], powers=BLUNT)
    inner = ellipsoid(S.RIB, middle, [0.90 * radius - 1.5 * thickness, 0.95 * radius - 1.5 * thickness, radius])
    open_front = ellipsoid(S.RIB, at(1.15, 0, 1.05), at(0.75, 0.8, 2.5), powers=BOX)
    cage = Repeated(Without(outer, inner), pitch, 4, slope)
    return [Without(cage, open_front)]
