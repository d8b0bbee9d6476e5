"""The landmarks that name a standard plane, pointed at in a picture of the phantom."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt

from fetal_utils.data_plots import MASK_COLOURS
from fetal_utils.palette import FONT_SIZE, INK, LooseFigure
from fetal_utils.phantom.drawing import draw_row, draw_row_structures
from fetal_utils.phantom.planes import NOT_A_BRAIN, TARGETS
from fetal_utils.phantom.structures import Structure as S

# after the ISUOG guidelines for biometry (Ultrasound Obstet Gynecol 53:715, 2019) and the fetal brain (56:476, 2020)
LANDMARKS: dict[str, dict[str, tuple[S, ...]]] = {
    "Trans-thalamic": {"thalami": (S.THALAMUS,), "cavum septi pellucidi": (S.CAVUM,), "falx": (S.FALX,)},
    "Trans-cerebellum": {"cerebellum": (S.CEREBELLUM, S.VERMIS), "cisterna magna": (S.CISTERNA_MAGNA,)},
    "Trans-ventricular": {"lateral ventricle": (S.LATERAL_VENTRICLE,), "choroid plexus": (S.CHOROID_PLEXUS,)},
    "Fetal abdomen": {"stomach": (S.STOMACH,), "umbilical vein": (S.UMBILICAL_VEIN,), "spine": (S.SPINE,)},
    "Fetal thorax": {
        "four-chamber heart": (S.HEART_CHAMBER, S.HEART_SEPTUM, S.MYOCARDIUM),
        "lung": (S.LUNG,),
        "spine": (S.SPINE,),
    },
    "Fetal femur": {"femur": (S.FEMUR,)},
    "Maternal cervix": {"cervical canal": (S.CERVICAL_CANAL, S.CERVICAL_MUCOSA)},
}
LEAST_SHARE = 0.001  # of the picture that a landmark must fill to be pointed at
WORD_HEIGHTS = (0.95, 0.08, 0.6)  # of the words of a panel, share of its height: far apart, so that lines seldom cross
N_PATIENTS = 40  # that are looked through for one who shows them all


def draw_landmarks(plane: str, *, seed: int, image_height: int = 256) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A picture of the phantom that shows all landmarks of a plane, and where they are.

    The first patient, in the order of their numbers, in whose picture every landmark fills `LEAST_SHARE`: a rule, and
    a kind one. Standard planes of real patients often lack one of theirs.

    Parameters
    ----------
    plane : str
        A key of `LANDMARKS`.
    seed : int
        Of the phantom, 0 or more.
    image_height : int
        px.

    Returns
    -------
    image : ndarray of uint8, shape (image_height, width)
    masks : dict of str to ndarray of bool
        One for each landmark, of the image's shape.

    Raises
    ------
    ValueError
        If the plane is unknown, or no patient shows all of its landmarks.
    """
    if plane not in LANDMARKS:
        raise ValueError(f"plane={plane!r}: expected one of {list(LANDMARKS)}")
    for patient in range(1, N_PATIENTS + 1):
        row = row_of(plane, patient)
        structures = draw_row_structures(row, seed=seed, image_height=image_height)
        masks = {word: np.isin(structures, codes) for word, codes in LANDMARKS[plane].items()}
        if all(mask.mean() >= LEAST_SHARE for mask in masks.values()):
            image, _ = draw_row(row, seed=seed, image_height=image_height)
            return image, masks
    raise ValueError(f"none of {N_PATIENTS} patients of seed {seed} shows {', '.join(LANDMARKS[plane])}")


def row_of(plane: str, patient: int) -> dict[str, object]:
    """A row of the raw table for one picture of a plane or brain plane."""
    is_brain = plane not in TARGETS and plane != "Maternal cervix"
    return {
        "Image_name": f"Patient{patient:05d}_Plane1",
        "Patient_num": patient,
        "Plane": "Fetal brain" if is_brain else plane,
        "Brain_plane": plane if is_brain else NOT_A_BRAIN,
        "Operator": "Op. 1",
        "US_Machine": "Voluson E6",
    }


def plot_landmarks(*, seed: int, n_columns: int = 4) -> Figure:
    """Every plane of `LANDMARKS` once: its landmarks outlined, each with its name.

    Returns
    -------
    Figure
        New, not known to pyplot.
    """
    n_rows = -(-len(LANDMARKS) // n_columns)
    figure = LooseFigure(4.0 * n_columns, 3.1 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, plane in zip(panels, LANDMARKS, strict=False):
        image, masks = draw_landmarks(plane, seed=seed)
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        panel.set_title(plane, fontsize=FONT_SIZE, color=INK)
        for (word, mask), colour, at in zip(masks.items(), MASK_COLOURS, WORD_HEIGHTS, strict=False):
            panel.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=0.9)
            point_at(panel, word, middle_of(mask), colour, at=at)
    return figure


def point_at(panel: Axes, word: str, place: tuple[float, float], colour: str, *, at: float) -> None:
    """A word at a height ``at`` of the panel's left edge, 0 to 1, with a line to (column, row) ``place``."""
    panel.annotate(
        word,
        xy=place,
        xytext=(0.06, at),
        textcoords="axes fraction",
        va="center",
        color=colour,
        fontsize=FONT_SIZE - 1,
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.9, "shrinkB": 0},
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "black", "edgecolor": "none", "alpha": 0.75},
    )


def middle_of(mask: np.ndarray) -> tuple[float, float]:
    """Column and row of the pixel farthest from the edge of a mask: inside it, also where it has two parts."""
    row, column = np.unravel_index(distance_transform_edt(mask).argmax(), mask.shape)
    return float(column), float(row)
