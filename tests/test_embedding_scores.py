"""The table of scores of an encoder's features and of maps of them."""

import numpy as np
import pandas as pd
import pytest

from fetal_utils.embedding_scores import EMBEDDING_COLUMNS, embedding_scores
from fetal_utils.embeddings import EmbeddingMap

N_PATIENTS, N_EACH = 12, 4
PATIENTS = np.repeat(np.arange(N_PATIENTS), N_EACH)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def study(rng):
    """Features with clusters of planes and a faint trace of patients; a good map and one drawn at random."""
    table = pd.DataFrame(
        {
            "plane": np.tile(["Fetal brain", "Fetal brain", "Fetal femur", "Fetal femur"], N_PATIENTS),
            "patient": PATIENTS,
            "machine": np.repeat(["Aloka", "Voluson E6"], 24),
        }
    )
    features = rng.normal(size=(48, 8)) + 4 * np.eye(2, 8)[(table["plane"] == "Fetal femur").to_numpy().astype(int)]
    maps = [
        EmbeddingMap("pca", features[:, :2]),
        EmbeddingMap("tsne", rng.normal(size=(48, 2)), {"perplexity": 5, "seed": 0}),
    ]
    return features, maps, table


def table_of_scores(study, **changes):
    options = {"task": "planes", "strategy": "scratch", "n_resamples": 100, "n_neighbours": 5, "progress": False}
    return embedding_scores(*study, **{**options, "rng": np.random.default_rng(1), **changes})


def test_the_table_has_the_columns_of_the_contract_and_a_row_for_each_score(study):
    scores = table_of_scores(study)
    assert tuple(scores.columns) == EMBEDDING_COLUMNS
    assert not scores.duplicated(["method", "setting", "label", "score"]).any()
    spaces = scores[["method", "setting"]].drop_duplicates().to_numpy().tolist()
    assert spaces == [["original", "features=8"], ["pca", "two components"], ["tsne", "perplexity=5, seed=0"]]
    of_patients = {"knn_accuracy", "silhouette", "separability", "separability_chance"}
    expected = {"all": {"trustworthiness", "continuity"}, "patient": of_patients}
    for (method, label), rows in scores.groupby(["method", "label"]):
        assert set(rows["score"]) == expected.get(label, of_patients | {"knn_accuracy_chance"}), method
    assert set(scores["label"]) == {"plane", "patient", "machine", "all"}
    assert not (scores[scores["method"] == "original"]["label"] == "all").any()


def test_a_map_that_shows_the_planes_scores_above_one_that_does_not(study):
    scores = table_of_scores(study)
    knn = scores[(scores["label"] == "plane") & (scores["score"] == "knn_accuracy")].set_index("method")["value"]
    assert knn["original"] > 0.9
    assert knn["pca"] > 0.9
    assert knn["tsne"] < 0.8
    trust = scores[scores["score"] == "trustworthiness"].set_index("method")["value"]
    assert trust["pca"] > trust["tsne"]


def test_values_lie_within_their_intervals_and_chance_has_none(study):
    scores = table_of_scores(study)
    chance = scores["score"].str.endswith("_chance")
    assert scores.loc[chance, ["low", "high"]].isna().all(axis=None)
    rest = scores[~chance]
    assert ((rest["low"] <= rest["value"]) & (rest["value"] <= rest["high"])).all()
    assert (rest["low"] < rest["high"]).mean() > 0.8


def test_generators_seeded_alike_give_the_same_table(study):
    pd.testing.assert_frame_equal(table_of_scores(study), table_of_scores(study))


def test_a_table_survives_being_written_and_read(study, tmp_path):
    scores = table_of_scores(study)
    scores.to_csv(tmp_path / "embedding_scores.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "embedding_scores.csv"), scores, check_dtype=False)


def test_labels_can_be_chosen(study):
    features, maps, table = study
    one_machine = features, maps, table.assign(machine="Aloka")
    with pytest.raises(ValueError, match=r"classes \['Aloka'\].*leave this label out of labels"):
        table_of_scores(one_machine)
    assert set(table_of_scores(one_machine, labels=["plane"])["label"]) == {"plane", "all"}
    with pytest.raises(ValueError, match=r"labels=\['operator'\]: expected one or more of"):
        table_of_scores(study, labels=["operator"])


def test_tables_that_do_not_fit_are_refused(study):
    features, maps, table = study
    with pytest.raises(ValueError, match=r"47 rows .* features of 48 images: expected a row for each image"):
        table_of_scores((features, maps, table[:47]))
    with pytest.raises(ValueError, match=r"missing: \['machine'\]"):
        table_of_scores((features, maps, table.drop(columns="machine")))
    with pytest.raises(ValueError, match=r"no value in \['plane'\]"):
        table_of_scores((features, maps, table.assign(plane=table["plane"].where(table.index > 0))))
    with pytest.raises(ValueError, match="tsne has 4 points, the features 48 images"):
        table_of_scores((features, [EmbeddingMap("tsne", features[:4, :2])], table))
    with pytest.raises(ValueError, match="1 of 48 images hold NaN"):
        table_of_scores((np.where(np.arange(48)[:, None] == 3, np.nan, features), maps, table))
