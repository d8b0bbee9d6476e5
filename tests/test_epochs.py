"""Training epoch by epoch, on a straight line fitted to noise."""

import math

import pandas as pd
import pytest
import torch
from torch import nn
from toy_runs import toy_store

from fetal_utils.epochs import Best, GeneratorState, run_epochs
from fetal_utils.optimisers import build_optimiser, descend, warmup_cosine
from fetal_utils.ranks import Ranks
from fetal_utils.runs import Work


class LineFit:
    """Four steps an epoch on points that a generator draws; is interrupted before an epoch, or diverges in one, if
    told to."""

    def __init__(self, folder, *, stop_before=None, loss_at=None, watch=None):
        folder.mkdir(parents=True, exist_ok=True)
        store = toy_store(folder.parent)
        self.work = Work(folder=folder, dataset=store.dataset, store=store, device=store.device)
        if watch:
            self.work.watch = watch
        self.stop_before, self.loss_at = stop_before, loss_at or {}
        self.trained = []
        self.model = nn.Linear(2, 1)
        for parameter in self.model.parameters():
            nn.init.zeros_(parameter)
        self.optimiser = build_optimiser(self.model, lr=0.1, weight_decay=0.01)
        self.schedule = warmup_cosine(self.optimiser, n_steps=24, n_warmup=3)
        self.generator = torch.Generator().manual_seed(5)
        self.best = Best(self.model)

    def train_epoch(self, epoch):
        if epoch == self.stop_before:
            raise KeyboardInterrupt
        self.trained.append(epoch)
        for _ in range(4):
            x = torch.randn(8, 2, generator=self.generator)
            noise = torch.randn(8, 1, generator=self.generator)
            loss = (self.model(x) - x.sum(1, keepdim=True) - noise).square().mean() * self.loss_at.get(epoch, 1)
            descend(self.model, self.optimiser, self.schedule, loss)
        self.best.update(-abs(epoch - 2), epoch)
        return {"loss": loss.item()}

    def run(self, n_epochs=6):
        parts = {
            "model": self.model,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "generator": GeneratorState(self.generator),
            "best": self.best,
        }
        return run_epochs(self.work, self.train_epoch, n_epochs=n_epochs, parts=parts, desc="line")


def flattened(state):
    """A nested state with every tensor as numbers, so that == compares all of it."""
    if isinstance(state, dict):
        return {key: flattened(value) for key, value in state.items()}
    if isinstance(state, list):
        return list(map(flattened, state))
    return state.tolist() if isinstance(state, torch.Tensor) else state


def final_state(fit):
    parts = (fit.model, fit.optimiser, fit.schedule, GeneratorState(fit.generator), fit.best)
    return [flattened(dict(part.state_dict())) for part in parts]


# --- resuming ---


@pytest.mark.parametrize("stop_before", [1, 3, 5])
def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path, stop_before):
    whole = LineFit(tmp_path / "whole")
    expected = whole.run()
    with pytest.raises(KeyboardInterrupt):
        LineFit(tmp_path / "cut", stop_before=stop_before).run()
    resumed = LineFit(tmp_path / "cut")
    log = resumed.run()
    assert resumed.trained == list(range(stop_before, 6))
    pd.testing.assert_frame_equal(log.drop(columns="seconds"), expected.drop(columns="seconds"))
    assert final_state(resumed) == final_state(whole)


@pytest.mark.parametrize("stop_before", [0, 1, 5])
def test_an_interrupt_says_how_many_epochs_are_kept_and_how_to_go_on(tmp_path, stop_before):
    message = f"^line was interrupted; {stop_before} of 6 epochs are kept. Run the same again to go on$"
    with pytest.raises(KeyboardInterrupt, match=message):
        LineFit(tmp_path / "cut", stop_before=stop_before).run()
    resumed = LineFit(tmp_path / "cut")
    assert resumed.run()["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert len(resumed.trained) == 6 - stop_before


def test_epochs_of_an_earlier_attempt_are_kept_too(tmp_path):
    for stop_before in (2, 4):
        with pytest.raises(KeyboardInterrupt, match=f"{stop_before} of 6 epochs are kept"):
            LineFit(tmp_path / "cut", stop_before=stop_before).run()


def test_an_epoch_whose_checkpoint_was_not_finished_is_not_said_to_be_kept(tmp_path, monkeypatch):
    def interrupted(state, path):
        if len(state["rows"]) == 3:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        return save(state, path)

    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt, match="2 of 6 epochs are kept"):
            LineFit(tmp_path / "cut").run()
    resumed = LineFit(tmp_path / "cut")
    resumed.run()
    assert resumed.trained == [2, 3, 4, 5]


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])  # of the file
def test_a_broken_checkpoint_is_told_and_the_training_begins_again(tmp_path, kept, capsys):
    whole = LineFit(tmp_path / "whole")
    expected = whole.run()
    with pytest.raises(KeyboardInterrupt):
        LineFit(tmp_path / "cut", stop_before=3).run()
    path = tmp_path / "cut" / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    again = LineFit(tmp_path / "cut")
    log = again.run()
    assert again.trained == list(range(6))
    pd.testing.assert_frame_equal(log.drop(columns="seconds"), expected.drop(columns="seconds"))
    assert f"{path} is broken" in capsys.readouterr().out


def test_an_interrupt_before_the_first_epoch_ends_leaves_nothing_to_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        LineFit(tmp_path / "cut", stop_before=0).run()
    assert list((tmp_path / "cut").iterdir()) == []


def test_a_finished_training_is_not_trained_further(tmp_path):
    first = LineFit(tmp_path / "run")
    log = first.run()
    again = LineFit(tmp_path / "run")
    pd.testing.assert_frame_equal(again.run(), log)
    assert again.trained == []
    assert final_state(again) == final_state(first)


def test_seconds_go_on_from_the_earlier_attempt(tmp_path):
    first = LineFit(tmp_path / "run", stop_before=2)
    first.work.earlier_s = 100.0
    with pytest.raises(KeyboardInterrupt):
        first.run()
    log = LineFit(tmp_path / "run").run()
    assert log["seconds"].is_monotonic_increasing
    assert log["seconds"].between(100, 160).all()


def test_the_log_on_disk_is_the_one_returned_with_epochs_from_one(tmp_path):
    log = LineFit(tmp_path / "run").run(n_epochs=3)
    assert list(log.columns) == ["epoch", "seconds", "loss"]
    assert log["epoch"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "log.csv"), log)


# --- being watched ---


def test_whoever_watches_gets_the_log_so_far_after_each_epoch(tmp_path):
    seen = []
    log = LineFit(tmp_path / "run", watch=seen.append).run()
    assert [len(rows) for rows in seen] == [1, 2, 3, 4, 5, 6]
    for rows in seen:
        pd.testing.assert_frame_equal(rows, log.head(len(rows)))


def test_after_an_interrupt_only_new_epochs_are_shown_with_the_earlier_ones_in_the_log(tmp_path):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        LineFit(tmp_path / "run", stop_before=4).run()
    LineFit(tmp_path / "run", watch=seen.append).run()
    assert [rows["epoch"].tolist() for rows in seen] == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]


def test_an_epoch_is_on_disk_when_it_is_shown(tmp_path):
    def interrupt(rows):
        if len(rows) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="3 of 6 epochs are kept"):
        LineFit(tmp_path / "run", watch=interrupt).run()
    resumed = LineFit(tmp_path / "run")
    resumed.run()
    assert resumed.trained == [3, 4, 5]


# --- losses that are no numbers ---


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_checkpoint(tmp_path, value):
    # two epochs of four steps went well
    with pytest.raises(FloatingPointError, match=f"loss is {value} at step 9: .*lower lr"):
        LineFit(tmp_path / "run", loss_at={2: value}).run()
    assert pd.read_csv(tmp_path / "run" / "log.csv")["epoch"].tolist() == [1, 2]
    resumed = LineFit(tmp_path / "run")
    resumed.run()
    assert resumed.trained == [2, 3, 4, 5]


# --- the best epoch ---


def test_best_keeps_the_earliest_of_equal_scores_and_gives_its_weights_back():
    module = nn.Linear(1, 1, bias=False)
    best = Best(module)
    for epoch, score in enumerate([0.2, 0.7, 0.7, 0.1]):
        nn.init.constant_(module.weight, float(epoch))
        best.update(score, epoch)
    assert (best.score, best.epoch) == (0.7, 1)
    best.restore()
    assert module.weight.item() == 1.0


def test_best_restores_buffers_too():
    module = nn.BatchNorm1d(1)
    best = Best(module)
    best.update(1.0, 0)
    module(torch.tensor([[10.0], [12.0]]))
    assert module.running_mean.item() != 0
    best.restore()
    assert module.running_mean.item() == 0
    assert module.num_batches_tracked.item() == 0


def test_best_without_a_score_changes_nothing():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 3.0)
    Best(module).restore()
    assert module.weight.item() == 3.0


def test_a_score_that_is_no_number_is_never_the_best():
    best = Best(nn.Linear(1, 1))
    best.update(math.nan, 0)
    best.update(0.1, 1)
    best.update(math.nan, 2)
    assert best.epoch == 1


def test_a_generator_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(1)
    torch.rand(3, generator=generator)
    state = GeneratorState(generator).state_dict()
    expected = torch.rand(5, generator=generator)
    other = torch.Generator().manual_seed(2)
    GeneratorState(other).load_state_dict(state)
    assert torch.equal(torch.rand(5, generator=other), expected)


# --- one of several processes ---


def test_of_several_processes_only_the_first_writes_and_the_others_learn_the_same(tmp_path, monkeypatch):
    first = LineFit(tmp_path / "first")
    expected = first.run()
    with monkeypatch.context() as patch:
        patch.setattr(Ranks, "joined", Ranks(1, 2))
        other = LineFit(tmp_path / "other")
        log = other.run()
    assert list((tmp_path / "other").iterdir()) == []
    pd.testing.assert_frame_equal(log.drop(columns="seconds"), expected.drop(columns="seconds"))
    assert final_state(other) == final_state(first)


# --- files written whole ---


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    def save_half(state, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    fit = LineFit(tmp_path / "run")
    fit.run(n_epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_half)
        with pytest.raises(OSError, match="disk full"):
            LineFit(tmp_path / "run").run()
    resumed = LineFit(tmp_path / "run")
    resumed.run()
    assert resumed.trained == [2, 3, 4, 5]
