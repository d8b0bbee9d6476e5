"""Landmarks: where the phantom's anatomy says they are, under the names that the tasks and the glossary use."""

import numpy as np
import pytest

from fetal_utils.landmarks import (
    LANDMARKS,
    LEAST_SHARE,
    draw_landmarks,
    middle_of,
    plot_landmarks,
    row_of,
)
from fetal_utils.phantom import ANATOMY, draw_image
from fetal_utils.phantom.drawing import draw_row_structures
from fetal_utils.phantom.planes import BRAIN_TARGETS, TARGETS
from fetal_utils.phantom.structures import Structure
from fetal_utils.tasks import TASKS


def test_every_class_of_the_study_has_landmarks_but_the_two_that_stand_for_many():
    classes = {name for task in TASKS.values() for name in task.classes}
    assert set(LANDMARKS) == classes - {"Other", "Fetal brain"}


@pytest.mark.parametrize("plane", {**BRAIN_TARGETS, **TARGETS})
def test_what_defines_a_plane_is_among_its_landmarks(plane):
    defining = {**BRAIN_TARGETS, **TARGETS}[plane].defining
    assert set(defining) <= {code for codes in LANDMARKS[plane].values() for code in codes}


@pytest.mark.parametrize("plane", LANDMARKS)
def test_every_landmark_is_large_enough_to_point_at(plane):
    image, masks = draw_landmarks(plane, seed=0, image_height=64)
    assert list(masks) == list(LANDMARKS[plane])
    assert all(mask.shape == image.shape and mask.mean() >= LEAST_SHARE for mask in masks.values())


def test_structures_are_those_of_the_very_image_and_its_mask():
    row = row_of("Trans-cerebellum", 3)
    image, mask = draw_image(row, seed=1, image_height=64)
    structures = draw_row_structures(row, seed=1, image_height=64)
    assert structures.shape == image.shape
    defining = np.isin(structures, BRAIN_TARGETS["Trans-cerebellum"].defining)
    assert defining.any()
    assert (defining[mask == ANATOMY]).all()
    assert (mask[defining] > 0).all()  # text and calipers may lie over it
    assert set(np.unique(structures)) <= set(Structure)


def test_the_middle_of_a_mask_in_two_parts_lies_inside_the_larger():
    mask = np.zeros((20, 40), bool)
    mask[5:8, 2:5] = mask[8:17, 25:34] = True
    assert middle_of(mask) == (29, 12)


def test_the_figure_names_every_landmark_of_every_plane():
    panels = plot_landmarks(seed=0).axes
    shown = {panel.get_title(): [text.get_text() for text in panel.texts] for panel in panels if panel.get_title()}
    assert shown == {plane: list(words) for plane, words in LANDMARKS.items()}


def test_an_unknown_plane_is_refused_by_name():
    with pytest.raises(ValueError, match="Trans-lunar"):
        draw_landmarks("Trans-lunar", seed=0)
