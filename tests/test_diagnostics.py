"""Diagnostics of a pretraining, against closed forms."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from fetal_utils.diagnostics import (
    alignment,
    chance_loss,
    effective_rank,
    feature_spread,
    judge_health,
    knn_macro_f1,
    probe_macro_f1,
    top1_accuracy,
    uniformity,
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_top1_counts_the_anchors_that_find_their_other_view():
    z_a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert top1_accuracy(z_a, z_a) == 1
    # swapped: each anchor's most similar candidate is the other image's view
    assert top1_accuracy(z_a, z_a.flip(0)) == 0


def test_the_other_view_is_the_most_similar_by_hand():
    east, north, west = (torch.tensor(direction) for direction in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]))
    # image 0: east and nearly east find each other; image 1: north is nearest to nearly east,
    # and west, opposite to east, is nearest to north, its other view
    nearly_east = torch.tensor([1.0, 0.2])
    assert top1_accuracy(torch.stack([east, north]), torch.stack([nearly_east, west])).item() == 0.75


def test_top1_accuracy_does_not_depend_on_the_length_or_the_order_of_the_views():
    z_a, z_b = gaussian(2, 20, 4, seed=3)
    accuracy = top1_accuracy(z_a, z_b)
    assert 0 < top1_accuracy(z_a, z_a + 0.8 * z_b) < 1
    assert top1_accuracy(5 * z_a, 0.1 * z_b) == accuracy == top1_accuracy(z_b, z_a)


def test_alignment_of_equal_views_is_0_and_of_opposite_views_is_4():
    z = gaussian(5, 8)
    assert alignment(z, 3 * z) == pytest.approx(0, abs=1e-6)
    assert alignment(z, -z) == pytest.approx(4, rel=1e-5)


def test_uniformity_of_two_opposite_points_is_minus_8():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # squared distance 4, times t = 2
    assert uniformity(z) == pytest.approx(-8, rel=1e-5)
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-5)


def test_uniformity_of_random_directions_is_near_minus_4():
    assert uniformity(gaussian(300, 512)) == pytest.approx(-4, abs=0.05)


def test_spread_is_1_for_random_directions_and_0_for_one():
    assert feature_spread(gaussian(500, 256)) == pytest.approx(1, abs=0.02)
    assert feature_spread(torch.ones(5, 7)) == pytest.approx(0, abs=1e-6)


def test_effective_rank_counts_equal_directions():
    orthogonal = torch.linalg.qr(gaussian(40, 40))[0]
    centred = torch.cat([orthogonal[:3], -orthogonal[:3]])  # three directions, equally long, mean 0
    assert effective_rank(centred) == pytest.approx(3, rel=1e-4)
    assert effective_rank(centred + 100) == pytest.approx(3, rel=1e-2)  # a common offset counts for nothing


def test_neighbours_vote_by_direction_not_by_length():
    features = np.array([[1.0, 0], [2, 0.1], [0, 1.0], [0.1, 2]])
    labels = np.array([0, 0, 1, 1])
    assert knn_macro_f1(features, labels, np.array([[50.0, 1], [1.0, 50]]), np.array([0, 1])) == 1
    assert knn_macro_f1(features, labels, np.array([[50.0, 1], [1.0, 50]]), np.array([1, 0])) == 0


def two_groups():
    """Sixty features of two classes that a plane parts, and another sixty; the classes share every direction."""
    features = gaussian(120, 4).numpy()
    labels = (features[:, 0] + features[:, 1] > 0.5).astype(int)
    return features[:60], labels[:60], features[60:], labels[60:]


def test_a_linear_probe_finds_the_plane_that_parts_two_classes():
    features, labels, held_out, held_out_labels = two_groups()
    assert probe_macro_f1(features, labels, held_out, held_out_labels) > 0.85
    assert probe_macro_f1(features, labels, held_out, 1 - held_out_labels) < 0.15


def test_a_linear_probe_does_not_depend_on_the_unit_or_the_origin_of_a_feature():
    features, labels, held_out, held_out_labels = two_groups()
    units, origins = np.array([1e-3, 1.0, 50.0, 1e4]), np.array([3.0, -2.0, 100.0, 0.0])
    expected = probe_macro_f1(features, labels, held_out, held_out_labels)
    assert probe_macro_f1(features * units + origins, labels, held_out * units + origins, held_out_labels) == expected


def test_a_linear_probe_does_not_neglect_a_rare_class():
    # one image of class 1 among nine of class 0: the border lies half-way between their means all the same
    features, labels = np.array([[0.0]] * 9 + [[1.0]]), np.array([0] * 9 + [1])
    assert probe_macro_f1(features, labels, np.array([[0.48], [0.52]]), np.array([0, 1])) == 1


@pytest.mark.parametrize("score", [knn_macro_f1, probe_macro_f1])
def test_scores_are_over_the_classes_that_the_held_out_images_have(score):
    features = np.array([[5.0, 0.1], [5, -0.1], [-5, 0.1], [-5, -0.1], [0.1, 5], [-0.1, 5]])
    labels = np.array(["femur", "femur", "thorax", "thorax", "brain", "brain"])
    # the class thorax is not asked about; of two femurs one is taken for it: F1 of femur is 2/3, of brain 1
    held_out = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    assert score(features, labels, held_out, np.array(["femur", "femur", "brain"])) == pytest.approx((2 / 3 + 1) / 2)


def test_chance_is_the_log_of_the_candidates():
    assert chance_loss(4) == pytest.approx(math.log(7))


@pytest.mark.parametrize(
    ("first", "last", "spread", "rank", "word"),
    [
        (5.0, 1.0, 0.8, 50, "Healthy"),
        (5.6, 5.5, 0.8, 50, "Stuck at chance"),
        (5.0, 1.0, 0.01, 50, "Collapsed"),
        (5.0, 1.0, 0.8, 1.0, "Collapsed"),
        (2.0, 3.0, 0.8, 50, "Getting worse"),
    ],
)
def test_the_sentence_says_what_the_numbers_say(first, last, spread, rank, word):
    log = pd.DataFrame({"loss": [first, last], "feature_spread": spread, "effective_rank": rank})
    assert judge_health(log, batch_size=128).startswith(word)
