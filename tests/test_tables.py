"""The tables that a study leaves: written part by part, merged at the end."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from prediction_tables import draw_predictions, make_patients_with_hits
from toy_runs import Sum, toy_store

from fetal_utils.encoders import Features, InitialWeights
from fetal_utils.tables import COMPARISONS_COLUMNS, METRICS_COLUMNS, list_runs, merge_tables, metrics_of_run, write_part
from fetal_utils.training import LinearProbe

SETTINGS = LinearProbe(
    task="brain_planes",
    strategy="imagenet",
    label_fraction=0.25,
    draw=2,
    seed=1,
    features=Features(source=InitialWeights(backbone="resnet18", init="random"), image_size=32),
)


def run_of(predictions, classes, settings=SETTINGS):
    """As much of a finished run as a table of metrics reads."""
    facts = {"classes": classes, "n_images": 40, "n_patients": 11}
    return SimpleNamespace(settings=settings, record={"facts": facts}, predictions=predictions)


def metrics(**values):
    """One row of the metrics table."""
    row = dict.fromkeys(METRICS_COLUMNS, 0) | {"strategy": "scratch", "plane": "macro", "metric": "f1", "value": 0.5}
    return pd.DataFrame([row | values])


def read(path):
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


# --- metrics of a run ---


def test_metrics_of_a_run_have_the_columns_of_the_contract_and_say_which_run():
    table = metrics_of_run(run_of(make_patients_with_hits([2, 1], 2), ["a", "b"]), n_resamples=20)
    assert list(table.columns) == [
        "task",
        "strategy",
        "protocol",
        "label_fraction",
        "n_images",
        "n_patients",
        "draw",
        "seed",
        "plane",
        "metric",
        "value",
        "low",
        "high",
    ]
    about = table.drop(columns=["plane", "metric", "value", "low", "high"]).drop_duplicates()
    assert about.to_numpy().tolist() == [["brain_planes", "imagenet", "linear_probe", 0.25, 40, 11, 2, 1]]


def test_metrics_of_a_run_by_hand():
    # of two patients with two images each, one has both right and one the first: 3 of 4
    table = metrics_of_run(run_of(make_patients_with_hits([2, 1], 2), ["a", "b"]), n_resamples=20)
    accuracy = table[table["metric"] == "accuracy"]
    assert accuracy["value"].tolist() == [0.75]
    assert 0.5 <= accuracy["low"].item() <= 0.75 <= accuracy["high"].item() <= 1.0


def test_intervals_of_runs_on_one_test_set_come_from_the_same_resamples():
    predictions = draw_predictions(np.random.default_rng(0), ["a", "b", "c"])
    first, second = (
        metrics_of_run(run_of(predictions, ["a", "b", "c"], settings), n_resamples=50)
        for settings in (SETTINGS, LinearProbe(task="planes", strategy="scratch", features=SETTINGS.features))
    )
    values = ["plane", "metric", "value", "low", "high"]
    pd.testing.assert_frame_equal(first[values], second[values])


# --- parts ---


def test_a_part_is_written_under_its_name_with_the_contract_columns_in_order(tmp_path):
    table = metrics().assign(extra="left out")[["extra", *reversed(METRICS_COLUMNS)]]
    path = write_part(table, results_dir=tmp_path, name="metrics", part="04.planes")
    assert path == tmp_path / "tables" / "metrics.04.planes.csv"
    assert list(read(path).columns) == list(METRICS_COLUMNS)


def test_a_part_written_again_replaces_the_old_one(tmp_path):
    for value in (0.5, 0.75):
        path = write_part(metrics(value=value), results_dir=tmp_path, name="metrics", part="04")
    assert read(path)["value"].tolist() == [0.75]


@pytest.mark.parametrize(("name", "columns"), [("metrics", METRICS_COLUMNS), ("comparisons", COMPARISONS_COLUMNS)])
def test_a_part_without_a_column_is_refused_by_name_and_not_written(tmp_path, name, columns):
    table = pd.DataFrame([dict.fromkeys(columns, 0)]).drop(columns=["low", "task"])
    with pytest.raises(ValueError, match=rf"{name} of 04 lack the columns \['task', 'low'\]; expected"):
        write_part(table, results_dir=tmp_path, name=name, part="04")
    assert not (tmp_path / "tables").exists()


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name='metric': expected one of \['metrics', 'comparisons', "):
        write_part(metrics(), results_dir=tmp_path, name="metric", part="04")


# --- merging ---


def test_merging_keeps_every_row_once(tmp_path):
    shared, first, second = metrics(seed=0), metrics(seed=1), metrics(seed=2)
    write_part(pd.concat([shared, first]), results_dir=tmp_path, name="metrics", part="03")
    write_part(pd.concat([shared, second, second]), results_dir=tmp_path, name="metrics", part="04")
    assert merge_tables(tmp_path) == [tmp_path / "metrics.csv"]
    merged = read(tmp_path / "metrics.csv")
    assert list(merged.columns) == list(METRICS_COLUMNS)
    assert sorted(merged["seed"]) == [0, 1, 2]


def test_of_a_row_that_two_parts_hold_the_later_one_is_kept(tmp_path):
    # 03 judges two differences, 04 the same two among dozens: the second verdict is the study's
    for part, resolved in {"03": True, "04": False}.items():
        row = dict.fromkeys(COMPARISONS_COLUMNS, 0) | {"resolved": resolved}
        write_part(pd.DataFrame([row]), results_dir=tmp_path, name="comparisons", part=part)
    merge_tables(tmp_path)
    assert read(tmp_path / "comparisons.csv")["resolved"].tolist() == [False]


@pytest.mark.parametrize("column", [name for name in METRICS_COLUMNS if name not in {"value", "low", "high"}])
def test_rows_that_differ_in_what_they_are_about_are_both_kept(tmp_path, column):
    other = "other" if isinstance(metrics()[column][0], str) else 7
    for part, table in {"a": metrics(), "b": metrics(**{column: other})}.items():
        write_part(table, results_dir=tmp_path, name="metrics", part=part)
    merge_tables(tmp_path)
    assert len(read(tmp_path / "metrics.csv")) == 2


def test_comparisons_are_merged_beside_metrics_with_their_own_columns(tmp_path):
    row = dict.fromkeys(COMPARISONS_COLUMNS, 0) | {"strategy": "simclr_imagenet", "resolved": True}
    for part in ("04", "06"):
        write_part(pd.DataFrame([row]), results_dir=tmp_path, name="comparisons", part=part)
    write_part(metrics(), results_dir=tmp_path, name="metrics", part="04")
    assert merge_tables(tmp_path) == [tmp_path / "metrics.csv", tmp_path / "comparisons.csv"]
    comparisons = read(tmp_path / "comparisons.csv")
    assert list(comparisons.columns) == [
        "task",
        "protocol",
        "label_fraction",
        "strategy",
        "baseline",
        "metric",
        "difference",
        "low",
        "high",
        "resolved",
    ]
    assert comparisons["resolved"].tolist() == [True]


def test_a_value_that_is_missing_stays_missing_and_a_plane_called_none_stays_a_name(tmp_path):
    write_part(metrics(plane="None", value=np.nan), results_dir=tmp_path, name="metrics", part="04")
    merge_tables(tmp_path)
    merged = read(tmp_path / "metrics.csv")
    assert merged["plane"].tolist() == ["None"]
    assert merged["value"].isna().all()


def test_merging_twice_changes_nothing(tmp_path):
    write_part(metrics(value=1 / 3), results_dir=tmp_path, name="metrics", part="04")
    (path,) = merge_tables(tmp_path)
    first = path.read_bytes()
    merge_tables(tmp_path)
    assert path.read_bytes() == first


def test_without_parts_no_table_is_written(tmp_path):
    assert merge_tables(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


# --- the list of runs ---


def test_every_finished_run_is_listed_with_what_made_it(tmp_path):
    store = toy_store(tmp_path)
    store.get([Sum(term=2, start=Sum(term=1))])
    store.folder(Sum(term=9)).with_suffix(".partial").mkdir(parents=True)
    runs = list_runs(tmp_path)
    assert set(runs["key"]) == {
        store.folder(settings).name for settings in (Sum(term=1), Sum(term=2, start=Sum(term=1)))
    }
    assert runs["kind"].tolist() == ["sum", "sum"]
    assert runs["seconds"].ge(0).all()
    assert runs["task"].isna().all()


def test_a_folder_without_runs_gives_an_empty_list(tmp_path):
    assert list_runs(tmp_path).empty
