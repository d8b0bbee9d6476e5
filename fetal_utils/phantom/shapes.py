"""Implicit solids in millimetres.

Points are float32 arrays of shape (3, n_rows, n_cols): a slice through the volume, sampled on any grid.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

BLUNT, BOX = (2, 2, 4), (4, 4, 4)  # powers of a solid with flat ends along z, and of a box with round edges


@dataclass(frozen=True)
class Ellipsoid:
    """Solid ``sum((axes @ (p - centre)) ** powers) <= 1``.

    Parameters
    ----------
    label : int
        Label painted inside.
    centre : array, shape (3,)
        Centre, mm.
    axes : array, shape (3, 3)
        Rows are unit directions divided by the half-lengths, 1 / mm.
    powers : tuple of int
        2 or 4 for each axis: an ellipsoid has 2 for all, 4 makes an axis blunt like a box.
    """

    label: int
    centre: np.ndarray
    axes: np.ndarray
    powers: tuple[int, int, int] = (2, 2, 2)
    radius: float = field(init=False)

    def __post_init__(self) -> None:
        longest = 1 / math.sqrt(min((self.axes**2).sum(axis=1)))
        corner = 1.0 if max(self.powers) == 2 else 3**0.25  # a boxy solid reaches beyond its half-lengths
        object.__setattr__(self, "radius", longest * corner)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether each point lies inside; (3, n_rows, n_cols) to bool (n_rows, n_cols)."""
        offset = (points - self.centre[:, None, None].astype(np.float32)).reshape(3, -1)
        scaled = self.axes.astype(np.float32) @ offset
        scaled *= scaled
        for axis, power in enumerate(self.powers):
            if power == 4:
                scaled[axis] *= scaled[axis]
        value = scaled[0] + scaled[1] + scaled[2]
        return (value <= 1).reshape(points.shape[1:])


@dataclass(frozen=True)
class Tube:
    """Points closer than ``thickness`` (mm) to the segment from ``start`` to ``end`` (mm): bones and vessels."""

    label: int
    start: np.ndarray
    end: np.ndarray
    thickness: float

    @cached_property
    def centre(self) -> np.ndarray:
        return (self.start + self.end) / 2

    @cached_property
    def radius(self) -> float:
        return math.dist(self.end, self.start) / 2 + self.thickness

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether each point lies inside; (3, n_rows, n_cols) to bool (n_rows, n_cols)."""
        along = (self.end - self.start).astype(np.float32)
        offset = (points - self.start[:, None, None].astype(np.float32)).reshape(3, -1)
        fraction = np.clip(along @ offset / max(float(along @ along), 1e-6), 0, 1)
        offset -= along[:, None] * fraction
        return (np.einsum("ij,ij->j", offset, offset) <= self.thickness**2).reshape(points.shape[1:])


@dataclass(frozen=True)
class Repeated:
    """``solid`` repeated along the z axis ``n_each_side`` times either way, ``pitch`` mm apart, and ``slope``d.

    ``slope`` shears the copies: z grows by ``slope`` mm for each mm of x, which makes a ring a rib.
    """

    solid: Ellipsoid | Tube
    pitch: float
    n_each_side: int
    slope: float = 0.0

    @property
    def label(self) -> int:
        return self.solid.label

    @property
    def centre(self) -> np.ndarray:
        return self.solid.centre

    @property
    def radius(self) -> float:
        return self.solid.radius * (1 + abs(self.slope)) + self.pitch * self.n_each_side

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether each point lies inside a copy; (3, n_rows, n_cols) to bool (n_rows, n_cols)."""
        folded = points.copy()
        height = points[2] - self.slope * points[0] - self.centre[2]
        copy = np.clip(np.round(height / self.pitch), -self.n_each_side, self.n_each_side)
        folded[2] = height - copy * self.pitch + self.centre[2]
        return self.solid.contains(folded)


@dataclass(frozen=True)
class Without:
    """``solid`` where ``hole`` is not: rings and crescents."""

    solid: Ellipsoid | Tube | Repeated
    hole: Ellipsoid | Tube

    @property
    def label(self) -> int:
        return self.solid.label

    @property
    def centre(self) -> np.ndarray:
        return self.solid.centre

    @property
    def radius(self) -> float:
        return self.solid.radius

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether each point lies in the solid and outside the hole."""
        return self.solid.contains(points) & ~self.hole.contains(points)


@dataclass(frozen=True)
class Within:
    """``solid`` only where it lies inside ``room``: organs that a wall confines."""

    solid: Ellipsoid | Tube
    room: Ellipsoid

    @property
    def label(self) -> int:
        return self.solid.label

    @property
    def centre(self) -> np.ndarray:
        return self.solid.centre

    @property
    def radius(self) -> float:
        return self.solid.radius

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether each point lies in both."""
        return self.solid.contains(points) & self.room.contains(points)


Solid = Ellipsoid | Tube | Repeated | Without | Within


def ellipsoid(label, centre, half_lengths, *, rotation=None, powers: tuple[int, int, int] = (2, 2, 2)) -> Ellipsoid:
    """Ellipsoid from half-lengths in mm; columns of ``rotation`` (3, 3) are its axes (default x, y, z)."""
    rotation = np.eye(3) if rotation is None else rotation
    axes = rotation.T / np.asarray(half_lengths, float)[:, None]
    return Ellipsoid(label, np.asarray(centre, float), axes, powers)


def tube(label, start, end, thickness: float) -> Tube:
    """Tube between two points given as sequences, mm."""
    return Tube(label, np.asarray(start, float), np.asarray(end, float), float(thickness))


def rotation_about(axis: int, degrees: float) -> np.ndarray:
    """Right-handed rotation matrix (3, 3) about coordinate axis 0, 1 or 2."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix
