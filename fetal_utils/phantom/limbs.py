"""Thighs, lower legs, arms and the umbilical cord as solids, each in a frame of its own.

Frame of a limb: x along the bone, from the trunk outwards; y and z across it; origin in the middle of the first bone.
"""

from itertools import pairwise

import numpy as np

from fetal_utils.phantom.painting import Part
from fetal_utils.phantom.shapes import Solid, ellipsoid, rotation_about, tube
from fetal_utils.phantom.structures import Structure as S


def build_leg(side: str, *, femur_mm: float, origin, rotation: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """Thigh with the femur (``femur_mm`` long), flexed knee, lower leg with tibia and fibula; and the foot."""
    half, bone = femur_mm / 2, max(1.0, 0.042 * femur_mm)
    bow = rng.uniform(0.02, 0.07) * femur_mm
    shin = _flexed(rng.uniform(40, 120), towards=-1)  # columns: down the shin, across it, and the way the toes point
    down, across = shin[:, 0], shin[:, 1]
    knee = np.array([half * 1.12, 0, 0])
    ankle = knee + 0.95 * femur_mm * down
    leg = [
        *_limb_flesh([-1.25 * half, 0, 0], knee, 0.30 * femur_mm),
        *_limb_flesh(knee, ankle, 0.21 * femur_mm),
        *_bowed_bone(S.FEMUR, half, bow, bone),
        ellipsoid(S.SOFT_TISSUE, knee, np.full(3, 0.09 * femur_mm)),  # cartilage of the knee
        tube(S.LONG_BONE, knee + 0.10 * femur_mm * down, ankle, 0.9 * bone),
        tube(S.LONG_BONE, knee + across * 4 * bone + 0.12 * femur_mm * down, ankle + across * 2 * bone, 0.6 * bone),
    ]
    shank = Part(f"{side} leg", np.asarray(origin, float), rotation, tuple(leg))
    toes_first = np.stack([shin[:, 2], across, -down], axis=1)  # frame of the foot: z goes up the shin
    foot = [*_limb_flesh([-0.08 * femur_mm, 0, 0], [0.42 * femur_mm, 0, 0], 0.12 * femur_mm)]
    for place in np.linspace(-0.05, 0.4, 6):
        foot.append(ellipsoid(S.SMALL_BONE, [place * femur_mm, 0, 0], np.array([1.3, 1.6, 0.8]) * bone))
    return [shank, Part(f"{side} foot", shank.to_body(ankle), rotation @ toes_first, tuple(foot))]


def build_arm(side: str, *, humerus_mm: float, origin, rotation: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """Upper arm, flexed elbow, forearm with two bones; and the hand with five fingers."""
    half, bone = humerus_mm / 2, max(0.9, 0.04 * humerus_mm)
    forearm = _flexed(rng.uniform(60, 140), towards=1)
    out, across = forearm[:, 0], forearm[:, 1]
    elbow = np.array([half * 1.1, 0, 0])
    wrist = elbow + 0.85 * humerus_mm * out
    start = elbow + 0.08 * humerus_mm * out
    arm = [
        *_limb_flesh([-1.1 * half, 0, 0], elbow, 0.20 * humerus_mm),
        *_limb_flesh(elbow, wrist, 0.16 * humerus_mm),
        tube(S.LONG_BONE, [-half, 0, 0], [half, 0, 0], bone),
        tube(S.LONG_BONE, start + across * 1.8 * bone, wrist + across * 1.5 * bone, 0.7 * bone),
        tube(S.LONG_BONE, start - across * 1.8 * bone, wrist - across * 1.5 * bone, 0.7 * bone),
    ]
    upper = Part(f"{side} arm", np.asarray(origin, float), rotation, tuple(arm))
    hand = [*_limb_flesh([0, 0, 0], [0.18 * humerus_mm, 0, 0], 0.12 * humerus_mm)]
    spread = np.linspace(-0.5, 0.5, 5)
    fingers = np.stack([np.ones(5), spread, np.zeros(5)], axis=1) / np.hypot(1, spread)[:, None]
    for label, thickness in ((S.SKIN, 1.6 * bone), (S.SMALL_BONE, 0.8 * bone)):
        hand += [tube(label, 0.14 * humerus_mm * along, 0.46 * humerus_mm * along, thickness) for along in fingers]
    return [upper, Part(f"{side} hand", upper.to_body(wrist), rotation @ forearm, tuple(hand))]


def _flexed(angle_deg: float, *, towards: int) -> np.ndarray:
    """Frame (columns) of a limb's second segment, bent by an angle towards +z or -z of the first."""
    return rotation_about(1, -towards * angle_deg)


def build_cord(*, radius_mm: float, origin, rng: np.random.Generator) -> Part:
    """A few loops of the umbilical cord: one vein with two arteries turning round it."""
    angles = np.linspace(0, 1, 22)
    turns = 2 * np.pi * (angles[:, None] * rng.uniform(1.2, 2.2, 3) + rng.random(3))
    path = 6.0 * radius_mm * np.sin(turns) * np.array([0.6, 1.0, 1.0]) + np.array([4.5 * radius_mm, 0, 0])
    path[0] = 0
    solids: list[Solid] = []
    for start, end in pairwise(path):
        solids.append(tube(S.CORD_WALL, start, end, radius_mm))
    for index, (start, end) in enumerate(pairwise(path)):
        turn = np.array([0, np.cos(1.3 * index), np.sin(1.3 * index)]) * 0.5 * radius_mm
        solids.append(tube(S.CORD_VESSEL, start + turn, end + turn, 0.38 * radius_mm))
        solids.append(tube(S.CORD_VESSEL, start - turn, end - turn, 0.22 * radius_mm))
        solids.append(tube(S.CORD_VESSEL, start - turn[[0, 2, 1]], end - turn[[0, 2, 1]], 0.20 * radius_mm))
    return Part("cord", np.asarray(origin, float), np.eye(3), tuple(solids))


def _limb_flesh(start, end, radius: float) -> list[Solid]:
    """Skin and muscle round a bone that runs from ``start`` to ``end`` (mm)."""
    return [tube(S.SKIN, start, end, radius), tube(S.THIGH, start, end, radius - 0.9)]


def _bowed_bone(label: int, half: float, bow: float, thickness: float) -> list[Solid]:
    """A bone along x from ``-half`` to ``half`` (mm) whose middle is raised by ``bow`` (mm), in straight pieces."""
    x = np.linspace(-half, half, 7)
    path = np.stack([x, 0 * x, bow * (1 - (x / half) ** 2)], axis=1)
    return [tube(label, start, end, thickness) for start, end in pairwise(path)]
