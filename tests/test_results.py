"""Reference scores: a change of numbers without another RESULTS_VERSION is found here; columns are explained."""

import pandas as pd
from sklearn.metrics import f1_score

from fetal_utils.comparison import claim_sentence
from fetal_utils.data import Dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.runs import RESULTS_VERSION, RunStore
from fetal_utils.strategies import supervised_run
from fetal_utils.tables import RUN_COLUMNS, TABLES, read

# macro-F1 on the test patients of fetal_planes_native: ImageNet probes, 32 px, all and a tenth of the labels
REFERENCE = {3: {"planes": (0.722, 0.522), "brain_planes": (0.486, 0.379)}}
REFERENCE_STUDY = PROJECT_ROOT / "results/reference/fetal_planes_native_160"
TOLERANCE = 0.01  # other processors and versions round features differently


def test_the_code_still_makes_the_reference_scores_of_this_results_version(real_data, tmp_path):
    store = RunStore(tmp_path, Dataset(real_data / "fetal_planes_native", tmp_path / "cache"), progress=False)
    about = {"dataset": store.dataset, "protocol": "linear_probe", "image_size": 32}
    about["backbone"] = "tf_efficientnet_lite0"
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


def first_page(folder):
    """What the README says of a study: its claim, and macro-F1 of the claim's arms by share of the labels."""
    curves = read(folder, "label_efficiency").query("metric == 'f1' and strategy in ['imagenet', 'simclr_imagenet']")
    spread = curves["sd_over_pairs"].map(" ± {:.3f}".format).where(curves["n_pairs"] > 1, "")
    weak = curves["under_trained"].map({True: ", under-trained", False: ""})
    curves["cell"] = curves["value"].map("{:.3f}".format) + spread + weak
    index = ["task", "protocol", "strategy"]
    table = curves.pivot(index=index, columns="label_fraction", values="cell").fillna("").sort_index()
    rows = [[*index, *map("{:.0%}".format, table)], ["---"] * (3 + len(table.columns))]
    rows += table.reset_index().to_numpy().tolist()
    equal = read(folder, "equivalence").query("protocol == 'linear_probe' and label_fraction == 0.05")
    told = "with SimCLR's, {:.0f} labelled images of `{}` do what {:.0f} do with ImageNet's ({:.0f} to {:.0f})".format
    told = [told(*row) for row in equal[["n_images", "task", "n_equivalent", "low", "high"]].to_numpy()]
    sentences = [claim_sentence(read(folder, "claim")), "", f"Of frozen features: {'; '.join(told)}.", ""]
    return "\n".join([*sentences, *(f"| {' | '.join(row)} |" for row in rows)])


def test_the_first_page_says_what_the_tables_say():
    assert first_page(REFERENCE_STUDY) in (PROJECT_ROOT / "README.md").read_text()
