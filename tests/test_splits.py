from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from fetal_utils.data import read_metadata
from fetal_utils.receipts import make_receipt, split_hash
from fetal_utils.splits import (
    assert_no_shared_patient,
    draw_labelled_subset,
    leak_of_random_split,
    same_patient_rate,
    split_by_patient,
    unevenness,
)
from fetal_utils.tasks import TASKS, Task, present_classes

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
STRATUM_COLUMNS = ["plane", "brain_plane"]


@pytest.fixture(scope="module")
def real_table(real_data):
    return read_metadata(real_data)


@pytest.fixture(scope="module")
def real_subset(real_table):
    return split(real_table)


def split(table, *, val_fraction=0.2, seed=0):
    return split_by_patient(table, val_fraction=val_fraction, rng=np.random.default_rng(seed))


def make_table(n_patients=30, n_test=10, *, seed=0, planes=("Fetal femur", "Fetal thorax", "Fetal brain")):
    """Patients with one to six images of random planes; the last ``n_test`` are test patients."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), rng.integers(1, 7, size=n_patients))
    plane = rng.choice(planes, size=len(patient))
    return pd.DataFrame(
        {
            "image_name": [f"image_{index}" for index in range(len(patient))],
            "patient": patient,
            "plane": plane,
            "brain_plane": np.where(plane == "Fetal brain", "Trans-thalamic", "Not A Brain"),
            "operator": "Op. 1",
            "machine": rng.choice(["Aloka", "Voluson E6"], size=len(patient)),
            "split": np.where(patient < n_patients - n_test, "train", "test"),
        }
    )


# --- patients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_no_patient_is_in_two_subsets_and_validation_comes_from_training(seed):
    table = make_table(seed=seed)
    subset = split(table, seed=seed)
    assert subset.groupby(table["patient"]).nunique().max() == 1
    assert set(table["split"][subset == "val"]) == {"train"}
    assert (subset == "test").equals(table["split"] == "test")
    assert set(subset) == {"train", "val", "test"}


@pytest.mark.parametrize("seed", range(3))
def test_the_real_split_shares_no_patient_and_leaves_the_test_set_alone(real_table, seed):
    subset = split(real_table, seed=seed)
    assert subset.groupby(real_table["patient"]).nunique().max() == 1
    assert (subset == "test").equals(real_table["split"] == "test")


@pytest.mark.parametrize("val_fraction", [0.1, 0.2, 0.25, 0.5])
def test_the_validation_share_of_the_real_table_is_near_the_asked_one(real_table, val_fraction):
    subset = split(real_table, val_fraction=val_fraction)
    share = (subset == "val").sum() / (subset != "test").sum()
    assert share == pytest.approx(val_fraction, rel=0.05)


def test_every_plane_and_brain_plane_of_the_real_table_is_validated_in_proportion(real_table, real_subset):
    for column in STRATUM_COLUMNS:
        shares = pd.crosstab(real_table[column], real_subset).pipe(lambda n: n["val"] / (n["val"] + n["train"]))
        assert shares.between(0.15, 0.25).all(), shares


@pytest.mark.parametrize("seed", range(10))
def test_the_only_patient_of_a_plane_stays_in_training(seed):
    table = make_table(n_patients=40)
    first_images = ~table["patient"].duplicated()
    only = table.index[first_images][:8]  # eight patients, each the only one of a plane: hardly all in one half
    table.loc[only, "plane"] = [f"plane {index}" for index in range(8)]
    assert set(split(table, val_fraction=0.5, seed=seed)[only]) == {"train"}


def test_the_unevenness_of_a_choice_worked_by_hand():
    strata = pd.Series(["a", "a", "b", "b", "c", "c"])
    # all of a and none of c; shares 2/3, 1/3, 0 where the whole has thirds
    assert unevenness(strata, pd.Index([0, 1, 2])) == (1, 1, pytest.approx(2 / 3))
    assert unevenness(strata, pd.Index([0, 2, 4])) == (0, 0, pytest.approx(0))


@pytest.mark.parametrize("seed", range(10))
def test_no_plane_loses_its_last_training_patient_to_validation(seed):
    table = make_table(seed=seed)
    subset = split(table, seed=seed)
    assert set(table["plane"][subset == "train"]) == set(table["plane"][subset != "test"])


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    table = make_table()
    pd.testing.assert_series_equal(split(table, seed=1), split(table, seed=1))
    assert not split(table, seed=1).equals(split(table, seed=2))


def test_splitting_changes_neither_the_table_nor_the_global_generator():
    table = make_table()
    before = table.copy()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    split(table)
    pd.testing.assert_frame_equal(table, before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


@pytest.mark.parametrize("val_fraction", [0, -0.1, 0.51, 1, float("nan")])
def test_a_validation_fraction_out_of_range_is_named(val_fraction):
    with pytest.raises(ValueError, match=rf"val_fraction={val_fraction}: expected more than 0 and at most 0\.5"):
        split(make_table(), val_fraction=val_fraction)


def test_too_few_training_patients_are_counted():
    with pytest.raises(ValueError, match=r"val_fraction=0\.2: 4 training patients.*at least 5 others"):
        split(make_table(n_patients=8, n_test=4))


def test_no_training_patient_at_all_is_an_error_of_ours():
    with pytest.raises(ValueError, match="0 training patients"):
        split(make_table(n_patients=5, n_test=5))


def test_planes_with_fewer_images_than_folds_are_an_error_of_ours():
    table = make_table(n_patients=8, n_test=0).drop_duplicates("patient")
    table["plane"] = [f"plane {index // 2}" for index in range(8)]  # two patients and images each
    with pytest.raises(ValueError, match=r"val_fraction=0\.2: 8 training patients.*5 images of some plane"):
        split(table)


def test_shared_patients_are_named_by_the_check():
    subset = pd.Series(["train", "val", "test"])
    assert_no_shared_patient(pd.Series([1, 2, 3]), subset)
    with pytest.raises(AssertionError, match=r"\[7\] \(1 in all\)"):
        assert_no_shared_patient(pd.Series([7, 2, 7]), subset)


# --- receipts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TASKS))
def test_the_counts_of_a_receipt_add_up_to_the_real_table(real_table, real_subset, name):
    receipt = make_receipt(real_table, real_subset, task=TASKS[name], present=TASKS[name])
    images = receipt.totals.loc["images"]
    assert images.sum() + sum(receipt.left_out.values()) == 12_400
    assert receipt.classes.sum().to_dict() == receipt.machines.sum().to_dict() == images.to_dict()
    assert list(receipt.totals.columns) == ["train", "val", "test"]
    assert receipt.overlap == 0
    assert receipt.absent == []


def test_the_brain_receipt_of_the_real_table_counts_what_was_left_out_by_reason(real_table, real_subset):
    brain_planes = TASKS["brain_planes"]
    receipt = make_receipt(real_table, real_subset, task=brain_planes, present=brain_planes)
    assert receipt.left_out == {
        "'Not A Brain': not an image of the fetal brain": 9308,
        "'Other': a brain image of none of the three standard planes": 143,
    }
    assert receipt.classes.sum(axis=1).to_dict() == {
        "Trans-thalamic": 1638,
        "Trans-cerebellum": 714,
        "Trans-ventricular": 597,
    }


def receipt_of(table, subset):
    return make_receipt(table, subset, task=TASKS["planes"], present=present_classes(table, TASKS["planes"]))


def test_a_receipt_worked_by_hand():
    table = pd.DataFrame(
        {
            "image_name": ["a", "b", "c", "d"],
            "patient": [1, 1, 2, 3],
            "plane": ["Fetal femur", "Fetal thorax", "Fetal femur", "Fetal thorax"],
            "machine": ["Aloka", "Aloka", "Other", "Aloka"],
            "split": ["train", "train", "train", "test"],
        }
    )
    receipt = receipt_of(table, pd.Series(["train", "train", "val", "test"]))
    assert receipt.totals.to_dict("list") == {"train": [2, 1], "val": [1, 1], "test": [1, 1]}
    assert receipt.classes.loc["Fetal femur"].tolist() == [1, 1, 0]
    assert receipt.classes.loc["Fetal thorax"].tolist() == [1, 0, 1]
    assert receipt.machines.loc["Aloka"].tolist() == [2, 0, 1]
    assert receipt.left_out == {}
    assert receipt.absent == ["Fetal abdomen", "Fetal brain", "Maternal cervix", "Other"]


def test_a_receipt_as_rows_holds_every_count_that_is_printed():
    table = make_table()
    receipt = receipt_of(table, split(table))
    rows = receipt.to_frame()
    assert list(rows.columns) == ["task", "split", "about", "name", "train", "val", "test", "total"]
    assert set(zip(rows["task"], rows["split"], strict=True)) == {("planes", receipt.hash)}
    counted = rows.set_index(["about", "name"])
    for about, block in {"total": receipt.totals, "class": receipt.classes, "machine": receipt.machines}.items():
        assert counted.loc[about, ["train", "val", "test"]].to_numpy().tolist() == block.to_numpy().tolist()
        assert counted.loc[about, "total"].tolist() == block.sum(axis=1).tolist()
    assert counted.loc["absent"].index.tolist() == receipt.absent
    assert counted.loc[("overlap", "patients in two subsets"), "total"] == 0
    assert "left out" not in counted.index


def test_a_receipt_as_rows_counts_what_was_left_out_by_reason(real_table, real_subset):
    brain_planes = TASKS["brain_planes"]
    receipt = make_receipt(real_table, real_subset, task=brain_planes, present=brain_planes)
    rows = receipt.to_frame()
    left_out = rows[rows["about"] == "left out"]
    assert dict(zip(left_out["name"], left_out["total"], strict=True)) == receipt.left_out
    assert left_out["train"].isna().all()


def test_a_receipt_keeps_the_column_of_an_empty_subset():
    table = make_table(n_test=0)
    receipt = receipt_of(table, split(table))
    assert receipt.totals["test"].tolist() == [0, 0]
    assert receipt.machines["test"].tolist() == [0, 0]


def test_a_receipt_counts_patients_in_two_subsets():
    table = make_table()
    subset = split(table)
    repeated = table["patient"].duplicated(keep=False) & (subset == "train")
    subset[table.index[repeated][0]] = "val"
    assert receipt_of(table, subset).overlap == 1


def test_a_receipt_can_be_read_by_a_person():
    table = make_table()
    receipt = receipt_of(table, split(table))
    text = str(receipt)
    assert text.startswith(f"Task planes, split {receipt.hash}")
    for line in ("left out: nothing", "classes absent: Fetal abdomen, Maternal cervix, Other", "in two subsets: 0"):
        assert line in text
    for word in ("train", "val", "test", "patients", "Fetal femur", "Voluson E6"):
        assert word in text


def test_the_hash_changes_when_one_image_moves_and_not_with_the_order_of_rows():
    names, subset = pd.Series(["a", "b", "c"]), pd.Series(["train", "val", "test"])
    assert split_hash(names, subset) == split_hash(names[::-1], subset[::-1])
    assert split_hash(names, subset) != split_hash(names, pd.Series(["train", "train", "test"]))
    assert len(split_hash(names, subset)) == 12


# --- labels ------------------------------------------------------------------------------------------


def training_labels(table, subset, task: Task):
    used = (subset == "train") & table[task.label_column].isin(task.classes)
    return table[task.label_column][used].to_numpy(), table["patient"][used].to_numpy()


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("draw", range(4))
def test_label_subsets_of_the_real_table_are_nested_and_hold_every_class(real_table, real_subset, name, draw):
    labels, patients = training_labels(real_table, real_subset, TASKS[name])
    previous = set()
    for fraction in FRACTIONS:
        drawn = draw_labelled_subset(labels, patients, fraction=fraction, rng=np.random.default_rng([0, draw]))
        rows = set(drawn.rows.tolist())
        assert previous <= rows
        assert set(labels[drawn.rows]) == set(TASKS[name].classes)
        assert drawn.n_patients == len(set(patients[drawn.rows]))
        n_asked = int(np.ceil(fraction * len(set(patients))))
        # one added patient may bring two missing classes
        assert n_asked + len(set(drawn.added.values())) == drawn.n_patients
        previous = rows
    assert len(previous) == len(labels)
    assert drawn.added == {}


def test_a_labelled_patient_is_labelled_whole(real_table, real_subset):
    labels, patients = training_labels(real_table, real_subset, TASKS["planes"])
    drawn = draw_labelled_subset(labels, patients, fraction=0.1, rng=np.random.default_rng(0))
    chosen = set(patients[drawn.rows])
    assert (np.flatnonzero(np.isin(patients, list(chosen))) == drawn.rows).all()


def test_alike_generators_draw_alike_and_other_draws_differ(real_table, real_subset):
    labels, patients = training_labels(real_table, real_subset, TASKS["planes"])
    drawn = [
        draw_labelled_subset(labels, patients, fraction=0.1, rng=np.random.default_rng([0, draw])).rows.tolist()
        for draw in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(rows) for rows in drawn}) == 3


@pytest.mark.parametrize("seed", range(20))
def test_the_patient_added_for_a_missing_class_is_reported(seed):
    labels = np.array(["common"] * 99 + ["rare"])
    patients = np.arange(100)
    drawn = draw_labelled_subset(labels, patients, fraction=0.02, rng=np.random.default_rng(seed))
    if drawn.added:
        assert drawn.added == {"rare": 99}
        assert drawn.n_patients == len(drawn.rows) == 3
    else:
        assert 99 in drawn.rows
        assert drawn.n_patients == len(drawn.rows) == 2


def test_a_fraction_is_rounded_up_to_whole_patients_and_not_by_a_rounding_error():
    labels, patients = ["a"] * 100, list(range(100))
    for fraction, n_patients in [(0.07, 7), (0.29, 29), (0.071, 8), (0.0001, 1), (1, 100)]:
        drawn = draw_labelled_subset(labels, patients, fraction=fraction, rng=np.random.default_rng(0))
        assert drawn.n_patients == n_patients


def test_fraction_one_is_every_image():
    table = make_table()
    drawn = draw_labelled_subset(table["plane"], table["patient"], fraction=1, rng=np.random.default_rng(0))
    assert drawn.rows.tolist() == list(range(len(table)))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, 10, float("nan")])
def test_a_label_fraction_out_of_range_is_named(fraction):
    with pytest.raises(ValueError, match=rf"label_fraction={fraction}: .*1 % is 0\.01"):
        draw_labelled_subset(["a"], [1], fraction=fraction, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("labels", "patients"), [([], []), (["a", "b"], [1])])
def test_labels_and_patients_must_belong_together(labels, patients):
    with pytest.raises(ValueError, match=f"{len(labels)} labels of {len(patients)} images"):
        draw_labelled_subset(labels, patients, fraction=0.5, rng=np.random.default_rng(0))


# --- traps -------------------------------------------------------------------------------------------


PATIENTS = [1, 1, 1, 2, 2, 3, 4]
PLANES = ["a", "a", "b", "a", "a", "b", "a"]


@pytest.mark.parametrize("n_test", [1, 2, 3, 5])
def test_the_leak_equals_the_mean_over_every_possible_split(n_test):
    shares = []
    for test in combinations(range(len(PATIENTS)), n_test):
        trained = {PATIENTS[index] for index in range(len(PATIENTS)) if index not in test}
        shares.append(np.mean([PATIENTS[index] in trained for index in test]))
    assert leak_of_random_split(PATIENTS, test_fraction=n_test / 7) == pytest.approx(np.mean(shares))


def test_patients_with_one_image_each_cannot_leak():
    assert leak_of_random_split(range(50), test_fraction=0.2) == 0


@pytest.mark.parametrize("test_fraction", [0, 1, -0.2, 1.5])
def test_a_test_fraction_out_of_range_is_named(test_fraction):
    with pytest.raises(ValueError, match=rf"test_fraction={test_fraction}: expected"):
        leak_of_random_split(PATIENTS, test_fraction=test_fraction)


def test_a_random_image_split_of_the_real_table_would_leak_most_patients(real_table):
    brain = real_table[real_table["plane"] == "Fetal brain"]
    leaks = [leak_of_random_split(table["patient"], test_fraction=0.2) for table in (real_table, brain)]
    assert leaks == pytest.approx([0.946, 0.878], abs=0.0005)
    assert leaks == pytest.approx([0.945, 0.883], abs=0.015)  # one random draw of such a split


@pytest.mark.parametrize("batch_size", [2, 3, 5, 7])
def test_the_same_patient_rate_equals_the_mean_over_every_possible_batch(batch_size):
    kinds = list(zip(PATIENTS, PLANES, strict=True))
    shares = []
    for batch in combinations(range(len(kinds)), batch_size):
        in_batch = [kinds[index] for index in batch]
        shares.append(np.mean([in_batch.count(kind) > 1 for kind in in_batch]))
    assert same_patient_rate(PATIENTS, PLANES, batch_size=batch_size) == pytest.approx(np.mean(shares))


def test_a_batch_larger_than_the_data_is_all_of_it():
    assert same_patient_rate(PATIENTS, PLANES, batch_size=100) == pytest.approx(4 / 7)


def test_a_batch_needs_two_images():
    with pytest.raises(ValueError, match="batch_size=1: expected at least 2"):
        same_patient_rate(PATIENTS, PLANES, batch_size=1)


def test_a_quarter_of_the_anchors_of_the_real_training_set_meet_a_false_negative(real_table):
    train = real_table[real_table["split"] == "train"]
    brain = train[train["brain_plane"].isin(TASKS["brain_planes"].classes)]
    assert same_patient_rate(train["patient"], train["plane"], batch_size=256) == pytest.approx(0.25, abs=0.005)
    rate = same_patient_rate(brain["patient"], brain["brain_plane"], batch_size=256)
    assert rate == pytest.approx(0.16, abs=0.005)
