"""The tables that a study leaves: written part by part, merged, of one data set and one version only."""

import pandas as pd
import pytest
from prediction_tables import make_patients_with_hits, make_run

from fetal_utils import tables
from fetal_utils.comparison import claim, compare, label_efficiency, label_equivalence
from fetal_utils.environment import write_json
from fetal_utils.evaluation import metrics_table, patient_weights, score_runs
from fetal_utils.tables import TABLES, check_parts, merge_tables, read, write_part

KEY = "0123456789012345"  # digits alone stay text


def metrics(**values):
    """One row of the metrics table."""
    row = dict.fromkeys([column for group in TABLES["metrics"] for column in group], 0)
    row |= {"strategy": "scratch", "plane": "macro", "metric": "f1", "key": "a", "value": 0.5}
    return pd.DataFrame([row | values])


def write_record(results_dir, kind, key, *, settings=None, data_key=KEY, version=tables.RESULTS_VERSION, facts=None):
    folder = results_dir / "runs" / kind / key
    folder.mkdir(parents=True)
    record = {"settings": {"kind": kind} | (settings or {}), "data_key": data_key, "results_version": version}
    facts = {"n_images": 40, "n_patients": 11, "views_seen": 3200} | (facts or {})
    write_json(folder / "record.json", record | {"facts": facts, "seconds": 2.5, "device": "cpu"})


# --- parts ---


def test_parts_are_merged_with_the_key_of_their_data_and_text_stays_text(tmp_path):
    write_part(metrics(task="0001", value=0.25), tmp_path, "metrics", "03.planes", data_key=KEY)
    write_part(metrics(task="0002", plane="True"), tmp_path, "metrics", "04", data_key=KEY)
    merge_tables(tmp_path)
    assert {path.name for path in tmp_path.glob("*.csv")} == {"metrics.csv", "runs.csv"}
    table = read(tmp_path, "metrics")
    assert table["task"].tolist() == ["0001", "0002"]
    assert table["plane"].tolist() == ["macro", "True"]
    assert table["value"].tolist() == [0.25, 0.5]
    assert set(table["data_key"]) == {KEY}


def test_of_rows_that_stand_twice_the_last_part_by_name_is_kept_and_no_row_is_fine(tmp_path):
    write_part(metrics(value=0.2, key="old"), tmp_path, "metrics", "04", data_key=KEY)
    write_part(metrics(value=0.1, key="older"), tmp_path, "metrics", "03", data_key=KEY)
    write_part(metrics().iloc[:0], tmp_path, "metrics", "05", data_key=KEY)
    table = read(tmp_path, "metrics")
    assert table[["value", "key"]].to_numpy().tolist() == [[0.2, "old"]]


def test_a_folder_that_keeps_only_merged_tables_is_read_and_one_without_has_the_columns(tmp_path):
    write_part(metrics(), tmp_path, "metrics", "04", data_key=KEY)
    merge_tables(tmp_path)
    (tmp_path / "tables" / "metrics.04.csv").unlink()
    assert read(tmp_path, "metrics")["value"].tolist() == [0.5]
    empty = read(tmp_path, "claim")
    assert empty.empty
    assert "difference_of_gains" in empty


def test_columns_that_a_reader_relies_on_are_demanded(tmp_path):
    with pytest.raises(ValueError, match=r"\['plane'\]"):
        write_part(metrics().drop(columns="plane"), tmp_path, "metrics", "04", data_key=KEY)
    with pytest.raises(ValueError, match="metric"):
        write_part(metrics(), tmp_path, "metric", "04", data_key=KEY)


def test_what_evaluation_and_comparison_make_fits_the_tables(tmp_path):
    runs = [
        make_run(make_patients_with_hits([1, 2, 0, 2, k], 2), task=task, strategy=strategy, seed=k, draw=k)
        for task in ("planes", "brain_planes")
        for strategy in ("imagenet", "simclr_imagenet")
        for k in range(3)
    ]
    scores = score_runs(runs, patient_weights(range(5), n_resamples=20))
    made = {"metrics": metrics_table(scores), "label_efficiency": label_efficiency(scores), "claim": claim(scores)}
    made |= {"comparisons": compare(scores, [("simclr_imagenet", "imagenet")])}
    made |= {"equivalence": label_equivalence(scores)}
    for name, table in made.items():
        write_part(table, tmp_path, name, "04", data_key=KEY)
        assert len(read(tmp_path, name)) == len(table)  # no two rows are about the same
    write_part(made["comparisons"].assign(variant="text blanked"), tmp_path, "robustness", "04", data_key=KEY)


# --- other data, other versions ---


@pytest.mark.parametrize("changed", [{"data_key": "another"}, {"results_version": 2}])
def test_parts_of_other_data_or_another_version_are_refused_with_the_remedy(tmp_path, changed):
    path = write_part(metrics(), tmp_path, "metrics", "03", data_key=KEY)
    pd.read_csv(path, dtype=str).assign(**changed).to_csv(path, index=False)
    for refused in (
        lambda: write_part(metrics(), tmp_path, "metrics", "04", data_key=KEY),
        lambda: check_parts(tmp_path, KEY),
    ):
        with pytest.raises(ValueError, match=r"metrics\.03\.csv .* choose another results_dir .* or delete the folder"):
            refused()


# --- runs ---


def test_runs_that_tables_rest_on_are_listed_with_their_pretrainings_and_no_others(tmp_path):
    simclr = {"kind": "simclr", "seed": 1, "start": {"kind": "initial_weights"}}
    probe = {"task": "planes", "strategy": "simclr_imagenet", "label_fraction": 0.1, "draw": 2, "seed": 1}
    features = {"kind": "features", "source": simclr}
    write_record(tmp_path, "linear_probe", "judged", settings=probe | {"features": features})
    write_record(tmp_path, "simclr", "needed", settings=simclr, facts={"views_seen": 99})
    write_record(tmp_path, "features", "between", settings=features)
    write_record(tmp_path, "fine_tune", "trial", settings={"task": "planes"})
    write_record(tmp_path, "simclr", "of-a-trial", settings=simclr | {"seed": 2})
    write_record(tmp_path, "simclr", "other-data", settings=simclr, data_key="another")
    write_record(tmp_path, "simclr", "older", settings=simclr, version=2)
    write_record(tmp_path, "fine_tune", "unfinished.partial")
    write_part(metrics(key="judged"), tmp_path, "metrics", "04", data_key=KEY)
    merge_tables(tmp_path)
    table = tables.read_table(tmp_path / "runs.csv")
    found = table[["kind", "key", "views"]].to_numpy().tolist()
    assert found == [["linear_probe", "judged", 3200], ["simclr", "needed", 99]]
    assert table.loc[0, ["strategy", "draw", "seconds", "data_key"]].tolist() == ["simclr_imagenet", 2, 2.5, KEY]
