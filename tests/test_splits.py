"""Patients, never images, are divided: development patients, label subsets, and what random splits would leak."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from fetal_utils.data import TASKS, Task, read_metadata
from fetal_utils.presets import NOTEBOOK_DIR, read_cells
from fetal_utils.splits import (
    SUBSETS,
    TOLERANCE,
    data_summary,
    draw_labelled_subset,
    split_by_patient,
)

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def real_table(real_data):
    return read_metadata(real_data)


def split(table, fraction=0.2, *, seed=0):
    return split_by_patient(table, development_fraction=fraction, rng=np.random.default_rng(seed))


def share(table, subset):
    return (subset == "development").sum() / (table["split"] == "train").sum()


def make_table(n_patients=30, n_test=10, *, seed=0):
    """Patients with one to six images of random planes; the last ``n_test`` are test patients."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), rng.integers(1, 7, size=n_patients))
    plane = rng.choice(["Fetal femur", "Fetal thorax", "Fetal brain"], size=len(patient))
    return pd.DataFrame(
        {
            "patient": patient,
            "plane": plane,
            "brain_plane": np.where(plane == "Fetal brain", "Trans-thalamic", "Not A Brain"),
            "machine": rng.choice(["Aloka", "Voluson E6"], size=len(patient)),
            "split": np.where(patient < n_patients - n_test, "train", "test"),
        }
    )


# --- development patients ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_subsets_and_the_test_set_is_left_alone(real_table, seed):
    for table in (make_table(seed=seed), real_table):
        subset = split(table, seed=seed)
        assert subset.groupby(table["patient"]).nunique().max() == 1
        assert (subset == "test").equals(table["split"] == "test")
        assert set(subset) == set(SUBSETS)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_any_share_of_the_real_table_is_cut_as_asked_in_all_and_of_each_plane(real_table, fraction, seed):
    subset = split(real_table, fraction, seed=seed)
    assert share(real_table, subset) == pytest.approx(fraction, rel=0.03)
    shares = pd.crosstab(real_table["plane"], subset).pipe(lambda n: n["development"] / (n["development"] + n["train"]))
    assert shares.to_numpy() == pytest.approx(np.full(6, fraction), rel=0.2, abs=0.015)


@pytest.mark.parametrize("fraction", [0.2, 0.3, 0.4])
@pytest.mark.parametrize("seed", range(10))
def test_the_share_of_a_small_set_is_as_asked_within_the_tolerance(fraction, seed):
    table = make_table(n_patients=30, seed=seed)  # 20 training patients
    assert share(table, split(table, fraction, seed=seed)) == pytest.approx(fraction, rel=TOLERANCE)


@pytest.mark.parametrize("seed", range(5))
def test_no_label_loses_its_last_training_patient(seed):
    table = make_table(n_patients=40, seed=seed)
    only = table.index[~table["patient"].duplicated()][:8]
    table.loc[only, "plane"] = [f"plane {index}" for index in range(8)]  # eight planes of one patient each
    subset = split(table, 0.5, seed=seed)
    assert set(subset[only]) == {"train"}
    assert set(table["plane"][subset == "train"]) == set(table["plane"][subset != "test"])
    table["own"] = np.where(table["patient"] < 2, "rare", "common")
    rng = np.random.default_rng(seed)
    subset = split_by_patient(table, development_fraction=0.4, rng=rng, label_columns=["plane", "brain_plane", "own"])
    assert "rare" in set(table["own"][subset == "train"])


def test_the_same_seed_gives_the_same_split():
    table = make_table()
    pd.testing.assert_series_equal(split(table, seed=1), split(table, seed=1))
    assert not split(table, seed=1).equals(split(table, seed=2))


@pytest.mark.parametrize("fraction", [0, -0.1, 0.51, float("nan")])
def test_a_fraction_out_of_range_is_named(fraction):
    with pytest.raises(ValueError, match=rf"development_fraction={fraction}: expected more than 0 and at most 0\.5"):
        split(make_table(), fraction)


def test_patients_who_can_not_be_spared_are_an_error_of_ours():
    table = make_table(n_patients=6, n_test=0).drop_duplicates("patient")
    table["plane"] = [f"plane {index}" for index in range(6)]
    for one, n in ((table, 6), (make_table(n_patients=5, n_test=5), 0)):
        with pytest.raises(ValueError, match=f"none of {n} training patients can be spared.*add patients"):
            split(one)


# --- the data summary --------------------------------------------------------------------------------


ABC = Task("abc", "plane", ("a", "b", "c"), {"x": "why"})


def summary_of(table, *, fraction, task=ABC):
    return data_summary(table, task, development_fraction=fraction)


def test_a_summary_worked_by_hand():
    table = pd.DataFrame(
        {
            "patient": [1, 1, 2, 3, 3],
            "plane": ["a", "b", "a", "b", "x"],
            "machine": ["Aloka", "Aloka", "Other", "Aloka", "Aloka"],
            "subset": ["train", "train", "development", "test", "test"],
        }
    )
    expected = {
        ("total", "images"): [2, 1, 1, 4],
        ("total", "patients"): [1, 1, 1, 3],
        ("class", "a"): [1, 1, 0, 2],
        ("class", "b"): [1, 0, 1, 2],
        ("class", "c"): [0, 0, 0, 0],
        ("machine", "Aloka"): [2, 0, 1, 3],
        ("machine", "Other"): [0, 1, 0, 1],
        ("left out", "x: why"): [0, 0, 1, 1],
        ("check", "patients in two subsets"): [0, 0, 0, 0],
    }
    summary = summary_of(table, fraction=1 / 3)
    assert {key: row.tolist() for key, row in summary.iterrows()} == expected
    assert list(summary.columns) == [*SUBSETS, "total"]
    shared = summary_of(table.assign(patient=[1, 1, 1, 3, 3]), fraction=1 / 3)
    assert shared.loc[("check", "patients in two subsets"), "train"] == 1


@pytest.mark.parametrize(("n_cut", "warns"), [(14, True), (15, False), (25, False), (26, True)])
def test_a_share_off_by_more_than_a_quarter_is_a_warning(n_cut, warns):
    subset = ["development"] * n_cut + ["train"] * (100 - n_cut) + ["test"]
    table = pd.DataFrame({"patient": range(101), "plane": "a", "machine": "Aloka", "subset": subset})
    summary = summary_of(table, fraction=0.2)
    assert ("warning" in summary.index.get_level_values("about")) == warns
    if warns:
        (name,) = summary.loc["warning"].index
        assert name == f"{n_cut}% of the training images are for development; 20% were asked for"


# --- labels ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_training(real_table):
    """The real training patients' images."""
    return real_table[split(real_table) == "train"].reset_index(drop=True)


def draw(table, task, fraction, number=0):
    """The labelled subset of a task as positions in the table, by an order of all its patients."""
    order = np.random.default_rng([0, number]).permutation(table["patient"].unique())
    pool = np.flatnonzero(table[task.label_column].isin(task.classes))
    labels, patients = table[task.label_column].to_numpy()[pool], table["patient"].to_numpy()[pool]
    drawn = draw_labelled_subset(labels, patients, order=order, fraction=fraction)
    return pool[drawn], patients


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("number", range(3))
def test_label_subsets_are_nested_and_hold_every_class_and_whole_patients(real_training, name, number):
    task, previous = TASKS[name], set()
    for fraction in FRACTIONS:
        rows, patients = draw(real_training, task, fraction, number)
        chosen = real_training.iloc[rows]
        assert previous <= set(rows)
        assert set(chosen[task.label_column]) == set(task.classes)
        assert len(rows) == np.isin(patients, chosen["patient"].unique()).sum()
        n_asked = int(np.ceil(fraction * len(set(patients))))
        assert n_asked <= chosen["patient"].nunique() < n_asked + len(task.classes)
        previous = set(rows)
    assert len(previous) == len(patients)


def test_both_tasks_follow_one_order(real_training):
    sets = {name: set(real_training["patient"].iloc[draw(real_training, TASKS[name], 0.5)[0]]) for name in TASKS}
    order = np.random.default_rng([0, 0]).permutation(real_training["patient"].unique()).tolist()
    assert sets["planes"] == set(order[: len(sets["planes"])])  # every patient has a plane
    with_brain = set(draw(real_training, TASKS["brain_planes"], 1.0)[1])
    brain = [patient for patient in order if patient in with_brain]
    assert sets["brain_planes"] == set(brain[: len(sets["brain_planes"])])


def test_a_missing_class_adds_the_first_patient_who_has_it():
    labels, patients = ["common", "common", "rare", "rare"], [1, 2, 3, 4]
    drawn = draw_labelled_subset(labels, patients, order=[9, 2, 4, 1, 3], fraction=0.25)
    assert drawn.tolist() == [1, 3]


@pytest.mark.parametrize(("fraction", "n_patients"), [(0.07, 7), (0.29, 29), (0.071, 8), (0.0001, 1), (1, 100)])
def test_a_fraction_is_rounded_up_to_whole_patients_and_not_by_a_rounding_error(fraction, n_patients):
    drawn = draw_labelled_subset(["a"] * 100, range(100), order=range(100), fraction=fraction)
    assert len(drawn) == n_patients


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_a_label_fraction_out_of_range_is_named(fraction):
    with pytest.raises(ValueError, match=rf"label_fraction={fraction}: .*1 % is 0\.01"):
        draw_labelled_subset(["a"], [1], order=[1], fraction=fraction)


# --- traps, as 01 counts them ------------------------------------------------------------------------

PATIENTS = [1, 1, 1, 2, 2, 3, 4]


@pytest.fixture(scope="module")
def patient_leaks():
    """The function that 01 shows."""
    cells = read_cells(NOTEBOOK_DIR / "01_data_preparation.ipynb")
    names: dict = {"np": np, "pd": pd, "hypergeom": hypergeom}
    exec(next(source for source, _ in cells if "def patient_leaks" in source), names)
    return names["patient_leaks"]


@pytest.mark.parametrize("n_test", [1, 2, 3, 5])
def test_the_leak_equals_the_mean_over_every_possible_split(patient_leaks, n_test):
    shares = []
    for test in combinations(range(7), n_test):
        trained = {PATIENTS[index] for index in range(7) if index not in test}
        shares.append(np.mean([PATIENTS[index] in trained for index in test]))
    assert patient_leaks(PATIENTS, n_test) == pytest.approx(np.mean(shares))


def test_a_random_image_split_of_the_real_table_would_leak_most_patients(patient_leaks, real_table):
    brain = real_table[real_table["plane"] == "Fetal brain"]
    leaks = [patient_leaks(table["patient"], len(table) // 5) for table in (real_table, brain)]
    assert leaks == pytest.approx([0.945, 0.883], abs=0.015)  # one random draw of such a split
    assert patient_leaks(range(50), 10) == 0  # one image each


def test_a_quarter_of_the_anchors_of_the_real_training_set_meet_a_false_negative(real_table):
    train = real_table[real_table["split"] == "train"].reset_index(drop=True)
    cells = read_cells(NOTEBOOK_DIR / "01_data_preparation.ipynb")
    known = {name: np.flatnonzero(train[task.label_column].isin(task.classes)) for name, task in TASKS.items()}
    dataset = SimpleNamespace(rows=lambda subset, task: known[task.name])
    names: dict = {"pd": pd, "hypergeom": hypergeom, "tasks": TASKS, "metadata": train, "dataset": dataset}
    exec(next(source for source, _ in cells if "rates[name, size]" in source), names)
    assert names["rates"]["planes", 256] == pytest.approx(0.25, abs=0.005)
    assert names["rates"]["brain_planes", 256] == pytest.approx(0.16, abs=0.005)
