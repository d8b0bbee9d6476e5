"""What a report says of a study's tables: verdicts in words, means, what is missing, and what made it."""

import json

import numpy as np
import pandas as pd
import pytest

from fetal_utils import report_figures, report_grids
from fetal_utils.provenance import gather_provenance, write_provenance
from fetal_utils.report_parts import (
    Panel,
    figure_html,
    missing_html,
    notice_html,
    table_html,
    tiles_html,
    with_interval,
)
from fetal_utils.report_tables import count_labels, curve_points, one_network_each, per_class, read_study, verdicts
from fetal_utils.tables import CAM_COLUMNS, COMPARISONS_COLUMNS, METRICS_COLUMNS

MINUS = "\N{MINUS SIGN}"
PLANES = ["Fetal femur", "Fetal thorax"]


def metric_rows():
    """Two strategies, two label fractions, two draws; the value is written so that means are known by hand."""
    rows = [
        {
            "task": "planes", "strategy": strategy, "protocol": "fine_tune", "label_fraction": fraction,
            "n_images": int(100 * fraction) + draw, "n_patients": 5, "draw": draw, "seed": 0, "plane": plane,
            "metric": "f1", "value": base + 0.1 * draw, "low": base - 0.1, "high": base + 0.3,
        }
        for strategy, base in {"simclr_imagenet": 0.6, "imagenet": 0.4}.items()
        for fraction in (1.0, 0.1)
        for draw in (0, 1)
        for plane in ["macro", *PLANES]
    ]  # fmt: skip
    return pd.DataFrame(rows)[list(METRICS_COLUMNS)]


def comparison_rows():
    about = {"task": "planes", "protocol": "fine_tune", "strategy": "simclr_imagenet", "baseline": "imagenet"}
    rows = [
        about | {"label_fraction": 0.1, "metric": "f1", "difference": 0.2, "low": 0.1, "high": 0.3, "resolved": True},
        about
        | {"label_fraction": 1.0, "metric": "f1", "difference": -0.1, "low": -0.3, "high": 0.1, "resolved": False},
        about
        | {"label_fraction": 1.0, "metric": "f1", "difference": -0.4, "low": -0.5, "high": -0.3, "resolved": True}
        | {"strategy": "scratch"},
        about | {"label_fraction": 1.0, "metric": "precision", "difference": 0, "low": 0, "high": 0, "resolved": False},
    ]
    return pd.DataFrame(rows)[list(COMPARISONS_COLUMNS)]


@pytest.fixture
def folder(tmp_path):
    metric_rows().to_csv(tmp_path / "metrics.csv", index=False)
    comparison_rows().to_csv(tmp_path / "comparisons.csv", index=False)
    (tmp_path / "tables").mkdir()
    return tmp_path


def add_record(folder, key, *, kind="fine_tune", version="2.9", phantom=True, **settings):
    path = folder / "runs" / kind / key / "record.json"
    path.parent.mkdir(parents=True)
    start = {"kind": "simclr", "lr": 9.0}
    record = {
        "settings": {"kind": kind, "task": "planes", "seed": 3, "source": start, **settings},
        "data_key": "abc",
        "data": {"title": "phantom (toy)", "is_phantom": phantom},
        "seconds": 1800,
        "peak_memory_mib": 100.0,
        "device": "cpu",
        "n_threads": 2,
        "versions": {"torch": version},
        "commit": "c0ffee",
    }
    path.write_text(json.dumps(record))


# --- reading ---


def test_without_metrics_the_error_names_the_notebooks_and_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics.csv.*04_label_efficiency.*fetal_utils.study --results-dir"):
        read_study(tmp_path)


def test_tables_that_are_not_there_are_empty_and_have_their_columns(folder):
    study = read_study(folder)
    assert tuple(study.cam_scores.columns) == CAM_COLUMNS
    assert study.cam_scores.empty and study.receipt.empty and study.embedding_scores.empty
    assert (study.provenance, study.is_phantom, study.data_title) == (None, None, "an unnamed data set")
    assert study.tasks == ["planes"]
    assert study.protocols("planes") == ["fine_tune"]
    assert one_network_each(study.cam_scores, "planes").empty


def test_it_is_a_phantom_as_soon_as_the_receipt_or_one_run_says_so(folder):
    pd.DataFrame({"data": ["real"], "is_phantom": [False]}).to_csv(folder / "tables" / "receipt.csv", index=False)
    assert read_study(folder).is_phantom is False
    add_record(folder, "a")
    assert read_study(folder).is_phantom is True
    assert read_study(folder).data_title == "real, phantom (toy)"


def test_the_studys_own_tasks_stand_in_their_order_before_others(folder):
    rows = metric_rows()
    tasks = ["mine", "brain_planes", "planes"]
    pd.concat([rows.assign(task=task) for task in tasks]).to_csv(folder / "metrics.csv", index=False)
    assert read_study(folder).tasks == ["planes", "brain_planes", "mine"]


def test_a_verdict_is_better_or_worse_only_where_it_is_resolved(folder):
    found = verdicts(read_study(folder))
    told = {(row.strategy, row.label_fraction): row.verdict for row in found.itertuples()}
    assert told == {
        ("scratch", 1.0): "worse",
        ("simclr_imagenet", 0.1): "better",
        ("simclr_imagenet", 1.0): "not resolved",
    }
    assert found["n_labelled"].tolist() == [100.5, 10.5, 100.5]  # means over two draws of 10, 11 and 100, 101 images
    assert report_grids.count_verdicts(found) == "1 better, 1 worse, 1 not resolved"
    assert verdicts(read_study(folder), metric="auroc").empty


def test_labelled_images_are_counted_once_for_each_draw():
    counts = count_labels(metric_rows())
    assert counts.to_dict() == {("planes", "fine_tune", 0.1): 10.5, ("planes", "fine_tune", 1.0): 100.5}


def test_a_class_has_the_mean_of_its_runs_and_strategies_stand_in_the_studys_order(folder):
    table = per_class(read_study(folder), "planes", protocol="fine_tune", label_fraction=0.1, metric="f1")
    assert list(dict.fromkeys(table["strategy"])) == ["imagenet", "simclr_imagenet"]
    femur = table[table["plane"] == "Fetal femur"]
    np.testing.assert_allclose(femur[["value", "low", "high", "n_runs"]], [[0.45, 0.3, 0.7, 2], [0.65, 0.5, 0.9, 2]])
    assert "macro" not in set(table["plane"])


def test_curves_come_from_the_table_of_means_and_else_from_the_runs(folder):
    runs = curve_points(read_study(folder), "planes", "fine_tune")
    assert len(runs) == 8
    columns = {
        "strategy": ["imagenet"],
        "protocol": ["fine_tune"],
        "label_fraction": [0.1],
        "n_labelled_images": [10.5],
    }
    means = pd.DataFrame(columns | {"value": [0.45], "low": [0.4], "high": [0.5], "n_images": [999]})
    means.to_csv(folder / "tables" / "label_efficiency.planes.csv", index=False)
    (point,) = curve_points(read_study(folder), "planes", "fine_tune").to_dict("records")
    assert (point["n_images"], point["value"], point["low"], point["high"]) == (10.5, 0.45, 0.4, 0.5)
    assert curve_points(read_study(folder), "planes", "linear_probe").empty


def test_cam_scores_are_those_of_one_network_for_each_strategy():
    row = dict.fromkeys(CAM_COLUMNS, 0) | {"task": "planes", "strategy": "scratch"}
    rows = pd.DataFrame([row, row | {"seed": 1}, row | {"task": "brain_planes"}, row | {"strategy": "imagenet"}])
    chosen = one_network_each(rows, "planes")
    assert chosen["strategy"].tolist() == ["scratch", "imagenet"]
    assert set(chosen["seed"]) == {0}


# --- what made it ---


def test_settings_are_gathered_by_kind_without_what_a_study_varies_or_a_start_has(folder):
    add_record(folder, "a", lr=0.1, label_fraction=0.1)
    add_record(folder, "b", lr=0.2, label_fraction=1.0, version="2.10")
    add_record(folder, "c", kind="simclr", source={"backbone": "resnet18", "init": "random", "seed": 0})
    made = gather_provenance(folder)
    assert made["kinds"]["fine_tune"]["settings"] == {"lr": [0.1, 0.2]}
    assert made["kinds"]["simclr"]["settings"] == {"backbone": ["resnet18"], "init": ["random"]}
    assert (made["kinds"]["fine_tune"]["n_runs"], made["kinds"]["fine_tune"]["hours"]) == (2, 1.0)
    assert made["versions"] == {"torch": ["2.10", "2.9"]}
    assert made["data"] == [{"title": "phantom (toy)", "is_phantom": True, "data_key": "abc"}]
    grid = report_grids.settings_grid(made)
    assert grid.loc["lr"].to_dict() == {"fine_tune": "0.1, 0.2", "simclr": ""}


def test_what_made_a_study_is_still_known_when_its_runs_are_gone(folder, tmp_path_factory):
    add_record(folder, "a", lr=0.1)
    made = gather_provenance(folder)
    elsewhere = tmp_path_factory.mktemp("tables")
    write_provenance(elsewhere, made)
    assert gather_provenance(elsewhere) == made


# --- cells ---


def test_the_grid_of_verdicts_says_word_number_and_interval_and_colours_only_what_is_resolved(folder):
    text, classes = report_grids.verdict_grid(verdicts(read_study(folder)))
    assert text.columns.tolist() == ["scratch", "simclr_imagenet"]
    assert text.index.tolist() == ["fine_tune\n10%: 10 images", "fine_tune\n100%: 100 images"]
    few, all_labels = text.index
    assert text.loc[few].tolist() == ["", "▲ better\n+0.200 [0.10, 0.30]"]
    told = [cell.replace(MINUS, "-") for cell in text.loc[all_labels]]
    assert told == ["▼ worse\n-0.400 [-0.50, -0.30]", "not resolved\n-0.100 [-0.30, 0.10]"]
    assert classes.loc[all_labels].tolist() == ["worse", "unresolved"]
    assert classes.loc[few].tolist() == ["", "better"]


def test_runs_that_are_not_averaged_yet_are_averaged_without_an_interval(folder):
    grid = report_grids.score_grid(curve_points(read_study(folder), "planes", "fine_tune"))
    assert grid.loc["imagenet"].tolist() == ["0.450", "0.450"]
    assert grid.columns.tolist() == ["10%: 10 images", "100%: 100 images"]


def test_a_map_is_marked_only_where_its_interval_is_beyond_all_three_that_know_nothing():
    values = {"model": (0.5, 0.4), "random": (0.1, 0.0), "gaussian": (0.3, 0.2), "reinitialised": (0.2, 0.1)}
    rows = pd.DataFrame(
        {
            "strategy": name,
            "map": kind,
            "plane": "all",
            "score": "road",
            "value": value,
            "low": low - drop,
            "high": value,
        }
        for name, drop in {"imagenet": 0.0, "scratch": 0.2}.items()
        for kind, (value, low) in values.items()
    )
    text, classes = report_grids.cam_grid(rows)
    assert text.loc["ROAD (higher is better)", "imagenet"] == "0.500 [0.40, 0.50]\nbaselines 0.30"
    assert classes.loc["ROAD (higher is better)"].to_dict() == {"scratch": "", "imagenet": "better"}


def test_a_grouping_stands_above_what_chance_would_give():
    about = {"strategy": "imagenet", "method": "original", "label": "plane"}
    rows = pd.DataFrame(
        [
            about | {"score": "knn_accuracy", "value": 0.8, "low": 0.7, "high": 0.9},
            about | {"score": "knn_accuracy_chance", "value": 0.25, "low": np.nan, "high": np.nan},
            about | {"score": "silhouette", "value": 0.1, "low": 0.0, "high": 0.2},
            about | {"score": "knn_accuracy", "value": 0.6, "low": 0.5, "high": 0.7, "method": "tsne"},
        ]
    )
    grid = report_grids.embedding_grid(rows)
    assert grid.to_dict() == {"plane: kNN accuracy": {"imagenet": "0.800 [0.70, 0.90]\nchance 0.25"}}


def test_a_receipt_is_told_in_sentences():
    rows = pd.DataFrame(
        [
            ("total", "images", 4, 1, 2, 7), ("class", "Fetal femur", 3000, 1, 2, 3003),
            ("left out", "'Other': no plane", np.nan, np.nan, np.nan, 12),
            ("absent", "Other", np.nan, np.nan, np.nan, 0),
            ("overlap", "patients in two subsets", np.nan, np.nan, np.nan, 0),
        ],
        columns=["about", "name", "train", "val", "test", "total"],
    ).assign(task="planes")  # fmt: skip
    assert report_grids.receipt_words(rows, "planes") == [
        "Left out: 12 images, 'Other': no plane.", "No images of Other.", "Patients in two subsets: 0.",
    ]  # fmt: skip
    grid = report_grids.receipt_grid(rows, "planes")
    assert grid.loc[("class", "Fetal femur")].tolist() == ["3,000", "1", "2", "3,003"]
    assert len(grid) == 2


# --- parts of the page ---


def test_a_table_escapes_its_texts_keeps_lines_and_marks_long_columns():
    table = pd.DataFrame({"a<b": ["x\ny", None], "note": ["n" * 50, ""]}, index=pd.Index(["r&1", "r2"], name="row"))
    classes = pd.DataFrame("better", index=table.index, columns=table.columns)
    text = table_html(table, "A & B", classes=classes).data
    assert '<th scope="col" class="name">row</th><th scope="col">a&lt;b</th><th scope="col" class="text">' in text
    assert '<th scope="row">r&amp;1</th><td class="better">x\ny</td>' in text
    assert '<td class="better text">' in text
    assert "<figcaption>A &amp; B</figcaption>" in text
    assert "None" not in text


def test_a_picture_without_words_or_a_figure_without_caption_is_refused():
    with pytest.raises(ValueError, match="alternative text"):
        Panel("data:,", "  ")
    with pytest.raises(ValueError, match="caption"):
        figure_html([Panel("data:,", "a dot")], "")
    with pytest.raises(ValueError, match="0 pictures"):
        figure_html([], "nothing")


def test_a_figure_carries_its_pictures_inside_and_names_them():
    figure, alt = report_figures.draw_curves(metric_rows().query("plane == 'macro'"), title="planes")
    text = figure_html([Panel.of_figure(figure, alt)], "Curves").data
    assert 'src="data:image/svg+xml;base64,' in text
    assert "imagenet from 0.45 with 10 to 0.45 with 100 labelled images" in text


def test_notices_tiles_and_missing_parts_say_what_they_are_given():
    assert "<dt>images</dt><dd>7</dd>" in tiles_html({"images": 7}).data
    assert 'class="notice phantom"' in notice_html("A <b>", "text", kind="phantom").data
    assert "A &lt;b&gt;" in notice_html("A <b>", "text").data
    missing = missing_html("CAM scores", "05_cam_and_embeddings").data
    assert "CAM scores" in missing and "05_cam_and_embeddings" in missing and "--only 05" in missing


@pytest.mark.parametrize(
    ("value", "low", "high", "sign", "text"),
    [
        (0.93, 0.9, 0.954, False, "0.930 [0.90, 0.95]"),
        (-0.1, -0.2, 0.0, True, "-0.100 [-0.20, 0.00]"),
        (0.1, None, None, True, "+0.100"),
        (float("nan"), 0.0, 1.0, False, ""),
    ],
)
def test_numbers_are_written_with_their_interval_where_they_have_one(value, low, high, sign, text):
    written = with_interval(value, low, high, sign=sign)
    assert written.replace(MINUS, "-") == text
    assert "-" not in written
