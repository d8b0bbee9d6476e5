import numpy as np
import pytest
from prediction_tables import draw_predictions, make_patients_with_hits, make_predictions
from sklearn.metrics import f1_score

from fetal_utils.evaluation import count_confusion, metrics_table
from fetal_utils.metrics import CLASS_METRICS, METRICS, OVERALL_METRICS

CLASSES = ["a", "b", "c"]


def lookup(table, plane, metric):
    return table.set_index(["plane", "metric"]).loc[(plane, metric)]


def test_the_table_has_a_row_for_each_class_and_macro_and_the_interval_holds_the_value():
    predictions = draw_predictions(np.random.default_rng(0), CLASSES)
    table = metrics_table(predictions, CLASSES, n_resamples=300, rng=np.random.default_rng(1))
    assert table.columns.tolist() == ["plane", "metric", "value", "low", "high"]
    assert set(table["metric"]) == set(METRICS)
    assert len(table) == len(CLASS_METRICS) * 4 + len(OVERALL_METRICS)
    table = table[table["metric"] != "calibration_error"]  # its resamples lean high
    assert table["value"].between(table["low"], table["high"]).all()
    expected = f1_score(predictions["true"], predictions["predicted"], average="macro")
    assert lookup(table, "macro", "f1")["value"] == pytest.approx(expected)


def test_the_same_generator_gives_the_same_interval_whatever_the_row_order():
    predictions = draw_predictions(np.random.default_rng(0), CLASSES)
    shuffled = predictions.sample(frac=1, random_state=0)
    first, second = (
        metrics_table(each, CLASSES, n_resamples=50, rng=np.random.default_rng(1)) for each in (predictions, shuffled)
    )
    np.testing.assert_allclose(first[["value", "low", "high"]], second[["value", "low", "high"]])


def test_an_absent_class_keeps_its_rows_as_nan_and_leaves_macro_to_the_others():
    predictions = draw_predictions(np.random.default_rng(0), CLASSES, n_true_classes=2)
    table = metrics_table(predictions, CLASSES, n_resamples=50, rng=np.random.default_rng(1))
    absent = table[table["plane"] == "c"]
    assert len(absent) == len(CLASS_METRICS)
    assert absent[["value", "low", "high"]].isna().all(axis=None)
    f1 = [lookup(table, plane, "f1")["value"] for plane in ("a", "b")]
    assert lookup(table, "macro", "f1")["value"] == pytest.approx(np.mean(f1))


def test_patients_who_are_alike_leave_no_uncertainty():
    predictions = make_patients_with_hits([6] * 12, n_images_per_patient=10)
    table = metrics_table(predictions, ["a", "b"], n_resamples=100, rng=np.random.default_rng(0), metrics=["accuracy"])
    assert table[["value", "low", "high"]].to_numpy() == pytest.approx(np.full((1, 3), 0.6))


def test_several_runs_are_averaged():
    runs = [make_patients_with_hits([hits] * 5, n_images_per_patient=10) for hits in (6, 9)]
    table = metrics_table(runs, ["a", "b"], n_resamples=20, rng=np.random.default_rng(0), metrics=["accuracy"])
    assert table["value"].tolist() == pytest.approx([0.75])


def count_covering_intervals(*, by_patient, n_simulations=400):
    """How often the 95 % interval of the macro F1 holds its true value, with correlated images of a patient.

    A patient's images are right with a probability drawn for the patient, equally for both classes, so the
    population's confusion is symmetric and its macro F1 is the mean probability.
    """
    rng = np.random.default_rng(0)
    n_patients, n_images, mean = 50, 10, 0.7
    covered = 0
    for _ in range(n_simulations):
        hit_rate = rng.beta(2 * mean, 2 * (1 - mean), size=n_patients)  # intra-patient correlation 1/3
        true = np.tile([0, 1], n_patients * n_images // 2)
        patient = np.repeat(np.arange(n_patients), n_images)
        right = rng.random(len(true)) < hit_rate[patient]
        unit = patient if by_patient else np.arange(len(true))
        table = make_predictions(true, np.where(right, true, 1 - true), unit, ["a", "b"])
        row = metrics_table(table, ["a", "b"], n_resamples=400, rng=rng, metrics=["f1"]).iloc[0]
        covered += row["low"] <= mean <= row["high"]
    return covered / n_simulations


def test_resampling_patients_covers_where_images_of_a_patient_are_alike():
    assert count_covering_intervals(by_patient=True) >= 0.92


def test_resampling_images_does_not_cover_there():
    assert count_covering_intervals(by_patient=False, n_simulations=150) < 0.8


def test_confusion_rows_are_true_classes_in_the_order_given():
    predictions = make_predictions([0, 0, 1, 2], [1, 0, 1, 0], [1, 2, 3, 4], CLASSES)
    assert count_confusion(predictions, CLASSES).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_one_test_patient_or_no_table_is_refused():
    predictions = make_predictions([0, 1], [0, 1], [7, 7], ["a", "b"])
    with pytest.raises(ValueError, match="1 test patient"):
        metrics_table(predictions, ["a", "b"], n_resamples=20, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="no predictions tables"):
        metrics_table([], ["a", "b"], n_resamples=20, rng=np.random.default_rng(0))


def test_the_interval_of_many_independent_images_is_the_normal_one():
    predictions = draw_predictions(np.random.default_rng(0), list("abcdef"), n_images=5000, n_patients=900)
    table = metrics_table(predictions, list("abcdef"), n_resamples=2000, rng=np.random.default_rng(1))
    width = lookup(table, "macro", "accuracy")["high"] - lookup(table, "macro", "accuracy")["low"]
    accuracy = lookup(table, "macro", "accuracy")["value"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 5000), rel=0.1)
