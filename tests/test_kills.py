"""A run that is killed at any moment ends, when asked for again, as one that was left alone."""

import itertools
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
from labelled_data import write_labelled_folder
from toy_runs import Drift, forkserver, toy_store

from fetal_utils.data import Dataset
from fetal_utils.models import initial_weights
from fetal_utils.runs import RunStore, run_status
from fetal_utils.simclr import Pretrain
from fetal_utils.training import DualTask, FineTune


def compute_and_die(open_store, wanted, n_operations, delay_s):
    """In a process of its own: SIGKILL before the n-th operation on the disk, or after a time."""
    operations = itertools.count(1)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(operation):
        def call(*arguments, **options):
            if next(operations) == n_operations:
                die()
            return operation(*arguments, **options)

        return call

    for owner, name in [(Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "write_text"), (os, "fsync")]:
        setattr(owner, name, counted(getattr(owner, name)))
    store = open_store()
    if delay_s:
        threading.Timer(delay_s, die).start()
    store.get(wanted)
    os._exit(0)  # also from a timer that still runs


def killed(open_store, wanted, *, n_operations=0, delay_s=0.0):
    """Whether the process was killed before all was done."""
    process = forkserver().Process(target=compute_and_die, args=(open_store, wanted, n_operations, delay_s))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def contents(store, settings):
    """All that must be equal of a run: its files, but for times."""
    run = store.open(settings)
    files = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    if files.pop("log.csv", None):
        files["log"] = run.log.drop(columns=[name for name in run.log if "seconds" in name]).to_csv()
    del files["record.json"]
    return files, {name: run.record[name] for name in ("settings", "data_key", "results_version", "facts")}


def test_a_run_killed_before_any_operation_on_the_disk_ends_as_one_left_alone(tmp_path):
    wanted = [Drift(n_epochs=2)]
    whole = toy_store(tmp_path / "whole")
    whole.get(wanted)
    for n_operations in itertools.count(1):
        folder = tmp_path / str(n_operations)
        was_killed = killed(partial(toy_store, folder), wanted, n_operations=n_operations)
        store = toy_store(folder)
        states = set(run_status(folder)["state"])
        assert states <= {"done", "interrupted"}, states  # nobody holds a lock, and nothing half-written counts
        store.get(wanted)
        assert [contents(store, settings) for settings in wanted] == [contents(whole, settings) for settings in wanted]
        left = {path.suffix for path in (folder / "runs").glob("*/*")}
        assert left <= {"", ".lock"}, left
        if not was_killed:
            break
    assert n_operations > 20


def labelled_store(results_dir, data_dir):
    return RunStore(results_dir, Dataset(data_dir, data_dir / "cache"), device="cpu", progress=False)


def trainings():
    """One of each kind that trains, the fine-tuning from the pretraining; fractions of a second each."""
    start = initial_weights(backbone="test_resnet", init="random", seed=0)
    pretraining = Pretrain(start=start, image_size=32, n_epochs=4, batch_size=32)
    labels = {"task": "brain_planes", "label_fraction": 1.0, "draw": 0, "seed": 0}
    budget = {"image_size": 32, "n_views": 64, "batch_size": 8} | labels
    tuned = FineTune(strategy="simclr_scratch", source=pretraining, **budget)
    return [pretraining, tuned, DualTask(strategy="dual_scratch", source=start, contrast=pretraining, **budget)]


def test_trainings_killed_at_random_moments_and_while_saving_end_as_those_left_alone(tmp_path):
    data_dir, rng = tmp_path / "data", np.random.default_rng(2)
    write_labelled_folder(data_dir, n_train=10, n_test=4)
    whole, cut = (labelled_store(tmp_path / name, data_dir) for name in ("whole", "cut"))
    began = time.monotonic()
    whole.get(trainings())
    seconds, n_kills = time.monotonic() - began, 0
    for moment in ("saving", "any", "saving", "any"):
        n_operations = int(rng.integers(8, 60)) if moment == "saving" else 0
        delay_s = rng.uniform(0, min(seconds / 2, 4)) if moment == "any" else 0.0
        opened = partial(labelled_store, tmp_path / "cut", data_dir)
        n_kills += killed(opened, trainings(), n_operations=n_operations, delay_s=delay_s)
        assert set(run_status(tmp_path / "cut")["state"]) <= {"done", "interrupted"}
    assert n_kills > 1
    cut.get(trainings())
    for settings in trainings():
        assert contents(cut, settings) == contents(whole, settings), settings.kind
