"""One fetus: its size for its gestational age, its own variations, and its head, trunk and limbs as solids.

Every part is built in a frame of its own whose unit is the part's size: the half-axes of the skull, the radius of the
abdomen, the length of a limb's first bone. In head and trunk, x points to the front, y to the left, z to the crown.
The proportions follow the drawings of the ISUOG guidelines for the brain (Ultrasound Obstet Gynecol 56:476, 2020),
biometry (53:715, 2019) and the heart (41:348, 2013); they are plausible, not measured.
"""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.solids import Solid, box, chain, ellipsoid, tube, turn
from fetal_utils.phantom.solids import Structure as S

HEART = (0.30, 0.22, 1.05)  # its centre, in abdominal radii
SIDES = (-1, 1)  # right, left


@dataclass(frozen=True)
class Part:
    """Frame of a body part in that of the trunk: its origin (mm), and its axes as columns, one unit (mm) long."""

    origin: np.ndarray
    axes: np.ndarray


@dataclass(frozen=True)
class Fetus:
    """Gestational age, the frames of "head", "trunk" and left "leg", and all solids (mm) in the order of painting."""

    weeks: float
    parts: dict[str, Part]
    solids: tuple[Solid, ...]


def mean_biometry(weeks: float) -> tuple[float, float, float, float]:
    """Mean biparietal and occipitofrontal diameter, abdominal circumference and femur length, mm.

    The INTERGROWTH-21st standards (Papageorghiou et al. 2014, Lancet 384:869), made for 14 to 40 weeks.
    """
    biparietal = 5.60878 + 0.158369 * weeks**2 - 0.00256379 * weeks**3
    occipitofrontal = -12.4097 + 0.626342 * weeks**2 - 0.148075 * weeks**2 * np.log(weeks)
    circumference = -81.3243 + 11.6772 * weeks - 0.000561865 * weeks**3
    return biparietal, occipitofrontal, circumference, -39.9616 + 4.32298 * weeks - 0.0380156 * weeks**2


def draw_fetus(rng: np.random.Generator) -> Fetus:
    """A fetus of random age, size, posture and inner proportions.

    Two thirds of patients come to the scan at 20 to 23 weeks, the rest to later growth scans; sizes spread by 3 %.
    """
    weeks = float(np.clip(rng.normal(21.5, 1.3) if rng.random() < 0.65 else rng.normal(30, 3.0), 18, 36))
    biparietal, occipitofrontal, circumference, femur = mean_biometry(weeks) * rng.normal(1, 0.03, 4).clip(0.92, 1.08)
    radius = circumference / (2 * np.pi)
    skull = np.array([0.5 * occipitofrontal, 0.5 * biparietal, 0.42 * occipitofrontal])
    nod = turn("y", rng.normal(12, 10)) @ turn("z", rng.normal(0, 15))
    parts = {
        "head": Part(np.array([0.25 * radius, 0, 2.15 * radius + 1.15 * skull[2]]), nod * skull),
        "trunk": Part(np.zeros(3), np.eye(3) * radius),
    }
    built = []
    for side in SIDES:
        # x of a limb's frame points from the trunk outwards along its first bone; its origin is that bone's middle
        leg = turn("z", side * rng.uniform(-5, 25)) @ turn("y", rng.uniform(-40, 75)) * femur
        parts["leg"] = Part(radius * np.array([0.05, 0.62 * side, -1.75]) + 0.62 * leg[:, 0], leg)
        built.append((parts["leg"], _limb(S.FEMUR, rng.uniform(40, 120), girth=0.28, skin=0.9 / femur, rng=rng)))
        arm = turn("z", side * rng.uniform(10, 60)) @ turn("y", rng.uniform(20, 75)) * 0.95 * femur
        shoulder = Part(radius * np.array([0.1, 1.02 * side, 1.6]) + 0.5 * arm[:, 0], arm)
        built.append((shoulder, _limb(S.BONE, -rng.uniform(60, 140), girth=0.20, skin=0.9 / femur, rng=rng)))
    built += [(parts["trunk"], _trunk(radius, weeks, rng)), (parts["head"], _head(skull, weeks, rng))]
    return Fetus(weeks, parts, tuple(solid.placed(part.origin, part.axes) for part, own in built for solid in own))


def _head(unit_mm: np.ndarray, weeks: float, rng: np.random.Generator) -> list[Solid]:
    skull, scalp = (0.7 + 0.045 * weeks) / unit_mm, (0.8 + 0.03 * weeks) / unit_mm  # thickness
    room = ellipsoid(S.BRAIN, (0, 0, 0), 1 - skull)
    return [
        *_face(),
        ellipsoid(S.SKIN, (0, 0, 0), 1 + scalp),
        ellipsoid(S.SKULL, (0, 0, 0), (1, 1, 1)),
        room,
        *_brain(unit_mm, weeks, room, rng),
        *_posterior_fossa(unit_mm, weeks, room, rng),
    ]


def _face() -> list[Solid]:
    solids = [
        ellipsoid(S.SKIN, (0.42, 0, -0.75), (0.60, 0.66, 0.75)),
        ellipsoid(S.SKIN, (0.98, 0, -0.62), (0.13, 0.14, 0.15)),  # nose
        ellipsoid(S.SKIN, (0.88, 0, -1.22), (0.15, 0.25, 0.14)),  # chin
        ellipsoid(S.SKIN, (-0.25, 0, -1.2), (0.45, 0.55, 0.8)),  # neck
        ellipsoid(S.FLESH, (0.40, 0, -0.75), (0.56, 0.6, 0.7)),
        ellipsoid(S.BONE, (0.78, 0, -0.80), (0.18, 0.30, 0.05)),  # upper jaw
        ellipsoid(S.BONE, (0.98, 0, -0.52), (0.07, 0.03, 0.03), turn("y", 60)),  # bridge of the nose
        ellipsoid(S.FLUID, (0.72, 0, -0.97), (0.2, 0.18, 0.05)),  # mouth
    ]
    for side in SIDES:
        solids += [
            tube(S.BONE, (0.82, 0.05 * side, -1.2), (0.25, 0.52 * side, -0.95), 0.045),  # lower jaw
            ellipsoid(S.BONE, (0.72, 0.42 * side, -0.48), (0.2, 0.25, 0.24)),
            ellipsoid(S.FLUID, (0.77, 0.42 * side, -0.48), (0.18, 0.22, 0.21)),  # eye
        ]
    return solids


def _brain(unit_mm: np.ndarray, weeks: float, room: Solid, rng: np.random.Generator) -> list[Solid]:
    """From the convolutions inwards: sulci, deep gray matter, falx, ventricles, thalami, cavum."""
    solids = [ellipsoid(S.DEEP_GRAY, (0.02, 0.24 * side, -0.10), (0.46, 0.30, 0.34)) for side in SIDES]
    for _ in range(int(np.clip(3 * (weeks - 15), 12, 48))):  # sulci deepen with age
        place = rng.normal(size=3)
        place *= rng.uniform(0.5, 0.9) / np.linalg.norm(place)
        sheet = [*rng.uniform(0.05, 0.13, 2), rng.uniform(0.35, 0.6) / unit_mm[1]]
        solids.append(ellipsoid(S.SULCUS, place, sheet, turn("xyz", rng.uniform(-90, 90, 3))))
    solids.append(ellipsoid(S.FALX, (0, 0, 0.35), (0.97, rng.uniform(0.35, 0.55) / unit_mm[1], 0.72)).within(room))
    atrium = rng.uniform(2.2, 3.9) / unit_mm[1]  # half its width: 4 to 8 mm in all, as is measured
    plexus = min(0.75 * atrium, 0.11) * (1.35 - 0.012 * weeks)  # it fills less of the atrium with age
    horns = [  # frontal horn, body, atrium, occipital horn: centre and half-lengths
        ((0.48, 0.17, 0.22), (0.14, 0.07, 0.12)),
        ((0.20, 0.22, 0.40), (0.26, 0.09, 0.10)),
        ((-0.18, 0.34, 0.36), (0.22, 0.75 * atrium, 0.14)),
        ((-0.40, 0.42, 0.24), (0.25, atrium, 0.20)),
        ((-0.62, 0.40, 0.18), (0.16, 0.7 * atrium, 0.10)),
    ]
    for side in SIDES:
        diverging = turn("z", -12 * side)
        for structure, wall in ((S.SULCUS, 0.45 / unit_mm), (S.LATERAL_VENTRICLE, 0 / unit_mm)):
            solids += [ellipsoid(structure, (x, y * side, z), half + wall, diverging) for (x, y, z), half in horns]
        solids += [
            ellipsoid(S.CHOROID_PLEXUS, (-0.28, 0.40 * side, 0.27), (0.19, plexus, 0.15), diverging),
            ellipsoid(S.THALAMUS, (0.02, 0.20 * side, -0.06), (0.21, 0.17, 0.16), turn("z", -20 * side)),
            tube(S.SULCUS, (0.35, 0.72 * side, -0.10), (-0.08, 0.70 * side, -0.02), 0.02),  # insula
            tube(S.BONE, (0.05, 0.15 * side, -0.62), (-0.30, 0.72 * side, -0.52), 0.045),  # base of the skull
            tube(S.BONE, (0.28, 0.20 * side, -0.60), (0.42, 0.74 * side, -0.45), 0.045),
        ]
    centre, half = (0.42, 0, 0.04), np.array([0.15, 0.075 * rng.uniform(0.85, 1.2), 0.17])
    for structure, wall in ((S.FALX, 0.5 / unit_mm), (S.CAVUM, 0)):  # the leaves of the septum, and what they enclose
        solids.append(box(structure, centre, half + wall).within(ellipsoid(structure, centre, 1.25 * half + wall)))
    return [*solids, tube(S.CAVUM, (0.10, 0, -0.02), (-0.10, 0, -0.02), 0.018)]  # third ventricle


def _posterior_fossa(unit_mm: np.ndarray, weeks: float, room: Solid, rng: np.random.Generator) -> list[Solid]:
    """Cisterna magna behind the two lobes of the cerebellum with the vermis between them.

    The cerebellum is as many millimetres wide as the fetus is weeks old, the rule of thumb of the second trimester.
    """
    half = 0.5 * weeks / unit_mm
    fossa = np.array([0.33 * rng.uniform(0.9, 1.15), 1.25 * half[1], 0.29])
    solids = [
        ellipsoid(S.FALX, (-0.66, 0, -0.48), fossa + 0.6 / unit_mm).within(room),  # dura
        ellipsoid(S.CISTERNA_MAGNA, (-0.66, 0, -0.48), fossa).within(room),
    ]
    for structure, rim in ((S.VERMIS, 0.4 / unit_mm), (S.CEREBELLUM, 0)):
        for side in SIDES:
            lobe = (-0.53, 0.5 * side * half[1], -0.44)
            solids.append(ellipsoid(structure, lobe, half * (0.44, 0.54, 0.54) + rim, turn("z", 18 * side)))
    return [*solids, ellipsoid(S.VERMIS, (-0.53, 0, -0.44), half * (0.28, 0.16, 0.4))]


def _trunk(unit_mm: float, weeks: float, rng: np.random.Generator) -> list[Solid]:
    outer, skin = np.array([1.0, 1.06, 2.3]), (0.6 + 0.03 * weeks) / unit_mm
    wall = 0.45 / unit_mm
    lie, full = turn("z", rng.uniform(-25, 40)), rng.uniform(0.75, 1.0)
    x, y, z = rng.normal([0.18, -0.04, 0.0], 0.03)  # of the portal sinus, where the umbilical vein turns right
    vein = [(0.95, 0, -0.55), (0.55, 0, -0.08), (x, y, z), (x - 0.12, y - 0.07, z), (x - 0.17, y - 0.22, z)]
    solids = [
        ellipsoid(S.SKIN, (0, 0, 0.05), outer + skin),
        ellipsoid(S.FLESH, (0, 0, 0.05), outer),
        ellipsoid(S.BOWEL, (0.12, 0, -0.95), (0.76, 0.86, 1.1)),
        ellipsoid(S.LIVER, (0.10, -0.02, 0.05), (0.82, 0.92, 0.62)),
        ellipsoid(S.BOWEL, (-0.36, 0.40, -0.05), (0.16, 0.22, 0.2)),  # spleen
        ellipsoid(S.STOMACH, rng.normal([0.02, 0.48, 0.02], 0.03), full * np.array([0.36, 0.21, 0.30]), lie),
        *_vessel(vein, 0.065, wall, S.UMBILICAL_VEIN),
        *_vessel([(-0.50, 0.07, -1.6), (-0.46, 0.10, 0.5), (-0.40, 0.08, 1.6)], 0.057, wall),  # aorta
        *_vessel([(-0.34, -0.20, -1.4), (0.05, -0.14, 0.8)], 0.05, wall),  # vena cava
        ellipsoid(S.FLUID, (0.45, 0, -1.45), (0.2, 0.2, 0.24)),  # bladder
    ]
    for start in rng.uniform((-0.2, -0.7, -0.3), (0.6, 0.3, 0.4), (5, 3)):  # hepatic veins
        solids.append(tube(S.VESSEL, start, start + rng.normal(0, 0.15, 3), 0.018))
    for side in SIDES:
        for structure, size in ((S.SULCUS, 1.04), (S.KIDNEY, 1.0), (S.SULCUS, 0.5), (S.FLUID, 0.22)):
            half = size * np.array([0.25, 0.27, 0.42])
            solids.append(ellipsoid(structure, (-0.48, 0.42 * side, -0.80), half, turn("x", 8 * side)))
        solids.append(tube(S.BONE, (-0.62, 0.25 * side, -1.35), (-0.25, 0.66 * side, -1.5), 0.08))  # ilium
    return [*solids, *_chest(unit_mm, turn("z", rng.normal(45, 8)), rng), *_skeleton()]


def _chest(unit_mm: float, lie: np.ndarray, rng: np.random.Generator) -> list[Solid]:
    """Lungs and the four-chamber heart, whose apex points along the first column of ``lie`` to the left front."""
    large, chamber = rng.uniform(1.0, 1.18), rng.uniform(0.9, 1.1)
    solids = [ellipsoid(S.MYOCARDIUM, (0, 0, 0), (0.58, 0.46, 0.48))]
    for side, grown in ((1, chamber), (-1, 1.08 * chamber)):
        ventricle, atrium = grown * np.array([[0.31, 0.155, 0.26], [0.19, 0.175, 0.24]])
        solids += [
            ellipsoid(S.HEART_CHAMBER, (0.14, 0.185 * side, 0), ventricle, turn("z", -9 * side)),
            ellipsoid(S.HEART_CHAMBER, (-0.29, 0.19 * side, 0), atrium),
            tube(S.HEART_SEPTUM, (-0.10, 0.03 * side, 0), (-0.06, 0.30 * side, 0), 0.5 / unit_mm),  # valve
        ]
    solids += [
        ellipsoid(S.HEART_SEPTUM, (0.16, 0, 0), (0.34, 0.035, 0.26)),
        ellipsoid(S.HEART_SEPTUM, (-0.34, 0, 0), (0.14, 0.018, 0.2)),
    ]
    lungs = ellipsoid(S.LUNG, (-0.02, 0, 1.12), (0.80, 0.88, 0.85))
    return [lungs, *(solid.placed(np.array(HEART), large * lie) for solid in solids)]


def _skeleton() -> list[Solid]:
    """Spine, of a body and two laminae at each level, and slanted ribs that are open in front."""
    solids = [
        tube(S.FLESH, (-0.80, 0, -1.9), (-0.80, 0, 2.0), 0.17),
        tube(S.FLUID, (-0.79, 0, -1.9), (-0.79, 0, 2.0), 0.055),  # spinal canal
    ]
    for z in 0.145 * np.arange(-13, 15):
        solids.append(ellipsoid(S.SPINE, (-0.66, 0, z), (0.085, 0.085, 0.052)))
        solids += [ellipsoid(S.SPINE, (-0.85, 0.135 * side, z), (0.055, 0.05, 0.052)) for side in SIDES]
    outer, inner = (ellipsoid(S.BONE, (-0.03, 0, 1.05), (0.90, 0.95, 2.0) - depth) for depth in np.array([[0], [0.07]]))
    back = box(S.BONE, (-0.5, 0, 1.0), (0.85, 1.2, 2.5))  # all but the front
    for z in 0.27 * np.arange(-4, 5) + 1.05:
        solids.append(box(S.BONE, (-0.03, 0, z), (1.1, 1.1, 0.05), turn("y", 19)).within(outer, back).without(inner))
    return solids


def _limb(bone: S, bend_deg: float, *, girth: float, skin: float, rng: np.random.Generator) -> list[Solid]:
    """A limb of two segments: one ``bone`` of length 1, a bent joint, and two thinner bones with foot or hand."""
    joint, lower, bow = np.array([0.56, 0, 0]), turn("y", bend_deg), rng.uniform(0.02, 0.07)
    down, aside, ahead = lower.T
    end, thick = joint + 0.92 * down, 0.042
    flesh = [  # middle, half-lengths and axes: two segments, the joint, foot or hand
        ((-0.03, 0, 0), np.array([0.72, girth, girth]), np.eye(3)),
        ((joint + end) / 2, np.array([0.60, 0.72 * girth, 0.72 * girth]), lower),
        (joint, np.full(3, 0.75 * girth), lower),
        (end + 0.12 * ahead, np.array([0.1, 0.12, 0.25]), lower),
    ]
    x, start = np.linspace(-0.5, 0.5, 5), joint + 0.12 * down
    return [
        *(ellipsoid(S.SKIN, *shape) for shape in flesh),
        *(ellipsoid(S.FLESH, middle, half - skin, axes) for middle, half, axes in flesh),
        *chain(bone, np.stack([x, 0 * x, bow * (1 - 4 * x**2)], axis=1), thick),
        tube(S.BONE, start, end, 0.85 * thick),
        tube(S.BONE, start + 3.2 * thick * aside, end + 1.8 * thick * aside, 0.6 * thick),
    ]


def _vessel(path: list, radius: float, wall: float, lumen: S = S.VESSEL) -> list[Solid]:
    """A vessel with its thin bright wall."""
    return [*chain(S.VESSEL_WALL, path, radius + wall), *chain(lumen, path, radius)]
