"""Where the beams of a probe run, and how their samples become the pixels of a screen.

Frame of the probe: x along its face, z into the body, mm; the origin is the centre of a curved probe's arc, or the
middle of a linear probe's face.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Probe:
    """Curved (``radius_mm`` > 0, ``half_angle_deg``) or linear (``radius_mm`` = 0, ``half_width_mm``) probe."""

    radius_mm: float
    half_angle_deg: float = 0.0
    half_width_mm: float = 0.0

    def to_beam(self, x_mm: np.ndarray, z_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Range (mm) and beam position (radians, or mm for a linear probe) of points of the slice."""
        if self.radius_mm == 0:
            return z_mm, x_mm
        return np.sqrt(x_mm**2 + z_mm**2), np.arctan2(x_mm, z_mm)

    def to_slice(self, ranges: np.ndarray, beams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of ``to_beam``: x and z (mm)."""
        if self.radius_mm == 0:
            return beams, ranges
        return ranges * np.sin(beams), ranges * np.cos(beams)

    @property
    def half_beam(self) -> float:
        """Largest beam position (radians, or mm for a linear probe)."""
        return self.half_width_mm if self.radius_mm == 0 else np.deg2rad(self.half_angle_deg)


@dataclass(frozen=True)
class Screen:
    """The part of the slice that is shown: position of the top left corner and pixel size (mm), shape in pixels."""

    left_mm: float
    top_mm: float
    pixel_mm: float
    height: int
    width: int

    def to_slice(self) -> tuple[np.ndarray, np.ndarray]:
        """x and z (mm) of every pixel centre, float32 (height, width)."""
        x = self.left_mm + self.pixel_mm * (np.arange(self.width, dtype=np.float32) + 0.5)
        z = self.top_mm + self.pixel_mm * (np.arange(self.height, dtype=np.float32) + 0.5)
        return np.broadcast_to(x, (self.height, self.width)), np.broadcast_to(z[:, None], (self.height, self.width))


@dataclass(frozen=True)
class BeamGrid:
    """Evenly spaced samples along evenly spaced beams that cover what a screen shows of a probe's field."""

    probe: Probe
    first_range_mm: float
    range_step_mm: float
    n_ranges: int
    first_beam: float
    beam_step: float
    n_beams: int
    screen_shape: tuple[int, int]
    pixels: np.ndarray  # flat index of every pixel in the field, (n_pixels,)
    corners: np.ndarray  # flat index of the sample above and left of it, (n_pixels,)
    below: np.ndarray  # how far the pixel lies from that sample towards the next: along the beam, and across
    right: np.ndarray

    @property
    def ranges_mm(self) -> np.ndarray:
        """Range of every sample from the probe's face, mm, shape (n_ranges,)."""
        first = self.first_range_mm - self.probe.radius_mm
        return (first + self.range_step_mm * np.arange(self.n_ranges)).astype(np.float32)

    def to_slice(self) -> tuple[np.ndarray, np.ndarray]:
        """x and z (mm) of every sample, float32 (n_ranges, n_beams)."""
        ranges = self.first_range_mm + self.range_step_mm * np.arange(self.n_ranges, dtype=np.float32)
        beams = self.first_beam + self.beam_step * np.arange(self.n_beams, dtype=np.float32)
        x, z = self.probe.to_slice(ranges[:, None], beams[None])
        shape = (self.n_ranges, self.n_beams)
        return np.broadcast_to(x, shape), np.broadcast_to(z, shape)

    def to_screen(self, samples: np.ndarray) -> np.ndarray:
        """Scan conversion, linear between samples: float (n_ranges, n_beams) to (height, width); zero outside."""
        flat, corner, across = samples.ravel(), self.corners, self.right
        upper = flat[corner] * (1 - across) + flat[corner + 1] * across
        corner = corner + self.n_beams
        lower = flat[corner] * (1 - across) + flat[corner + 1] * across
        screen = np.zeros(self.screen_shape, samples.dtype)
        screen.ravel()[self.pixels] = upper + self.below * (lower - upper)
        return screen

    def to_screen_nearest(self, samples: np.ndarray) -> np.ndarray:
        """Scan conversion of labels: each pixel takes its nearest sample; zero outside."""
        nearest = self.corners + np.where(self.below > 0.5, self.n_beams, 0) + (self.right > 0.5)
        screen = np.zeros(self.screen_shape, samples.dtype)
        screen.ravel()[self.pixels] = samples.ravel()[nearest]
        return screen


def cover(probe: Probe, screen: Screen, *, beam_width: float, max_depth_mm: float) -> BeamGrid:
    """The beam grid for a screen.

    Parameters
    ----------
    probe, screen : Probe, Screen
        What is insonated and what is shown of it.
    beam_width : float
        Width of a beam (radians, or mm for a linear probe); beams are at most two thirds of it apart.
    max_depth_mm : float
        Depth below the probe's face where the field ends.

    Returns
    -------
    BeamGrid
        Samples 1.25 pixels apart along the beam; 64 to 224 beams.

    Raises
    ------
    ValueError
        If the screen shows nothing of the field.
    """
    ranges, beams = (values.ravel() for values in probe.to_beam(*screen.to_slice()))
    end = probe.radius_mm + max_depth_mm
    inside = (np.abs(beams) <= probe.half_beam) & (ranges >= probe.radius_mm) & (ranges <= end)
    pixels = np.flatnonzero(inside)
    if not len(pixels):
        raise ValueError(f"the screen {screen} shows nothing of the field of {probe}; move it over the field")
    ranges, beams = ranges[pixels], beams[pixels]
    first, last = float(ranges.min()), float(ranges.max())
    left, right = float(beams.min()), float(beams.max())
    step = 1.25 * screen.pixel_mm
    n_ranges = int((last - first) / step) + 2
    n_beams = int(np.clip((right - left) / (0.66 * beam_width), 64, 224))
    beam_step = (right - left) / (n_beams - 1)
    row, col = (ranges - first) / step, (beams - left) / beam_step
    row_floor = np.minimum(row.astype(np.int32), n_ranges - 2)
    col_floor = np.minimum(col.astype(np.int32), n_beams - 2)
    return BeamGrid(
        probe=probe,
        first_range_mm=first,
        range_step_mm=step,
        n_ranges=n_ranges,
        first_beam=left,
        beam_step=beam_step,
        n_beams=n_beams,
        screen_shape=(screen.height, screen.width),
        pixels=pixels,
        corners=row_floor * n_beams + col_floor,
        below=(row - row_floor).astype(np.float32),
        right=(col - col_floor).astype(np.float32),
    )
