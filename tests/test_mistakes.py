"""Mistakes made on purpose: what they do is known where the data are made up."""

import numpy as np
import pandas as pd
import pytest

from fetal_utils.mistakes import (
    SPLITS,
    choose_on_test,
    compare_splits,
    cross_validated_f1,
    halve_twice,
    teaching_classifiers,
    tries,
)
from fetal_utils.predictions import probability_columns

CLASSES = ("a", "b")
PATIENTS = np.repeat(np.arange(30), 4)
# a feature space that knows each patient and nothing else
SIGNATURES = np.eye(30)[PATIENTS] + 0.01 * np.random.default_rng(0).normal(size=(120, 30))
COIN = (np.random.default_rng(1).permutation(30) % 2)[PATIENTS]


def table(predicted, true=None, n_patients=20):
    """Predictions of four images a patient."""
    n_images = 4 * n_patients
    true = np.tile(CLASSES, n_images // 2) if true is None else true
    frame = pd.DataFrame({"patient": np.repeat(np.arange(n_patients), 4), "true": true, "predicted": predicted})
    return frame.assign(**dict.fromkeys(probability_columns(CLASSES), 0.5))


def guesses(n_results, *, n_patients=20, seed=0):
    """Results of coin tosses: whatever is chosen among them, it is worth the same."""
    rng = np.random.default_rng(seed)
    return [table(rng.choice(CLASSES, 4 * n_patients), n_patients=n_patients) for _ in range(n_results)]


# --- splits ---


def test_a_diagnosis_that_does_not_exist_is_found_by_images_and_not_by_patients():
    neighbour = teaching_classifiers()["nearest neighbour"]
    by_image, by_patient = (
        cross_validated_f1(neighbour, SIGNATURES, COIN, PATIENTS, split=split, rng=np.random.default_rng(0))
        for split in SPLITS
    )
    assert by_image == 1  # a patient's other images hold the coin
    assert by_patient < 0.7  # guessing is 0.5


def test_a_label_that_the_features_show_is_found_by_either_split():
    features = np.column_stack([COIN, 1 - COIN]) + 0.01
    for split in SPLITS:
        for classifier in teaching_classifiers().values():
            found = cross_validated_f1(classifier, features, COIN, PATIENTS, split=split, rng=np.random.default_rng(0))
            assert found == 1


def test_splits_are_compared_for_every_classifier_as_often_as_asked():
    compared = compare_splits(SIGNATURES, COIN, PATIENTS, rng=np.random.default_rng(0), n_folds=3, n_repeats=2)
    counts = compared.groupby(["classifier", "split"]).size()
    assert set(counts.index) == {(name, split) for name in teaching_classifiers() for split in SPLITS}
    assert set(counts) == {2}
    again = compare_splits(SIGNATURES, COIN, PATIENTS, rng=np.random.default_rng(0), n_folds=3, n_repeats=2)
    pd.testing.assert_frame_equal(compared, again)


def test_more_folds_than_patients_and_unknown_splits_are_refused():
    few = slice(0, 8)  # two patients
    for options, named in (({"split": "by patient", "n_folds": 3}, "2 patients"), ({"split": "by day"}, "by day")):
        with pytest.raises(ValueError, match=named):
            cross_validated_f1(
                teaching_classifiers()["linear probe"],
                SIGNATURES[few],
                COIN[few],
                PATIENTS[few],
                rng=np.random.default_rng(0),
                **options,
            )


# --- choosing on the test patients ---


def test_whoever_tries_one_result_or_chooses_elsewhere_reports_what_it_is_worth():
    results = guesses(8)
    chosen = choose_on_test(results, np.arange(8.0), CLASSES, rng=np.random.default_rng(0), n_halvings=20)
    honest = chosen[(chosen["n_tried"] == 1) | (chosen["chosen_on"] == "validation")]
    assert np.allclose(honest["optimism"], 0)  # each deal in either order, so luck cancels


def test_the_best_of_many_coin_tosses_on_the_test_patients_is_reported_too_high():
    chosen = choose_on_test(guesses(32), np.zeros(32), CLASSES, rng=np.random.default_rng(0))
    optimism = chosen[chosen["chosen_on"] == "test"].set_index("n_tried")["optimism"]
    assert list(optimism.index) == [1, 2, 4, 8, 16, 32]
    assert optimism.is_monotonic_increasing
    assert optimism[32] > 0.1


def test_equal_results_leave_nothing_to_choose():
    perfect = table(np.tile(CLASSES, 40))
    chosen = choose_on_test([perfect] * 4, np.zeros(4), CLASSES, rng=np.random.default_rng(0), n_halvings=5)
    assert (chosen[["reported", "worth"]] == 1).all(axis=None)


def test_the_better_of_two_is_chosen_by_the_validation_score_that_says_so():
    good, bad = table(np.tile(CLASSES, 40)), table(np.repeat(CLASSES[:1], 80))
    chosen = choose_on_test([bad, good], [0.1, 0.9], CLASSES, rng=np.random.default_rng(0), n_halvings=5)
    both = chosen[(chosen["n_tried"] == 2) & (chosen["chosen_on"] == "validation")]
    assert both["worth"].item() == 1


def test_too_few_patients_and_missing_scores_are_refused():
    for results, scores in (([], []), (guesses(2), [0.5]), (guesses(2, n_patients=2), [0.5, 0.5])):
        with pytest.raises(ValueError, match="expected a result or more"):
            choose_on_test(results, scores, CLASSES, rng=np.random.default_rng(0))


def test_halves_share_no_patient_and_each_plays_both_parts():
    first, second = halve_twice(7, n_halvings=5, rng=np.random.default_rng(0))
    assert (first + second == 1).all()
    assert (first[:5] == second[5:]).all()
    assert set(first[:5].sum(1)) == {3}


def test_tries_double_up_to_all():
    assert [tries(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
