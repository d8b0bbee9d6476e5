"""The table of a phantom: who was scanned on what, with how many images of which plane.

A parametric model of the CSV of FETAL_PLANES_DB (Burgos-Artizzu et al. 2020, Sci Rep 10:10200; all counts below were
taken from its 12,400 rows). Kept: the three kinds of visit and their joint proportions of machine, operator and split
(with them the shift to Voluson S10 in the test set), how often a visit holds each plane and how many images of it.
Simplified: planes of a visit are drawn independently, image counts are negative binomial, a patient has one machine
and one operator (in the real table 6 and 32 of 1,792 patients have two), brain planes depend on the machine alone.
"""

import numpy as np
import pandas as pd

from fetal_utils.data import CSV_COLUMNS
from fetal_utils.phantom.planes import BRAIN_PLANES, NOT_A_BRAIN, PLANES

MIN_PATIENTS = 12  # fewer cannot hold every plane in both splits
MIN_PER_SPLIT = 2  # patients per plane and split that the table is topped up to
PLANE_NUMBERS = {  # PlaneN of an image's name
    "Other": 1,
    "Fetal abdomen": 2,
    "Fetal brain": 3,
    "Maternal cervix": 4,
    "Fetal femur": 5,
    "Fetal thorax": 6,
}
# kind of visit, machine, operator, train: number of patients
VISITS = {
    ("cervix", "Aloka", "Other", 0): 277,
    ("cervix", "Aloka", "Other", 1): 184,
    ("cervix", "Other", "Other", 0): 3,
    ("cervix", "Other", "Other", 1): 55,
    ("cervix", "Voluson E6", "Op. 1", 0): 25,
    ("cervix", "Voluson E6", "Op. 1", 1): 45,
    ("fetus", "Aloka", "Op. 3", 0): 112,
    ("fetus", "Aloka", "Op. 3", 1): 158,
    ("fetus", "Other", "Other", 0): 25,
    ("fetus", "Other", "Other", 1): 40,
    ("fetus", "Voluson E6", "Op. 1", 0): 134,
    ("fetus", "Voluson E6", "Op. 1", 1): 184,
    ("fetus", "Voluson E6", "Op. 2", 0): 153,
    ("fetus", "Voluson E6", "Op. 2", 1): 181,
    ("fetus", "Voluson E6", "Other", 0): 79,
    ("fetus", "Voluson E6", "Other", 1): 5,
    ("fetus", "Voluson S10", "Other", 0): 88,
    ("fetus", "Voluson S10", "Other", 1): 1,
    ("vascular", "Aloka", "Other", 1): 43,
}
N_FETUS_VISITS = {"Voluson E6": 735, "Aloka": 269, "Voluson S10": 89, "Other": 65}
# fetus visits with at least one image of the plane, and images of it, by machine
PLANE_COUNTS = {
    "Voluson E6": {
        "Fetal abdomen": (308, 366),
        "Fetal brain": (668, 2066),
        "Fetal femur": (408, 624),
        "Fetal thorax": (526, 1325),
        "Maternal cervix": (251, 815),
        "Other": (395, 597),
    },
    "Aloka": {
        "Fetal abdomen": (192, 212),
        "Fetal brain": (262, 640),
        "Fetal femur": (234, 294),
        "Fetal thorax": (163, 292),
        "Maternal cervix": (38, 141),
        "Other": (215, 1984),
    },
    "Voluson S10": {
        "Fetal abdomen": (71, 98),
        "Fetal brain": (88, 259),
        "Fetal femur": (64, 73),
        "Fetal thorax": (47, 72),
        "Maternal cervix": (23, 34),
        "Other": (63, 531),
    },
    "Other": {
        "Fetal abdomen": (24, 35),
        "Fetal brain": (64, 127),
        "Fetal femur": (48, 49),
        "Fetal thorax": (19, 29),
        "Maternal cervix": (16, 18),
        "Other": (16, 16),
    },
}
SPREAD = {  # shape of the negative binomial of the images after the first
    "Fetal abdomen": 1.0,
    "Fetal brain": 3.0,
    "Fetal femur": 1.0,
    "Fetal thorax": 1.2,
    "Maternal cervix": 3.0,
    "Other": 0.6,
}
BRAIN_PLANE_COUNTS = {  # images, in the order of BRAIN_PLANES
    "Voluson E6": (1072, 492, 408, 92),
    "Aloka": (360, 134, 112, 34),
    "Voluson S10": (123, 68, 59, 11),
    "Other": (83, 20, 18, 6),
}
CERVIX_EXTRA = 0.05  # mean number of images after the first in a cervix visit
VASCULAR_EXTRA, VASCULAR_SPREAD = 24.0, 4.0  # the same for a vascular visit


def draw_metadata(n_patients: int, *, rng: np.random.Generator) -> pd.DataFrame:
    """The raw table of ``n_patients`` patients.

    Parameters
    ----------
    n_patients : int
        At least ``MIN_PATIENTS``.
    rng : np.random.Generator
        The only source of chance.

    Returns
    -------
    DataFrame
        Columns as in the CSV (the keys of ``CSV_COLUMNS``), one row per image, by patient. Every plane and every
        standard brain plane is held by at least ``MIN_PER_SPLIT`` patients of each split.

    Raises
    ------
    ValueError
        If ``n_patients`` is below ``MIN_PATIENTS``.
    """
    if n_patients < MIN_PATIENTS:
        raise ValueError(
            f"n_patients={n_patients}: at least {MIN_PATIENTS} are needed so that every plane is in both splits"
        )
    visits = _draw_visits(n_patients, rng)
    planes = [_draw_planes(kind, machine, rng) for kind, machine, _, _ in visits]
    _top_up(visits, planes)
    return pd.concat(
        [
            _patient_rows(number, visit, held)
            for number, (visit, held) in enumerate(zip(visits, planes, strict=True), 1)
        ],
        ignore_index=True,
    )


def _draw_visits(n_patients: int, rng: np.random.Generator) -> list[tuple[str, str, str, int]]:
    """Visits in the proportions of the real table (systematic sampling, so small tables keep them too), shuffled."""
    keys, counts = list(VISITS), np.array(list(VISITS.values()))
    edges = np.cumsum(counts) / counts.sum()
    positions = (np.arange(n_patients) + rng.random()) / n_patients
    return [keys[index] for index in rng.permutation(np.searchsorted(edges, positions, side="right"))]


def _draw_planes(kind: str, machine: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The (plane, brain plane) of every image of one visit."""
    if kind == "cervix":
        return [("Maternal cervix", NOT_A_BRAIN)] * (1 + rng.poisson(CERVIX_EXTRA))
    if kind == "vascular":
        return [("Other", NOT_A_BRAIN)] * (1 + _negative_binomial(VASCULAR_EXTRA, VASCULAR_SPREAD, rng))
    held: list[tuple[str, str]] = []
    while not held:  # a visit without any image is no row of the table
        for plane, (n_visits, n_images) in PLANE_COUNTS[machine].items():
            if rng.random() < n_visits / N_FETUS_VISITS[machine]:
                n_drawn = 1 + _negative_binomial(n_images / n_visits - 1, SPREAD[plane], rng)
                held += [(plane, _draw_brain_plane(plane, machine, rng)) for _ in range(n_drawn)]
    return held


def _draw_brain_plane(plane: str, machine: str, rng: np.random.Generator) -> str:
    if plane != "Fetal brain":
        return NOT_A_BRAIN
    counts = np.array(BRAIN_PLANE_COUNTS[machine])
    return BRAIN_PLANES[rng.choice(len(counts), p=counts / counts.sum())]


def _negative_binomial(mean: float, spread: float, rng: np.random.Generator) -> int:
    return int(rng.poisson(mean * rng.gamma(spread, 1 / spread)))


def _top_up(visits: list[tuple[str, str, str, int]], planes: list[list[tuple[str, str]]]) -> None:
    """Give each split the planes it lacks, one image to one more fetus patient at a time, the one with fewest first."""
    wanted = [(plane, NOT_A_BRAIN) for plane in PLANES if plane != "Fetal brain"]
    wanted += [("Fetal brain", brain_plane) for brain_plane in BRAIN_PLANES[:3]]
    for train in (0, 1):
        members = [index for index, visit in enumerate(visits) if visit[3] == train]
        fetuses = [index for index in members if visits[index][0] == "fetus"]
        for pair in wanted:
            holders = sum(pair in planes[index] for index in members)
            lacking = sorted((index for index in fetuses if pair not in planes[index]), key=lambda i: len(planes[i]))
            for index in lacking[: max(MIN_PER_SPLIT - holders, 0)]:
                planes[index].append(pair)


def _patient_rows(number: int, visit: tuple[str, str, str, int], held: list[tuple[str, str]]) -> pd.DataFrame:
    """Rows of one patient, planes in alphabetical order, images numbered within their plane."""
    _, machine, operator, train = visit
    rows = []
    for plane in PLANES:
        brain_planes = [brain_plane for name, brain_plane in held if name == plane]
        for index, brain_plane in enumerate(brain_planes, 1):
            name = f"Patient{number:05d}_Plane{PLANE_NUMBERS[plane]}_{index}_of_{len(brain_planes)}"
            rows.append((name, number, plane, brain_plane, operator, machine, train))
    return pd.DataFrame(rows, columns=list(CSV_COLUMNS))
