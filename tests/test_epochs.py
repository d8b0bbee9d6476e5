import pandas as pd
import pytest
from toy_runs import Drift, end_epochs, files_of, toy_store, unfinished


@pytest.mark.parametrize("n_epochs", [1, 2, 3])
def test_an_interrupted_run_goes_on_after_its_last_epoch_to_the_same_weights(tmp_path, n_epochs, monkeypatch):
    (whole,) = toy_store(tmp_path / "whole").get([Drift()])
    store = toy_store(tmp_path / "cut")
    ended = end_epochs(monkeypatch, {n_epochs: KeyboardInterrupt})
    with pytest.raises(KeyboardInterrupt, match=r"0 of 1 runs are finished.*Run the same again to go on"):
        store.get([Drift()])
    assert not store.folder(Drift()).exists()
    assert files_of(unfinished(store, Drift())) == ["attempt.json", "checkpoint.pt", "log.csv"]
    assert len(pd.read_csv(unfinished(store, Drift()) / "log.csv")) == n_epochs
    (run,) = store.get([Drift()])
    assert ended == [1, 2, 3]  # none twice
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    assert run.log[["epoch", "loss"]].equals(whole.log[["epoch", "loss"]])
    assert run.log["epoch"].tolist() == [1, 2, 3]
    assert run.log["seconds"].is_monotonic_increasing
    assert run.record["seconds"] >= run.log["seconds"].iloc[-1]  # those before the interruption count
    assert files_of(run.folder) == ["log.csv", "predictions.csv", "record.json", "weights.safetensors"]


def test_a_run_that_diverges_fails_and_keeps_its_last_checkpoint(tmp_path, monkeypatch):
    store = toy_store(tmp_path)
    ended = end_epochs(monkeypatch, {2: FloatingPointError})
    with pytest.raises(RuntimeError, match="FloatingPointError"):
        store.get([Drift()])
    assert {"checkpoint.pt", "traceback.txt"} <= set(files_of(unfinished(store, Drift())))
    store.get([Drift()])
    assert ended == [1, 2, 3]
