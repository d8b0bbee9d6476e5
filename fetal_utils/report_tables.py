"""The tables of a finished study, read for its report: what is there, and each number with its reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from fetal_utils.provenance import gather_provenance
from fetal_utils.strategies import STRATEGIES
from fetal_utils.tables import TABLES
from fetal_utils.tasks import TASKS

BETTER, WORSE, UNRESOLVED = "better", "worse", "not resolved"


@dataclass(frozen=True)
class StudyTables:
    """What a results folder holds; a table that is missing is empty.

    Attributes
    ----------
    folder : Path
    metrics, comparisons, cam_scores, embedding_scores : DataFrame
        As `merge_tables` leaves them.
    """

    folder: Path
    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    cam_scores: pd.DataFrame
    embedding_scores: pd.DataFrame

    @property
    def tasks(self) -> list[str]:
        """Tasks with results: the study's own in their order, then others."""
        return first_known(self.metrics["task"], TASKS)

    def protocols(self, task: str) -> list[str]:
        """Protocols of a task, frozen encoders first."""
        return sorted(set(self.metrics.loc[self.metrics["task"] == task, "protocol"]), reverse=True)

    @cached_property
    def provenance(self) -> dict | None:
        """See `gather_provenance`."""
        return gather_provenance(self.folder)

    @cached_property
    def receipt(self) -> pd.DataFrame:
        """Rows of ``tables/receipt.csv``, which notebook 01 writes; empty without it."""
        return self.read("tables/receipt.csv")

    @property
    def is_phantom(self) -> bool | None:
        """Whether the data are a phantom; None where neither the receipt nor any run says so."""
        said = set(self.receipt.get("is_phantom", []))
        said |= {data["is_phantom"] for data in (self.provenance or {}).get("data", [])}
        return any(said) if said else None

    @property
    def data_title(self) -> str:
        """What tables and figures call the data set."""
        titles = dict.fromkeys(self.receipt.get("data", []))
        titles |= dict.fromkeys(data["title"] for data in (self.provenance or {}).get("data", []))
        return ", ".join(titles) or "an unnamed data set"

    def read(self, name: str) -> pd.DataFrame:
        """A table by its path inside the folder; empty if it is not there."""
        path = self.folder / name
        return pd.read_csv(path, keep_default_na=False, na_values=[""]) if path.exists() else pd.DataFrame()


def read_study(results_dir: str | Path) -> StudyTables:
    """The tables of a results folder.

    Raises
    ------
    FileNotFoundError
        If there is no ``metrics.csv``: nothing has been run; the notebooks that make it are named.
    """
    folder = Path(results_dir)
    if not (folder / "metrics.csv").exists():
        raise FileNotFoundError(
            f"{folder / 'metrics.csv'} is missing, so there is nothing to report: run the notebooks "
            "02_simclr_pretraining, 03_transfer_learning_baselines and 04_label_efficiency by "
            f"`python -m fetal_utils.study --results-dir {folder}`, which merges their tables at the end"
        )
    empty = StudyTables(folder, *(pd.DataFrame(columns=list(columns)) for columns in TABLES.values()))
    tables = {name: empty.read(f"{name}.csv") for name in TABLES}
    return StudyTables(folder, **{name: getattr(empty, name) if t.empty else t for name, t in tables.items()})


def first_known(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names that occur, once each: the known ones in their order, then the others by the alphabet."""
    found = [name for name in known if name in set(names)]
    return found + sorted(set(names) - set(found))


def by_strategy(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the study's strategies; others, such as with equal steps, behind them."""
    order = {name: place for place, name in enumerate(first_known(table["strategy"], STRATEGIES))}
    return table.sort_values("strategy", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)


def curve_points(study: StudyTables, task: str, protocol: str) -> pd.DataFrame:
    """Macro-F1 against labelled images, a row per strategy and label fraction, as `plot_label_efficiency` reads it.

    Returns
    -------
    DataFrame
        Means over draws and seeds with a 95 % interval over patients, from ``label_efficiency.<task>.csv``. Where
        notebook 04 left none, the rows of ``metrics.csv``, one per run.
    """
    table = study.read(f"tables/label_efficiency.{task}.csv")
    if table.empty:
        rows = study.metrics
        rows = rows[(rows["task"] == task) & (rows["plane"] == "macro") & (rows["metric"] == "f1")]
    else:
        columns = ["strategy", "protocol", "label_fraction", "n_labelled_images", "value", "low", "high"]
        rows = table[columns].rename(columns={"n_labelled_images": "n_images"})
        rows = rows.assign(task=task, plane="macro", metric="f1")
    return by_strategy(rows[rows["protocol"] == protocol])


def count_labels(metrics: pd.DataFrame) -> pd.Series:
    """Labelled images, mean over draws, by task, protocol and label fraction."""
    by = ["task", "protocol", "label_fraction"]
    return metrics.drop_duplicates([*by, "draw"]).groupby(by)["n_images"].mean()


def judge(row: pd.Series) -> str:
    """A difference in one word: `BETTER` or `WORSE` where it is resolved, else `UNRESOLVED`."""
    if not row["resolved"]:
        return UNRESOLVED
    return BETTER if row["difference"] > 0 else WORSE


def verdicts(study: StudyTables, *, metric: str = "f1") -> pd.DataFrame:
    """Each strategy against the baseline, a row per task, protocol, label fraction and strategy.

    Returns
    -------
    DataFrame
        Rows of ``comparisons.csv`` for one metric, with ``n_labelled`` (images) and ``verdict`` (`judge`); empty
        without comparisons of that metric.
    """
    rows = study.comparisons[study.comparisons["metric"] == metric].copy()
    if rows.empty:
        return rows.assign(n_labelled=[], verdict=[])
    rows["resolved"] = rows["resolved"].astype(bool)
    counts = count_labels(study.metrics).rename("n_labelled").reset_index()
    rows = rows.merge(counts, on=["task", "protocol", "label_fraction"], how="left")
    return by_strategy(rows.assign(verdict=rows.apply(judge, axis=1)))


def per_class(study: StudyTables, task: str, *, protocol: str, label_fraction: float, metric: str) -> pd.DataFrame:
    """A metric of each class and strategy: mean over draws and seeds of the value and of the ends of its interval.

    Returns
    -------
    DataFrame
        Columns ``strategy, plane, metric, value, low, high, n_runs``, strategies in the study's order; empty if there
        are no such runs.
    """
    rows = study.metrics
    chosen = (rows["task"] == task) & (rows["protocol"] == protocol) & (rows["metric"] == metric)
    rows = rows[chosen & (rows["label_fraction"] == label_fraction) & (rows["plane"] != "macro")]
    means = rows.groupby(["strategy", "plane", "metric"], sort=False)[["value", "low", "high"]].mean()
    means = means.join(rows.groupby(["strategy", "plane", "metric"]).size().rename("n_runs")).reset_index()
    return by_strategy(means)


def one_network_each(cam_scores: pd.DataFrame, task: str) -> pd.DataFrame:
    """CAM scores of a task for one protocol, label fraction, seed and method: those that stand first."""
    rows = cam_scores[cam_scores["task"] == task]
    by = ["protocol", "label_fraction", "seed", "method"]
    return rows.merge(rows[by].head(1), on=by) if len(rows) else rows
