"""What a split holds, for printing: images, patients, classes, machines, and what was left out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pandas as pd

from fetal_utils.splits import SUBSETS
from fetal_utils.tasks import Task


def split_hash(image_names: pd.Series, subset: pd.Series) -> str:
    """Twelve hexadecimal digits that change when any image changes its subset."""
    text = "\n".join(sorted(image_names + " " + subset))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Receipt:
    """What a task's split holds, for printing and for a run's record.

    Attributes
    ----------
    totals, classes, machines : DataFrame
        Images and patients, images per class and images per machine; one column per subset.
    left_out : dict of str to int
        Images left out of the task, by reason.
    absent : list of str
        Classes of the task that the data set has no image of.
    overlap : int
        Patients in more than one subset; the split's assert keeps it at 0.
    hash : str
        `split_hash` of the task's images.
    """

    task: str
    totals: pd.DataFrame
    classes: pd.DataFrame
    machines: pd.DataFrame
    left_out: dict[str, int]
    absent: list[str]
    overlap: int
    hash: str

    def __str__(self) -> str:
        left_out = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "nothing"
        absent = ", ".join(self.absent) or "none"
        blocks = [table.to_string() for table in (self.totals, self.classes, self.machines)]
        return "\n\n".join(
            [
                f"Task {self.task}, split {self.hash}",
                *blocks,
                f"left out: {left_out}\nclasses absent: {absent}\npatients in two subsets: {self.overlap}",
            ]
        )

    def to_frame(self) -> pd.DataFrame:
        """The same counts as rows, for a file.

        Returns
        -------
        DataFrame
            Columns ``task, split, about, name, train, val, test, total``. ``about`` is "total" (the names "images" and
            "patients"), "class", "machine" (images), "left out" (images by reason), "absent" (a class) or "overlap"
            (patients in two subsets); the last three have no counts by subset.
        """
        blocks = {"total": self.totals, "class": self.classes, "machine": self.machines}
        counts = [
            table.assign(total=table.sum(axis=1)).rename_axis("name").reset_index().assign(about=about)
            for about, table in blocks.items()
        ]
        others = [("left out", reason, count) for reason, count in self.left_out.items()]
        others += [("absent", name, 0) for name in self.absent]
        others.append(("overlap", "patients in two subsets", self.overlap))
        frame = pd.concat([*counts, pd.DataFrame(others, columns=["about", "name", "total"])], ignore_index=True)
        subsets = list(SUBSETS)
        frame[subsets] = frame[subsets].astype("Int64")
        return frame.assign(task=self.task, split=self.hash)[["task", "split", "about", "name", *subsets, "total"]]


def make_receipt(table: pd.DataFrame, subset: pd.Series, *, task: Task, present: Task) -> Receipt:
    """Count what each subset of a task holds and what was left out.

    Parameters
    ----------
    table : DataFrame
        All rows of the data set, as from `read_metadata`.
    subset : Series of str
        As from `split_by_patient`.
    task, present : Task
        The task, and the task restricted to the classes this data set has.

    Returns
    -------
    Receipt
    """
    label = table[task.label_column]
    used = label.isin(present.classes)
    rows, subset_used = table[used], pd.Categorical(subset[used], categories=list(SUBSETS))
    by_subset = rows.groupby(subset_used, observed=False)["patient"]
    n_subsets = subset[used].groupby(rows["patient"]).nunique()
    reasons = label[~used].map(lambda name: f"{name!r}: {task.left_out[name]}").value_counts()
    return Receipt(
        task=task.name,
        totals=pd.DataFrame({"images": by_subset.size(), "patients": by_subset.nunique()}).T,
        classes=count_by(label[used], subset_used).reindex(list(present.classes)),
        machines=count_by(rows["machine"], subset_used),
        left_out={reason: int(count) for reason, count in reasons.items()},
        absent=[name for name in task.classes if name not in present.classes],
        overlap=int((n_subsets > 1).sum()),
        hash=split_hash(rows["image_name"], subset[used]),
    )


def count_by(values: pd.Series, subset: pd.Categorical) -> pd.DataFrame:
    """Images per value (rows) and subset (columns)."""
    return pd.crosstab(values, subset, dropna=False).rename_axis(columns=None)
