"""Reference scores: a change of numbers without another RESULTS_VERSION is found here; columns are explained."""

import pandas as pd
from sklearn.metrics import f1_score
from statsmodels.stats.multitest import multipletests

from fetal_utils.comparison import claim_sentence
from fetal_utils.data import Dataset
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.runs import RESULTS_VERSION, RunStore
from fetal_utils.strategies import supervised_run
from fetal_utils.tables import RUN_COLUMNS, TABLES, read

# macro-F1 of ImageNet probes at 32 px on fetal_planes_native, all and a tenth of the labels
REFERENCE = {3: {"planes": (0.722, 0.522), "brain_planes": (0.486, 0.379)}}
TOLERANCE = 0.01  # other processors and versions round features differently
STUDIES = [PROJECT_ROOT / "results/reference" / name for name in ("fetal_planes_native", "fetal_planes_native_160")]


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


def first_page():
    """What the README says of the studies: both claims, and the first one's macro-F1 by share of the labels."""
    claims = [read(folder, "claim") for folder in STUDIES]
    p = multipletests([claim["p"][claim["primary"]].item() for claim in claims], method="holm")[1]
    text = "- At 96 px: {}\n- At 160 px: {}\n- Asked twice, p is {:.3f} and {:.3f} after Holm's correction.\n"
    equal = read(STUDIES[0], "equivalence").query("protocol == 'linear_probe' and label_fraction == 0.05")
    told = "with SimCLR's, {:.0f} labelled images of `{}` do what {:.0f} do with ImageNet's ({:.0f} to {:.0f})".format
    told = [told(*row) for row in equal[["n_images", "task", "n_equivalent", "low", "high"]].to_numpy()]
    arms = read(STUDIES[0], "label_efficiency").query("metric == 'f1' and strategy in ['imagenet', 'simclr_imagenet']")
    spread = arms["sd_over_pairs"].map(" ± {:.3f}".format).where(arms["n_pairs"] > 1, "")
    weak = arms["under_trained"].map({True: ", under-trained", False: ""})
    arms["cell"] = arms["value"].map("{:.3f}".format) + spread + weak
    table = arms.pivot(index=["task", "protocol", "strategy"], columns="label_fraction", values="cell").fillna("")
    rows = [[*table.index.names, *map("{:.0%}".format, table)], ["---"] * (3 + len(table.columns))]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in [*rows, *table.reset_index().to_numpy().tolist()])
    text = text.format(*map(claim_sentence, claims), *p)
    return f"{text}- Of frozen features at 96 px: {'; '.join(told)}.\n\n{rows}"


def test_the_first_page_says_what_the_tables_say():
    assert first_page() in (PROJECT_ROOT / "README.md").read_text()
