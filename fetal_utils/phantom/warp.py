"""A smooth random displacement that makes ideal solids look grown."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Warp:
    """Displaces every axis by a sine wave of its own; ``wave_vectors`` (3, 3) in radians / mm, ``phases`` (3,)."""

    amplitude_mm: float
    wave_vectors: np.ndarray
    phases: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (3, n_rows, n_cols) moved by at most ``amplitude_mm`` along each axis."""
        phase = self.wave_vectors.astype(np.float32) @ points.reshape(3, -1)
        phase += self.phases[:, None].astype(np.float32)
        np.sin(phase, out=phase)
        phase *= np.float32(self.amplitude_mm)
        return points + phase.reshape(points.shape)


def draw_warp(amplitude_mm: float, wavelength_mm: float, *, rng: np.random.Generator) -> Warp:
    """A warp with wavelengths from 0.8 to 1.6 times ``wavelength_mm`` in random directions."""
    directions = rng.normal(size=(3, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    wavelengths = wavelength_mm * rng.uniform(0.8, 1.6, (3, 1))
    return Warp(amplitude_mm, 2 * np.pi * directions / wavelengths, rng.uniform(0, 2 * np.pi, 3))
