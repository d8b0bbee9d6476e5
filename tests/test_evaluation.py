"""Metrics of predictions under many weightings of the patients."""

import numpy as np
import pandas as pd
import pytest
from prediction_tables import draw_predictions, make_patients_with_hits, make_predictions, make_run
from sklearn import metrics as reference

from fetal_utils.evaluation import (
    CLASS_METRICS,
    mean_of_present,
    metrics_from_confusion,
    metrics_table,
    patient_weights,
    score_runs,
    weighted_metrics,
)

CLASSES = ["a", "b", "c", "d"]


def ones(n_patients):
    """The data as they are."""
    return pd.DataFrame(np.ones((1, n_patients)))


# --- metrics ---


def test_metrics_of_a_confusion_worked_by_hand():
    # rows true: a 5 images (4 right), b 5 (3 right), c 2 (never predicted)
    values = metrics_from_confusion(np.array([[4, 1, 0], [2, 3, 0], [1, 1, 0]]))
    assert values["sensitivity"] == pytest.approx([4 / 5, 3 / 5, 0])
    assert values["precision"] == pytest.approx([4 / 7, 3 / 5, 0])  # zero_division=0
    assert values["specificity"] == pytest.approx([4 / 7, 5 / 7, 1])  # of 7, 7 and 10 other images
    assert values["f1"] == pytest.approx([8 / 12, 6 / 10, 0])


def test_a_class_without_images_is_nan_and_left_out_of_the_macro_mean():
    values = metrics_from_confusion(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    for value in values.values():
        assert np.isnan(value).tolist() == [False, False, True]
    assert mean_of_present(values["sensitivity"]) == pytest.approx((3 / 4 + 1) / 2)
    assert np.isnan(mean_of_present(np.array([np.nan, np.nan])))
    table = draw_predictions(np.random.default_rng(2), CLASSES, n_true_classes=3)
    found = weighted_metrics(table, CLASSES, ones(25))
    for metric in CLASS_METRICS:
        assert np.isnan(found[metric][0]).tolist() == [False, False, False, False, True]
        assert found[metric][0, 0] == pytest.approx(found[metric][0, 1:4].mean())


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn_for_the_data_as_they_are_and_for_a_resample(seed):
    table = draw_predictions(np.random.default_rng(seed), CLASSES)
    weights = patient_weights(table["patient"], n_resamples=10, seed=seed)
    values = weighted_metrics(table, CLASSES, weights)
    true, predicted = table["true"], table["predicted"]
    probabilities = table[[f"probability_{name}" for name in CLASSES]].to_numpy()
    for row in (0, 3):
        kwargs = {"sample_weight": weights.loc[row, table["patient"]].to_numpy()}
        by_class = reference.precision_recall_fscore_support(true, predicted, labels=CLASSES, zero_division=0, **kwargs)
        for name, expected in zip(("precision", "sensitivity", "f1"), by_class[:3], strict=True):
            assert values[name][row] == pytest.approx([expected.mean(), *expected])
        aurocs = [reference.roc_auc_score(true == c, probabilities[:, i], **kwargs) for i, c in enumerate(CLASSES)]
        assert values["auroc"][row] == pytest.approx([np.mean(aurocs), *aurocs])
        others = [reference.recall_score(true != name, predicted != name, **kwargs) for name in CLASSES]
        assert values["specificity"][row] == pytest.approx([np.mean(others), *others])
        assert values["accuracy"][row] == pytest.approx(reference.accuracy_score(true, predicted, **kwargs))
        balanced = reference.balanced_accuracy_score(true, predicted, **kwargs)
        assert values["balanced_accuracy"][row] == pytest.approx(balanced)


def test_calibration_error_worked_by_hand():
    # bin (13/15, 14/15]: three images at 0.9, two right; bin (8/15, 9/15]: 0.6, right, and 0.55, wrong
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.55, 0.45]])
    table = make_predictions([0, 0, 1, 1, 1], [0, 0, 0, 1, 0], [0, 0, 1, 1, 1], ["a", "b"], probabilities=probabilities)
    weights = pd.DataFrame([[1, 1], [0, 1]])  # then patient 1 alone, with one wrong image at 0.9
    errors = weighted_metrics(table, ["a", "b"], weights, metrics=["calibration_error"])["calibration_error"]
    low_bin = abs(1 - (0.6 + 0.55))  # |right - confidence|, summed within the bin
    assert errors[:, 0] == pytest.approx([(abs(2 - 3 * 0.9) + low_bin) / 5, (0.9 + low_bin) / 3])


def test_probabilities_of_a_class_balanced_loss_are_calibrated_after_the_correction_by_class_counts():
    # of 100 images at each score, as many are right as a prior of 3 to 1 makes of 0.5 and 0.8 at 1 to 1
    rng, prior = np.random.default_rng(0), np.array([3.0, 1.0])
    balanced = np.repeat([[0.5, 0.5], [0.8, 0.2], [0.2, 0.8]], 4000, axis=0)
    shares = balanced * prior / (balanced * prior).sum(1, keepdims=True)
    true = (rng.random(len(shares)) > shares[:, 0]).astype(int)
    table = make_predictions(true, balanced.argmax(1), np.arange(len(true)) % 9, ["a", "b"], probabilities=balanced)
    options = {"metrics": ["calibration_error"]}
    plain = weighted_metrics(table, ["a", "b"], ones(9), **options)["calibration_error"].item()
    corrected = weighted_metrics(table, ["a", "b"], ones(9), class_counts=[30, 10], **options)[
        "calibration_error"
    ].item()
    assert plain > 0.1
    assert corrected < 0.02


def test_malformed_predictions_are_refused_with_what_is_wrong():
    table, weights = draw_predictions(np.random.default_rng(0), CLASSES), ones(25)
    nothing = {"probability_a": np.nan}
    for bad, words in (
        (table.drop(columns="probability_b"), "probability_b"),
        (table.iloc[:0], "0 predictions"),
        (table.assign(image_name="one"), "one row per test image"),
        (table.assign(**nothing), "diverged"),
        (table.assign(probability_a=1.0), "diverged"),
    ):
        with pytest.raises(ValueError, match=words):
            weighted_metrics(bad, CLASSES, weights)


# --- patients ---


def test_patients_are_drawn_as_often_as_there_are_and_the_first_row_is_the_data_themselves():
    weights = patient_weights([7, 3, 3, 5], n_resamples=400)
    assert list(weights.columns) == [3, 5, 7]
    assert (weights.loc[0] == 1).all()
    assert (weights.sum(axis=1) == 3).all()
    assert weights.iloc[1:].to_numpy().mean(axis=0) == pytest.approx([1, 1, 1], abs=0.15)
    assert weights.equals(patient_weights([3, 5, 7], n_resamples=400))


def test_too_few_patients_or_resamples_are_refused():
    with pytest.raises(ValueError, match="1 test patients"):
        patient_weights([4, 4], n_resamples=100)
    with pytest.raises(ValueError, match="n_resamples=3"):
        patient_weights([4, 5], n_resamples=3)


# --- runs ---


def test_the_table_of_a_run_has_a_row_for_each_metric_and_plane_and_says_which_run():
    # of two patients with two images each, one has both right and one the first: 3 of 4
    run = make_run(make_patients_with_hits([2, 1], 2), task="brain_planes", strategy="scratch", draw=2, seed=1)
    table = metrics_table(score_runs([run], patient_weights([0, 1], n_resamples=50)))
    about = table[["task", "protocol", "strategy", "label_fraction", "draw", "seed", "n_images", "n_patients"]]
    assert about.drop_duplicates().to_numpy().tolist() == [["brain_planes", "fine_tune", "scratch", 0.1, 2, 1, 40, 11]]
    assert (table["key"] == run.folder.name).all()
    assert len(table) == 3 * len(CLASS_METRICS) + 3
    found = table.set_index(["metric", "plane"])["value"]
    assert found["accuracy", "macro"] == pytest.approx(3 / 4)
    assert found["f1", "macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["sensitivity", "b"] == pytest.approx(1 / 2)


def test_the_interval_of_a_run_is_that_of_its_resampled_patients():
    run = make_run(make_patients_with_hits([4, 0, 4, 0, 4, 0], 4))
    weights = patient_weights(np.arange(6), n_resamples=999)
    row = metrics_table(score_runs([run], weights, metrics=["accuracy"])).iloc[0]
    accuracy = weights.iloc[1:, [0, 2, 4]].sum(axis=1) / 6
    assert row["value"] == pytest.approx(0.5)
    expected = np.quantile(accuracy, [0.025, 0.975], method="closest_observation")
    assert [row["low"], row["high"]] == pytest.approx(expected)


def test_runs_within_a_machine_are_scored_on_its_images_alone():
    predictions = make_patients_with_hits([2, 1, 0], 2).assign(machine=np.repeat(["new", "old", "old"], 2))
    weights = patient_weights(np.arange(3), n_resamples=20)
    scores = score_runs([make_run(predictions)], weights, metrics=["accuracy"], within=("machine", "old"))
    assert scores[0].item() == pytest.approx(1 / 4)
    assert scores.index.get_level_values("n_test_patients").item() == 2
