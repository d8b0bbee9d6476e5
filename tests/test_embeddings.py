"""Scores on spaces whose groups are known, CKA against its formula written out over pairs and triples of images."""

import itertools

import numpy as np
import pandas as pd
import pytest

from fetal_utils.embeddings import (
    check_features,
    embedding_scores,
    group_scores,
    linear_cka,
    mean_over_patients,
    patient_scores,
)
from fetal_utils.evaluation import patient_weights

PATIENTS = np.repeat(np.arange(20), 4)
PLANES = np.where(np.arange(80) % 2, "Fetal brain", "Other")  # every patient has both
WEIGHTS = patient_weights(PATIENTS, n_resamples=200)
SHARED = {"metric": "euclidean", "weights": WEIGHTS}


def clusters(groups, *, spread=0.1, n_dimensions=5, seed=0):
    """Points around a random centre of each group."""
    rng = np.random.default_rng(seed)
    names, place = np.unique(groups, return_inverse=True)
    centres = rng.normal(size=(len(names), n_dimensions)) * 3
    return (centres[place] + rng.normal(scale=spread, size=(len(place), n_dimensions))).astype(np.float32)


# --- means over patients ---


def test_a_mean_over_patients_weighs_their_images_and_skips_nan():
    weights = pd.DataFrame([[1, 1, 1], [2, 0, 1], [0, 3, 0]], columns=[7, 8, 9])
    means = mean_over_patients(np.array([1.0, 3.0, 10.0, np.nan]), np.array([7, 7, 9, 8]), weights)
    np.testing.assert_allclose(means, [14 / 3, (2 * 4 + 10) / 5, np.nan])


# --- groups ---


def test_planes_that_lie_apart_score_one_and_noise_scores_chance():
    good = group_scores(clusters(PLANES), PLANES, PATIENTS, **SHARED)
    noise = group_scores(np.random.default_rng(1).normal(size=(80, 5)), PLANES, PATIENTS, **SHARED)
    assert good["knn_accuracy"][0] == good["separability"][0] == 1
    assert good["silhouette"][0] > 0.9
    assert good["knn_accuracy_chance"] == good["separability_chance"] == 0.5
    for name in ("knn_accuracy", "separability"):
        assert noise[name][0] == pytest.approx(0.5, abs=0.2)
        assert noise[name][1:].std() > 0.01
    assert abs(noise["silhouette"][0]) < 0.05


def test_images_of_the_same_patient_have_no_vote():
    # each patient has a place of its own and one machine: only the own images would tell it
    machines = np.where(PATIENTS % 2, "Aloka", "Voluson E6")
    scores = group_scores(clusters(PATIENTS), machines, PATIENTS, **SHARED)
    assert scores["knn_accuracy"][0] < 0.8
    assert patient_scores(clusters(PATIENTS), PATIENTS, **SHARED)["same_patient_nearest"][0] == 1


def test_separability_weighs_classes_alike():
    # the rare plane lies among the others, so a regression may at best guess: about a half, not 90 %
    planes = np.where(np.arange(80) % 10 == 0, "Fetal femur", "Other")
    scores = group_scores(np.random.default_rng(0).normal(size=(80, 3)), planes, PATIENTS, **SHARED)
    assert scores["separability"][0] < 0.75
    assert scores["knn_accuracy_chance"] == 0.9


def test_a_label_of_one_patient_is_left_out_and_one_label_alone_has_no_score():
    machines = np.where(PATIENTS == 0, "Voluson S10", np.where(PATIENTS % 2, "Aloka", "Voluson E6"))
    scores = group_scores(clusters(machines), machines, PATIENTS, **SHARED)
    assert scores["knn_accuracy"][0] == 1 and scores["separability_chance"] == 0.5
    assert group_scores(clusters(PLANES), np.where(PATIENTS == 0, "a", "b"), PATIENTS, **SHARED) == {}


def test_grouping_by_patient_counts_those_with_another_image_and_knows_its_chance():
    patients = np.array([0, 0, 1, 1, 2])
    points = np.array([[0.0], [0.1], [5.0], [5.1], [0.05]])  # the lone patient's lies between those of the first
    weights = patient_weights(patients, n_resamples=10)
    scores = patient_scores(points, patients, metric="euclidean", weights=weights)
    assert scores["same_patient_nearest"][0] == 0.5
    assert scores["same_patient_nearest_chance"] == 1 / 4
    for one in ([0, 1, 2, 3, 4], [0] * 5):
        assert patient_scores(points, np.array(one), metric="euclidean", weights=weights) == {}


# --- the table ---


def test_the_table_scores_the_features_and_each_map_with_intervals_over_patients():
    features = clusters(PLANES, n_dimensions=8)
    rng = np.random.default_rng(0)
    maps = {("pca", "first 2"): features[:, :2], ("tsne", "shuffled"): rng.permutation(features[:, :2])}
    table = pd.DataFrame({"patient": PATIENTS, "plane": PLANES, "machine": "Aloka"})  # one alone: no score
    scores = embedding_scores(features, maps, table, WEIGHTS)
    value = scores.set_index(["method", "label", "score"])["value"]
    assert list(scores.columns) == ["method", "setting", "label", "score", "value", "low", "high"]
    assert set(scores["label"]) == {"plane", "patient", "all"} and set(scores["method"]) == {"original", "pca", "tsne"}
    assert value["original", "plane", "knn_accuracy"] == 1
    assert value["tsne", "plane", "knn_accuracy"] < 0.75
    assert value["pca", "all", "trustworthiness"] > value["tsne", "all", "trustworthiness"]
    assert value["tsne", "all", "continuity"] == pytest.approx(0.5, abs=0.15)
    resampled = ~scores["score"].str.contains("chance") & (scores["label"] != "all")
    assert scores[resampled].eval("low <= value <= high").all()
    assert scores[~resampled][["low", "high"]].isna().all(axis=None)


def test_few_images_have_few_neighbours():
    table = pd.DataFrame({"patient": PATIENTS[:12], "plane": PLANES[:12], "machine": "Aloka"})
    features = clusters(PLANES[:12])
    scores = embedding_scores(features, {("pca", ""): features[:, :2]}, table, WEIGHTS)
    assert scores["value"].notna().all()


# --- features that say nothing ---


@pytest.mark.parametrize(
    "features, message",
    [
        (np.full((6, 3), 0.7), "are the same.*the encoder has collapsed"),
        (np.zeros((6, 3)), "are the same"),
        (np.full((6, 3), 1e-9) + 1e-18, "are the same"),
        (np.array([[1.0, np.nan]] * 6), "diverged"),
        (np.ones((3, 2)), "at least 4 images"),
        (np.ones(8), "at least 4 images"),
    ],
)
def test_features_without_variance_or_sense_are_refused_in_words(features, message):
    with pytest.raises(ValueError, match=message):
        check_features(features)


# --- CKA ---


def test_cka_is_one_under_rotation_and_scale_and_about_nothing_for_noise():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60, 8))
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert linear_cka(a, 3 * a @ rotation + 5) == pytest.approx(1)
    noise = [linear_cka(rng.normal(size=(60, 500)), rng.normal(size=(60, 500))) for _ in range(20)]
    assert np.mean(noise) == pytest.approx(0, abs=0.02)  # the plain estimator gives 0.9 here
    assert linear_cka(a, rng.normal(size=(60, 8))) == pytest.approx(0, abs=0.15)


def test_cka_terms_are_the_unbiased_hsic_over_distinct_images():
    # Song et al. 2012, equation 4: means over pairs, quadruples and triples of distinct images
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)) + rng.normal(size=(6, 1))

    def hsic(x, y):
        k, m = x @ x.T, y @ y.T
        pairs = np.mean([k[i, j] * m[i, j] for i, j in itertools.permutations(range(6), 2)])
        fours = np.mean([k[i, j] * m[q, r] for i, j, q, r in itertools.permutations(range(6), 4)])
        threes = np.mean([k[i, j] * m[i, q] for i, j, q in itertools.permutations(range(6), 3)])
        return pairs + fours - 2 * threes

    expected = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    assert linear_cka(a, b) == pytest.approx(expected, rel=1e-9)
    assert linear_cka(b, a) == pytest.approx(expected, rel=1e-9)


def test_cka_of_what_does_not_vary_is_nan():
    assert np.isnan(linear_cka(np.full((9, 3), 0.1), np.random.default_rng(0).normal(size=(9, 2))))
