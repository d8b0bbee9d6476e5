"""Presets of the four ``US_Machine`` values: probe, zoom, image formation and screen layout.

Chosen by eye against images of FETAL_PLANES_DB so that the four look different; not the makers' specifications.
"""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.geometry import Probe
from fetal_utils.phantom.imaging import Scanner


@dataclass(frozen=True)
class Machine:
    """What sets a machine apart. Pairs are the limits of a uniform draw for each image."""

    aspect: float  # width / height of the screen
    probe_radius_mm: float
    half_angle_deg: float
    object_share: tuple[float, float]  # of the screen's height that is filled by what the operator looks at
    axial_mm: tuple[float, float]
    lateral_deg: tuple[float, float]
    dynamic_range_db: tuple[float, float]
    gain_db: tuple[float, float]
    noise_db: tuple[float, float]
    smoothing: tuple[float, float]
    gamma: tuple[float, float]
    layout: str  # a function of the overlay module


MACHINES = {
    "Voluson E6": Machine(
        aspect=1.45,
        probe_radius_mm=42,
        half_angle_deg=36,
        object_share=(0.70, 1.20),
        axial_mm=(0.17, 0.28),
        lateral_deg=(0.17, 0.30),
        dynamic_range_db=(42, 54),
        gain_db=(-12, -4),
        noise_db=(-72, -56),
        smoothing=(0.5, 0.9),
        gamma=(1.15, 1.6),
        layout="voluson_e6",
    ),
    "Aloka": Machine(
        aspect=1.33,
        probe_radius_mm=60,
        half_angle_deg=30,
        object_share=(0.65, 1.20),
        axial_mm=(0.20, 0.32),
        lateral_deg=(0.20, 0.32),
        dynamic_range_db=(60, 72),
        gain_db=(-17, -8),
        noise_db=(-68, -54),
        smoothing=(0.0, 0.6),
        gamma=(1.3, 1.7),
        layout="aloka",
    ),
    "Voluson S10": Machine(
        aspect=1.5,
        probe_radius_mm=38,
        half_angle_deg=33,
        object_share=(0.60, 1.05),
        axial_mm=(0.24, 0.36),
        lateral_deg=(0.22, 0.36),
        dynamic_range_db=(46, 56),
        gain_db=(-8, -1),
        noise_db=(-76, -64),
        smoothing=(0.9, 1.3),
        gamma=(0.95, 1.25),
        layout="voluson_s10",
    ),
    "Other": Machine(
        aspect=1.4,
        probe_radius_mm=50,
        half_angle_deg=31,
        object_share=(0.55, 1.0),
        axial_mm=(0.16, 0.26),
        lateral_deg=(0.15, 0.26),
        dynamic_range_db=(46, 56),
        gain_db=(-15, -7),
        noise_db=(-66, -52),
        smoothing=(0.6, 1.0),
        gamma=(1.3, 1.8),
        layout="generic",
    ),
}
LINEAR_PROBE = Probe(radius_mm=0, half_width_mm=22)  # vessels
ENDOCAVITY_PROBE = Probe(radius_mm=11, half_angle_deg=68)  # cervix, from the vagina


def draw_scanner(
    machine: Machine, *, focus_mm: float, tgc_db_cm: float, linear: bool, rng: np.random.Generator
) -> Scanner:
    """Settings of one image on one machine; a linear probe's beam width is in mm instead of radians."""
    lateral_deg = rng.uniform(*machine.lateral_deg)
    return Scanner(
        axial_mm=rng.uniform(*machine.axial_mm),
        lateral=0.45 * lateral_deg if linear else np.deg2rad(lateral_deg),
        focus_mm=focus_mm * rng.uniform(0.8, 1.2),
        dynamic_range_db=rng.uniform(*machine.dynamic_range_db),
        gain_db=rng.uniform(*machine.gain_db),
        tgc_db_cm=tgc_db_cm * rng.uniform(0.6, 1.3),
        noise_db=rng.uniform(*machine.noise_db),
        smoothing=rng.uniform(*machine.smoothing),
        gamma=rng.uniform(*machine.gamma),
        haze=rng.uniform(0.02, 0.10),
        contact_db=rng.exponential(5.0),
    )
