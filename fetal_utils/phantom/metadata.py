"""The table of a phantom: who was scanned on what, with how many images of which plane.

A parametric model of the CSV of FETAL_PLANES_DB (Burgos-Artizzu et al. 2020, Sci Rep 10:10200; all counts below were
taken from its 12,400 rows). Kept: the three kinds of visit and their joint proportions of machine, operator and split
(with them the shift to Voluson S10 in the test set), how often a visit holds each plane and how many images of it.
Simplified: planes of a visit are drawn independently, image counts are negative binomial, a patient has one machine
and one operator (in the real table 6 and 32 of 1,792 patients have two), brain planes do not depend on the machine.
"""

import numpy as np
import pandas as pd

from fetal_utils.images import CSV_COLUMNS
from fetal_utils.phantom.machines import MACHINES
from fetal_utils.phantom.planes import BRAIN_PLANES, NOT_A_BRAIN, PLANES

MIN_PATIENTS = 12  # fewer cannot hold every plane in both splits
MIN_PER_SPLIT = 2  # patients per plane and split that the table is topped up to
PLANE_NUMBERS = dict(zip(PLANES, (2, 3, 5, 6, 4, 1), strict=True))  # PlaneN of an image's name


VISITS = {  # kind of visit, machine, operator: patients of the test set, of the training set
    ("cervix", "Aloka", "Other"): (277, 184),
    ("cervix", "Other", "Other"): (3, 55),
    ("cervix", "Voluson E6", "Op. 1"): (25, 45),
    ("fetus", "Aloka", "Op. 3"): (112, 158),
    ("fetus", "Other", "Other"): (25, 40),
    ("fetus", "Voluson E6", "Op. 1"): (134, 184),
    ("fetus", "Voluson E6", "Op. 2"): (153, 181),
    ("fetus", "Voluson E6", "Other"): (79, 5),
    ("fetus", "Voluson S10", "Other"): (88, 1),
    ("vascular", "Aloka", "Other"): (0, 43),
}
N_FETUS_VISITS = {"Voluson E6": 735, "Aloka": 269, "Voluson S10": 89, "Other": 65}
# fetus visits with at least one image of the plane, and images of it; in the order of PLANES
PLANE_COUNTS = {
    "Voluson E6": ((308, 366), (668, 2066), (408, 624), (526, 1325), (251, 815), (395, 597)),
    "Aloka": ((192, 212), (262, 640), (234, 294), (163, 292), (38, 141), (215, 1984)),
    "Voluson S10": ((71, 98), (88, 259), (64, 73), (47, 72), (23, 34), (63, 531)),
    "Other": ((24, 35), (64, 127), (48, 49), (19, 29), (16, 18), (16, 16)),
}
SPREAD = (1.0, 3.0, 1.0, 1.2, 3.0, 0.6)  # shape of the negative binomial of the images after the first; as PLANES
BRAIN_PLANE_COUNTS = (1638, 714, 597, 143)  # images, in the order of BRAIN_PLANES
CERVIX_EXTRA = 0.05  # mean number of images after the first in a cervix visit
VASCULAR_EXTRA, VASCULAR_SPREAD = 24.0, 4.0  # the same for a vascular visit


def draw_metadata(n_patients: int, *, rng: np.random.Generator) -> pd.DataFrame:
    """The table of ``n_patients`` (at least ``MIN_PATIENTS``) as of `fetal_utils.data.read_metadata`, by patient.

    Every plane and every standard brain plane is held by at least ``MIN_PER_SPLIT`` patients of each split.
    """
    if n_patients < MIN_PATIENTS:
        raise ValueError(
            f"n_patients={n_patients}: at least {MIN_PATIENTS} are needed so that every plane is in both splits"
        )
    # visits by systematic sampling, so that small tables keep the proportions too
    counts = np.array(list(VISITS.values())).ravel()
    places = (np.arange(n_patients) + rng.random()) / n_patients * counts.sum()
    drawn = rng.permutation(np.searchsorted(np.cumsum(counts), places, side="right"))
    kinds = list(VISITS)
    visits = [(*kinds[index // 2], ("test", "train")[index % 2]) for index in drawn]
    held = [_draw_planes(kind, machine, rng) for kind, machine, _, _ in visits]
    _top_up(visits, held)
    rows = []
    for patient, ((_, machine, operator, split), pairs) in enumerate(zip(visits, held, strict=True), 1):
        for plane in PLANES:
            brain_planes = [brain_plane for name, brain_plane in pairs if name == plane]
            for index, brain_plane in enumerate(brain_planes, 1):
                name = f"Patient{patient:05d}_Plane{PLANE_NUMBERS[plane]}_{index}_of_{len(brain_planes)}"
                rows.append((name, patient, plane, brain_plane, operator, machine, split))
    return pd.DataFrame(rows, columns=list(CSV_COLUMNS.values()))


def check_drawable(table: pd.DataFrame) -> None:
    """Refuse, with a ValueError that names the first, rows whose plane, brain plane or machine no phantom has."""
    allowed = {"plane": PLANES, "brain_plane": (*BRAIN_PLANES, NOT_A_BRAIN), "machine": tuple(MACHINES)}
    needed = ["image_name", "patient", "operator", *allowed]
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"columns {missing} are missing; found {list(table.columns)}")
    for column, values in allowed.items():
        for name, value in table.loc[~table[column].isin(values), ["image_name", column]].head(1).to_numpy():
            raise ValueError(f"{name}: {column} {value!r} can't be drawn, only {', '.join(values)}")
    mixed = (table["plane"] == "Fetal brain") == (table["brain_plane"] == NOT_A_BRAIN)
    for name, plane, brain_plane in table.loc[mixed, ["image_name", "plane", "brain_plane"]].head(1).to_numpy():
        raise ValueError(
            f"{name}: plane {plane!r} does not go with brain plane {brain_plane!r}; only brain images have one"
        )


def _draw_planes(kind: str, machine: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The (plane, brain plane) of every image of one visit."""
    if kind == "cervix":
        return [("Maternal cervix", NOT_A_BRAIN)] * (1 + rng.poisson(CERVIX_EXTRA))
    if kind == "vascular":
        return [("Other", NOT_A_BRAIN)] * (1 + _negative_binomial(VASCULAR_EXTRA, VASCULAR_SPREAD, rng))
    brain_shares = np.array(BRAIN_PLANE_COUNTS) / sum(BRAIN_PLANE_COUNTS)
    held: list[tuple[str, str]] = []
    while not held:  # a visit without any image is no row of the table
        for plane, (n_visits, n_images), spread in zip(PLANES, PLANE_COUNTS[machine], SPREAD, strict=True):
            if rng.random() >= n_visits / N_FETUS_VISITS[machine]:
                continue
            n_drawn = 1 + _negative_binomial(n_images / n_visits - 1, spread, rng)
            is_brain = plane == "Fetal brain"
            drawn = rng.choice(BRAIN_PLANES, n_drawn, p=brain_shares).tolist() if is_brain else [NOT_A_BRAIN] * n_drawn
            held += [(plane, brain_plane) for brain_plane in drawn]
    return held


def _negative_binomial(mean: float, spread: float, rng: np.random.Generator) -> int:
    return int(rng.poisson(mean * rng.gamma(spread, 1 / spread)))


def _top_up(visits: list[tuple[str, str, str, str]], held: list[list[tuple[str, str]]]) -> None:
    """Give each split the planes it lacks, one image to one more fetus patient at a time, the one with fewest first."""
    wanted = [(plane, NOT_A_BRAIN) for plane in PLANES if plane != "Fetal brain"]
    wanted += [("Fetal brain", brain_plane) for brain_plane in BRAIN_PLANES[:3]]
    for split in ("test", "train"):
        members = [index for index, visit in enumerate(visits) if visit[3] == split]
        for pair in wanted:
            n_holders = sum(pair in held[index] for index in members)
            lacking = [index for index in members if visits[index][0] == "fetus" and pair not in held[index]]
            lacking.sort(key=lambda index: len(held[index]))
            for index in lacking[: max(MIN_PER_SPLIT - n_holders, 0)]:
                held[index].append(pair)
