"""What surrounds the fetus, and the two maternal views: the cervix and a vessel.

Frame of the probe: x along the face to the right, z into the body, y across the slice; mm. For a curved probe the
origin is the centre of its arc, for a linear one the middle of its face.
"""

import numpy as np

from fetal_utils.phantom.shapes import Solid, ellipsoid, rotation_about, tube
from fetal_utils.phantom.structures import Structure as S

FAR_MM = 500.0  # half-length of solids that have no end inside the view


def draw_uterus(
    *, probe_radius_mm: float, wall_mm: float, centre_mm: np.ndarray, radius_mm: float, rng: np.random.Generator
) -> tuple[Solid, ...]:
    """Wall of the belly, uterus, amniotic fluid and placenta around a fetal part.

    Parameters
    ----------
    probe_radius_mm, wall_mm : float
        Radius of the probe's arc and thickness of the mother's abdominal wall under it.
    centre_mm : array, shape (2,)
        Position (x, z) of the fetal part in the frame of the probe.
    radius_mm : float
        Half the size of the fetal part.
    rng : np.random.Generator
        Draws how much fluid there is and where the placenta lies.

    Returns
    -------
    tuple of Solid
        In the frame of the probe, to be painted in this order.
    """
    fluid = radius_mm * np.exp(rng.normal(0.08, 0.28, 2)) * np.array([1.3, 1.0])
    shift = radius_mm * rng.normal(0, 0.22, 2)
    cavity = _disc(S.AMNIOTIC_FLUID, centre_mm + shift, fluid, rng.uniform(-25, 25))
    return (
        cavity,
        *_placenta(centre_mm, radius_mm, fluid, rng),
        *_wall(probe_radius_mm, wall_mm, rng),
    )


def draw_placenta_view(
    *, probe_radius_mm: float, wall_mm: float, centre_mm: np.ndarray, rng: np.random.Generator
) -> tuple[Solid, ...]:
    """A placenta with its cord insertion facing the fluid, and no fetus in view."""
    tilt = rng.uniform(-30, 30)
    below = rotation_about(1, tilt)[:, 2][[0, 2]]
    thick = rng.uniform(10, 20)
    cord = [centre_mm[0] + rng.normal(0, 8), 0, centre_mm[1] + thick * 0.9]
    return (
        _disc(S.AMNIOTIC_FLUID, centre_mm + 26 * below, np.array([70.0, 34.0]), tilt),
        _disc(S.PLACENTA, centre_mm, np.array([rng.uniform(38, 60), thick]), tilt),
        tube(S.CORD_WALL, cord, np.add(cord, [rng.normal(0, 10), 0, 26]), 5.0),
        tube(S.CORD_VESSEL, cord, np.add(cord, [rng.normal(0, 10), 0, 26]), 2.6),
        *_wall(probe_radius_mm, wall_mm, rng),
    )


def draw_cervix(*, probe_radius_mm: float, rng: np.random.Generator) -> tuple[Solid, ...]:
    """Cervix seen from the vagina: canal with its mucosa, bladder, membranes and the fetal head behind them."""
    side = rng.choice([-1, 1])
    length, tilt = rng.uniform(24, 45), rng.normal(28, 14) * side
    middle = np.array([rng.normal(0, 4), 0, probe_radius_mm + rng.uniform(16, 26)])
    turn = rotation_about(1, tilt)
    along, across = turn[:, 0], turn[:, 2]
    start, end = middle - side * along * length / 2, middle + side * along * length / 2  # outer and inner os
    bow = middle + across * rng.normal(0, 2.5)
    head = rng.uniform(32, 42)
    head_centre = end + side * along * (head + rng.uniform(3, 14)) + across * rng.normal(2, 8)
    thick = rng.uniform(12, 17)
    solids = [
        ellipsoid(S.AMNIOTIC_FLUID, head_centre, np.full(3, head + rng.uniform(2, 8))),
        ellipsoid(S.SKIN, head_centre, np.full(3, head)),
        ellipsoid(S.SKULL, head_centre, np.full(3, head - 1.5)),
        ellipsoid(S.BRAIN, head_centre, np.full(3, head - 4.0)),
        ellipsoid(S.SULCUS, middle, [0.72 * length, FAR_MM, 1.12 * thick], rotation=turn),
        ellipsoid(S.CERVIX, middle, [0.70 * length, FAR_MM, 1.08 * thick], rotation=turn),
        *_canal(start, bow, end, rng),
        ellipsoid(S.WALL, [0, 0, 0], np.full(3, probe_radius_mm + rng.uniform(2, 5))),
    ]
    if rng.random() < 0.4:  # the bladder is emptied before this examination, not always well
        bladder = np.array([side * rng.uniform(14, 26), 0, probe_radius_mm + rng.uniform(8, 14)])
        size = [rng.uniform(6, 12), FAR_MM, rng.uniform(3, 6)]
        solids.append(ellipsoid(S.BLADDER, bladder, size, rotation=rotation_about(1, -30 * side)))
    return tuple(solids)


def draw_vessel(*, rng: np.random.Generator) -> tuple[Solid, ...]:
    """A maternal artery along the face of a linear probe, as in vascular visits."""
    depth, radius = rng.uniform(12, 24), rng.uniform(2.6, 6.5)
    turn = rotation_about(1, rng.normal(0, 4))
    start, end = np.array([0, 0, depth]) - turn[:, 0] * 90, np.array([0, 0, depth]) + turn[:, 0] * 90
    solids: list[Solid] = []
    for _ in range(rng.integers(4, 9)):  # fasciae and muscle layers
        layer = np.array([0, 0, rng.uniform(1, 40)])
        label = rng.choice([S.WALL, S.MUSCLE, S.SULCUS], p=[0.3, 0.5, 0.2])
        solids.append(ellipsoid(label, layer, [FAR_MM, FAR_MM, rng.uniform(0.4, 2.5)], rotation=turn))
    solids += [tube(S.ARTERY_WALL, start, end, radius + 0.8), tube(S.ARTERY, start, end, radius)]
    if rng.random() < 0.4:  # the bifurcation
        fork = rotation_about(1, rng.uniform(8, 18))[:, 0] * 90
        middle = np.array([rng.normal(0, 8), 0, depth])
        solids += [tube(S.ARTERY_WALL, middle, middle + fork, 0.75 * radius + 0.8)]
        solids += [tube(S.ARTERY, start, end, radius), tube(S.ARTERY, middle, middle + fork, 0.75 * radius)]
    return tuple(solids)


def _canal(start, bow, end, rng: np.random.Generator) -> list[Solid]:
    """The canal as a bright line in the middle of a darker gland layer."""
    mucosa, line = rng.uniform(1.6, 3.4), rng.uniform(0.3, 0.6)
    pieces = ((start, bow), (bow, end))
    solids = [tube(S.CERVICAL_MUCOSA, first, last, mucosa) for first, last in pieces]
    return solids + [tube(S.CERVICAL_CANAL, first, last, line) for first, last in pieces]


def _disc(label: int, centre_mm: np.ndarray, half_mm: np.ndarray, tilt_deg: float) -> Solid:
    """Ellipse in the slice, endless across it."""
    centre, half = [centre_mm[0], 0, centre_mm[1]], [half_mm[0], FAR_MM, half_mm[1]]
    return ellipsoid(label, centre, half, rotation=rotation_about(1, tilt_deg))


def _placenta(centre_mm, radius_mm: float, fluid: np.ndarray, rng: np.random.Generator) -> list[Solid]:
    """A thick bed on the near, far or side wall of the cavity, in 70 % of views."""
    if rng.random() > 0.7:
        return []
    bearing = rng.choice([-90, 90, -60, 240, 0, 180]) + rng.normal(0, 15)
    outward = np.array([np.cos(np.deg2rad(bearing)), np.sin(np.deg2rad(bearing))])
    centre = centre_mm + outward * (fluid + 2) * rng.uniform(1.0, 1.2)
    half = np.array([rng.uniform(0.35, 0.6), rng.uniform(0.9, 1.5)]) * radius_mm
    return [_disc(S.PLACENTA, centre, half, -bearing)]


def _wall(probe_radius_mm: float, wall_mm: float, rng: np.random.Generator) -> list[Solid]:
    """Skin, fat, muscle, fat: layers that follow the face of the probe."""
    depths = np.sort(rng.uniform(0.15, 0.95, 3)) * wall_mm
    layers = [(S.MUSCLE, wall_mm), (S.WALL, depths[2]), (S.MUSCLE, depths[1]), (S.WALL, depths[0])]
    lean = np.array([rng.normal(0, 0.06) * wall_mm, 0, 0])
    return [ellipsoid(label, lean, np.full(3, probe_radius_mm + depth)) for label, depth in layers]
