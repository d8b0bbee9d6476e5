"""How lists of solids are painted onto a slice, and the body parts that hold them.

Points are float32 arrays of shape (3, n_rows, n_cols): a slice through the volume, sampled on any smooth grid.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fetal_utils.phantom.shapes import Ellipsoid, Solid, Tube, ellipsoid

COARSE = 8  # grid step of the search for the part of a slice that a solid can reach


@dataclass(frozen=True)
class Part:
    """A body part: solids in its own frame, and that frame in the fetus (origin in mm, columns are its axes)."""

    name: str
    origin: np.ndarray
    rotation: np.ndarray
    solids: tuple[Solid, ...]

    def to_body(self, local: np.ndarray) -> np.ndarray:
        """Position in the fetus (3,) of a position in the part's own frame (3,), mm."""
        return self.origin + self.rotation @ np.asarray(local, float)

    @cached_property
    def bounds(self) -> Ellipsoid:
        """A ball around all solids, in the frame of the fetus."""
        centre = np.mean([solid.centre for solid in self.solids], axis=0)
        radius = max(math.dist(solid.centre, centre) + solid.radius for solid in self.solids)
        return ellipsoid(0, self.to_body(centre), np.full(3, radius))

    def paint(self, labels: np.ndarray, points: np.ndarray) -> None:
        """Write the labels of the part's solids into ``labels`` (n_rows, n_cols), later solids on top."""
        offset = points - self.origin[:, None, None].astype(np.float32)
        local = (self.rotation.T.astype(np.float32) @ offset.reshape(3, -1)).reshape(offset.shape)
        paint(labels, local, self.solids)


def paint(labels: np.ndarray, points: np.ndarray, solids: tuple[Solid, ...]) -> None:
    """Write each solid's label into ``labels`` (n_rows, n_cols) where ``points`` lie inside it, in order."""
    for solid, block in zip(solids, blocks_within(points, solids), strict=True):
        if block is not None:
            labels[block][solid.contains(points[(slice(None), *block)])] = solid.label


def blocks_within(points: np.ndarray, solids: tuple[Solid, ...]) -> list[tuple[slice, slice] | None]:
    """For each solid, rows and columns of ``points`` that hold every point it can reach, or None.

    Searched on every ``COARSE``-th point and widened by what lies between two of those, so no point is missed.
    """
    coarse = points[:, ::COARSE, ::COARSE]
    shape = coarse.shape[1:]
    # the last rows and columns may lie up to one coarse step beyond the last coarse point
    reach = sum(np.sqrt((np.diff(coarse, axis=axis) ** 2).sum(axis=0)).max(initial=0) for axis in (1, 2))
    flat = coarse.reshape(3, -1)
    centres = np.array([solid.centre for solid in solids], np.float32)  # (n_solids, 3)
    radii = np.array([solid.radius for solid in solids], np.float32)
    distance = (flat**2).sum(axis=0) - 2 * centres @ flat + (centres**2).sum(axis=1)[:, None]  # squared
    near = (distance <= ((radii + reach) ** 2 * 1.001 + 1e-3)[:, None]).reshape(-1, *shape)
    for index in np.flatnonzero(near.any(axis=(1, 2))):
        solid = solids[index]
        if isinstance(solid, Tube):  # far slimmer than the ball around it
            near[index] &= replace(solid, thickness=solid.thickness + reach).contains(coarse)
    rows, cols = near.any(axis=2), near.any(axis=1)
    return [_block(row, col) if row.any() else None for row, col in zip(rows, cols, strict=True)]


def _block(rows: np.ndarray, cols: np.ndarray) -> tuple[slice, slice]:
    """Fine rows and columns around the marked coarse ones."""
    ends = [(mark.argmax(), len(mark) - mark[::-1].argmax()) for mark in (rows, cols)]
    return tuple(slice(max(first - 1, 0) * COARSE, last * COARSE) for first, last in ends)
