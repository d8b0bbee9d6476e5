"""From a map of structures along the beams of a curved probe to a B-mode image. Knows nothing of anatomy.

A linear, two-dimensional model: random scatterers blurred by a separable point spread (Meunier and Bertrand 1995,
IEEE Trans Biomed Eng 42:1158), mirror-like echoes where the impedance changes across the beam, loss summed along the
beam (which is what casts shadows), reverberation, electronic noise, depth gain and log compression. Not modelled:
refraction, side lobes, motion, non-linear propagation.

Frame of the probe: x along its face, z into the body, mm; the origin is the centre of its arc. A linear probe is one
of a very large radius.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal

from fetal_utils.phantom.solids import Structure

N_BEAMS = 200
PIXELS_PER_SAMPLE = 1.25  # along a beam
MAX_LOSS_DB = 70.0  # deeper shadows are black anyway
SPECULAR_GAIN = 17.0  # amplitude of a mirror-like echo per unit reflection coefficient
ACOUSTICS = np.array([structure.acoustics for structure in Structure], np.float32).T.copy()  # (4, n_structures)


@dataclass(frozen=True)
class Probe:
    """Radius of the arc (mm), half the angle of its field and the depth of its field below the face (mm)."""

    radius_mm: float
    half_angle_deg: float
    depth_mm: float


@dataclass(frozen=True)
class Beams:
    """Samples along beams that cover what a screen shows of a probe's field.

    ``ranges_mm`` (n_samples,) count from the centre of the probe's arc, ``angles`` (n_beams,) in radians;
    ``positions`` (2, height, width) is where, in samples and beams, each pixel lies: far outside where there is no
    field.
    """

    ranges_mm: np.ndarray
    angles: np.ndarray
    positions: np.ndarray

    def to_slice(self) -> tuple[np.ndarray, np.ndarray]:
        """x and z (mm) of every sample, float32 (n_samples, n_beams)."""
        return np.outer(self.ranges_mm, np.sin(self.angles)), np.outer(self.ranges_mm, np.cos(self.angles))

    def to_screen(self, samples: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Scan conversion of samples (n_samples, n_beams) to (height, width); zero outside the field."""
        return ndimage.map_coordinates(samples, self.positions, order=0 if nearest else 1)


def cover(probe: Probe, *, left_mm: float, top_mm: float, pixel_mm: float, shape: tuple[int, int]) -> Beams:
    """Beams for a screen of ``shape`` (height, width) whose top left corner lies at (``left_mm``, ``top_mm``)."""
    x = left_mm + pixel_mm * (np.arange(shape[1], dtype=np.float32) + 0.5)
    z = top_mm + pixel_mm * (np.arange(shape[0], dtype=np.float32)[:, None] + 0.5)
    ranges, angles = np.hypot(x, z), np.arctan2(x, z)
    inside = np.abs(angles) <= np.deg2rad(probe.half_angle_deg)
    inside &= (ranges >= probe.radius_mm) & (ranges <= probe.radius_mm + probe.depth_mm)
    first, last, left, right = (float(end(of[inside])) for of in (ranges, angles) for end in (np.min, np.max))
    n_samples = int((last - first) / (PIXELS_PER_SAMPLE * pixel_mm)) + 2
    positions = [(ranges - first) / (last - first) * (n_samples - 1), (angles - left) / (right - left) * (N_BEAMS - 1)]
    return Beams(
        np.linspace(first, last, n_samples, dtype=np.float32),
        np.linspace(left, right, N_BEAMS, dtype=np.float32),
        np.where(inside, positions, -9),
    )


@dataclass(frozen=True)
class Scanner:
    """How a machine is set for one image.

    The point spread is given by standard deviations in thousandths of the screen's height, as a sonographer chooses
    the frequency by the depth.
    """

    axial: float
    lateral: float
    dynamic_range_db: float
    gain_db: float
    noise_db: float
    smoothing: float  # standard deviation, in samples, of the speckle reduction
    gamma: float  # bends the gray map
    tgc_db_cm: float  # gain that grows with depth
    haze: float  # how much of a strong echo lingers behind it
    contact_db: float  # how unevenly the probe touches the skin


def b_mode(
    labels: np.ndarray, beams: Beams, probe: Probe, scanner: Scanner, *, pixel_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Gray values of one image before scan conversion.

    Parameters
    ----------
    labels : array of uint8, shape (n_samples, n_beams)
        A `Structure` for every sample.
    beams, probe, scanner
    pixel_mm : float
        Size of a pixel of the screen.
    rng : np.random.Generator
        Draws scatterers, unevenness and noise.

    Returns
    -------
    array of float32, shape (n_samples, n_beams)
        From 0 to 1.
    """
    backscatter_db, attenuation_db_cm, impedance, unevenness_db = (values[labels] for values in ACOUSTICS)
    shape, step_mm = labels.shape, float(beams.ranges_mm[1] - beams.ranges_mm[0])
    beam_mm = float(beams.angles[1] - beams.angles[0]) * float(beams.ranges_mm.mean())  # apart, in the middle
    height_mm = beams.positions.shape[1] * pixel_mm
    axial = max(scanner.axial / 1000 * height_mm / step_mm, 0.5)  # of the point spread, in samples and beams
    lateral = max(scanner.lateral / 1000 * height_mm / beam_mm, 0.5)

    # clouds, and streaks across the beam as of fibres and small vessels
    uneven = 0.6 * smooth_noise(shape, (7, 7), rng) + 1.1 * smooth_noise(shape, (56, 24), rng)
    amplitude = from_db(backscatter_db + unevenness_db * uneven)
    contact = np.maximum(smooth_noise((2, shape[1]), (1, 7), rng)[0], 0)  # gas, the navel, a badly held probe
    loss_db = np.cumsum(attenuation_db_cm, axis=0) * np.float32(step_mm / 10)
    passed = from_db(-np.minimum(loss_db + np.minimum(scanner.contact_db * contact**2, 40), MAX_LOSS_DB))
    # blurring averages scatterers out by the square root of its area, which is put back here; mirrors stay as they are
    restored = np.float32(np.sqrt(4 * np.pi * axial * lateral))
    field = rng.standard_normal((2, *shape), dtype=np.float32) * (amplitude * passed * restored)
    field[0] += _mirrors(impedance, step_mm / beam_mm, rng) * passed
    field = ndimage.gaussian_filter(field, (0, axial, lateral), truncate=2.5)
    field += from_db(scanner.noise_db) * rng.standard_normal(field.shape, dtype=np.float32)
    field *= from_db(scanner.tgc_db_cm / 10 * (beams.ranges_mm - probe.radius_mm))[:, None]

    envelope = np.hypot(field[0], field[1])
    # strong echoes linger behind themselves over about a centimetre, as fine noise
    keep = np.float32(np.exp(-step_mm / 9))
    tail = signal.lfilter([0, 1 - keep], [1, -keep], np.clip(envelope - 0.5, 0, 4), axis=0).astype(np.float32)
    envelope += np.float32(scanner.haze) * tail * (0.5 + rng.random(shape, dtype=np.float32))
    level_db = 20 * np.log10(envelope + np.float32(1e-6)) + np.float32(scanner.gain_db)
    gray = np.clip(1 + level_db / np.float32(scanner.dynamic_range_db), 0, 1)
    return ndimage.gaussian_filter(gray, scanner.smoothing, truncate=2.5) ** np.float32(scanner.gamma)


def from_db(level_db: np.ndarray | float) -> np.ndarray:
    """Amplitude ratio of a level in dB, float32."""
    return np.exp(np.asarray(level_db, np.float32) * np.float32(np.log(10) / 20))


def smooth_noise(shape: tuple[int, int], n_cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance at the nodes of a grid of ``n_cells``, interpolated linearly to ``shape``; float32."""
    weights = [
        np.maximum(0, 1 - np.abs(np.linspace(0, cells, length)[:, None] - np.arange(cells + 1))).astype(np.float32)
        for length, cells in zip(shape, n_cells, strict=True)
    ]
    return weights[0] @ rng.standard_normal(np.add(n_cells, 1), dtype=np.float32) @ weights[1].T


def _mirrors(impedance: np.ndarray, aspect: float, rng: np.random.Generator) -> np.ndarray:
    """Mirror-like echo of interfaces, strongest across the beam; ``aspect``: distance of samples over that of beams."""
    smooth = ndimage.gaussian_filter(impedance, 1.0, truncate=2.0)
    axial, lateral = np.gradient(smooth)
    slope = np.abs(axial)
    facing = slope / np.sqrt(axial**2 + (np.float32(aspect) * lateral) ** 2 + np.float32(1e-8))  # cosine to the beam
    return (
        SPECULAR_GAIN * slope / (2 * smooth) * facing**6 * np.exp(0.35 * smooth_noise(impedance.shape, (24, 24), rng))
    )
