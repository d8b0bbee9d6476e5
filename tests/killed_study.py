"""A small study that is killed again and again until it is done; as a script, the long form of test_kills.py.

``python tests/killed_study.py --kills 10 --how driver`` kills the process that computes; ``--how workers`` the
processes of a Dask cluster that compute for it; ``--how kernel`` the kernel of a notebook. Prints what it took, and
fails if anything differs from a study that was left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from fetal_utils.dataset import Dataset
from fetal_utils.fine_tuning import FineTuning
from fetal_utils.leases import read_owner
from fetal_utils.phantom import write_phantom
from fetal_utils.pretraining import Pretraining
from fetal_utils.run_status import run_status
from fetal_utils.runs import RunStore
from fetal_utils.settings import Settings
from fetal_utils.strategies import supervised_run
from fetal_utils.tables import metrics_of_run

EPOCHS_FILE = "STUDY_EPOCHS_FILE"  # environment variable: where each epoch that begins leaves a line
N_EPOCHS = 4
TIMES = ["seconds", "images_per_s", "share_outside_model"]
NETWORK = {"task": "planes", "backbone": "test_efficientnet", "image_size": 32}

Victim = Callable[[psutil.Process], psutil.Process | None]


def wanted_runs(n_epochs: int = N_EPOCHS) -> list[Settings]:
    """Two pretrainings, their features and probes, and fine-tunings of three strategies: thirteen runs, seven of
    which train for ``n_epochs``."""
    about = NETWORK | {
        "pretraining": {"n_epochs": n_epochs, "batch_size": 20},
        "training": {"n_steps": 3 * n_epochs, "n_evaluations": n_epochs, "batch_size": 12},
    }
    asked = [
        (strategy, protocol, fraction, seed)
        for seed in (0, 1)
        for strategy, protocol, fraction in [
            ("scratch", "fine_tune", 1.0),
            ("simclr_scratch", "linear_probe", 0.5),
            ("simclr_scratch", "linear_probe", 1.0),
            ("simclr_scratch", "fine_tune", 1.0),
        ]
    ]
    asked.append(("dual_scratch", "fine_tune", 1.0, 0))
    return [
        supervised_run(strategy, protocol=protocol, label_fraction=fraction, seed=seed, **about)
        for strategy, protocol, fraction, seed in asked
    ]


# --- in the processes that compute ---


def count_epochs() -> None:
    """From now on each epoch that begins in this process leaves a line: which run's, and which."""
    path = os.environ[EPOCHS_FILE]

    def counted(train_epoch):
        def begin(self, epoch):
            text = json.dumps(self.settings.to_dict(), sort_keys=True)
            with open(path, "a") as file:  # noqa: PTH123 (one short line at a time, whole from several processes too)
                file.write(f"{hashlib.sha256(text.encode()).hexdigest()[:8]} {epoch}\n")
            return train_epoch(self, epoch)

        return begin

    for trained in (Pretraining, FineTuning):
        trained.train_epoch = counted(trained.train_epoch)


def dask_setup(worker: object) -> None:
    """Called by each worker of a cluster that preloads this module."""
    torch.set_num_threads(1)
    count_epochs()


def compute(data_dir: Path, results_dir: Path, epochs_file: Path, n_epochs: int = N_EPOCHS) -> None:
    """The study in this process."""
    os.environ[EPOCHS_FILE] = str(epochs_file)
    torch.set_num_threads(1)  # sums in one order in every process
    count_epochs()
    open_store(data_dir, results_dir).get(wanted_runs(n_epochs))


def compute_on_workers(data_dir: Path, results_dir: Path, epochs_file: Path, n_epochs: int = N_EPOCHS) -> None:
    """The study on a cluster of two worker processes."""
    import dask
    from distributed import LocalCluster

    os.environ[EPOCHS_FILE] = str(epochs_file)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "preload": ["killed_study"]}
    behaviour = {
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.deploy.lost-worker-timeout": "600s",  # after 15 s a worker that starts again would be given up
    }
    with dask.config.set(behaviour), LocalCluster(**options) as cluster:
        store = open_store(data_dir, results_dir)
        store.get(wanted_runs(n_epochs), scheduler=cluster.scheduler_address)


def run_notebook(folder: Path, results_dir: Path, epochs_file: Path) -> None:
    """Notebook 04 with the smallest preset, in a kernel that counts its epochs too."""
    from fetal_utils import study

    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "count.py").write_text("import killed_study; killed_study.count_epochs()")
    os.environ |= {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1", EPOCHS_FILE: str(epochs_file)}
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    about = ["--preset", "smoke", "--only", "04", "-p", "task", "brain_planes"]
    sys.exit(study.main([*about, "--results-dir", str(results_dir)]))


def open_store(data_dir: Path, results_dir: Path) -> RunStore:
    """The store of a study."""
    return RunStore(results_dir, Dataset(data_dir, Path(results_dir) / "cache"), device="cpu", progress=False)


# --- in the process that kills ---


@dataclass
class Tally:
    """What it took to get a study done."""

    exits: list[int] = field(default_factory=list)  # of each start
    n_kills: int = 0
    epochs: list[str] = field(default_factory=list)  # that began
    seconds: float = 0.0

    @property
    def n_repeated(self) -> int:
        """Epochs that began more than once."""
        return len(self.epochs) - len(set(self.epochs))

    def __str__(self) -> str:
        return (
            f"{self.n_kills} kills, {len(self.exits)} starts (exit statuses {self.exits}), {len(set(self.epochs))} "
            f"epochs and {self.n_repeated} of them again, {self.seconds:.0f} s"
        )


def kill_until_done(
    target: Callable,
    arguments: tuple,
    epochs_file: Path,
    *,
    n_kills: int = 0,
    rng: np.random.Generator | None = None,
    epochs_between: int = 1,
    victim: Victim = lambda process: process,
) -> Tally:
    """Start a study in a process of its own, kill it at random moments, start it again, until it is done.

    A kill comes a random while after a random number of further epochs, from none (while it starts) up to
    ``epochs_between``; killed is the ``victim`` found among the running processes.
    """
    context = multiprocessing.get_context("forkserver")  # whose server imports everything once, and forks
    context.set_forkserver_preload(["fetal_utils.strategies", "fetal_utils.phantom", "fetal_utils.tables"])
    tally, began = Tally(), time.monotonic()
    while not tally.exits or tally.exits[-1] != 0:
        if len(tally.exits) > 3 * n_kills + 5:
            raise RuntimeError(f"the study does not end: {tally}")
        process = context.Process(target=target, args=arguments)
        process.start()
        try:
            while tally.n_kills < n_kills and process.is_alive():
                aim = len(lines_of(epochs_file)) + int(rng.integers(epochs_between + 1))
                wait_for_epochs(process, epochs_file, aim)
                time.sleep(rng.uniform(0, 0.5))
                tally.n_kills += kill(victim, process.pid)
            process.join()
        finally:
            end_all(process)
        tally.exits.append(process.exitcode)
    tally.epochs, tally.seconds = lines_of(epochs_file), time.monotonic() - began
    return tally


def kill(victim: Victim, pid: int) -> bool:
    """Kill what is looked for in the running study; whether it was there."""
    try:
        found = victim(psutil.Process(pid))
        if found is None:
            return False
        found.kill()
    except psutil.NoSuchProcess:
        return False
    psutil.wait_procs([found], timeout=60)  # or it would be killed, and counted, once more
    return True


def wait_for_epochs(process: multiprocessing.Process, epochs_file: Path, n_epochs: int) -> None:
    """Return when so many have begun in all, or the study has ended."""
    while process.is_alive() and len(lines_of(epochs_file)) < n_epochs:
        time.sleep(0.01)


def end_all(process: multiprocessing.Process) -> None:
    """Leave nothing of a study running."""
    if process.is_alive():
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
    process.join()


def lines_of(path: Path) -> list[str]:
    """The epochs that have begun."""
    return path.read_text().splitlines() if path.exists() else []


# --- whether two studies came out alike ---


def assert_same_runs(results_dir: Path, other_dir: Path) -> int:
    """That two results folders hold the same runs, but for their times; how many there are."""
    status = run_status(results_dir)
    assert (status["state"] == "done").all(), status[status["state"] != "done"].to_string()
    folders, others = (
        {path.relative_to(root): path for path in (root / "runs").glob("*/*")} for root in (results_dir, other_dir)
    )
    assert set(folders) == set(others)
    for name, folder in folders.items():
        files = sorted(path.name for path in folder.iterdir())
        assert files == sorted(path.name for path in others[name].iterdir()), name
        for file in files:
            assert contents(folder / file) == contents(others[name] / file), f"{name}/{file}"
    return len(folders)


def contents(path: Path) -> object:
    """What must be equal of a file: all of it, but for times and what depends on the process."""
    if path.name == "log.csv":
        log = pd.read_csv(path)
        return log.drop(columns=[name for name in TIMES if name in log]).to_csv()
    if path.name == "record.json":
        record = json.loads(path.read_text())
        return {name: record[name] for name in ("settings", "data_key", "results_version", "facts", "data")}
    return path.read_bytes()


def metrics(data_dir: Path, results_dir: Path, n_epochs: int = N_EPOCHS) -> pd.DataFrame:
    """The metrics table of the study."""
    store = open_store(data_dir, results_dir)
    return pd.concat([metrics_of_run(store.open(run), n_resamples=50) for run in wanted_runs(n_epochs)])


# --- the long form ---


def a_worker(results_dir: Path, rng: np.random.Generator) -> Victim:
    """Finds one of the cluster's processes that compute a run; one that only starts is not started again by Dask."""

    def find(process: psutil.Process) -> psutil.Process | None:
        owners = [read_owner(path) for path in results_dir.rglob("*.lease")]
        computing = {owner.pid for owner in owners if owner is not None}
        workers = [child for child in process.children(recursive=True) if child.pid in computing]
        return workers[int(rng.integers(len(workers)))] if workers else None

    return find


def a_kernel(process: psutil.Process) -> psutil.Process | None:
    """Finds the notebook's kernel."""
    for child in process.children(recursive=True):
        try:
            if "ipykernel" in " ".join(child.cmdline()):
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def long_form(how: str, n_kills: int, n_epochs: int, seed: int, folder: Path) -> None:
    """Kill one kind of process again and again, compare with a study left alone, and say what it took."""
    rng = np.random.default_rng(seed)
    data_dir, whole, cut = folder / "phantom", folder / "whole", folder / "cut"
    victim = {"driver": lambda process: process, "workers": a_worker(cut, rng), "kernel": a_kernel}[how]
    target, given, more = {
        "driver": (compute, data_dir, (n_epochs,)),
        "workers": (compute_on_workers, data_dir, (n_epochs,)),
        "kernel": (run_notebook, folder, ()),
    }[how]
    if how != "kernel":
        write_phantom(data_dir, n_patients=24, seed=0, image_height=64, n_workers=1, progress=False)
    files = folder / "whole.txt", folder / "cut.txt"
    alone = kill_until_done(target, (given, whole, files[0], *more), files[0])
    print(f"left alone: {alone}", flush=True)
    between = max(1, len(alone.epochs) // (n_kills + 1))
    about = {"n_kills": n_kills, "rng": rng, "epochs_between": between, "victim": victim}
    print(f"killed ({how}): {kill_until_done(target, (given, cut, files[1], *more), files[1], **about)}", flush=True)
    n_runs = assert_same_runs(cut, whole)
    if how == "kernel":
        for name in ("metrics.csv", "comparisons.csv"):
            pd.testing.assert_frame_equal(pd.read_csv(cut / name), pd.read_csv(whole / name), check_exact=True)
    else:
        tables = (metrics(data_dir, results_dir, n_epochs) for results_dir in (cut, whole))
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    print(f"{n_runs} runs and their metrics are equal to the last bit", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--how", choices=["driver", "workers", "kernel"], default="driver")
    parser.add_argument("--epochs", type=int, default=N_EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="killed_study_"))
    try:
        long_form(options.how, options.kills, options.epochs, options.seed, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
