"""Reference scores: a change of numbers without another RESULTS_VERSION is found here; columns are explained."""

import pandas as pd
from sklearn.metrics import f1_score

from fetal_utils.data import Dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.runs import RESULTS_VERSION, RunStore
from fetal_utils.strategies import supervised_run
from fetal_utils.tables import RUN_COLUMNS, TABLES

# macro-F1 on the test patients of fetal_planes_native: ImageNet probes, 32 px, all and a tenth of the labels
REFERENCE = {3: {"planes": (0.722, 0.522), "brain_planes": (0.486, 0.379)}}
TOLERANCE = 0.01  # other processors and versions round features differently


def test_the_code_still_makes_the_reference_scores_of_this_results_version(real_data, tmp_path):
    store = RunStore(tmp_path, Dataset(real_data / "fetal_planes_native", tmp_path / "cache"), progress=False)
    about = {
        "dataset": store.dataset,
        "protocol": "linear_probe",
        "backbone": "tf_efficientnet_lite0",
        "image_size": 32,
    }
    found = {}
    for task in ("planes", "brain_planes"):
        wanted = [supervised_run("imagenet", task=task, label_fraction=part, **about) for part in (1.0, 0.1)]
        tables = [run.predictions for run in store.get(wanted)]
        found[task] = [f1_score(table["true"], table["predicted"], average="macro") for table in tables]
    pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(REFERENCE[RESULTS_VERSION]), atol=TOLERANCE, rtol=0)


def test_the_columns_of_all_tables_are_explained():
    explained = (PROJECT_ROOT / "results" / "README.md").read_text()
    columns = {*RUN_COLUMNS, *(name for groups in TABLES.values() for group in groups for name in group)}
    assert [name for name in sorted(columns) if f"`{name}`" not in explained] == []
