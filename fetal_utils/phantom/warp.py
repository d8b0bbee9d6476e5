"""A smooth random displacement that makes ideal solids look grown."""

from dataclasses import dataclass

import numpy as np

NODE_STEP = 8  # samples; a few mm, against waves of some cm


@dataclass(frozen=True)
class Warp:
    """Displaces every axis by a sine wave of its own; ``wave_vectors`` (3, 3) in radians / mm, ``phases`` (3,)."""

    amplitude_mm: float
    wave_vectors: np.ndarray
    phases: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (3, n_rows, n_cols) on a smooth grid, moved by at most ``amplitude_mm`` along each axis.

        The waves are long, so they are computed on every ``NODE_STEP``-th point and interpolated between those.
        """
        rows, cols = (_nodes(length) for length in points.shape[1:])
        coarse = points[:, rows[:, None], cols]
        phase = self.wave_vectors.astype(np.float32) @ coarse.reshape(3, -1) + self.phases[:, None]
        moves = (self.amplitude_mm * np.sin(phase)).astype(np.float32).reshape(coarse.shape)
        return points + _between(rows) @ moves @ _between(cols).T


def _nodes(length: int) -> np.ndarray:
    """Indices of the points that waves are computed on; the first and the last among them."""
    return np.unique(np.append(np.arange(0, length, NODE_STEP), length - 1))


def _between(nodes: np.ndarray) -> np.ndarray:
    """Linear interpolation from the nodes to every index, (n_points, n_nodes) float32."""
    index = np.arange(nodes[-1] + 1)
    return np.stack([np.interp(index, nodes, one) for one in np.eye(len(nodes))], axis=1).astype(np.float32)


def draw_warp(amplitude_mm: float, wavelength_mm: float, *, rng: np.random.Generator) -> Warp:
    """A warp with wavelengths from 0.8 to 1.6 times ``wavelength_mm`` in random directions."""
    directions = rng.normal(size=(3, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    wavelengths = wavelength_mm * rng.uniform(0.8, 1.6, (3, 1))
    return Warp(amplitude_mm, 2 * np.pi * directions / wavelengths, rng.uniform(0, 2 * np.pi, 3))
