"""Settings of a SimCLR pretraining, and its command; the network is timm's smallest, at 32 px."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from data_folders import write_images
from safetensors.torch import load_file

from fetal_utils import simclr
from fetal_utils.command_line import UsageError
from fetal_utils.dataset import Dataset
from fetal_utils.encoders import InitialWeights
from fetal_utils.models import OFFLINE_BACKBONE, build_encoder
from fetal_utils.ranks import Ranks
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain, main, prepare, settings_from
from fetal_utils.unlabelled import open_unlabelled

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
SETTINGS = Pretrain(start=START, image_size=32, n_epochs=3, batch_size=40, lr=2e-3)


def new_store(tiny_dataset, folder):
    return RunStore(folder, tiny_dataset, device="cpu", progress=False)


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return new_store(tiny_dataset, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def run(store):
    return store.get([SETTINGS])[0]


def weights_differ(encoder, other):
    pairs = zip(encoder.parameters(), other.parameters(), strict=True)
    return [not torch.equal(a, b) for a, b in pairs]


# --- which images ---


@pytest.mark.parametrize("pool", ["all", "planes", "brain_planes"])
def test_the_pool_holds_no_patient_who_validates_or_tests(tiny_dataset, pool):
    table = tiny_dataset.metadata
    rows = dataclasses.replace(SETTINGS, pool=pool).pool_rows(tiny_dataset)
    held_out = set(table["patient"][table["subset"] != "train"])
    assert not held_out & set(table["patient"].iloc[rows])
    in_training = table["subset"] == "train"
    if pool == "brain_planes":
        in_training &= (table["plane"] == "Fetal brain") & (table["brain_plane"] != "Other")
    assert sorted(table.index[rows]) == table.index[in_training].tolist()


# --- what it leaves ---


def test_weights_load_by_timm_in_three_lines(store, run):
    encoder = timm.create_model("test_efficientnet", num_classes=0, in_chans=1)
    encoder.load_state_dict(load_file(run.weights))
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.eval()(images), SETTINGS.encoder(store).eval()(images))


# --- what is refused ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"weight_decay": -1.0},
        {"warmup_fraction": 1.0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"projection_dim": 0},
        {"seed": -1},
        {"image_size": 4},
        {"chunk_size": 1},
        {"chunk_size": -2},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name_before_the_run(store, wrong):
    ((name, value),) = wrong.items()
    settings = dataclasses.replace(SETTINGS, **wrong)
    with pytest.raises(ValueError, match=f"{name}={value}"):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"augmentation": "blurry"}, "unknown preset 'blurry'"),
        ({"augmentation": "weak without blur"}, "no family 'blur'"),
        ({"pool": "hands"}, "task='hands' is unknown"),
        ({"optimiser": "adam"}, "optimiser='adam' is unknown"),
    ],
)
def test_a_name_that_is_unknown_is_refused_before_the_run(store, wrong, message):
    settings = dataclasses.replace(SETTINGS, **wrong)
    with pytest.raises(ValueError, match=message):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


def test_an_encoder_before_its_pretraining_is_refused(store):
    with pytest.raises(FileNotFoundError, match="simclr has not been computed"):
        dataclasses.replace(SETTINGS, seed=77).encoder(store)


def test_a_pretraining_from_the_weights_of_a_file_starts_there(store, run):
    start = InitialWeights(backbone="test_efficientnet", init=str(run.weights))
    assert not any(weights_differ(start.encoder(), SETTINGS.encoder(store)))
    assert any(weights_differ(start.encoder(), build_encoder("test_efficientnet", init="random", seed=0)))


# --- settings by name ---


def test_settings_that_are_not_given_have_their_defaults():
    assert settings_from({}) == Pretrain(start=InitialWeights(backbone=OFFLINE_BACKBONE, init="imagenet"))


def test_every_setting_can_be_given_by_name(tmp_path):
    more = open_unlabelled(write_images(tmp_path, {"new": np.zeros((9, 9), dtype=np.uint8)}))
    given = {
        "pool": "brain_planes",
        "image_size": 64,
        "n_epochs": 5,
        "batch_size": 32,
        "lr": 1.0,
        "weight_decay": 0.0,
        "warmup_fraction": 0.2,
        "optimiser": "lars",
        "temperature": 0.5,
        "projection_dim": 64,
        "augmentation": "ultrasound without blur",
        "same_patient_negatives": False,
        "chunk_size": 16,
    }
    start = InitialWeights(backbone="resnet18", init="random", seed=3)
    expected = Pretrain(start=start, extra_images=more, seed=3, **given)
    by_name = {"backbone": "resnet18", "init": "random", "extra_images": str(tmp_path), "seed": 3}
    assert settings_from(given | by_name) == expected
    assert {*given, "start", "extra_images", "seed"} == {field.name for field in dataclasses.fields(Pretrain)}


def test_a_whole_number_is_a_rate_too_and_a_word_is_no_answer():
    assert settings_from({"lr": 1}).lr == 1.0
    with pytest.raises(UsageError, match="same_patient_negatives='no' is of type str; expected bool"):
        settings_from({"same_patient_negatives": "no"})


def test_a_seed_is_that_of_random_weights_too_and_of_no_others():
    assert settings_from({"init": "random", "seed": 4}).start.seed == 4
    assert settings_from({"seed": 4}).start.seed == 0


# --- several processes ---


def test_more_processes_than_a_batch_can_feed_are_refused_before_anything_is_trained(tiny_phantom, tmp_path):
    options = SimpleNamespace(
        data_dir=str(tiny_phantom),
        results_dir=str(tmp_path),
        device="cpu",
        parameters=[("image_size", "32"), ("batch_size", "40"), ("chunk_size", "4")],
    )
    with pytest.raises(ValueError, match=r"chunk_size=4 can't be shared by 5 processes.*start at most 4"):
        prepare(options, Ranks(0, 5))
    settings, store = prepare(options, Ranks(0, 4))
    assert (settings.batch_size, store.progress) == (40, True)
    assert not prepare(options, Ranks(3, 4))[1].progress


# --- the command ---


def test_the_command_makes_the_run_that_the_same_settings_name_and_prints_its_folder_last(
    tiny_phantom, tmp_path, capsys
):
    arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), "--device", "cpu"]
    small = {"backbone": "test_efficientnet", "init": "random", "image_size": 32, "n_epochs": 1, "lr": 1e-3}
    for name, value in small.items():
        arguments += ["-p", name, str(value)]
    assert main(arguments) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    settings = Pretrain(
        start=InitialWeights(backbone="test_efficientnet", init="random"), image_size=32, n_epochs=1, lr=1e-3
    )
    store = RunStore(tmp_path, Dataset(tiny_phantom, tmp_path / "cache"), device="cpu")
    assert folder == store.folder(settings)
    assert store.has(settings)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "epochs", "3"], "epochs"),
        (["-p", "lr", "fast"], "lr='fast'"),
        (["-p", "temperature", "0"], "temperature=0"),
        (["-p", "backbone", "resnet19"], "resnet19"),
        (["-p", "init", "no.safetensors"], "no.safetensors"),
        (["-p", "pool", "feet"], "feet"),
        (["--data-dir", "no/such/folder"], "no/such/folder"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_ends_the_command_with_status_2(arguments, named, tiny_phantom, tmp_path, capsys):
    given = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), *arguments]
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and named in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("interrupted", ["open_dataset", "RunStore"])
def test_an_interrupt_before_the_training_ends_the_command_with_status_130(
    interrupted, tiny_phantom, tmp_path, monkeypatch, capsys
):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(simclr, interrupted, interrupt)
    try:
        status = main(["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), *LONGER])
    except KeyboardInterrupt:
        pytest.fail("the interrupt was passed on, and would end with a traceback")
    assert status == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


# --- killed and interrupted processes ---

N_EPOCHS = 12
LONGER = [
    *["-p", "backbone", "test_efficientnet", "-p", "init", "random", "-p", "image_size", "32"],
    *["-p", "batch_size", "4", "-p", "n_epochs", str(N_EPOCHS)],
]
needs_signals = pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals to a group of processes")


@contextmanager
def process(data_dir: Path, results_dir: Path) -> Iterator[subprocess.Popen]:
    """The command in a process group of its own, of which nothing is left afterwards."""
    command = [sys.executable, "-m", "fetal_utils.simclr", "--data-dir", str(data_dir)]
    command += ["--results-dir", str(results_dir), "--device", "cpu", *LONGER]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # sums in one order in every process
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def kept_log(results_dir: Path) -> pd.DataFrame:
    """Epochs that an unfinished run has on disk."""
    logs = list((results_dir / "runs" / "simclr").glob("*.partial/log.csv"))
    return pd.read_csv(logs[0]) if logs else pd.DataFrame()


def wait_for_epochs(n_epochs: int, results_dir: Path, running: subprocess.Popen) -> None:
    """Until that many are on disk."""
    while len(kept_log(results_dir)) < n_epochs:
        assert running.poll() is None, f"ended before epoch {n_epochs}: {running.communicate()}"
        time.sleep(0.01)


def kill(running: subprocess.Popen) -> None:
    """As a machine that loses power would, or a batch system out of patience."""
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL


def finished(running: subprocess.Popen) -> Path:
    """The folder of the run when the command is done."""
    out, errors = running.communicate(timeout=600)
    assert running.returncode == 0, errors
    return Path(out.splitlines()[-1])


def assert_same_end(folder: Path, other: Path) -> None:
    """Weights equal to the bit, and logs but for the times."""
    assert (folder / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
    times = ["seconds", "images_per_s", "share_outside_model"]
    log, other_log = (pd.read_csv(path / "log.csv").drop(columns=times) for path in (folder, other))
    pd.testing.assert_frame_equal(log, other_log, check_exact=True)
    for path in (folder, other):
        names = ["log.csv", "projection_head.safetensors", "record.json", "weights.safetensors"]
        assert sorted(file.name for file in path.iterdir()) == names


@needs_signals
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tiny_phantom, tmp_path):
    rng = np.random.default_rng(0)
    cut = tmp_path / "cut"
    with process(tiny_phantom, tmp_path / "whole") as undisturbed:
        with process(tiny_phantom, cut) as running:
            time.sleep(rng.uniform(0.1, 1.0))  # while it starts
            kill(running)
        assert kept_log(cut).empty
        n_kept = 0
        for _ in range(2):
            with process(tiny_phantom, cut) as running:
                wait_for_epochs(n_kept + int(rng.integers(1, 4)), cut, running)
                time.sleep(rng.uniform(0, 0.15))  # anywhere in an epoch, or while its checkpoint is written
                kill(running)
            assert n_kept < len(kept_log(cut)) < N_EPOCHS
            n_kept = len(kept_log(cut))
        with process(tiny_phantom, cut) as running:
            folder = finished(running)
        assert_same_end(folder, finished(undisturbed))


@needs_signals
def test_an_interrupted_command_says_in_one_line_how_to_go_on_and_goes_on(tiny_phantom, tmp_path, capsys):
    with process(tiny_phantom, tmp_path) as running:
        wait_for_epochs(2, tmp_path, running)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does on Ctrl+C
        _, errors = running.communicate(timeout=60)
    kept = kept_log(tmp_path)
    assert running.returncode == 130
    said = f"SimCLR from random was interrupted; {len(kept)} of {N_EPOCHS} epochs are kept. Run the same again to go on"
    assert errors.splitlines()[-1] == said
    assert "Traceback" not in errors
    arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, *LONGER]) == 0
    log = pd.read_csv(Path(capsys.readouterr().out.splitlines()[-1]) / "log.csv")
    assert log["epoch"].tolist() == list(range(1, N_EPOCHS + 1))
    assert log["seconds"].head(len(kept)).tolist() == kept["seconds"].tolist()  # these were not trained again


def test_the_projection_head_of_a_run_is_kept_and_gives_projections_of_the_features(store, run):
    head = SETTINGS.projection_head(store)
    features = torch.randn(5, head[0].in_features, generator=torch.Generator().manual_seed(0))
    assert head(features).shape == (5, SETTINGS.projection_dim)
    assert not head.training
    kept = load_file(run.folder / "projection_head.safetensors")
    assert torch.equal(head[0].weight, kept["0.weight"])


def test_a_run_made_before_heads_were_kept_says_which_file_is_missing(tiny_dataset, tmp_path):
    store = new_store(tiny_dataset, tmp_path)
    settings = dataclasses.replace(SETTINGS, n_epochs=1)
    (run,) = store.get([settings])
    (run.folder / "projection_head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"projection_head\.safetensors"):
        settings.projection_head(store)
