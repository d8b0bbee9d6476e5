"""The tables that git holds: described, and still those of the settings and the code that made them."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_packaging import tracked

from fetal_utils.breakdowns import by_labelled_patients
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.plans import asked_runs, plan, read_preset
from fetal_utils.report import check_page

RESULTS = PROJECT_ROOT / "results"
TABLES = tracked("results/*.csv")
PIXEL_FREE = {"03_per_class", "04_label_efficiency", "04_differences", "05_cam_scores", "05_cka"}


@pytest.mark.parametrize("path", TABLES)
def test_every_column_of_a_committed_table_is_explained(path):
    explained = (RESULTS / "README.md").read_text()
    columns = pd.read_csv(PROJECT_ROOT / path, nrows=1).columns
    assert [name for name in columns if f"`{name}`" not in explained] == []


def test_no_picture_of_a_real_image_is_committed():
    endings = ("png", "svg", "jpg", "webp")
    paths = [path for ending in endings for path in tracked(f"results/fetal_planes_subset/*.{ending}")]
    assert paths
    assert {path.rpartition("/")[2].split(".")[0] for path in paths} <= PIXEL_FREE


@pytest.mark.parametrize("path", tracked("results/*/report.html"))
def test_a_committed_report_is_self_contained_and_small(path):
    page = (PROJECT_ROOT / path).read_text(encoding="utf-8")
    check_page(page, name=path)
    assert len(page) < 1_500_000
    assert "Not a medical device" in page


def test_a_committed_report_on_real_images_shows_charts_only():
    page = (RESULTS / "fetal_planes_subset" / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img[^>]*src="data:([^;]+)', page)
    assert pictures
    assert "Phantom images" not in page
    # charts are drawn as SVG; pictures of files, of which maps of features and CKA alone are shown, are WebP
    assert pictures.count("image/webp") <= 4


@pytest.mark.parametrize("study", ["demo", "fetal_planes_subset"])
def test_committed_tables_say_what_made_them(study):
    made = json.loads((RESULTS / study / "settings.json").read_text())
    (data,) = made["data"]
    assert data["is_phantom"] == (study == "demo")
    assert set(made["kinds"]) == {"dual_task", "features", "fine_tune", "linear_probe", "simclr"}
    assert len(made["versions"]["torch"]) == 1
    receipt = pd.read_csv(RESULTS / study / "tables" / "receipt.csv")
    assert set(receipt["data_key"]) == {data["data_key"]}
    assert receipt.loc[receipt["about"] == "overlap", "total"].tolist() == [0, 0]


# --- the settings ---


@pytest.fixture(scope="module")
def asked_of_real(real_data, tmp_path_factory):
    """The store and the runs that 04 asks for on the real images, for each task."""
    given = {"data_dir": str(real_data / "fetal_planes_subset"), "results_dir": str(tmp_path_factory.mktemp("real"))}
    return [asked_runs(execution) for execution in plan(read_preset("laptop"), given, only="04")]


def made_keys(study):
    return set(pd.read_csv(RESULTS / study / "runs.csv")["key"])


def test_the_settings_of_the_real_study_still_name_the_runs_it_was_made_from(asked_of_real):
    keys = {store.folder(settings).name for store, wanted in asked_of_real for settings in wanted}
    assert len(keys) > 300
    assert keys <= made_keys("fetal_planes_subset")


def test_the_settings_of_the_demo_still_name_the_runs_it_was_made_from(tiny_phantom, tmp_path):
    # a run is named by its settings and by the key of its data, here that of the phantom of the committed tables
    recorded = pd.read_csv(RESULTS / "demo" / "tables" / "receipt.csv")["data_key"].iloc[0]
    given = {"data_dir": str(tiny_phantom), "results_dir": str(tmp_path)}
    keys = set()
    for execution in plan(read_preset("demo"), given, only="04"):
        store, wanted = asked_runs(execution)
        store.dataset = SimpleNamespace(key=recorded)
        keys |= {store.folder(settings).name for settings in wanted}
    assert len(keys) > 50
    assert keys <= made_keys("demo")


# --- the numbers ---

TOLERANCE = 0.01  # of a macro-F1 averaged over draws: other processors and versions round features differently


def test_the_code_still_makes_the_committed_scores_of_frozen_imagenet_encoders(asked_of_real):
    fractions = (0.05, 1.0)
    store, wanted = next(pair for pair in asked_of_real if pair[1][0].task == "brain_planes")
    probes = [
        settings
        for settings in wanted
        if (settings.kind, settings.strategy) == ("linear_probe", "imagenet") and settings.label_fraction in fractions
    ]
    by = ["label_fraction"]
    made = by_labelled_patients(store.get(probes), n_resamples=20, rng=np.random.default_rng(0)).set_index(by)
    committed = pd.read_csv(RESULTS / "fetal_planes_subset" / "tables" / "label_efficiency.brain_planes.csv")
    committed = committed[(committed["strategy"] == "imagenet") & (committed["protocol"] == "linear_probe")]
    committed = committed.set_index(by).loc[list(fractions)]
    counts = ["n_labelled_patients", "n_labelled_images", "n_runs", "n_images", "n_patients", "n_classes"]
    np.testing.assert_allclose(made.loc[list(fractions), counts], committed[counts], rtol=1e-9)
    np.testing.assert_allclose(made.loc[list(fractions), "value"], committed["value"], atol=TOLERANCE)
