import numpy as np
import pytest
from prediction_tables import draw_predictions, make_predictions
from sklearn import metrics as reference

from fetal_utils.metrics import (
    CLASS_METRICS,
    METRICS,
    mean_of_present,
    metrics_from_confusion,
    weighted_metrics,
)

CLASSES = ["a", "b", "c", "d"]


def test_metrics_of_a_confusion_worked_by_hand():
    # rows true: a 5 images (4 right), b 5 (3 right), c 2 (never predicted)
    confusion = np.array([[4, 1, 0], [2, 3, 0], [1, 1, 0]])
    values = metrics_from_confusion(confusion)
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


@pytest.mark.parametrize("seed", range(4))
def test_weighted_metrics_agree_with_scikit_learn_for_ones_and_for_a_resample(seed):
    rng = np.random.default_rng(seed)
    table = draw_predictions(rng, CLASSES)
    patients, patient = np.unique(table["patient"], return_inverse=True)
    resample = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)))
    weights = np.stack([np.ones(len(patients), dtype=int), resample])
    values = weighted_metrics(table, CLASSES, weights)
    true, predicted = table["true"], table["predicted"]
    probabilities = table[[f"probability_{name}" for name in CLASSES]].to_numpy()
    for row, weight in enumerate(weights):
        kwargs = {"sample_weight": weight[patient]}
        by_class = reference.precision_recall_fscore_support(true, predicted, labels=CLASSES, zero_division=0, **kwargs)
        for name, expected in zip(("precision", "sensitivity", "f1"), by_class[:3], strict=True):
            assert values[name][row] == pytest.approx([expected.mean(), *expected])
        aurocs = [
            reference.roc_auc_score(true == name, probabilities[:, index], **kwargs)
            for index, name in enumerate(CLASSES)
        ]
        assert values["auroc"][row] == pytest.approx([np.mean(aurocs), *aurocs])
        others = [reference.recall_score(true != name, predicted != name, **kwargs) for name in CLASSES]
        assert values["specificity"][row] == pytest.approx([np.mean(others), *others])
        assert values["accuracy"][row] == pytest.approx(reference.accuracy_score(true, predicted, **kwargs))
        balanced = reference.balanced_accuracy_score(true, predicted, **kwargs)
        assert values["balanced_accuracy"][row] == pytest.approx(balanced)


def test_weights_are_the_same_as_repeating_the_images_of_a_patient():
    table = draw_predictions(np.random.default_rng(1), CLASSES, n_images=60, n_patients=3)
    parts = [table[table["patient"] == patient] for patient in (0, 0, 2)]  # patient 0 twice, patient 1 never
    pooled = {column: np.concatenate([part[column].to_numpy() for part in parts]) for column in table.columns}
    repeated = table.iloc[:0].reindex(range(len(pooled["true"]))).assign(**pooled)
    weighted = weighted_metrics(table, CLASSES, np.array([[2, 0, 1]]))
    expected = weighted_metrics(repeated, CLASSES, np.ones((1, 2)))
    for metric in METRICS:
        assert weighted[metric] == pytest.approx(expected[metric])


def test_absent_class_is_nan_in_every_class_metric_but_macro_is_not():
    table = draw_predictions(np.random.default_rng(2), CLASSES, n_true_classes=3)
    values = weighted_metrics(table, CLASSES, np.ones((1, 25)))
    for metric in CLASS_METRICS:
        assert np.isnan(values[metric][0]).tolist() == [False, False, False, False, True]
        assert values[metric][0, 0] == pytest.approx(values[metric][0, 1:4].mean())


def test_auroc_counts_a_tie_as_half():
    # of class a: 0.8 and 0.5; others: 0.5 and 0.2. Pairs: 1, 1, 1/2, 1
    probabilities = np.array([[0.8, 0.2], [0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    table = make_predictions([0, 0, 1, 1], [0, 0, 0, 1], [1, 2, 1, 2], ["a", "b"], probabilities=probabilities)
    auroc = weighted_metrics(table, ["a", "b"], np.ones((1, 2)), metrics=["auroc"])["auroc"][0]
    assert auroc == pytest.approx([3.5 / 4, 3.5 / 4, 3.5 / 4])


def test_calibration_error_worked_by_hand():
    # bin (13/15, 14/15]: three images at 0.9, two right; bin (8/15, 9/15]: 0.6, right, and 0.55, wrong
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.55, 0.45]])
    table = make_predictions([0, 0, 1, 1, 1], [0, 0, 0, 1, 0], [1, 1, 2, 2, 2], ["a", "b"], probabilities=probabilities)
    weights = np.array([[1, 1], [0, 1]])  # then patient 2 alone, with one wrong image at 0.9
    errors = weighted_metrics(table, ["a", "b"], weights, metrics=["calibration_error"])["calibration_error"]
    low_bin = abs(1 - (0.6 + 0.55))  # |right - confidence|, summed within the bin
    expected = [(abs(2 - 3 * 0.9) + low_bin) / 5, (0.9 + low_bin) / 3]
    assert errors[:, 0] == pytest.approx(expected)


def test_unknown_metrics_and_misshapen_weights_are_refused():
    table = draw_predictions(np.random.default_rng(0), CLASSES)
    with pytest.raises(ValueError, match="dice"):
        weighted_metrics(table, CLASSES, np.ones((1, 25)), metrics=["dice"])
    with pytest.raises(ValueError, match="25 patients"):
        weighted_metrics(table, CLASSES, np.ones((1, 24)))
