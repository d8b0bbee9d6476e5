"""Macro-F1 by machine, operator and labelled patients; scores worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from prediction_tables import draw_predictions, make_patients_with_hits, make_predictions

from fetal_utils.breakdowns import SHIFT, TRAINED_ON, UNSEEN, breakdown, by_labelled_patients
from fetal_utils.dataset import Dataset
from fetal_utils.evaluation import metrics_table

CLASSES = ["a", "b"]
TRAINING = ["E6"] * 120 + ["Aloka"] * 79 + ["S10"]  # S10: one of 200, half a percent
# two patients of each machine, each with an image of a and one of b
MACHINES = np.repeat(["E6", "Aloka", "S10"], 4)
PATIENTS = np.repeat([1, 2, 3, 4, 5, 6], 2)
TRUE = [0, 1] * 6
PREDICTED = [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]


def tables_of(predictions, *, classes=CLASSES, training=TRAINING, column="machine", seed=0, **options):
    rng = np.random.default_rng(seed)
    table = breakdown(predictions, classes, column=column, training=training, n_resamples=50, rng=rng, **options)
    return table.set_index(column)


@pytest.fixture(scope="module")
def by_machine():
    return tables_of(make_predictions(TRUE, PREDICTED, PATIENTS, CLASSES, machine=MACHINES))


# --- by machine ---


def test_macro_f1_of_each_machine_by_hand(by_machine):
    assert by_machine.index.tolist() == ["Aloka", "E6", "S10", TRAINED_ON, UNSEEN, SHIFT]
    # Aloka: a found twice with one false alarm, 2 * 2 / (2 * 2 + 1); b found once, missed once, 2 / (2 + 1)
    # S10: a found twice with two false alarms, 4 / 6; b never
    # E6 and Aloka: a 8 / 9, b 6 / 7
    expected = {"E6": 1, "Aloka": (4 / 5 + 2 / 3) / 2, "S10": (2 / 3 + 0) / 2, TRAINED_ON: (8 / 9 + 6 / 7) / 2}
    for name, value in expected.items():
        assert by_machine.loc[name, "value"] == pytest.approx(value), name
    assert by_machine.loc[UNSEEN, "value"] == by_machine.loc["S10", "value"]


def test_the_shift_is_unseen_minus_trained_on(by_machine):
    expected = (2 / 3 + 0) / 2 - (8 / 9 + 6 / 7) / 2
    assert by_machine.loc[SHIFT, "value"] == pytest.approx(expected)
    assert by_machine.loc[SHIFT, "low"] <= expected <= by_machine.loc[SHIFT, "high"] < 0


def test_counts_of_training_and_test_images_and_of_test_patients(by_machine):
    counts = by_machine[["n_train_images", "n_images", "n_patients", "n_classes"]]
    assert counts.loc["Aloka"].tolist() == [79, 4, 2, 2]
    assert counts.loc["E6"].tolist() == [120, 4, 2, 2]
    assert counts.loc["S10"].tolist() == counts.loc[UNSEEN].tolist() == [1, 4, 2, 2]
    assert counts.loc[TRAINED_ON].tolist() == [199, 8, 4, 2]
    assert counts.loc[SHIFT].tolist() == [200, 12, 6, 2]


def test_patients_who_are_alike_leave_no_uncertainty_and_others_do(by_machine):
    for name, value in {"E6": 1, "S10": 1 / 3}.items():
        assert by_machine.loc[name, ["low", "high"]].tolist() == pytest.approx([value, value])
    # patient 3 has macro-F1 1/3, patient 4 has 1: a resample of these two is one of them, or both
    assert by_machine.loc["Aloka", ["low", "high"]].tolist() == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize(("n_shown", "group"), [(0, "unseen"), (1, "unseen"), (2, "trained on"), (50, "trained on")])
def test_a_machine_with_less_than_a_hundredth_of_the_training_images_is_unseen(n_shown, group):
    training = ["S10"] * n_shown + ["E6"] * (100 - n_shown) + ["Aloka"] * 100
    predictions = make_predictions(TRUE, PREDICTED, PATIENTS, CLASSES, machine=MACHINES)
    assert tables_of(predictions, training=training).loc["S10", "group"] == group


def test_on_the_real_subset_only_the_voluson_s10_is_unseen(real_data, tmp_path):
    dataset = Dataset(real_data / "fetal_planes_subset", tmp_path)
    task = dataset.task("planes")
    test = dataset.rows("test", task)
    true, metadata = dataset.labels(task)[test], dataset.metadata
    patients, machines = (metadata[name].iloc[test].to_numpy() for name in ("patient", "machine"))
    predictions = make_predictions(true, true, patients, task.classes, machine=machines)
    training = metadata["machine"].iloc[dataset.rows("train", task)]
    table = tables_of(predictions, classes=task.classes, training=training)
    assert table["group"].to_dict() == {
        "Aloka": "trained on",
        "Other": "trained on",
        "Voluson E6": "trained on",
        "Voluson S10": "unseen",
        TRAINED_ON: "trained on",
        UNSEEN: "unseen",
        SHIFT: "",
    }
    assert table.loc["Voluson S10", "n_images"] == 66
    assert table.loc[SHIFT, "value"] == 0


# --- intervals ---


def test_where_all_is_trained_on_its_row_is_that_of_the_whole_test_set():
    predictions = draw_predictions(np.random.default_rng(3), CLASSES)
    table = tables_of(predictions, training=["Aloka", "Voluson E6"])
    whole = metrics_table(predictions, CLASSES, n_resamples=50, rng=np.random.default_rng(0), metrics=["f1"]).iloc[0]
    expected = whole[["value", "low", "high"]].tolist()
    assert table.loc[TRAINED_ON, ["value", "low", "high"]].tolist() == pytest.approx(expected)


def test_a_patient_on_two_machines_is_resampled_with_both():
    # every patient has the same images, equally well read, on either machine: no resample can tell them apart
    rng = np.random.default_rng(0)
    once = rng.integers(2, size=(2, 20))
    predictions = make_predictions(
        *np.concatenate([once, once], axis=1), np.tile(np.repeat(range(5), 4), 2), CLASSES,
        machine=np.repeat(["E6", "S10"], 20),
    )  # fmt: skip
    table = tables_of(predictions, training=["E6"])
    assert table.loc["E6", "low"] < table.loc["E6", "high"]
    assert table.loc[SHIFT, ["value", "low", "high"]].tolist() == [0, 0, 0]
    assert table.loc[SHIFT, "n_patients"] == 5


def test_several_runs_are_averaged():
    runs = [make_predictions(TRUE, predicted, PATIENTS, CLASSES, machine=MACHINES) for predicted in (TRUE, PREDICTED)]
    table = tables_of(runs)
    assert table.loc["Aloka", "value"] == pytest.approx((1 + 11 / 15) / 2)
    assert table.loc["S10", "value"] == pytest.approx((1 + 1 / 3) / 2)
    assert table.loc["S10", "n_images"] == 4


# --- small groups and missing classes stay ---


def test_a_single_patient_has_a_value_and_no_interval():
    predictions = make_predictions(
        [0, 1, 0, 1], [0, 1, 0, 0], [1, 2, 3, 3], CLASSES, machine=["E6", "E6", "S10", "S10"]
    )
    table = tables_of(predictions)
    assert table.loc["S10", "value"] == pytest.approx((2 / 3 + 0) / 2)
    assert table.loc["S10", ["low", "high"]].isna().all()
    assert table.loc[SHIFT, ["low", "high"]].isna().all()
    assert table.loc["S10", "note"] == table.loc[SHIFT, "note"] == "one patient, no interval"


def test_a_group_without_a_class_is_shown_with_the_classes_it_has_and_the_shift_is_over_shared_ones():
    classes = ["a", "b", "c"]
    # E6 has a and b, all right; S10 has b (one of two found, one taken for c) and c
    true, predicted = [0, 1, 0, 1, 1, 2, 1, 2], [0, 1, 0, 1, 1, 2, 2, 2]
    predictions = make_predictions(true, predicted, [1, 1, 2, 2, 3, 3, 4, 4], classes, machine=["E6"] * 4 + ["S10"] * 4)
    table = tables_of(predictions, classes=classes)
    assert table["n_classes"].to_dict() == {
        "Aloka": 0, "E6": 2, "S10": 2, TRAINED_ON: 2, UNSEEN: 2, SHIFT: 1,
    }  # fmt: skip
    assert table.loc["E6", "note"] == "few patients; without c"
    assert table.loc["S10", "note"] == "few patients; without a"
    # b: found once, missed once
    assert table.loc["S10", "value"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert table.loc[SHIFT, "value"] == pytest.approx(2 / 3 - 1)


def test_a_machine_without_test_images_and_an_empty_group_keep_their_rows():
    predictions = make_predictions(TRUE[:8], PREDICTED[:8], PATIENTS[:8], CLASSES, machine=MACHINES[:8])
    table = tables_of(predictions, training=["E6"] * 60 + ["Aloka"] * 30 + ["Other"] * 10)
    for name in ("Other", UNSEEN):
        assert table.loc[name, ["n_images", "n_patients", "n_classes"]].tolist() == [0, 0, 0]
        assert table.loc[name, ["value", "low", "high"]].isna().all()
        assert table.loc[name, "note"] == "no test images"
    assert table.loc["Other", ["group", "n_train_images"]].tolist() == ["trained on", 10]
    assert table.loc[SHIFT, ["value", "low", "high"]].isna().all()


def test_few_patients_are_said_to_be_few_and_many_are_not():
    many = make_patients_with_hits([3] * 10, n_images_per_patient=4)
    assert tables_of(many, training=["Voluson E6"]).loc["Voluson E6", "note"] == ""
    few = make_patients_with_hits([3] * 9, n_images_per_patient=4)
    assert tables_of(few, training=["Voluson E6"]).loc["Voluson E6", "note"] == "few patients"


def test_a_breakdown_by_operator_reads_that_column():
    predictions = make_predictions(TRUE, PREDICTED, PATIENTS, CLASSES)
    predictions["operator"] = MACHINES  # the operators of these names
    expected = tables_of(make_predictions(TRUE, PREDICTED, PATIENTS, CLASSES, machine=MACHINES))
    by_operator = tables_of(predictions, column="operator")
    pd.testing.assert_frame_equal(by_operator, expected, check_names=False)


@pytest.mark.parametrize(
    ("column", "training", "message"),
    [("hospital", ["E6"], "no column 'hospital'"), ("machine", [], "no training images: give the 'machine' of each")],
)
def test_what_can_not_be_broken_down_is_refused(column, training, message):
    predictions = make_predictions(TRUE, PREDICTED, PATIENTS, CLASSES, machine=MACHINES)
    with pytest.raises(ValueError, match=message):
        tables_of(predictions, column=column, training=training)


def test_images_without_a_machine_are_refused():
    predictions = make_predictions(TRUE, PREDICTED, PATIENTS, CLASSES, machine=MACHINES)
    predictions["machine"] = predictions["machine"].where(predictions["machine"] != "S10")
    with pytest.raises(ValueError, match="4 images have no 'machine'"):
        tables_of(predictions)


# --- by labelled patients ---


def run_of(hits, *, strategy="imagenet", fraction=0.5, n_patients=10, n_images=40, task="planes", protocol="fine_tune"):
    """As much of a finished run on four test patients as is read."""
    settings = SimpleNamespace(task=task, strategy=strategy, protocol=protocol, label_fraction=fraction)
    facts = {"classes": CLASSES, "n_patients": n_patients, "n_images": n_images}
    predictions = make_patients_with_hits(hits, n_images_per_patient=4)
    return SimpleNamespace(settings=settings, record={"facts": facts}, predictions=predictions)


def labelled(runs, **options):
    return by_labelled_patients(runs, n_resamples=50, rng=np.random.default_rng(0), **options)


def test_runs_of_a_label_fraction_are_averaged_and_ordered_by_their_labelled_patients():
    runs = [
        run_of([4, 4, 4, 4], fraction=1.0, n_patients=30, n_images=90),
        run_of([2, 2, 2, 2], fraction=0.1, n_patients=3, n_images=10),
        run_of([4, 4, 4, 4], fraction=0.1, n_patients=4, n_images=14),  # a patient more for an empty class
        run_of([4, 4, 4, 4], fraction=0.1, strategy="scratch", n_patients=3, n_images=10),
    ]
    table = labelled(runs)
    assert table[["strategy", "label_fraction", "n_runs"]].to_numpy().tolist() == [
        ["imagenet", 0.1, 2],
        ["imagenet", 1.0, 1],
        ["scratch", 0.1, 1],
    ]
    assert table["n_labelled_patients"].tolist() == [3.5, 30, 3]
    assert table["n_labelled_images"].tolist() == [12, 90, 10]
    # of a patient's images a b a b the first two right, the others exchanged: F1 is 1/2 for both classes
    assert table["value"].tolist() == pytest.approx([(0.5 + 1) / 2, 1, 1])
    assert table["sd_over_runs"].iloc[0] == pytest.approx(np.std([0.5, 1], ddof=1))
    assert table["sd_over_runs"].iloc[1:].isna().all()
    assert table[["n_images", "n_patients", "n_classes"]].drop_duplicates().to_numpy().tolist() == [[16, 4, 2]]
    assert table["note"].unique().tolist() == ["few patients"]


def test_protocols_are_kept_apart():
    table = labelled([run_of([4, 4], protocol=protocol) for protocol in ("linear_probe", "fine_tune")])
    assert table["protocol"].tolist() == ["fine_tune", "linear_probe"]


def test_the_interval_is_that_of_the_table_of_metrics():
    runs = [run_of([4, 3, 1, 2]), run_of([4, 4, 2, 2])]
    expected = metrics_table(
        [run.predictions for run in runs], CLASSES, n_resamples=50, rng=np.random.default_rng(0), metrics=["f1"]
    )
    columns = ["value", "low", "high"]
    np.testing.assert_allclose(labelled(runs)[columns], expected[expected["plane"] == "macro"][columns])


def test_runs_of_two_tasks_no_runs_and_other_test_images_are_refused():
    with pytest.raises(ValueError, match=r"tasks \['brain_planes', 'planes'\]: give runs of one"):
        labelled([run_of([4, 4]), run_of([4, 4], task="brain_planes")])
    with pytest.raises(ValueError, match=r"tasks \[\]"):
        labelled([])
    with pytest.raises(ValueError, match="different test images"):
        labelled([run_of([4, 4]), run_of([4, 4, 4])])
