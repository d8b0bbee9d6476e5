"""What the phantom is made of: structures with their acoustic properties, and solids that slices cut.

A solid is where all of its quadrics are at most zero. A quadric is a symmetric matrix Q that takes the value
``p @ Q @ p`` at ``p = (x, y, z, 1)``: ellipsoids, cylinders and slabs all are of that kind, and a slice by a plane
turns each into a conic. So a whole slice is painted by small matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

import numpy as np
from scipy.spatial.transform import Rotation

ENDLESS = 500.0  # mm; half-length of what has no end inside a view


class Structure(IntEnum):
    """Every region that can be painted, with its acoustic properties.

    The four numbers are backscatter (dB), attenuation there and back (dB / cm), impedance (MRayl) and how uneven the
    backscatter is (dB). They are relative and chosen by eye against real images; bone, fluid and tissue keep their
    order.
    """

    NOTHING = -90, 0.0, 1.48, 0  # outside the scanner's field
    # mother, and what surrounds the fetus
    FAT = -20, 1.0, 1.52, 4
    MUSCLE = -27, 1.1, 1.60, 3
    UTERUS = -24, 0.9, 1.58, 7
    PLACENTA = -19, 0.7, 1.57, 2
    AMNIOTIC_FLUID = -56, 0.02, 1.49, 1
    CERVIX = -23, 1.0, 1.59, 4
    CERVICAL_MUCOSA = -32, 0.8, 1.56, 3
    CERVICAL_CANAL = -16, 0.8, 1.68, 3
    VESSEL = -48, 0.1, 1.50, 1
    VESSEL_WALL = -13, 0.7, 1.66, 2
    # everywhere in the fetus
    SKIN = -18, 1.0, 1.62, 4
    FLESH = -27, 0.8, 1.58, 4
    BONE = -6, 30.0, 2.6, 2
    FLUID = -50, 0.05, 1.50, 1  # bladder, eyes, spinal canal
    # head
    SKULL = -22, 14.0, 2.7, 4
    BRAIN = -37, 0.45, 1.555, 5
    SULCUS = -19, 0.5, 1.60, 2
    FALX = -13, 0.6, 1.72, 2
    CAVUM = -50, 0.1, 1.50, 1
    DEEP_GRAY = -31, 0.5, 1.565, 7
    THALAMUS = -39, 0.5, 1.56, 3
    LATERAL_VENTRICLE = -48, 0.1, 1.50, 1
    CHOROID_PLEXUS = -16, 0.6, 1.60, 3
    CEREBELLUM = -31, 0.6, 1.58, 3
    VERMIS = -17, 0.6, 1.64, 2
    CISTERNA_MAGNA = -48, 0.1, 1.49, 1
    # trunk and thigh
    SPINE = -4, 26.0, 2.4, 3
    LIVER = -26, 0.8, 1.58, 3
    BOWEL = -23, 0.9, 1.58, 6
    STOMACH = -52, 0.05, 1.49, 1
    UMBILICAL_VEIN = -50, 0.1, 1.50, 1
    KIDNEY = -30, 0.8, 1.58, 3
    LUNG = -24, 0.9, 1.585, 3
    MYOCARDIUM = -30, 0.8, 1.60, 3
    HEART_CHAMBER = -42, 0.15, 1.53, 3
    HEART_SEPTUM = -21, 0.7, 1.66, 3
    FEMUR = -6, 120.0, 2.9, 2

    def __new__(cls, *acoustics: float) -> "Structure":
        member = int.__new__(cls, len(cls.__members__))
        member._value_ = len(cls.__members__)
        member.acoustics = acoustics
        return member


@dataclass(frozen=True)
class Solid:
    """A region of one structure: where all ``quadrics`` (n, 4, 4) are at most zero, in any unit until `paint`.

    ``centre`` (3,) and ``radius`` are those of a ball around it, by which slices that miss it are told.
    """

    structure: Structure
    quadrics: np.ndarray
    centre: np.ndarray
    radius: float

    def within(self, *rooms: "Solid") -> "Solid":
        """The part of it that lies inside all ``rooms``."""
        return replace(self, quadrics=np.concatenate([self.quadrics, *(room.quadrics for room in rooms)]))

    def without(self, hole: "Solid") -> "Solid":
        """The part of it that lies outside ``hole``, an ellipsoid."""
        return replace(self, quadrics=np.concatenate([self.quadrics, -hole.quadrics]))

    def placed(self, origin: np.ndarray, axes: np.ndarray) -> "Solid":
        """The solid with its frame put at ``origin`` (3,), along the columns of ``axes`` (3, 3), which may stretch."""
        back = np.eye(4)
        back[:3, :3] = np.linalg.inv(axes)
        back[:3, 3] = -back[:3, :3] @ origin
        radius = self.radius * np.linalg.norm(axes, axis=0).max()
        return Solid(self.structure, back.T @ self.quadrics @ back, origin + axes @ self.centre, radius)


def ellipsoid(structure: Structure, centre, half_lengths, rotation: np.ndarray | None = None) -> Solid:
    """An ellipsoid whose axes are the columns of ``rotation`` (default x, y, z)."""
    return _solid(structure, centre, half_lengths, rotation, [(1, 1, 1)], np.max(half_lengths))


def box(structure: Structure, centre, half_lengths, rotation: np.ndarray | None = None) -> Solid:
    """A box whose edges lie along the columns of ``rotation``."""
    return _solid(structure, centre, half_lengths, rotation, np.eye(3), np.linalg.norm(half_lengths))


def tube(structure: Structure, start, end, radius: float) -> Solid:
    """A round rod, flat at its ends, which lie a little beyond ``start`` and ``end`` so that bent chains close."""
    along = np.subtract(end, start, dtype=float)
    rotation = np.linalg.qr(np.column_stack([along, np.eye(3)]))[0]  # any frame whose first axis runs along
    half = np.linalg.norm(along) / 2 + 0.35 * radius
    shapes = [(1, 0, 0), (0, 1, 1)]
    return _solid(structure, np.add(start, end) / 2, (half, radius, radius), rotation, shapes, np.hypot(half, radius))


def chain(structure: Structure, path: Sequence, radius: float) -> list[Solid]:
    """Tubes from each point of ``path`` to the next."""
    return [tube(structure, start, end, radius) for start, end in pairwise(path)]


def turn(axis: str, degrees: float) -> np.ndarray:
    """Matrix (3, 3) of a right-handed rotation about "x", "y" or "z"."""
    return Rotation.from_euler(axis, degrees, degrees=True).as_matrix()


def paint(labels: np.ndarray, solids: Sequence[Solid], plane: np.ndarray, x_mm: np.ndarray, z_mm: np.ndarray) -> None:
    """Write the structures that a slice cuts into its label map, later solids on top.

    Parameters
    ----------
    labels : array of uint8, shape (n_rows, n_columns)
        Changed in place where a solid lies.
    solids : sequence of Solid
        In mm.
    plane : array, shape (4, 3)
        Takes ``(x, z, 1)`` of the slice to ``(x, y, z, 1)`` in the frame of the solids; its first two columns are unit
        vectors.
    x_mm, z_mm : array of float32, shape (n_rows, n_columns)
        Where in the slice each sample lies.
    """
    middle = np.array([[1, 0, x_mm.mean()], [0, 1, z_mm.mean()], [0, 0, 1]], float)
    plane = plane @ middle  # coordinates from the middle of the slice, where float32 suffices for squares
    x, z = x_mm.ravel() - middle[0, 2].astype(np.float32), z_mm.ravel() - middle[1, 2].astype(np.float32)
    monomials = np.stack([x * x, x * z, z * z, x, z, np.ones_like(x)])
    offsets = np.array([solid.centre for solid in solids]) - plane[:3, 2]
    radii = np.array([solid.radius for solid in solids])
    reached = np.abs(offsets @ np.cross(plane[:3, 0], plane[:3, 1])) <= radii
    for axis, values in enumerate((x, z)):
        along = offsets @ plane[:3, axis]
        reached &= (along + radii >= values.min()) & (along - radii <= values.max())
    flat = labels.reshape(-1)
    for index in np.flatnonzero(reached):
        conics = plane.T @ solids[index].quadrics @ plane  # (n_quadrics, 3, 3), of (x, z, 1)
        factors = conics[:, [0, 0, 1, 0, 1, 2], [0, 1, 1, 2, 2, 2]] * [1, 2, 1, 2, 2, 1]
        inside = (factors.astype(np.float32) @ monomials <= 0).all(axis=0)
        np.putmask(flat, inside, np.uint8(solids[index].structure))


def _solid(structure, centre, half_lengths, rotation, shapes, radius) -> Solid:
    """The solid where, in units of its half-lengths, the chosen squared coordinates sum to at most one: a 1 in a row
    of ``shapes`` (n_quadrics, 3) chooses one."""
    scale = np.eye(4)
    scale[:3, :3] = (np.eye(3) if rotation is None else rotation.T) / np.asarray(half_lengths, float)[:, None]
    scale[:3, 3] = -scale[:3, :3] @ np.asarray(centre, float)
    quadrics = np.array([scale.T @ np.diag([*shape, -1.0]) @ scale for shape in shapes])
    return Solid(structure, quadrics, np.asarray(centre, float), float(radius))
