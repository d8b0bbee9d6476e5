"""From the acoustic properties of every sample along every beam to a B-mode image. Knows nothing of anatomy.

A linear, two-dimensional model: random scatterers blurred by a separable point spread (Meunier and Bertrand 1995,
IEEE Trans Biomed Eng 42:1158-1169), mirror-like echoes where the impedance changes across the beam, loss summed along
the beam (which is what casts shadows), electronic noise, depth gain and log compression. Not modelled: refraction,
side lobes, phase aberration, motion, non-linear propagation.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal

MAX_LOSS_DB = 70.0  # deeper shadows are black anyway
N_DEPTH_BANDS = 6  # beam width is constant within a band; steps between bands are too small to see
SPECULAR_GAIN = 17.0  # amplitude of a mirror-like echo per unit reflection coefficient


@dataclass(frozen=True)
class Tissue:
    """Backscatter (dB), attenuation there and back (dB / cm), impedance (MRayl) and its unevenness (dB) per sample."""

    backscatter_db: np.ndarray
    attenuation_db_cm: np.ndarray
    impedance: np.ndarray
    unevenness_db: np.ndarray


@dataclass(frozen=True)
class Scanner:
    """How a machine is set for one image.

    ``axial_mm`` and ``lateral`` (radians, or mm for a linear probe) are standard deviations of the point spread at
    ``focus_mm``; gains, noise floor and dynamic range are in dB, ``tgc_db_cm`` in dB / cm; ``smoothing`` is the
    standard deviation, in samples, of the speckle reduction; ``gamma`` bends the gray map; ``haze`` is how much of
    a strong echo lingers behind it; ``contact_db`` is how unevenly the probe touches the skin.
    """

    axial_mm: float
    lateral: float
    focus_mm: float
    dynamic_range_db: float
    gain_db: float
    tgc_db_cm: float
    noise_db: float
    smoothing: float
    gamma: float
    haze: float
    contact_db: float


def b_mode(
    tissue: Tissue,
    *,
    ranges_mm: np.ndarray,
    beam_step: float,
    beam_spacing_mm: float,
    scanner: Scanner,
    rng: np.random.Generator,
) -> np.ndarray:
    """Gray values of one image before scan conversion.

    Parameters
    ----------
    tissue : Tissue
        Properties per sample, each (n_ranges, n_beams).
    ranges_mm : array, shape (n_ranges,)
        Evenly spaced distances from the probe's face, mm.
    beam_step : float
        Distance between beams in the unit of ``scanner.lateral``.
    beam_spacing_mm : float
        Distance between beams in mm in the middle of the image; sets the angle of mirror-like echoes.
    scanner : Scanner
        Machine settings.
    rng : np.random.Generator
        Draws scatterers, unevenness and noise.

    Returns
    -------
    array, shape (n_ranges, n_beams), float32
        Gray values from 0 to 1.
    """
    step_mm = float(ranges_mm[1] - ranges_mm[0])
    shape = tissue.impedance.shape
    amplitude = from_db(tissue.backscatter_db + tissue.unevenness_db * _unevenness(shape, rng))
    echo = _specular(tissue.impedance, step_mm, beam_spacing_mm, rng)
    transmitted = from_db(-_loss_db(tissue.attenuation_db_cm, step_mm) - _contact_loss_db(shape[1], scanner, rng))
    axial, lateral = _blur_widths(ranges_mm, step_mm, beam_step, scanner)
    # blurring averages scatterers out by the square root of its area, which is put back here; mirrors stay as they are
    restored = np.sqrt(4 * np.pi * axial * lateral, dtype=np.float32)[:, None]
    field = rng.standard_normal((2, *shape), dtype=np.float32) * (amplitude * transmitted * restored)
    field[0] += echo * transmitted
    field = _blur(field, axial, lateral)
    depth_gain = from_db(scanner.tgc_db_cm * ranges_mm / 10)[:, None]
    field *= depth_gain
    noise = from_db(scanner.noise_db) * depth_gain
    field += noise * rng.standard_normal(field.shape, dtype=np.float32)
    envelope = np.hypot(field[0], field[1])
    envelope += _haze(envelope, step_mm, scanner.haze, rng)
    return compress(envelope, scanner)


def compress(envelope: np.ndarray, scanner: Scanner) -> np.ndarray:
    """Log compression: echoes from ``-dynamic_range_db`` to 0 dB (after gain) become 0 to 1, then the gray map."""
    level_db = 20 * np.log10(envelope + np.float32(1e-6)) + np.float32(scanner.gain_db)
    gray = np.clip(1 + level_db / np.float32(scanner.dynamic_range_db), 0, 1)
    if scanner.smoothing > 0:
        gray = ndimage.gaussian_filter(gray, scanner.smoothing, truncate=2.5)
    return gray ** np.float32(scanner.gamma)


def from_db(level_db: np.ndarray | float) -> np.ndarray:
    """Amplitude ratio of a level in dB, float32."""
    return np.exp(np.asarray(level_db, np.float32) * np.float32(np.log(10) / 20))


def smooth_noise(shape: tuple[int, int], n_cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance at the nodes of a grid of ``n_cells``, interpolated to ``shape``; float32."""
    nodes = rng.standard_normal((n_cells[0] + 1, n_cells[1] + 1), dtype=np.float32)
    down, across = (_interpolation(length, cells) for length, cells in zip(shape, n_cells, strict=True))
    return down @ nodes @ across.T


def _interpolation(length: int, n_cells: int) -> np.ndarray:
    """Linear interpolation from ``n_cells + 1`` nodes to ``length`` samples, (length, n_cells + 1)."""
    position = np.linspace(0, n_cells, length, dtype=np.float32)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(n_cells + 1, dtype=np.float32)))


def _loss_db(attenuation_db_cm: np.ndarray, step_mm: float) -> np.ndarray:
    """Loss from the probe to each sample and back, dB: the sum over all samples before it."""
    per_sample = attenuation_db_cm * np.float32(step_mm / 10)
    loss = np.cumsum(per_sample, axis=0)
    loss -= per_sample
    return np.minimum(loss, MAX_LOSS_DB)


def _unevenness(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Clouds, and streaks across the beam as of fibres and small vessels; about unit variance."""
    return 0.6 * smooth_noise(shape, (7, 7), rng) + 1.1 * smooth_noise(shape, (56, 24), rng)


def _contact_loss_db(n_beams: int, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Loss of every beam where the probe lies badly on the skin, or behind gas and navel; (n_beams,)."""
    uneven = smooth_noise((2, n_beams), (1, 7), rng)[0]
    return np.minimum(np.float32(scanner.contact_db) * np.maximum(uneven, 0) ** 2, 40)


def _specular(impedance: np.ndarray, step_mm: float, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Mirror-like echo of interfaces: strongest where they lie across the beam, uneven along them."""
    smooth = ndimage.gaussian_filter(impedance, 1.0, truncate=2.0)
    axial, lateral = np.gradient(smooth)
    lateral *= np.float32(step_mm / spacing_mm)
    slope = np.abs(axial)
    facing = slope / np.sqrt(axial**2 + lateral**2 + np.float32(1e-8))  # cosine of the angle to the beam
    echo = SPECULAR_GAIN * slope / (2 * smooth) * facing**6
    return echo * np.exp(0.35 * smooth_noise(impedance.shape, (24, 24), rng))


def _blur_widths(ranges_mm, step_mm: float, beam_step: float, scanner: Scanner) -> tuple[float, np.ndarray]:
    """Standard deviations of the point spread in samples: along the beam, and across it at every range."""
    lateral = np.empty(len(ranges_mm))
    for band in np.array_split(np.arange(len(ranges_mm)), N_DEPTH_BANDS):
        defocus = abs(ranges_mm[band].mean() - scanner.focus_mm) / 60
        lateral[band] = max(scanner.lateral * (1 + defocus) / beam_step, 0.5)
    return max(scanner.axial_mm / step_mm, 0.5), lateral


def _blur(field: np.ndarray, axial: float, lateral: np.ndarray) -> np.ndarray:
    """Point spread: constant along the beam, wider across it away from the focus. ``field`` is (2, ranges, beams)."""
    field = ndimage.gaussian_filter1d(field, axial, axis=1, truncate=2.5)
    for sigma in np.unique(lateral):
        rows = lateral == sigma
        field[:, rows] = ndimage.gaussian_filter1d(field[:, rows], sigma, axis=2, truncate=2.5)
    return field


def _haze(envelope: np.ndarray, step_mm: float, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Reverberation: strong echoes linger behind themselves over about a centimetre, as fine noise."""
    keep = np.exp(-step_mm / 9)
    strong = np.minimum(np.maximum(envelope - 0.5, 0), 4)
    tail = signal.lfilter([0, np.float32((1 - keep) * amount)], [1, np.float32(-keep)], strong, axis=0)
    return tail.astype(np.float32) * (0.5 + rng.random(envelope.shape, dtype=np.float32))
