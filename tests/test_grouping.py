"""Scores of spaces in which the right answer is known by hand, or to scikit-learn."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_samples

from fetal_utils import neighbourhoods
from fetal_utils.grouping import class_scores, map_scores, patient_mean, patient_scores
from fetal_utils.intervals import draw_patient_weights
from fetal_utils.neighbourhoods import nearest_images, silhouettes, trust_of_images, vote_is_right

DEGREES = np.array([0, 10, 25, 90, 100, 180])
ANGLES = np.stack([np.cos(np.deg2rad(DEGREES)), np.sin(np.deg2rad(DEGREES))], axis=1)
N_PATIENTS, N_EACH = 12, 4
PATIENTS = np.repeat(np.arange(N_PATIENTS), N_EACH)
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def weights(rng):
    return draw_patient_weights(N_PATIENTS, n_resamples=200, rng=rng)


def scores_of_classes(points, classes, weights, patients=PATIENTS):
    options = {"metric": "euclidean", "n_neighbours": 5, "weights": weights, "fold_seed": 0}
    return class_scores(points, classes, patients, **options)


def test_the_nearest_other_images_come_by_angle_nearest_first():
    nearest = nearest_images(ANGLES * np.array([[1], [9], [0.1], [5], [2], [7]]), n_neighbours=2, metric="cosine")
    np.testing.assert_array_equal(nearest, [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2], [4, 3]])


def test_images_of_the_same_patient_are_passed_over():
    patients = np.array(["a", "a", "b", "c", "c", "d"])
    nearest = nearest_images(ANGLES, n_neighbours=2, metric="cosine", patients=patients)
    np.testing.assert_array_equal(nearest, [[2, 3], [2, 3], [1, 0], [2, 1], [2, 5], [4, 3]])


def test_more_neighbours_than_an_image_has_are_refused():
    with pytest.raises(ValueError, match=r"n_neighbours=6, and some of the 6 images have only 5 others"):
        nearest_images(ANGLES, n_neighbours=6, metric="cosine")
    with pytest.raises(ValueError, match=r"only 3 others to choose from \(of other patients\)"):
        nearest_images(ANGLES, n_neighbours=4, metric="cosine", patients=np.array([1, 1, 1, 2, 2, 3]))


def test_the_most_frequent_class_wins_and_of_equals_the_nearer():
    classes = np.array(["brain", "femur", "brain", "femur", "other"])
    neighbours = np.array([[1, 2, 3], [0, 3, 2], [0, 1, 4], [1, 0, 2], [0, 1, 2]])
    # winners: femur, brain, of three equals the nearest, brain; brain; brain
    assert vote_is_right(neighbours, classes).tolist() == [False, False, True, False, False]
    # winners: the same, but for the equals, of which other is now the nearest
    assert vote_is_right(neighbours[:, ::-1], classes).tolist() == [False] * 5


def test_a_mean_weighs_each_image_by_how_often_its_patient_was_drawn():
    values = np.array([1.0, 0.0, 0.5, np.nan, np.nan])
    patients = np.array(["b", "b", "a", "a", "c"])
    weights = np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0], [0, 0, 3]])  # of a, b, c
    expected = [1.5 / 3, (2 * 0.5 + 1) / 4, 0.5, np.nan]
    np.testing.assert_allclose(patient_mean(values, patients, weights), expected)


@METRICS
@pytest.mark.parametrize("n_neighbours", [1, 5])
def test_the_mean_trust_of_images_is_that_of_scikit_learn(rng, metric, n_neighbours):
    features, points = rng.normal(size=(40, 6)), rng.normal(size=(40, 2))
    found = trust_of_images((features, metric), (points, "euclidean"), n_neighbours=n_neighbours)
    expected = trustworthiness(features, points, n_neighbors=n_neighbours, metric=metric)
    assert found.mean() == pytest.approx(expected, rel=1e-9)
    assert 0.3 < expected < 0.7  # a map drawn at random


def test_a_map_that_keeps_every_neighbour_is_trusted_fully_and_continuous(rng, weights):
    angles = rng.uniform(0, 2 * np.pi, size=N_PATIENTS * N_EACH)
    scores = map_scores(3 * circle(angles), 7 * circle(angles), PATIENTS, n_neighbours=5, weights=weights)
    assert all((values == 1).all() for values in scores.values())


def circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_circle_cut_open_loses_continuity_and_one_folded_onto_itself_trust():
    angles, alone = np.linspace(0.1, 6.2, 24), np.arange(24)
    line = np.stack([angles, np.zeros(24)], axis=1)
    cut = map_scores(circle(angles), line, alone, n_neighbours=4, weights=np.ones((1, 24)))
    assert cut["continuity"] < cut["trustworthiness"]
    folded = map_scores(circle(angles), circle(2 * angles), alone, n_neighbours=4, weights=np.ones((1, 24)))
    assert folded["trustworthiness"] < folded["continuity"]


def test_the_two_scores_of_a_map_are_each_other_with_the_spaces_swapped(rng, weights):
    features, points = rng.normal(size=(48, 4)), rng.normal(size=(48, 2))
    scores = map_scores(features, points, PATIENTS, n_neighbours=5, weights=weights)
    assert scores["trustworthiness"][0] == pytest.approx(trustworthiness(features, points, metric="cosine"))
    swapped = trust_of_images((points, "euclidean"), (features, "cosine"), n_neighbours=5)
    assert scores["continuity"][0] == pytest.approx(swapped.mean())


def test_half_the_images_or_more_are_too_many_neighbours_for_trust(rng):
    space = rng.normal(size=(10, 3)), "cosine"
    with pytest.raises(ValueError, match="n_neighbours=5 with 10 images: expected less than half"):
        trust_of_images(space, space, n_neighbours=5)


@pytest.mark.filterwarnings("ignore:Could not adhere to working_memory")
def test_distances_in_small_chunks_give_the_same(rng, monkeypatch):
    features, points = rng.normal(size=(30, 6)), rng.normal(size=(30, 2))

    def everything():
        patients = np.repeat(np.arange(15), 2)
        nearest = nearest_images(features, n_neighbours=4, metric="cosine", patients=patients)
        return nearest, trust_of_images((features, "cosine"), (points, "euclidean"), n_neighbours=4)

    whole = everything()
    monkeypatch.setattr(neighbourhoods, "CHUNK_MIB", 0)  # scikit-learn then takes one image at a time
    for part, expected in zip(everything(), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


@METRICS
def test_silhouettes_are_those_of_scikit_learn_but_for_images_alone(rng, metric):
    points, classes = rng.normal(size=(12, 3)), np.array([0] * 5 + [1] * 6 + [2])
    found = silhouettes(points, classes, metric=metric)
    np.testing.assert_allclose(found[:-1], silhouette_samples(points, classes, metric=metric)[:-1])
    assert np.isnan(found[-1])


def test_classes_apart_in_every_patient_score_full_marks(rng, weights):
    classes = np.tile(["brain", "brain", "femur", "femur"], N_PATIENTS)
    points = 10.0 * (classes == "femur")[:, None] + rng.normal(size=(48, 3))
    scores = scores_of_classes(points, classes, weights)
    for name in ("knn_accuracy", "separability"):
        assert (scores[name] == 1).all()
    assert scores["silhouette"][0] > 0.7
    assert scores["separability_chance"].tolist() == [0.5]


def test_a_cluster_for_each_patient_is_no_evidence_for_the_planes_of_other_patients(rng, weights):
    centres = 100 * rng.normal(size=(N_PATIENTS, 8))
    points = centres[PATIENTS] + rng.normal(size=(48, 8))
    classes = rng.permutation(np.repeat(["brain", "femur"], 6))[PATIENTS]  # each patient shows one plane
    of_class = scores_of_classes(points, classes, weights)
    of_patient = patient_scores(points, PATIENTS, metric="euclidean", n_neighbours=3, weights=weights)
    within_all = vote_is_right(nearest_images(points, n_neighbours=3, metric="euclidean"), classes)
    assert within_all.all()
    assert of_class["knn_accuracy"][0] < 0.9
    assert of_patient["separability"][0] == of_patient["knn_accuracy"][0] == 1
    assert of_patient["silhouette"][0] > 0.8


def test_separability_is_the_mean_recall_and_so_does_not_gain_from_a_frequent_class(rng, weights):
    classes = np.where(np.arange(48) % 4 == 0, "femur", "brain")  # 12 and 36
    scores = scores_of_classes(rng.normal(size=(48, 2)), classes, weights)
    assert 0.25 < scores["separability"][0] < 0.75
    assert scores["knn_accuracy_chance"].tolist() == [0.75]


def test_images_of_a_class_that_one_patient_has_are_left_out(rng, weights):
    classes = np.tile(["brain", "brain", "femur", "femur"], N_PATIENTS)
    points = 10.0 * (classes == "femur")[:, None] + rng.normal(size=(48, 3))
    classes[:2] = "thorax"
    points[:2] += 200
    scores = scores_of_classes(points, classes, weights)
    assert scores["knn_accuracy"][0] == scores["separability"][0] == 1
    assert scores["separability_chance"][0] == 0.5


@pytest.mark.parametrize("classes", [["brain"] * 48, ["femur"] + ["brain"] * 47])
def test_a_label_with_one_class_that_patients_share_is_refused(rng, weights, classes):
    with pytest.raises(ValueError, match="of which 1 are seen in two patients or more: expected at least 2"):
        scores_of_classes(rng.normal(size=(48, 2)), np.array(classes), weights)


def test_patients_are_scored_on_images_that_have_a_sibling():
    # a and b lie together; the sibling of the first c is nearer to d, and d has none
    points = np.array([[0.0, 0], [1, 0], [10, 0], [11, 0], [30, 0], [40, 0], [32, 0]])
    patients = np.array(["a", "a", "b", "b", "c", "c", "d"])
    scores = patient_scores(points, patients, metric="euclidean", n_neighbours=1, weights=np.ones((1, 4)))
    assert scores["separability"][0] == pytest.approx(4 / 6)
    assert scores["knn_accuracy"][0] == pytest.approx(4 / 6)
    assert scores["separability_chance"][0] == pytest.approx(1 / 6)


@pytest.mark.parametrize("patients", [np.arange(6), np.zeros(6, dtype=int)])
def test_patients_without_a_second_image_or_a_second_patient_are_refused(patients):
    with pytest.raises(ValueError, match="expected at least 2 patients, one of them with two images"):
        patient_scores(ANGLES, patients, metric="cosine", n_neighbours=1, weights=np.ones((1, len(set(patients)))))
