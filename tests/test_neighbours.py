"""Nearest neighbours and pairs, on features whose angles are known by hand."""

import numpy as np
import pytest

from fetal_utils.neighbours import find_neighbours, neighbour_purity, pair_similarities

DEGREES = np.array([0, 10, 25, 90, 100, 180])
FEATURES = np.stack([np.cos(np.deg2rad(DEGREES)), np.sin(np.deg2rad(DEGREES))], axis=1)
PLANES = np.array(["brain", "brain", "femur", "femur", "femur", "brain"])
PATIENTS = np.array([1, 1, 2, 3, 3, 4])


def test_neighbours_come_by_angle_nearest_first():
    found = find_neighbours(FEATURES, np.array([0, 4]), np.array([1, 2, 3, 5]), n_neighbours=2)
    np.testing.assert_array_equal(found, [[1, 2], [3, 2]])


def test_the_length_of_a_feature_does_not_count():
    longer = FEATURES * np.array([[1], [9], [0.1], [5], [2], [7]])
    queries, gallery = np.array([0, 4]), np.array([1, 2, 3, 5])
    np.testing.assert_array_equal(
        find_neighbours(longer, queries, gallery, n_neighbours=3),
        find_neighbours(FEATURES, queries, gallery, n_neighbours=3),
    )


def test_purity_is_the_share_of_neighbours_with_the_label_of_their_query():
    neighbours = np.array([[1, 2], [3, 2]])  # brain: brain, femur; femur: femur, femur
    assert neighbour_purity(neighbours, np.array([0, 4]), PLANES) == 0.75


def test_an_image_that_is_query_and_gallery_is_refused():
    with pytest.raises(ValueError, match="1 images are both query and gallery"):
        find_neighbours(FEATURES, np.array([0, 1]), np.array([1, 2]), n_neighbours=1)


def test_a_gallery_smaller_than_the_neighbours_asked_for_is_refused():
    with pytest.raises(ValueError, match="n_neighbours=3, and the gallery has 2"):
        find_neighbours(FEATURES, np.array([0]), np.array([1, 2]), n_neighbours=3)


def test_pairs_say_what_two_images_share_and_their_cosine():
    pairs = pair_similarities(FEATURES * 3, np.array([0, 1, 3, 5]), PATIENTS, PLANES)
    assert pairs["pair"].tolist() == [
        "same patient and plane",  # 0, 1
        "another plane",  # 0, 3
        "same plane",  # 0, 5
        "another plane",  # 1, 3
        "same plane",  # 1, 5
        "another plane",  # 3, 5
    ]
    cosines = np.cos(np.deg2rad([10, 90, 180, 80, 170, 90]))
    np.testing.assert_allclose(pairs["similarity"], cosines, atol=1e-12)
