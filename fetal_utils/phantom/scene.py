"""One image: what is in front of the probe, put together from fetus, mother, machine and overlay."""

from dataclasses import dataclass

import numpy as np

from fetal_utils.phantom import mother
from fetal_utils.phantom.fetus import Fetus
from fetal_utils.phantom.geometry import BeamGrid, Probe, Screen, cover
from fetal_utils.phantom.imaging import Scanner, b_mode
from fetal_utils.phantom.machines import ENDOCAVITY_PROBE, LINEAR_PROBE, Machine, draw_scanner
from fetal_utils.phantom.overlay import ANATOMY, draw_overlay
from fetal_utils.phantom.painting import paint
from fetal_utils.phantom.planes import View, choose_target, draw_view
from fetal_utils.phantom.shapes import Solid
from fetal_utils.phantom.structures import Structure as S
from fetal_utils.phantom.tissue import tissue_of
from fetal_utils.phantom.warp import Warp, draw_warp

PLACENTA_SHARE = 0.12  # of the views of the plane ``Other``


@dataclass(frozen=True)
class Scene:
    """Solids in the frame of the probe, perhaps a slice of a fetus on top of them, and how it is looked at."""

    solids: tuple[Solid, ...]
    probe: Probe
    centre_mm: np.ndarray  # (x, z) of what the operator looks at
    size_mm: float  # its width
    defining: tuple[S, ...]
    max_depth_mm: float
    tgc_db_cm: float
    warp: Warp
    view: View | None = None

    def labels(self, grid: BeamGrid, fetus: Fetus) -> np.ndarray:
        """Structure at every sample of the grid, uint8 (n_ranges, n_beams)."""
        x, z = grid.to_slice()
        labels = np.full(x.shape, S.MYOMETRIUM, np.uint8)  # whatever no solid fills
        paint(labels, self.warp(np.stack([x, np.zeros_like(x), z])), self.solids)
        if self.view is not None:
            fetus.paint(labels, self.view.to_body(x - np.float32(self.centre_mm[0]), z - np.float32(self.centre_mm[1])))
        return labels


def compose(
    plane: str, brain_plane: str, *, vascular: bool, fetus: Fetus, machine: Machine, rng: np.random.Generator
) -> Scene:
    """Put the plane of a row in front of the right probe."""
    if plane == "Maternal cervix":
        return _cervix(rng)
    if plane == "Other" and vascular:
        return _vessel(rng)
    probe = Probe(machine.probe_radius_mm, machine.half_angle_deg)
    wall_mm = rng.uniform(9, 26)
    if plane == "Other" and rng.random() < PLACENTA_SHARE:
        return _placenta(probe, wall_mm, rng)
    view = draw_view(fetus, choose_target(plane, brain_plane, rng=rng), rng=rng)
    depth = probe.radius_mm + wall_mm + view.size_mm * rng.uniform(0.45, 0.75) + rng.uniform(0, 12)
    centre = np.array([rng.normal(0, 0.08) * view.size_mm, depth])
    solids = mother.draw_uterus(
        probe_radius_mm=probe.radius_mm, wall_mm=wall_mm, centre_mm=centre, radius_mm=view.size_mm / 2, rng=rng
    )
    max_depth = depth - probe.radius_mm + view.size_mm * rng.uniform(0.7, 1.2)
    return Scene(
        solids,
        probe,
        centre,
        view.size_mm,
        view.defining,
        max_depth,
        0.75,
        draw_warp(rng.uniform(1, 3), 35, rng=rng),
        view,
    )


def draw_scene(
    scene: Scene, *, fetus: Fetus, machine: Machine, plane: str, image_height: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a scene, both uint8 (image_height, width)."""
    scanner, grid = _aim(scene, machine, image_height, rng)
    labels = scene.labels(grid, fetus)
    spacing_mm = grid.beam_step * (1 if _is_linear(scene) else scene.centre_mm[1])
    gray = b_mode(
        tissue_of(labels),
        ranges_mm=grid.ranges_mm,
        beam_step=grid.beam_step,
        beam_spacing_mm=spacing_mm,
        scanner=scanner,
        rng=rng,
    )
    image = np.rint(255 * grid.to_screen(gray)).astype(np.uint8)
    defines = np.isin(np.arange(len(S)), scene.defining).astype(np.uint8) * ANATOMY
    mask = grid.to_screen_nearest(defines[labels])
    weeks = fetus.biometry.weeks
    return draw_overlay(image, mask, layout=machine.layout, plane=plane, weeks=weeks, rng=rng)


def draw_structures(
    scene: Scene, *, fetus: Fetus, machine: Machine, image_height: int, rng: np.random.Generator
) -> np.ndarray:
    """`Structure` at every pixel of the image that `draw_scene` draws of an equal generator; uint8, of its shape."""
    _, grid = _aim(scene, machine, image_height, rng)
    return grid.to_screen_nearest(scene.labels(grid, fetus))


def _aim(scene: Scene, machine: Machine, image_height: int, rng: np.random.Generator) -> tuple[Scanner, BeamGrid]:
    """The scanner's settings, and the beams that cover its screen."""
    screen = _screen(scene, machine, image_height, rng)
    focus_mm = scene.centre_mm[1] - scene.probe.radius_mm
    linear = _is_linear(scene)
    scanner = draw_scanner(machine, focus_mm=focus_mm, tgc_db_cm=scene.tgc_db_cm, linear=linear, rng=rng)
    return scanner, cover(scene.probe, screen, beam_width=2 * scanner.lateral, max_depth_mm=scene.max_depth_mm)


def _is_linear(scene: Scene) -> bool:
    """Whether the probe's face is straight."""
    return scene.probe.radius_mm == 0


def _cervix(rng: np.random.Generator) -> Scene:
    probe = ENDOCAVITY_PROBE
    solids = mother.draw_cervix(probe_radius_mm=probe.radius_mm, rng=rng)
    centre = np.array([rng.normal(0, 3), probe.radius_mm + rng.uniform(18, 26)])
    defining = (S.CERVICAL_CANAL, S.CERVICAL_MUCOSA)
    return Scene(solids, probe, centre, 52.0, defining, rng.uniform(50, 85), 0.5, draw_warp(1.0, 25, rng=rng))


def _vessel(rng: np.random.Generator) -> Scene:
    centre = np.array([0.0, 15.0 + rng.normal(0, 2)])
    solids = mother.draw_vessel(rng=rng)
    return Scene(solids, LINEAR_PROBE, centre, 26.0, (S.ARTERY, S.ARTERY_WALL), 40.0, 1.0, draw_warp(0.5, 20, rng=rng))


def _placenta(probe: Probe, wall_mm: float, rng: np.random.Generator) -> Scene:
    centre = np.array([rng.normal(0, 6), probe.radius_mm + wall_mm + rng.uniform(12, 30)])
    solids = mother.draw_placenta_view(probe_radius_mm=probe.radius_mm, wall_mm=wall_mm, centre_mm=centre, rng=rng)
    return Scene(solids, probe, centre, 75.0, (S.PLACENTA,), rng.uniform(90, 130), 0.75, draw_warp(2.0, 35, rng=rng))


def _screen(scene: Scene, machine: Machine, height: int, rng: np.random.Generator) -> Screen:
    """Zoomed so that what is looked at fills the machine's usual share of the screen, roughly centred."""
    width = round(height * machine.aspect)
    pixel_mm = scene.size_mm / rng.uniform(*machine.object_share) / height
    centre_x, centre_z = scene.centre_mm + pixel_mm * height * rng.normal(0, 0.05, 2)
    # the screen never begins far above the face of the probe
    top = max(centre_z - pixel_mm * height / 2, scene.probe.radius_mm - 0.08 * pixel_mm * height)
    return Screen(centre_x - pixel_mm * width / 2, top, pixel_mm, height, width)
