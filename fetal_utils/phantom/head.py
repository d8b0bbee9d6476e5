"""The fetal head as solids: skull, midline, ventricles, thalami, posterior fossa and face.

Frame of the head: x to the front, y to the left, z to the crown; origin at the centre of the thalamic plane.
Distances are fractions of the outer half-axes of the skull. The proportions follow the drawings of the ISUOG
guideline for the fetal brain (Ultrasound Obstet Gynecol 56:476-484, 2020); they are plausible, not measured.
"""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.painting import Part
from fetal_utils.phantom.shapes import BOX, Ellipsoid, Solid, Within, ellipsoid, rotation_about, tube
from fetal_utils.phantom.structures import Structure as S


@dataclass(frozen=True)
class HeadSize:
    """Outer half-axes of the skull (front, side, crown), skull thickness and cerebellar diameter, all mm."""

    front: float
    side: float
    crown: float
    skull: float
    cerebellum: float
    weeks: float

    def at(self, x: float, y: float, z: float) -> np.ndarray:
        """Fractions of the half-axes to mm, shape (3,)."""
        return np.array([x * self.front, y * self.side, z * self.crown])


def build_head(size: HeadSize, *, origin: np.ndarray, rotation: np.ndarray, rng: np.random.Generator) -> Part:
    """The head with its own small variations, placed at ``origin`` (mm) with axes ``rotation``."""
    solids = [*_face(size), *_vault(size), *_deep_gray(size), *_cortex(size, rng), *_midline(size, rng)]
    for side in (-1, 1):
        solids += [*_ventricle(size, side, rng), *_thalamus(size, side)]
    solids += [*_cavum(size, rng), *_posterior_fossa(size, rng)]
    return Part("head", origin, rotation, tuple(solids))


def _vault(size: HeadSize) -> list[Solid]:
    outer = size.at(1, 1, 1)
    scalp = 0.8 + 0.03 * size.weeks
    return [
        ellipsoid(S.SKIN, size.at(0, 0, 0), outer + scalp),
        ellipsoid(S.SKULL, size.at(0, 0, 0), outer),
        _room(size, S.BRAIN),
    ]


def _room(size: HeadSize, label: int) -> Ellipsoid:
    """The inside of the skull."""
    return ellipsoid(label, size.at(0, 0, 0), size.at(1, 1, 1) - size.skull)


def _face(size: HeadSize) -> list[Solid]:
    at, side = size.at, size.side
    solids = [
        ellipsoid(S.SKIN, at(0.42, 0, -0.75), at(0.60, 0.66, 0.75)),
        ellipsoid(S.SKIN, at(0.98, 0, -0.62), at(0.13, 0.14, 0.15)),  # nose
        ellipsoid(S.SKIN, at(0.88, 0, -1.22), at(0.15, 0.25, 0.14)),  # chin
        ellipsoid(S.SKIN, at(-0.25, 0, -1.2), at(0.45, 0.55, 0.8)),  # neck
        ellipsoid(S.SOFT_TISSUE, at(0.40, 0, -0.75), at(0.56, 0.6, 0.7)),
        ellipsoid(S.SMALL_BONE, at(0.78, 0, -0.80), at(0.18, 0.30, 0.05)),  # maxilla
        tube(S.SMALL_BONE, at(0.95, 0, -0.45), at(1.02, 0, -0.58), 0.7),  # nasal bone
        tube(S.SMALL_BONE, at(0.82, 0.05, -1.2), at(0.25, 0.52, -0.95), 1.3),
        tube(S.SMALL_BONE, at(0.82, -0.05, -1.2), at(0.25, -0.52, -0.95), 1.3),
        ellipsoid(S.AMNIOTIC_FLUID, at(0.72, 0, -0.97), at(0.2, 0.18, 0.05)),  # mouth
    ]
    for sign in (-1, 1):
        eye = at(0.72, 0.42 * sign, -0.48)
        solids += [
            ellipsoid(S.SMALL_BONE, eye, np.full(3, 0.25 * side)),
            ellipsoid(S.EYE, eye + at(0.06, 0, 0), np.full(3, 0.22 * side)),
            ellipsoid(S.SOFT_TISSUE, eye + at(0.10, 0, 0), np.full(3, 0.06 * side)),
        ]
    return solids


def _cortex(size: HeadSize, rng: np.random.Generator) -> list[Solid]:
    """Sulci (more with age), the insulae and the bony base."""
    at, solids = size.at, []
    for _ in range(int(np.clip(3 * (size.weeks - 15), 12, 48))):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        middle = direction * rng.uniform(0.5, 0.88)
        along = np.cross(direction, rng.normal(size=3)) * rng.uniform(0.04, 0.12)
        solids.append(tube(S.SULCUS, at(*(middle - along)), at(*(middle + along)), rng.uniform(0.3, 0.6)))
    for sign in (-1, 1):
        solids += [
            tube(S.SULCUS, at(0.35, 0.72 * sign, -0.10), at(-0.08, 0.70 * sign, -0.02), 0.6),
            tube(S.SULCUS, at(0.30, 0.60 * sign, -0.12), at(0.00, 0.58 * sign, -0.05), 0.5),
            tube(S.SMALL_BONE, at(0.05, 0.15 * sign, -0.62), at(-0.30, 0.72 * sign, -0.52), 1.2),  # petrous
            tube(S.SMALL_BONE, at(0.28, 0.20 * sign, -0.60), at(0.42, 0.74 * sign, -0.45), 1.2),  # sphenoid
        ]
    return solids


def _deep_gray(size: HeadSize) -> list[Solid]:
    """The bright middle of each hemisphere that the darker thalami stand out from."""
    return [ellipsoid(S.DEEP_GRAY, size.at(0.02, 0.24 * side, -0.10), size.at(0.46, 0.30, 0.34)) for side in (-1, 1)]


def _midline(size: HeadSize, rng: np.random.Generator) -> list[Solid]:
    sheet = [0.97 * size.front, rng.uniform(0.35, 0.55), 0.72 * size.crown]
    return [
        Within(ellipsoid(S.FALX, size.at(0, 0, 0.35), sheet), _room(size, S.FALX)),
        ellipsoid(S.MIDBRAIN, size.at(-0.06, 0, -0.36), size.at(0.20, 0.26, 0.18)),
    ]


def _cavum(size: HeadSize, rng: np.random.Generator) -> list[Solid]:
    half_width = 0.075 * rng.uniform(0.85, 1.2)
    centre, half = size.at(0.42, 0, 0.04), size.at(0.15, half_width, 0.17)
    return [
        ellipsoid(S.FALX, centre, half + 0.5, powers=BOX),  # the two septal leaves
        ellipsoid(S.CAVUM, centre, half, powers=BOX),
        tube(S.CAVUM, size.at(0.10, 0, -0.02), size.at(-0.10, 0, -0.02), 0.5),  # third ventricle
    ]


def _thalamus(size: HeadSize, side: int) -> list[Solid]:
    turn = rotation_about(2, -20 * side)
    return [ellipsoid(S.THALAMUS, size.at(0.02, 0.20 * side, -0.06), size.at(0.21, 0.17, 0.16), rotation=turn)]


def _ventricle(size: HeadSize, side: int, rng: np.random.Generator) -> list[Solid]:
    """Frontal horn, body, atrium and occipital horn as a chain; the atrium is 4 to 8 mm wide, as measured."""
    at = size.at
    atrium = rng.uniform(2.2, 3.9) / size.side  # half of its width, as a fraction
    chain = [
        ((0.48, 0.17, 0.22), (0.14, 0.07, 0.12)),
        ((0.20, 0.22, 0.40), (0.26, 0.09, 0.10)),
        ((-0.18, 0.34, 0.36), (0.22, 0.75 * atrium, 0.14)),
        ((-0.40, 0.42, 0.24), (0.25, atrium, 0.20)),
        ((-0.62, 0.40, 0.18), (0.16, 0.7 * atrium, 0.10)),
    ]
    turn = rotation_about(2, -12 * side)
    solids = []
    for (x, y, z), (length, width, height) in chain:
        wall = at(length, width, height) + 0.45
        solids.append(ellipsoid(S.SULCUS, at(x, side * y, z), wall, rotation=turn))
    for (x, y, z), (length, width, height) in chain:
        solids.append(ellipsoid(S.LATERAL_VENTRICLE, at(x, side * y, z), at(length, width, height), rotation=turn))
    plexus = min(0.75 * atrium, 0.11) * (1.35 - 0.012 * size.weeks)  # it fills less of the atrium with age
    choroid = at(0.19, plexus, 0.15)
    return [*solids, ellipsoid(S.CHOROID_PLEXUS, at(-0.28, 0.40 * side, 0.27), choroid, rotation=turn)]


def _posterior_fossa(size: HeadSize, rng: np.random.Generator) -> list[Solid]:
    """Cisterna magna behind the two lobes of the cerebellum, with the vermis between them."""
    at, half = size.at, size.cerebellum / 2
    room = _room(size, S.CISTERNA_MAGNA)
    fossa = np.array([0.33 * size.front, 1.25 * half, 0.32 * size.crown])
    fossa[0] *= rng.uniform(0.9, 1.15)
    middle = at(-0.66, 0, -0.48)
    solids: list[Solid] = [
        Within(ellipsoid(S.FALX, middle, fossa + 0.6), room),  # tentorium and dura
        Within(ellipsoid(S.CISTERNA_MAGNA, middle, fossa), room),
    ]
    for side in (-1, 1):
        lobe = at(-0.52, 0, -0.44) + np.array([0, 0.5 * side * half, 0])
        lobe_half = np.array([0.44 * half, 0.54 * half, 0.54 * half])
        turn = rotation_about(2, 18 * side)
        solids += [
            ellipsoid(S.VERMIS, lobe, lobe_half + 0.4, rotation=turn),
            ellipsoid(S.CEREBELLUM, lobe, lobe_half, rotation=turn),
        ]
    return [
        *solids,
        ellipsoid(S.VERMIS, at(-0.54, 0, -0.44), [0.28 * half, 0.16 * half, 0.4 * half]),
        ellipsoid(S.CISTERNA_MAGNA, at(-0.42, 0, -0.46), [0.08 * half, 0.14 * half, 0.3 * half]),  # fourth ventricle
    ]
