"""One pretraining by two processes, against one by itself; in float64, where the order of sums is all that differs."""

import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from processes import together
from safetensors.torch import load_file

from fetal_utils import pretraining
from fetal_utils.contrast import SimCLR
from fetal_utils.dataset import Dataset
from fetal_utils.encoders import InitialWeights
from fetal_utils.following import compute_together
from fetal_utils.pretraining import Pretraining
from fetal_utils.ranks import Ranks, meet
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.simclr import Pretrain, main
from fetal_utils.transforms import two_views

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
PLAIN = Pretrain(start=START, image_size=32, n_epochs=2, batch_size=27, lr=2e-3)  # 54 views, 3 batches of 82 images
IN_PIECES = dataclasses.replace(PLAIN, chunk_size=20, same_patient_negatives=False, seed=1)
FROM_ONE = dataclasses.replace(PLAIN, seed=2)  # begun by one process, finished by two
FROM_TWO = dataclasses.replace(PLAIN, seed=3)
DIVERGING = dataclasses.replace(PLAIN, optimiser="sgd", lr=1e38)
N_STEPS_DONE = 4  # before an interrupt: a whole epoch, and a step of the next


@contextmanager
def in_double():
    """Pretrainings in float64, without looks at held-out patients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "SimCLR", lambda *args, **options: SimCLR(*args, **options).double())
        patch.setattr(
            pretraining, "two_views", lambda *args, **options: [view.double() for view in two_views(*args, **options)]
        )
        patch.setattr(pretraining, "check_batch_fits", lambda *args, **options: None)
        patch.setattr(Pretraining, "look", lambda self: {})
        yield


@contextmanager
def stopped(error, *, after=N_STEPS_DONE):
    """A training stops by this error after some steps."""
    steps, original = [], Pretraining.train_batch

    def train_batch(self, batch, in_model):
        if len(steps) == after:
            raise error
        steps.append(batch)
        return original(self, batch, in_model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "train_batch", train_batch)
        yield


def open_store(data_dir, results_dir):
    return RunStore(results_dir, Dataset(data_dir, results_dir / "cache"), device="cpu", progress=False)


def begin(store, settings, ranks):
    """A run that is interrupted."""
    with stopped(KeyboardInterrupt), contextlib.suppress(KeyboardInterrupt):
        compute_together(settings, store, ranks)


def all_runs(data_dir, results_dir):
    """What each process does; the message of the run that diverges."""
    ranks = meet()
    ranks.join("cpu")
    store = open_store(data_dir, results_dir)
    with in_double():
        for settings in (PLAIN, IN_PIECES, FROM_ONE, PLAIN):
            compute_together(settings, store, ranks)
        begin(store, FROM_TWO, ranks)
        try:
            compute_together(DIVERGING, store, ranks)
        except RunsFailedError as error:
            message = str(error)
    ranks.leave()
    return message


@pytest.fixture(scope="module")
def alone(tiny_phantom, tmp_path_factory):
    """The store of one process that makes all runs by itself."""
    store = open_store(tiny_phantom, tmp_path_factory.mktemp("alone"))
    with in_double(), contextlib.redirect_stderr(io.StringIO()):
        store.get([PLAIN, IN_PIECES, FROM_ONE, FROM_TWO])
    return store


@pytest.fixture(scope="module")
def shared(tiny_phantom, tmp_path_factory):
    """The store of two processes, and what they returned."""
    store = open_store(tiny_phantom, tmp_path_factory.mktemp("shared"))
    with in_double():
        begin(store, FROM_ONE, Ranks())
    ended = together(all_runs, tiny_phantom, store.results_dir, n_processes=2, folder=store.results_dir / "processes")
    assert [process.status for process in ended] == [0, 0], ended
    return store, ended


def assert_same_end(run, expected):
    """The weights of all layers, and the log but for times and threads."""
    weights, wanted = load_file(run.weights), load_file(expected.weights)
    assert all(value.dtype == torch.float64 for name, value in wanted.items() if value.is_floating_point())
    torch.testing.assert_close(weights, wanted, rtol=1e-7, atol=1e-9)
    times = ["seconds", "images_per_s", "share_outside_model"]
    pd.testing.assert_frame_equal(run.log.drop(columns=times), expected.log.drop(columns=times), rtol=1e-7)


# --- the weights ---


@pytest.mark.parametrize("settings", [PLAIN, IN_PIECES], ids=["whole", "in pieces and masked"])
def test_two_processes_end_with_the_weights_and_the_log_of_one(alone, shared, settings):
    assert_same_end(shared[0].open(settings), alone.open(settings))


def test_two_processes_go_on_from_the_checkpoint_of_one(alone, shared):
    assert_same_end(shared[0].open(FROM_ONE), alone.open(FROM_ONE))


def test_one_process_goes_on_from_the_checkpoint_of_two(alone, shared):
    store, _ = shared
    kept = pd.read_csv(store.folder(FROM_TWO).with_suffix(".partial") / "log.csv")
    assert kept["epoch"].tolist() == [1]
    with in_double():
        (run,) = store.get([FROM_TWO])
    assert run.log["seconds"].iloc[0] == kept["seconds"].iloc[0]  # not trained again
    assert_same_end(run, alone.open(FROM_TWO))


# --- what they leave ---


def test_the_record_says_how_many_processes_made_a_run_and_differs_in_no_other_count(alone, shared):
    facts, expected = (store.open(PLAIN).record["facts"] for store in (shared[0], alone))
    assert (facts["world_size"], expected["world_size"]) == (2, 1)
    assert facts | {"world_size": 1} == expected


def test_the_number_of_processes_is_no_setting(alone, shared):
    assert alone.folder(PLAIN).name == shared[0].folder(PLAIN).name


def test_a_run_of_two_leaves_the_files_of_one(shared):
    store, _ = shared
    for settings in (PLAIN, IN_PIECES, FROM_ONE):
        files = sorted(path.name for path in store.folder(settings).iterdir())
        assert files == ["log.csv", "projection_head.safetensors", "record.json", "weights.safetensors"]


def test_a_training_that_diverges_fails_in_all_processes_with_one_reason(shared):
    store, ended = shared
    first, second = (process.result for process in ended)
    assert first == second
    assert "FloatingPointError: the loss is" in first
    assert store.folder(DIVERGING).name in first
    left = store.folder(DIVERGING).with_suffix(".partial")
    assert "FloatingPointError" in (left / "traceback.txt").read_text()


# --- the command ---

COMMAND = ["-p", "backbone", "test_efficientnet", "-p", "init", "random", "-p", "image_size", "32", "-p", "batch_size"]


def failing_command(arguments):
    """The command, of which the second process fails in its second epoch."""
    if os.environ["RANK"] == "1":
        with stopped(ArithmeticError("of this process alone"), after=N_STEPS_DONE):
            sys.exit(main(arguments))
    sys.exit(main(arguments))


def lines_of_errors(ended):
    return [line for process in ended for line in process.errors.splitlines() if line.startswith("error:")]


def test_a_failure_of_one_process_ends_all_with_one_message_and_keeps_the_checkpoint(tiny_phantom, tmp_path):
    arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path / "results"), "--device", "cpu"]
    ended = together(failing_command, [*arguments, *COMMAND, "27"], n_processes=2, folder=tmp_path / "processes")
    assert [process.status for process in ended] == [1, 1]
    assert lines_of_errors(ended) == ["error: 1 of 1 runs failed:"]
    assert "ArithmeticError: of this process alone" in ended[1].errors
    (left,) = (tmp_path / "results" / "runs" / "simclr").glob("*.partial")
    kept = sorted(path.name for path in left.iterdir())
    assert kept == ["checkpoint.pt", "log.csv", "settings.json", "traceback.txt"]
    assert len(pd.read_csv(left / "log.csv")) == 1
    assert "of this process alone" in (left / "traceback.txt").read_text()  # though the first one only lost it


def wrong_command(arguments):
    sys.exit(main(arguments))


def test_bad_input_is_said_once_and_before_the_others_start(tiny_phantom, tmp_path):
    arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path / "results"), "-p", "temperature", "0"]
    ended = together(wrong_command, arguments, n_processes=2, folder=tmp_path / "processes")
    assert [process.status for process in ended] == [2, 1]
    (error,) = lines_of_errors(ended)
    assert "temperature=0" in error
    assert not any("Traceback" in process.errors for process in ended)


# --- torchrun ---

N_EPOCHS = 16
LONGER = [*COMMAND, "20", "-p", "n_epochs", str(N_EPOCHS)]


@contextmanager
def torchrun(*arguments, max_restarts):
    """Two processes of the command, of which nothing is left afterwards."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(max_restarts), "-m", "fetal_utils.simclr", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            for process in psutil.Process(started.pid).children(recursive=True):
                process.kill()
            started.kill()
        started.communicate()


def kept_epochs(results_dir):
    logs = list((results_dir / "runs" / "simclr").glob("*.partial/log.csv"))
    return len(pd.read_csv(logs[0])) if logs else 0


def kill_one(running, rank, results_dir, *, after):
    """Kill the process of a rank when that many epochs are on disk; how many are kept then."""
    while kept_epochs(results_dir) < after:
        assert running.poll() is None, f"ended before epoch {after}: {running.communicate()}"
        time.sleep(0.02)
    workers = psutil.Process(running.pid).children(recursive=True)
    (worker,) = (process for process in workers if process.environ().get("RANK") == str(rank))
    worker.send_signal(signal.SIGKILL)
    return kept_epochs(results_dir)


@pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environment")
def test_torchrun_restarts_when_a_process_is_killed_and_fails_the_next_time_and_the_run_goes_on_from_there(
    tiny_phantom, tmp_path, capsys
):
    arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), "--device", "cpu", *LONGER]
    with torchrun(*arguments, max_restarts=1) as running:
        n_kept = kill_one(running, 1, tmp_path, after=2)
        n_kept = kill_one(running, 0, tmp_path, after=n_kept + 2)
        running.communicate(timeout=300)
    assert running.returncode != 0
    kept = pd.read_csv(next((tmp_path / "runs" / "simclr").glob("*.partial")) / "log.csv")
    assert n_kept <= len(kept) < N_EPOCHS
    assert not list((tmp_path / "runs" / "simclr").glob("*/record.json"))
    assert main(arguments) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert sorted(path.name for path in folder.iterdir()) == [
        "log.csv",
        "projection_head.safetensors",
        "record.json",
        "weights.safetensors",
    ]
    log = pd.read_csv(folder / "log.csv")
    assert log["epoch"].tolist() == list(range(1, N_EPOCHS + 1))
    assert log["seconds"].head(len(kept)).tolist() == kept["seconds"].tolist()  # these were not trained again
