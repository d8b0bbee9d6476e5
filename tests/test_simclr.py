"""The SimCLR step, a pretraining under way, and its command; the networks are tiny."""

import copy
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_folders import write_images
from safetensors import safe_open
from torch import nn

from fetal_utils import simclr
from fetal_utils.data import Dataset
from fetal_utils.environment import torch_generator
from fetal_utils.images import open_extra_images
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import OFFLINE_BACKBONE, InitialWeights, build_encoder, build_optimizer
from fetal_utils.presets import UsageError
from fetal_utils.runs import RunsFailedError, RunStore, Work
from fetal_utils.simclr import (
    ContrastiveViews,
    Pretrain,
    SimCLR,
    draw_batches,
    effective_rank,
    encode_in_chunks,
    health,
    main,
    pool_rows,
    settings_from,
    simclr_step,
)

START = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
SETTINGS = Pretrain(start=START, image_size=32, n_epochs=3, batch_size=20, lr=2e-3)
N_IMAGES = 6
CHUNK_SIZES = [2, 4, 5, 7, 11]  # of twelve views: some divide them, some do not


class TinyEncoder(nn.Sequential):
    """Two layers and a mean, with a normalisation that knows each image alone or the batch."""

    num_features = 8

    def __init__(self, normalisation):
        # no biases: a batch normalisation after them, the head's too, takes any shift away
        first, second = (nn.Conv2d(*widths, 3, bias=False) for widths in ((1, 4), (4, 8)))
        super().__init__(first, normalisation(4), nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tiny(normalisation=lambda n_channels: nn.GroupNorm(2, n_channels)):
    """A model in float64 with weights from a generator."""
    model = SimCLR(TinyEncoder(normalisation), projection_dim=5, seed=0)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.double()


def two_views(n_images=N_IMAGES, side=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, n_images, 1, side, side, generator=generator, dtype=dtype)
    return images, images + 0.5 * noise


def gradients(model, **options):
    """A step's gradients, its norm clipped like any step's, and its loss; no weight moves."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = simclr_step(model, optimizer, *two_views(), temperature=0.2, **options)
    return [parameter.grad for parameter in model.parameters()], loss.item()


def differ(some, others):
    return [not torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(some, others, strict=True)]


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


# --- the step ---


@pytest.mark.parametrize("chunk_size", [0, 4])
def test_a_step_is_a_loss_a_backward_pass_a_clipped_norm_and_a_move(chunk_size):
    model, views, mask = tiny(), two_views(), torch.zeros(N_IMAGES, N_IMAGES, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = mask[2, 5] = mask[5, 2] = True
    expected = copy.deepcopy(model).train()
    loss = nt_xent_loss(*expected(torch.cat(views)).chunk(2), temperature=0.1, not_negatives=mask)
    loss.backward()
    assert nn.utils.clip_grad_norm_(expected.parameters(), 1.0) > 1
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = simclr_step(model, optimizer, *views, temperature=0.1, not_negatives=mask, chunk_size=chunk_size)
    assert found.item() == pytest.approx(loss.item())
    assert not found.requires_grad
    assert not any(differ(weights_of(model), weights_of(expected)))


@pytest.mark.parametrize("chunk_size", [0, 5])
def test_a_loss_that_is_no_number_leaves_the_weights_of_the_step_before(chunk_size):
    model, (view_a, view_b) = tiny(), two_views()
    optimizer, before = build_optimizer(model, lr=1e-2, weight_decay=0.0), weights_of(model)
    view_b[3] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss is nan: the training diverged; try a lower lr"):
        simclr_step(model, optimizer, view_a, view_b, temperature=0.2, chunk_size=chunk_size)
    assert all(map(torch.equal, weights_of(model), before))


# --- in chunks ---


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_gradients_in_chunks_are_those_of_the_whole_batch(chunk_size):
    model = tiny()
    expected, whole = gradients(model)
    found, loss = gradients(model, chunk_size=chunk_size)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("chunk_size", [3, 4])
def test_batch_normalisation_sees_a_chunk_once_and_not_the_batch(chunk_size):
    model = tiny(nn.BatchNorm2d).train()
    whole, chunked, direct = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    views = torch.cat(two_views())
    features = encode_in_chunks(chunked.encoder, views, chunk_size)
    expected = torch.cat([direct.encoder(chunk) for chunk in views.tensor_split(12 // chunk_size)])
    assert torch.equal(features, expected)
    assert not torch.allclose(features, whole.encoder(views))
    for network, output in ((chunked, features), (direct, expected)):
        nt_xent_loss(*network.projection_head(output).chunk(2), temperature=0.2).backward()  # passes again
    pairs = zip(chunked.parameters(), direct.parameters(), strict=True)
    assert not any(differ(*zip(*((a.grad, b.grad) for a, b in pairs), strict=True)))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(chunked.encoder[1], name), getattr(direct.encoder[1], name))


@pytest.mark.parametrize("chunk_size", [2, 3, 9])
def test_no_chunk_is_a_single_view_whose_batch_normalisation_could_not_work(chunk_size):
    """Ten views in nines leave one over; at 32 px the last map has one pixel, so one view has no variance."""
    model, sizes = SimCLR(START.encoder(), projection_dim=8, seed=0), []
    model.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    views, optimizer = two_views(5, 32, torch.float32), torch.optim.SGD(model.parameters(), lr=0.0)
    simclr_step(model, optimizer, *views, temperature=0.2, chunk_size=chunk_size)
    assert sum(sizes) == 2 * 10  # each view passes twice
    assert 2 <= min(sizes) <= max(sizes) <= chunk_size


# --- images and batches ---


def new_store(tiny_dataset, folder):
    return RunStore(folder, tiny_dataset, device="cpu", progress=False)


@pytest.fixture(scope="module")
def store(tiny_dataset, tmp_path_factory):
    return new_store(tiny_dataset, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def run(store):
    return store.get([SETTINGS])[0]


def pool_of(store, **settings):
    """What a pretraining learns from."""
    work = Work(store.results_dir, store.dataset, store, store.device)
    return ContrastiveViews(dataclasses.replace(SETTINGS, **settings), work, START.encoder(), torch_generator(0))


@pytest.mark.parametrize("pool", ["all", "planes", "brain_planes"])
def test_the_pool_holds_all_training_patients_and_none_held_out(store, tiny_dataset, pool):
    table = tiny_dataset.metadata
    rows = pool_rows(tiny_dataset, pool)
    expected = table["subset"] == "train"
    if pool == "brain_planes":
        expected &= (table["plane"] == "Fetal brain") & (table["brain_plane"] != "Other")
    assert rows.tolist() == np.flatnonzero(expected).tolist()
    opened = pool_of(store, pool=pool)
    np.testing.assert_array_equal(opened.images, tiny_dataset.images(32, progress=False)[rows])
    assert opened.facts == {
        "n_images": len(rows),
        "n_patients": table["patient"].iloc[rows].nunique(),
        "n_extra_images": 0,
        "n_pool_labels": 0 if pool == "all" else (table["subset"] == "train").sum(),
    }


def test_images_of_a_further_folder_come_last_and_without_patient(store, tmp_path):
    pictures = {f"new_{i}": np.full((40, 40), 50 + i, dtype=np.uint8) for i in range(3)}
    extra = open_extra_images(write_images(tmp_path, pictures))
    pool = pool_of(store, extra_images=extra, same_patient_negatives=False)
    assert pool.images[-3:].float().mean((1, 2)).tolist() == [50, 51, 52]
    drawn = pool.draw(torch.tensor([0, -1, -2, -3]))
    assert drawn["view_a"].shape == (4, 1, 32, 32)
    assert torch.equal(drawn["not_negatives"], torch.eye(4, dtype=torch.bool))
    assert pool.facts["n_extra_images"] == 3
    assert dataclasses.replace(SETTINGS, extra_images=extra).steps(store.dataset)[0] == 3 * (len(pool.images) // 20)


def test_every_image_comes_once_before_any_comes_again():
    generator = torch.Generator().manual_seed(0)
    batches = draw_batches(10, n_batches=5, batch_size=4, generator=generator)
    assert batches.shape == (5, 4)
    assert sorted(batches.flatten()[:10].tolist()) == sorted(batches.flatten()[10:].tolist()) == list(range(10))
    assert not torch.equal(draw_batches(10, n_batches=5, batch_size=4, generator=generator), batches)


# --- a pretraining ---


def changed(store, **settings):
    """The run whose settings differ from `SETTINGS` in these."""
    return store.get([dataclasses.replace(SETTINGS, **settings)])[0]


def same_weights(run, other):
    return run.weights.read_bytes() == other.weights.read_bytes()


def test_what_a_pretraining_leaves(store, run, tiny_dataset):
    n_images = (tiny_dataset.metadata["subset"] == "train").sum()
    n_steps = 3 * (n_images // 20)
    counts = {"batch_size": 20, "optimizer_steps": n_steps, "views_seen": n_steps * 40}
    assert run.record["facts"].items() >= counts.items()
    assert SETTINGS.steps(tiny_dataset) == (n_steps, 20)
    assert SETTINGS.cost(tiny_dataset)["views"] == n_steps * 40
    assert run.log["epoch"].tolist() == [1, 2, 3]
    assert run.log["loss"].iloc[-1] < run.log["loss"].iloc[0]
    assert run.log["lr"].iloc[-1] == 0
    watched = run.log[["top1_accuracy", "effective_rank", "knn_macro_f1"]]
    assert watched.notna().all(axis=1).tolist() == [False, False, True]
    assert watched.iloc[-1, [0, 2]].between(0, 1).all()
    about = json.loads(safe_open(run.weights, "pt").metadata()["about"])
    assert about["backbone"] == "test_efficientnet" and about["geometry"] == "crop"
    assert all(differ(weights_of(SETTINGS.encoder(store)), weights_of(START.encoder())))
    head = SETTINGS.projection_head(store)
    assert head(torch.randn(5, 256)).shape == (5, 128) and not head.training


def test_held_out_images_and_labels_change_the_log_and_no_weight(tiny_dataset, run, tmp_path, monkeypatch):
    original = Dataset.images

    def images_without_held_out(self, image_size, **options):
        images = original(self, image_size, **options).copy()
        images[self.metadata["subset"] != "train"] = 255
        return images

    blind = dataclasses.replace(tiny_dataset)
    table = tiny_dataset.metadata.copy()
    table["plane"] = np.random.default_rng(0).permutation(table["plane"])
    monkeypatch.setitem(blind.__dict__, "metadata", table)
    monkeypatch.setattr(Dataset, "images", images_without_held_out)
    (other,) = new_store(blind, tmp_path).get([SETTINGS])
    assert same_weights(other, run)
    assert other.log["knn_macro_f1"].iloc[-1] != run.log["knn_macro_f1"].iloc[-1]


def test_images_of_one_patient_are_masked_if_asked_for(store, run):
    masked = changed(store, same_patient_negatives=False)
    assert masked.log["loss"].iloc[0] < run.log["loss"].iloc[0]  # fewer negatives to be told from


def test_a_batch_larger_than_the_pool_takes_the_whole_pool(store):
    facts = changed(store, pool="brain_planes", batch_size=2096, n_epochs=2).record["facts"]
    assert facts["batch_size"] == facts["n_images"]
    assert facts["optimizer_steps"] == 2


def test_a_run_that_fails_says_why_and_keeps_the_epochs_before(tiny_dataset, run, tmp_path, monkeypatch):
    original, steps = simclr.simclr_step, []

    def failing(*args, **options):
        steps.append(1)
        if len(steps) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **options)

    store = new_store(tiny_dataset, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(simclr, "simclr_step", failing)
        with pytest.raises(RunsFailedError, match=r"out of memory; make batch_size, .*batch_size=20"):
            store.get([SETTINGS])
    assert (store.folder(SETTINGS).with_suffix(".partial") / "checkpoint.pt").exists()
    torch.manual_seed(1234)  # no global generator has a say
    (resumed,) = store.get([SETTINGS])
    assert same_weights(resumed, run)
    pd.testing.assert_frame_equal(resumed.log.drop(columns="seconds"), run.log.drop(columns="seconds"))
    assert not same_weights(changed(store, seed=5), run)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_epochs": 0}, "expected n_epochs, projection_dim of 1 or more; given is .*n_epochs=0"),
        ({"batch_size": 1, "image_size": 4}, "image_size of 8 px or more; batch_size of 2 or more; given is"),
        ({"lr": 0.0}, "finite lr above 0"),
        ({"temperature": math.nan}, "finite temperature above 0"),
        ({"chunk_size": 1}, "chunk_size of 0, or 2 or more"),
        ({"optimizer": "adam"}, "optimizer of adamw, sgd, lars"),
        ({"augmentation": "blurry"}, "augmentation='blurry' is unknown"),
        ({"pool": "hands"}, "task='hands' is unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_the_run(store, wrong, message):
    settings = dataclasses.replace(SETTINGS, **wrong)
    with pytest.raises(ValueError, match=message):
        store.get([settings])
    assert not store.folder(settings).with_suffix(".partial").exists()


# --- health ---


def test_effective_rank_counts_equal_directions():
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    centred = np.concatenate([orthogonal[:3], -orthogonal[:3]])  # three directions, equally long, mean 0
    assert effective_rank(centred) == pytest.approx(3, rel=1e-4)
    assert effective_rank(centred + 100) == pytest.approx(3, rel=1e-2)  # a common offset counts for nothing
    rounding = np.random.default_rng(0).normal(size=(40, 8)) * 1e-7
    assert effective_rank(np.ones((40, 8)) + rounding) == effective_rank(np.ones((40, 8))) == 1


@pytest.mark.parametrize(
    ("losses", "rank", "said"),
    [
        ([5.0, 2.0, 1.1, 1.0, 1.0, 1.0], 50, r"Healthy: .*loss 5\.00 at first, 1\.00 at last, 5\.54 nats .*50\.0\)\.$"),
        ([5.6, 5.5], 50, "Stuck at chance.*5.54 nats at chance"),  # ln(2 x 128 - 1)
        ([5.0, 1.0], 1.0, "Collapsed"),
        ([2.0, 3.0], 50, "Getting worse: the loss rose .loss 2.00 at first, 3.00"),
    ],
)
def test_the_sentence_says_what_the_numbers_say(losses, rank, said):
    log = pd.DataFrame({"loss": losses, "effective_rank": [math.nan] * (len(losses) - 1) + [rank]})
    assert re.match(said, health(log, batch_size=128))


# --- the command ---


def test_settings_that_are_not_given_have_their_defaults_and_every_one_can_be_given(tmp_path):
    assert settings_from({}) == Pretrain(start=InitialWeights(backbone=OFFLINE_BACKBONE, init="imagenet"))
    extra = open_extra_images(write_images(tmp_path, {"new": np.zeros((9, 9), dtype=np.uint8)}))
    start = InitialWeights(backbone="resnet18", init="random", seed=3)
    expected = Pretrain(start=start, extra_images=extra, seed=3, lr=1.0, same_patient_negatives=False)
    texts = {entry.name: str(getattr(expected, entry.name)) for entry in dataclasses.fields(Pretrain)}
    texts |= {"backbone": "resnet18", "init": "random", "extra_images": str(tmp_path)}
    assert settings_from({name: text for name, text in texts.items() if name != "start"}) == expected
    with pytest.raises(UsageError, match="same_patient_negatives='no way' is of type str; expected bool"):
        settings_from({"same_patient_negatives": "no way"})


def test_the_command_makes_the_run_that_the_same_settings_name_and_prints_its_folder_last(
    tiny_phantom, tmp_path, capsys
):
    arguments = ["--data-dir", str(tiny_phantom), "--results-dir", str(tmp_path), "--device", "cpu"]
    for name, value in {"init": "random", "image_size": 32, "n_epochs": 1, "batch_size": 8, "seed": 2}.items():
        arguments += ["-p", name, str(value)]
    assert main([*arguments, "-p", "backbone", "test_efficientnet"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    start = InitialWeights(backbone="test_efficientnet", init="random", seed=2)
    settings = Pretrain(start=start, image_size=32, n_epochs=1, batch_size=8, seed=2)
    store = RunStore(tmp_path, Dataset(tiny_phantom, tmp_path / "cache"), device="cpu")
    assert folder == store.folder(settings)
    assert store.has(settings, weights=True)
    assert build_encoder("test_efficientnet", init=folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "epochs", "3"], "epochs"),
        (["-p", "lr", "fast"], "lr='fast'"),
        (["-p", "temperature", "0"], "temperature above 0"),
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
