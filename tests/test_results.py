"""The tables that git holds: described, and still those of the settings that made them."""

import pandas as pd
import pytest
from test_packaging import tracked

from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.plans import asked_runs, plan, read_preset

TABLES = tracked("results/*.csv")


@pytest.mark.parametrize("path", TABLES)
def test_every_column_of_a_committed_table_is_explained(path):
    explained = (PROJECT_ROOT / "results" / "README.md").read_text()
    columns = pd.read_csv(PROJECT_ROOT / path, nrows=1).columns
    assert [name for name in columns if f"`{name}`" not in explained] == []


def test_no_picture_of_a_real_image_is_committed():
    pictures = {path.rpartition("/")[2].split(".")[0] for path in tracked("results/fetal_planes_subset/*.png")}
    assert pictures
    assert pictures <= {"03_per_class", "04_label_efficiency", "04_differences", "05_cam_scores", "05_cka"}


def test_the_settings_of_the_real_study_still_name_the_runs_it_was_made_from(real_data, tmp_path):
    given = {"data_dir": str(real_data / "fetal_planes_subset"), "results_dir": str(tmp_path)}
    asked = [asked_runs(execution) for execution in plan(read_preset("laptop"), given, only="04")]
    keys = {store.folder(settings).name for store, wanted in asked for settings in wanted}
    made = set(pd.read_csv(PROJECT_ROOT / "results" / "fetal_planes_subset" / "runs.csv")["key"])
    assert len(keys) > 300
    assert keys <= made
