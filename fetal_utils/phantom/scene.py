"""One image: what lies in front of the probe (a slice of the fetus in the uterus, or of its mother), and its picture.

Solids of the mother are in the frame of the probe: x along its face, z into the body, y across the slice, mm; the
origin is the centre of its arc.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom.fetus import Fetus
from fetal_utils.phantom.imaging import Beams, Probe, b_mode, cover, smooth_noise
from fetal_utils.phantom.machines import Machine, draw_scanner
from fetal_utils.phantom.planes import choose_target, draw_slice
from fetal_utils.phantom.solids import ENDLESS, Solid, chain, ellipsoid, paint, tube, turn
from fetal_utils.phantom.solids import Structure as S

IMAGE_PLANE = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], float)  # (x, z, 1) to (x, y, z, 1)
LINEAR_RADIUS_MM = 400.0


@dataclass(frozen=True)
class Scene:
    """Solids in front of a probe, perhaps a slice of the fetus on top of them, and how they are looked at.

    ``centre_mm`` (x, z) and ``size_mm`` (width) are those of what the operator looks at; it is told by its
    ``defining`` structures. ``slice_plane`` (4, 3) is that of `planes.draw_slice`, with its middle at ``centre_mm``.
    """

    solids: Sequence[Solid]
    probe: Probe
    centre_mm: np.ndarray
    size_mm: float
    defining: tuple[S, ...]
    slice_plane: np.ndarray | None = None

    def labels(self, beams: Beams, fetus: Fetus, rng: np.random.Generator) -> np.ndarray:
        """`Structure` at every sample of the beams, uint8 (n_samples, n_beams), smoothly deformed."""
        x, z = beams.to_slice()
        labels = np.full(x.shape, S.UTERUS, np.uint8)  # whatever no solid fills
        x, z = (values + np.float32(0.012 * self.size_mm) * smooth_noise(x.shape, (5, 5), rng) for values in (x, z))
        paint(labels, self.solids, IMAGE_PLANE, x, z)
        if self.slice_plane is not None:
            paint(labels, fetus.solids, self.slice_plane, x - self.centre_mm[0], z - self.centre_mm[1])
        return labels


def compose(row: Mapping, *, fetus: Fetus, machine: Machine, rng: np.random.Generator) -> Scene:
    """Put the plane of a row of the table in front of the right probe."""
    if row["plane"] == "Maternal cervix":
        return _cervix(rng)
    # in the real table the operator "Other" used the Aloka for the cervix and for maternal vessels only
    if row["plane"] == "Other" and row["machine"] == "Aloka" and row["operator"] == "Other":
        return _vessel(rng)
    target = choose_target(row["plane"], row["brain_plane"], rng=rng)
    size = target.size * np.linalg.norm(fetus.parts[target.part].axes[:, 0])
    slice_plane = draw_slice(fetus, target, rng=rng)
    # in amniotic fluid, with the placenta in 70 % of views, behind the wall of the belly
    wall = rng.uniform(9, 26)
    depth = wall + size * rng.uniform(0.45, 0.75) + rng.uniform(0, 12)
    probe = Probe(*machine.probe, depth + size * rng.uniform(0.7, 1.2))
    centre = np.array([rng.normal(0, 0.08) * size, probe.radius_mm + depth])
    fluid = size / 2 * np.exp(rng.normal(0.08, 0.28, 2)) * np.array([1.3, 1.0])
    solids = [_disc(S.AMNIOTIC_FLUID, centre + size * rng.normal(0, 0.11, 2), fluid, rng.uniform(-25, 25))]
    if rng.random() < 0.7:
        bearing = rng.choice([-90, 90, -60, 240, 0, 180]) + rng.normal(0, 15)  # near, far or side wall
        outward = turn("z", bearing)[:2, 0]
        bed = size * rng.uniform((0.17, 0.45), (0.3, 0.75))
        solids.append(_disc(S.PLACENTA, centre + outward * (fluid + 2) * rng.uniform(1.0, 1.2), bed, -bearing))
    layers = wall * np.array([1, *np.sort(rng.uniform(0.15, 0.95, 3))[::-1]])  # muscle and fat, from the inside out
    lean = np.array([rng.normal(0, 0.06) * wall, 0, 0])
    for structure, thickness in zip((S.MUSCLE, S.FAT) * 2, layers, strict=True):
        solids.append(ellipsoid(structure, lean, np.full(3, probe.radius_mm + thickness)))
    return Scene(solids, probe, centre, size, target.defining, slice_plane)


def render(
    scene: Scene, *, fetus: Fetus, machine: Machine, image_height: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The scan of a scene, without text: gray values and the `Structure` of every pixel, uint8 (height, width).

    Zoomed so that what is looked at fills the machine's usual share of the screen, roughly in its middle.
    """
    shape = (image_height, round(image_height * machine.aspect))
    height_mm = scene.size_mm / rng.uniform(*machine.object_share)
    pixel_mm = height_mm / image_height
    centre_x, centre_z = scene.centre_mm + height_mm * rng.normal(0, 0.05, 2)
    # the screen never begins far above the face of the probe
    top = max(centre_z - height_mm / 2, scene.probe.radius_mm - 0.08 * height_mm)
    left = centre_x - pixel_mm * shape[1] / 2
    beams = cover(scene.probe, left_mm=left, top_mm=top, pixel_mm=pixel_mm, shape=shape)
    labels = scene.labels(beams, fetus, rng)
    gray = b_mode(labels, beams, scene.probe, draw_scanner(machine, rng), pixel_mm=pixel_mm, rng=rng)
    return np.rint(255 * beams.to_screen(gray)).astype(np.uint8), beams.to_screen(labels, nearest=True)


def _cervix(rng: np.random.Generator) -> Scene:
    """Cervix seen from the vagina: canal with its mucosa, perhaps the bladder, and the fetal head behind them."""
    probe = Probe(11, 68, rng.uniform(50, 85))
    side = rng.choice([-1, 1])
    length, thick = rng.uniform(24, 45), rng.uniform(12, 17)
    lie = turn("y", rng.normal(28, 14) * side)
    along, across = side * lie[:, 0], lie[:, 2]
    middle = np.array([rng.normal(0, 4), 0, probe.radius_mm + rng.uniform(16, 26)])
    head = rng.uniform(32, 42)
    behind = middle + along * (length / 2 + head + rng.uniform(3, 14)) + across * rng.normal(2, 8)
    shells = ((S.AMNIOTIC_FLUID, rng.uniform(2, 8)), (S.SKIN, 0), (S.SKULL, -1.5), (S.BRAIN, -4))
    solids = [ellipsoid(structure, behind, np.full(3, head + margin)) for structure, margin in shells]
    solids += [
        ellipsoid(S.SULCUS, middle, [0.72 * length, ENDLESS, 1.12 * thick], lie),
        ellipsoid(S.CERVIX, middle, [0.70 * length, ENDLESS, 1.08 * thick], lie),
    ]
    way = np.linspace(-1, 1, 6)[:, None]
    canal = middle + way * along * length / 2 + (1 - way**2) * across * rng.normal(0, 3)
    solids += chain(S.CERVICAL_MUCOSA, canal, rng.uniform(1.6, 3.4))
    solids += chain(S.CERVICAL_CANAL, canal, rng.uniform(0.3, 0.6))
    solids.append(ellipsoid(S.FAT, np.zeros(3), np.full(3, probe.radius_mm + rng.uniform(2, 5))))
    if rng.random() < 0.4:  # the bladder is emptied before this examination, not always well
        bladder = np.array([side * rng.uniform(14, 26), probe.radius_mm + rng.uniform(8, 14)])
        solids.append(_disc(S.FLUID, bladder, rng.uniform([6, 3], [12, 6]), -30 * side))
    centre = np.array([rng.normal(0, 3), probe.radius_mm + rng.uniform(18, 26)])
    return Scene(solids, probe, centre, 52.0, (S.CERVICAL_CANAL, S.CERVICAL_MUCOSA))


def _vessel(rng: np.random.Generator) -> Scene:
    """A maternal artery along the face of a linear probe, perhaps at its fork."""
    depth, radius = LINEAR_RADIUS_MM + rng.uniform(12, 24), rng.uniform(2.6, 6.5)
    lie = turn("y", rng.normal(0, 4))
    solids = []
    for _ in range(rng.integers(6, 13)):  # fasciae and muscle layers
        structure = rng.choice([S.FAT, S.MUSCLE, S.SULCUS], p=[0.3, 0.5, 0.2])
        layer = np.array([0, LINEAR_RADIUS_MM + rng.uniform(1, 40)])
        solids.append(_disc(S(structure), layer, np.array([ENDLESS, rng.uniform(0.4, 2.5)]), 0))
    middle = np.array([rng.normal(0, 8), 0, depth])
    vessels = [(middle - 90 * lie[:, 0], middle + 90 * lie[:, 0], radius)]
    if rng.random() < 0.4:
        vessels.append((middle, middle + 90 * turn("y", rng.uniform(8, 18))[:, 0], 0.75 * radius))
    solids += [tube(S.VESSEL_WALL, start, end, width + 1.0) for start, end, width in vessels]
    solids += [tube(S.VESSEL, start, end, width) for start, end, width in vessels]
    centre = np.array([0, LINEAR_RADIUS_MM + 15 + rng.normal(0, 2)])
    return Scene(solids, Probe(LINEAR_RADIUS_MM, 3.2, 40), centre, 26.0, (S.VESSEL, S.VESSEL_WALL))


def _disc(structure: S, centre_mm: np.ndarray, half_mm: np.ndarray, tilt_deg: float) -> Solid:
    """An ellipse in the image, endless across it; ``centre_mm`` and ``half_mm`` are (2,)."""
    centre, half = [centre_mm[0], 0, centre_mm[1]], [half_mm[0], ENDLESS, half_mm[1]]
    return ellipsoid(structure, centre, half, turn("y", tilt_deg))
