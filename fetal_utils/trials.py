"""Which settings of a pretraining help: one change at a time, judged on validation patients.

``python -m fetal_utils.trials notebooks/trials.yaml --data-dir D --results-dir R``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from fetal_utils.command_line import UsageError
from fetal_utils.dataset import open_dataset
from fetal_utils.encoders import Features
from fetal_utils.files import StorageError, replace_file
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.simclr import settings_from
from fetal_utils.training import LinearProbe

TABLE = "pretraining_trials.csv"
PLAN_KEYS = {"base", "base_seeds", "val_fraction", "tasks", "label_fractions", "draws", "changes"}


@dataclass(frozen=True)
class Trial:
    """A pretraining and the encoder it is compared with, both judged by linear probes.

    Attributes
    ----------
    change : str
        What differs from the base, as text; "base" for the base itself.
    seed : int
    probes : tuple of LinearProbe
        One for each task, label fraction and draw.
    """

    change: str
    seed: int
    probes: tuple[LinearProbe, ...]


def read_plan(path: str | Path) -> dict:
    """A plan of trials from a YAML file.

    Raises
    ------
    UsageError
        If the file is missing, is not YAML, or lacks an entry.
    """
    try:
        plan = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} can't be read as a plan of trials: {error}") from None
    if not isinstance(plan, dict) or set(plan) != PLAN_KEYS:
        raise UsageError(f"{path}: a plan of trials has exactly {sorted(PLAN_KEYS)}")
    return plan


def plan_trials(plan: Mapping) -> list[Trial]:
    """The trials of a plan, in its order: the base with each of its seeds, then each change with the first seed."""
    first, *_ = seeds = plan["base_seeds"]
    changed = [("base", {}, seed) for seed in seeds]
    changed += [(describe(change), change, first) for change in plan["changes"]]
    return [
        Trial(name, seed, probes_of(plan, {**plan["base"], **change, "seed": seed})) for name, change, seed in changed
    ]


def describe(change: Mapping[str, object]) -> str:
    """A change as text: names and values."""
    return ", ".join(f"{name} {value}" for name, value in change.items())


def probes_of(plan: Mapping, values: Mapping[str, object]) -> tuple[LinearProbe, ...]:
    """The probes that judge a pretraining of these values; with no epochs, the encoder it would start from."""
    untrained = values.get("n_epochs") == 0
    pretraining = settings_from({**values, "n_epochs": 1} if untrained else values)
    source = pretraining.start if untrained else pretraining
    features = Features(source=source, image_size=pretraining.image_size)
    return tuple(
        LinearProbe(task=task, strategy="trial", label_fraction=fraction, draw=draw, features=features)
        for task in plan["tasks"]
        for fraction in plan["label_fractions"]
        for draw in (plan["draws"] if fraction < 1 else plan["draws"][:1])  # all labels can be drawn in one way
    )


def judge(trials: Sequence[Trial], store: RunStore) -> pd.DataFrame:
    """What finished trials reached on the validation patients; the test predictions are not looked at.

    Returns
    -------
    DataFrame
        A row per trial, task and label fraction: ``change, seed, task, label_fraction, val_macro_f1`` (mean over
        draws), ``difference`` to the base, the mean of its seeds, on the same draws, ``difference_sd`` (over draws),
        ``n_draws``, ``seconds`` of the pretraining. A trial that failed is not there. The differences of the base's
        own rows say how far a seed alone moves it.
    """
    rows = [
        {
            "change": trial.change,
            "seed": trial.seed,
            "task": probe.task,
            "label_fraction": probe.label_fraction,
            "draw": probe.draw,
            "val_macro_f1": store.open(probe).record["facts"]["val_macro_f1"],
            "seconds": pretraining_seconds(probe, store),
        }
        for trial in trials
        for probe in trial.probes
        if store.has(probe)
    ]
    pair = ["task", "label_fraction", "draw"]
    scores = pd.DataFrame(rows, columns=["change", "seed", *pair, "val_macro_f1", "seconds"])
    scores["val_macro_f1"] = scores["val_macro_f1"].astype(float)  # also where no trial worked
    base = scores[scores["change"] == "base"].groupby(pair)["val_macro_f1"].mean().rename("base")
    scores = scores.join(base, on=pair)
    scores["difference"] = scores["val_macro_f1"] - scores["base"]
    grouped = scores.groupby(["change", "seed", "task", "label_fraction"], sort=False)
    return grouped.agg(
        val_macro_f1=("val_macro_f1", "mean"),
        difference=("difference", "mean"),
        difference_sd=("difference", "std"),
        n_draws=("draw", "size"),
        seconds=("seconds", "first"),
    ).reset_index()


def pretraining_seconds(probe: LinearProbe, store: RunStore) -> float:
    """What the pretraining behind a probe took; 0 without one."""
    starts = probe.features.starts_from()
    return store.open(starts[0]).record["seconds"] if starts else 0.0


def main(arguments: list[str] | None = None) -> int:
    """Compute what is missing of a plan and write the table; 0 if all of it is there, 1 if trials failed, 2 if
    it can't be run."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.trials", description=__doc__)
    parser.add_argument("plan", help="YAML file, such as notebooks/trials.yaml")
    parser.add_argument("--data-dir", required=True, help="folder with Images/ and the CSV")
    parser.add_argument("--results-dir", required=True, help=f"takes {TABLE} and the runs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    options = parser.parse_args(arguments)
    try:
        plan = read_plan(options.plan)
        trials = plan_trials(plan)
        results_dir = Path(options.results_dir).resolve()
        data_dir = Path(options.data_dir).resolve()
        dataset = open_dataset(data_dir, results_dir=results_dir, val_fraction=plan["val_fraction"])
        store = RunStore(results_dir, dataset, device=options.device)
        for trial in trials:
            for run in store.missing(trial.probes):
                run.check(dataset)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        failed = [trial.change for trial in trials if not finished(trial, store)]
    except StorageError as error:  # the others would meet it too
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = judge(trials, store)
    replace_file(results_dir / TABLE, lambda path: table.round(4).to_csv(path, index=False))
    print(results_dir / TABLE)
    return 1 if failed else 0


def finished(trial: Trial, store: RunStore) -> bool:
    """Compute a trial; whether that worked. The others go on if not."""
    print(f"{trial.change}, seed {trial.seed}", flush=True)
    try:
        store.get(trial.probes)
    except RunsFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
