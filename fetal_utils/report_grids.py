"""The tables of a study's report as a reader meets them: words and numbers in cells."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from fetal_utils.cam_baselines import BASELINES
from fetal_utils.cam_plots import score_label
from fetal_utils.cam_verdicts import BETTER as CAM_SCORES
from fetal_utils.cam_verdicts import beats_baselines
from fetal_utils.report_parts import with_interval
from fetal_utils.report_tables import BETTER, UNRESOLVED, WORSE, by_strategy, first_known
from fetal_utils.strategies import STRATEGIES

CELL_CLASSES = {BETTER: "better", WORSE: "worse", UNRESOLVED: "unresolved"}  # of report.css
MARKS = {BETTER: "\N{BLACK UP-POINTING TRIANGLE} ", WORSE: "\N{BLACK DOWN-POINTING TRIANGLE} ", UNRESOLVED: ""}
GROUPING = {"knn_accuracy": "kNN accuracy", "separability": "separability"}  # scores that can be read beside chance


def spread(table: pd.DataFrame, cell: pd.Series, *, index: list[str], columns: str) -> pd.DataFrame:
    """Cells laid out by the values of ``index`` and ``columns``, in the order in which they stand; empty where none."""
    laid = table.assign(cell=cell).pivot(index=index, columns=columns, values="cell")
    rows = pd.MultiIndex.from_frame(table[index]) if len(index) > 1 else pd.Index(table[index[0]])
    return laid.reindex(index=rows.unique(), columns=table[columns].unique()).rename_axis(columns=None)


def name_labels(label_fraction: float, n_labelled: float) -> str:
    """A label fraction as a row heading, with the images behind it."""
    return f"{label_fraction:.0%}: {n_labelled:,.0f} images" if pd.notna(n_labelled) else f"{label_fraction:.0%}"


def receipt_grid(receipt: pd.DataFrame, task: str) -> pd.DataFrame:
    """What each subset of a task holds: images, patients, classes and machines."""
    rows = receipt[(receipt["task"] == task) & receipt["about"].isin(["total", "class", "machine"])]
    counts = rows.set_index(["about", "name"])[["train", "val", "test", "total"]].astype(int)
    return counts.map("{:,}".format)


def receipt_words(receipt: pd.DataFrame, task: str) -> list[str]:
    """What was left out of a task, which classes are absent, how many patients are in two subsets: as sentences."""
    rows = receipt[receipt["task"] == task].set_index("about")
    words = [f"Left out: {row.total:,.0f} images, {row.name}." for row in rows[rows.index == "left out"].itertuples()]
    if absent := list(rows.loc[rows.index == "absent", "name"]):
        words.append(f"No images of {', '.join(absent)}.")
    return [*words, f"Patients in two subsets: {rows.loc['overlap', 'total']:.0f}."]


def verdict_grid(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts of one task, a column for each strategy, and the CSS class of each cell.

    Parameters
    ----------
    rows : DataFrame
        From `verdicts`.
    """
    rows = rows.sort_values(["protocol", "label_fraction"], ascending=[False, True], kind="stable")
    labels = [f"{row.protocol}\n{name_labels(row.label_fraction, row.n_labelled)}" for row in rows.itertuples()]
    rows = rows.assign(labels=labels)
    words = [
        f"{MARKS[row.verdict]}{row.verdict}\n{with_interval(row.difference, row.low, row.high, sign=True)}"
        for row in rows.itertuples()
    ]
    layout = {"index": ["labels"], "columns": "strategy"}
    text = spread(rows, pd.Series(words, index=rows.index), **layout)
    text = text[first_known(text.columns, STRATEGIES)]
    classes = spread(rows, rows["verdict"].map(CELL_CLASSES), **layout)[text.columns].fillna("")
    return text.fillna(""), classes


def count_verdicts(rows: pd.DataFrame) -> str:
    """How many differences are resolved either way, in a few words."""
    counts = rows["verdict"].value_counts().reindex([BETTER, WORSE, UNRESOLVED], fill_value=0)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def score_grid(points: pd.DataFrame) -> pd.DataFrame:
    """Macro-F1 with its interval for each strategy and number of labels, from `curve_points`.

    Runs that are not averaged yet are averaged here, without an interval.
    """
    by = ["strategy", "label_fraction"]
    if points.duplicated(by).any():
        points = points.groupby(by, sort=False)[["n_images", "value"]].mean().reset_index().assign(low=None, high=None)
    points = points.sort_values("label_fraction", kind="stable")
    n_labelled = points.groupby("label_fraction")["n_images"].transform("mean")
    labels = [name_labels(*pair) for pair in zip(points["label_fraction"], n_labelled, strict=True)]
    cell = points.apply(lambda row: with_interval(row["value"], row["low"], row["high"]), axis=1)
    grid = spread(points.assign(labels=labels), cell, index=["strategy"], columns="labels")
    return grid.loc[first_known(grid.index, STRATEGIES)].fillna("")


def class_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """A metric of each class, a column for each strategy, from `per_class`."""
    cell = rows.apply(lambda row: with_interval(row["value"], row["low"], row["high"]), axis=1)
    return spread(rows, cell, index=["plane"], columns="strategy").fillna("")


def machine_grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Macro-F1 within each machine or operator, with what to beware of."""
    score = table.apply(lambda row: with_interval(row["value"], row["low"], row["high"]), axis=1)
    counts = table[["n_train_images", "n_images", "n_patients", "n_classes"]].map("{:,.0f}".format)
    counts.columns = ["training images", "test images", "test patients", "classes"]
    return counts.assign(**{"macro-F1": score, "note": table["note"].fillna("")}).set_index(
        table[column].rename(column)
    )


def cam_grid(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each network's score beside the best of its three baselines, marked where it lies beyond all of them.

    Returns
    -------
    texts, classes : DataFrame
        A row per score, a column per strategy.
    """
    texts, classes = {}, {}
    for score in [name for name in CAM_SCORES if name in set(rows["score"])]:
        own = rows[(rows["score"] == score) & (rows["plane"] == "all")]
        values = own.pivot(index="strategy", columns="map", values="value")
        known = values[list(BASELINES)]
        best = known.max(axis=1) if CAM_SCORES[score] > 0 else known.min(axis=1)
        model = own[own["map"] == "model"].set_index("strategy")
        label = score_label(score)
        texts[label] = {
            name: f"{with_interval(one['value'], one['low'], one['high'])}\nbaselines {best[name]:.2f}"
            for name, one in model.iterrows()
        }
        beats = beats_baselines(rows, score=score)
        classes[label] = {name: "better" if beats[name] else "" for name in model.index}
    grids = [pd.DataFrame(one).T.rename_axis("score") for one in (texts, classes)]
    columns = first_known(grids[0].columns, STRATEGIES)
    return grids[0][columns].fillna(""), grids[1][columns].fillna("")


def embedding_grid(scores: pd.DataFrame) -> pd.DataFrame:
    """How the features group in their own space: a row per encoder, a column per label and score of `GROUPING`.

    A second line says what chance would give, where the table knows.
    """
    rows = scores[(scores["method"] == "original") & scores["score"].isin(GROUPING)]
    by = ["strategy", "label"]
    chance = {
        (*key, score.removesuffix("_chance")): value
        for *key, score, value in scores.loc[scores["method"] == "original", [*by, "score", "value"]].to_numpy()
        if score.endswith("_chance")
    }
    texts = [
        with_interval(row.value, row.low, row.high)
        + (f"\nchance {chance[key]:.2f}" if (key := (row.strategy, row.label, row.score)) in chance else "")
        for row in rows.itertuples()
    ]
    named = rows["label"] + ": " + rows["score"].map(GROUPING)
    return spread(
        rows.assign(what=named), pd.Series(texts, index=rows.index), index=["strategy"], columns="what"
    ).fillna("")


def cost_grid(table: pd.DataFrame) -> pd.DataFrame:
    """What each strategy cost, pretrainings included, beside what it gained on average."""
    table = by_strategy(table).sort_values("protocol", ascending=False, kind="stable")
    columns = {
        "runs": table["n_runs"].map("{:,.0f}".format),
        "pretrainings": table["n_pretrainings"].map("{:,.0f}".format),
        "steps per classifier": table["steps_per_run"].map("{:,.0f}".format),
        "views per classifier": table["views_per_run"].map("{:,.0f}".format),
        "seconds in all": table["seconds"].map("{:,.0f}".format),
        "mean gain in macro-F1": [with_interval(gain, None, None, sign=True) for gain in table["mean_gain"]],
    }
    return pd.DataFrame(columns).set_index(pd.MultiIndex.from_frame(table[["protocol", "strategy"]]))


def settings_grid(provenance: Mapping) -> pd.DataFrame:
    """The settings of each kind of run: a row per setting, a column per kind, all values that occur."""
    columns = {
        kind: {name: ", ".join(map(name_value, values)) for name, values in one["settings"].items()}
        for kind, one in provenance["kinds"].items()
    }
    names = dict.fromkeys(name for values in columns.values() for name in values)
    grid = pd.DataFrame({kind: pd.Series(values) for kind, values in columns.items() if values}, index=list(names))
    return grid.fillna("").rename_axis("setting")


def name_value(value: object) -> str:
    """A setting's value as a reader writes it."""
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def kinds_grid(provenance: Mapping) -> pd.DataFrame:
    """How many runs of each kind there are, and what they took."""
    rows = {
        kind: {
            "runs": f"{one['n_runs']:,}",
            "hours": f"{one['hours']:.2f}",
            "peak memory, MiB": f"{one['peak_memory_mib']:,.0f}",
        }
        for kind, one in provenance["kinds"].items()
    }
    return pd.DataFrame(rows).T.rename_axis("kind")
