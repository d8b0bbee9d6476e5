import numpy as np
import pytest
from prediction_tables import draw_predictions, make_predictions

from fetal_utils.predictions import check_predictions, check_same_test_set, count_test_images

CLASSES = ["Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"]


@pytest.fixture
def table():
    return draw_predictions(np.random.default_rng(0), CLASSES)


def test_a_good_table_passes(table):
    check_predictions(table, CLASSES)


@pytest.mark.parametrize("column", ["patient", "predicted", "probability_Trans-thalamic"])
def test_a_missing_column_is_named(table, column):
    with pytest.raises(ValueError, match=column):
        check_predictions(table.drop(columns=column), CLASSES)


@pytest.mark.parametrize("column", ["true", "predicted"])
def test_a_label_that_is_no_class_is_named(table, column):
    table.loc[3, column] = "Other"
    with pytest.raises(ValueError, match=rf"{column}.*Other"):
        check_predictions(table, CLASSES)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.2, 0.123456])
def test_probabilities_that_are_no_distribution_are_refused_with_the_image_name(table, value):
    table.loc[7, "probability_Trans-cerebellum"] = value
    with pytest.raises(ValueError, match="image_00007"):
        check_predictions(table, CLASSES)


def test_probabilities_may_compensate_only_inside_0_to_1(table):
    table.loc[7, [f"probability_{name}" for name in CLASSES]] = [1.2, -0.2, 0.0]  # sums to 1
    with pytest.raises(ValueError, match="image_00007"):
        check_predictions(table, CLASSES)


def test_rounding_as_in_a_csv_is_accepted(table):
    columns = [f"probability_{name}" for name in CLASSES]
    table[columns] = table[columns].round(4)
    check_predictions(table, CLASSES)


def test_empty_tables_repeated_images_missing_patients_and_repeated_classes_are_refused(table):
    with pytest.raises(ValueError, match="no rows"):
        check_predictions(table.iloc[:0], CLASSES)
    with pytest.raises(ValueError, match="image_00000"):
        check_predictions(table.iloc[[0, 0, 1]], CLASSES)
    with pytest.raises(ValueError, match="different names"):
        check_predictions(table, ["Trans-thalamic", "Trans-thalamic"])
    without_patient = table.assign(patient=table["patient"].where(table.index != 5))
    with pytest.raises(ValueError, match="image_00005"):
        check_predictions(without_patient, CLASSES)


def test_the_same_test_set_in_another_order_is_the_same(table):
    check_same_test_set([table, table.sample(frac=1, random_state=0)])


def test_other_images_or_labels_or_patients_are_another_test_set(table):
    with pytest.raises(ValueError, match="image_00199"):
        check_same_test_set([table, table.iloc[:-1]])
    with pytest.raises(ValueError, match="disagree on 1 images"):
        check_same_test_set([table, table.assign(patient=table["patient"].where(table.index != 5, 99))])
    flipped = table.assign(true=table["true"].where(table.index != 5, "not " + table["true"]))
    with pytest.raises(ValueError, match="image_00005"):
        check_same_test_set([table, flipped])


def test_counts_show_the_classes_without_test_images():
    table = make_predictions([0, 0, 0, 1], [0, 1, 0, 2], [1, 1, 2, 2], CLASSES)
    counts = count_test_images(table, CLASSES)
    assert counts["plane"].tolist() == CLASSES
    assert counts["n_images"].tolist() == [3, 1, 0]
    assert counts["n_patients"].tolist() == [2, 1, 0]
