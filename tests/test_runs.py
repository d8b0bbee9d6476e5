"""The store of runs, on runs that only add numbers (see toy_runs.py)."""

import dataclasses
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from toy_runs import Sum, ask_for_sum, computed, toy_store, value_of

from fetal_utils import attempts
from fetal_utils.encoders import InitialWeights
from fetal_utils.environment import versions
from fetal_utils.epochs import run_epochs
from fetal_utils.leases import Lease
from fetal_utils.runs import RunsFailedError
from fetal_utils.settings import Settings
from fetal_utils.simclr import Pretrain
from fetal_utils.unlabelled import UnlabelledImages


@pytest.fixture
def store(tmp_path):
    return toy_store(tmp_path)


def partial_folder(store, settings):
    return store.folder(settings).with_suffix(".partial")


def lease_of(store, settings):
    return Lease(store.folder(settings).with_suffix(".lease"))


# --- names of the folders ---


def test_equal_settings_share_a_folder_and_any_changed_field_gives_another(store):
    first = Sum(term=1)
    assert store.folder(first) == store.folder(Sum(term=1))
    assert store.folder(first).parent == store.results_dir / "runs" / "sum"
    changed = [Sum(term=2), Sum(term=1, scale=2.0), Sum(term=1, broken=True), Sum(term=1, start=Sum(term=0))]
    assert len({store.folder(settings) for settings in [first, *changed]}) == 5


def test_every_field_of_a_pretraining_changes_its_folder(store):
    settings = Pretrain(start=InitialWeights(backbone="resnet18", init="random"))
    others = {
        "start": InitialWeights(backbone="resnet18", init="random", seed=1),
        "pool": "planes",
        "same_patient_negatives": False,
        "extra_images": UnlabelledImages("more", "key"),
    }
    folders = {store.folder(settings)}
    for field in dataclasses.fields(Pretrain):
        value = getattr(settings, field.name)
        other = others.get(field.name, f"{value}x" if isinstance(value, str) else value)
        changed = dataclasses.replace(settings, **{field.name: other + 1 if other is value else other})
        folders.add(store.folder(changed))
    folders.add(store.folder(dataclasses.replace(settings, extra_images=UnlabelledImages("more", "another key"))))
    assert len(folders) == 1 + len(dataclasses.fields(Pretrain)) + 1


def test_settings_of_the_start_count_at_any_depth(store):
    deep = [Sum(term=3, start=Sum(term=2, start=Sum(term=1, scale=scale))) for scale in (1.0, 2.0)]
    assert store.folder(deep[0]) != store.folder(deep[1])


def test_the_data_key_counts(store):
    assert toy_store(store.results_dir, key="other").folder(Sum(term=1)) != store.folder(Sum(term=1))


def test_the_kind_counts(store):
    @dataclass(frozen=True, kw_only=True)
    class Difference(Sum):
        kind: ClassVar[str] = "difference"

    assert store.folder(Difference(term=1)).name != store.folder(Sum(term=1)).name


def test_one_number_written_in_two_ways_is_one_run(store):
    written = [Sum(term=np.int64(1), scale=1), Sum(term=1, scale=np.float32(1)), Sum(term=1, scale=1.0)]
    runs = store.get(written)
    assert len({run.folder for run in runs}) == 1
    assert computed(store) == [1]


@pytest.mark.parametrize(("field", "value"), [("term", 1.5), ("term", "1"), ("scale", "wide"), ("scale", None)])
def test_a_value_that_is_no_such_number_is_refused_by_name(field, value):
    with pytest.raises(TypeError, match=f"{field}=.*expected (int|float)"):
        Sum(**{"term": 1} | {field: value})


# --- what is computed, and in which order ---


def test_a_finished_run_is_returned_and_not_computed_again(store):
    (first,) = store.get([Sum(term=5)])
    record = (first.folder / "record.json").read_bytes()
    (again,) = toy_store(store.results_dir).get([Sum(term=5)])
    assert again.folder == first.folder
    assert (again.folder / "record.json").read_bytes() == record
    assert computed(store) == [5]


def test_runs_come_back_in_the_order_asked_for_repeats_included(store):
    asked = [Sum(term=2), Sum(term=1), Sum(term=2)]
    assert [run.settings for run in store.get(asked)] == asked
    assert computed(store) == [2, 1]


def test_starts_are_computed_before_what_starts_from_them_each_once(store):
    root = Sum(term=1)
    left, right = Sum(term=20, start=root), Sum(term=30, start=root)
    runs = store.get([Sum(term=400, start=left), right, left])
    assert computed(store) == [1, 20, 400, 30]
    assert [value_of(store, run.settings) for run in runs] == [421, 31, 21]
    assert store.has(root)


def test_a_finished_run_needs_no_start(store):
    end = Sum(term=3, start=Sum(term=2))
    store.get([end])
    folder = store.folder(end.start)
    folder.rename(folder.with_name("taken-away"))
    assert store.missing([end]) == []
    assert store.missing([Sum(term=4, start=end)]) == [Sum(term=4, start=end)]


def test_settings_name_only_the_runs_they_start_from(store):
    assert Sum(term=2, start=Sum(term=1)).starts_from() == [Sum(term=1)]
    assert Pretrain(start=InitialWeights(backbone="resnet18", init="random")).starts_from() == []


def test_settings_that_cannot_be_computed_are_refused_before_any_run_starts(store):
    with pytest.raises(ValueError, match="term=-1"):
        store.get([Sum(term=1), Sum(term=2, start=Sum(term=-1))])
    assert computed(store) == []


def test_settings_without_a_computation_fail_by_name(store):
    @dataclass(frozen=True, kw_only=True)
    class Nothing(Settings):
        kind: ClassVar[str] = "nothing"

    with pytest.raises(RunsFailedError, match="NotImplementedError"):
        store.get([Nothing()])


# --- being watched ---


@dataclass(frozen=True, kw_only=True)
class Count(Settings):
    """Epochs whose loss is their number."""

    kind: ClassVar[str] = "count"
    n_epochs: int

    def compute(self, work):
        run_epochs(work, lambda epoch: {"loss": epoch + 1.0}, n_epochs=self.n_epochs, parts={}, desc="count")


def test_whoever_watches_is_told_the_settings_and_the_log_so_far_once_an_epoch(store):
    seen = []
    asked = [Count(n_epochs=3), Sum(term=1), Count(n_epochs=2)]
    store.get(asked, watch=lambda settings, log: seen.append((settings, log["loss"].tolist())))
    of_three = [(asked[0], [1.0]), (asked[0], [1.0, 2.0]), (asked[0], [1.0, 2.0, 3.0])]
    assert seen == [*of_three, (asked[2], [1.0]), (asked[2], [1.0, 2.0])]
    store.get(asked, watch=lambda *_: pytest.fail("a finished run has no epochs"))


def test_an_unwatched_run_has_the_same_log(store, tmp_path):
    (watched,) = store.get([Count(n_epochs=3)], watch=lambda *_: None)
    (alone,) = toy_store(tmp_path / "other").get([Count(n_epochs=3)])
    assert watched.log["loss"].tolist() == alone.log["loss"].tolist() == [1, 2, 3]


# --- failures ---


def test_a_failing_run_leaves_its_traceback_and_the_others_go_on(store):
    broken = Sum(term=1, broken=True)
    with pytest.raises(RunsFailedError) as caught:
        store.get([broken, Sum(term=2)])
    assert str(caught.value).startswith("1 of 2 runs failed")
    assert f"sum {store.folder(broken).name}: RuntimeError: term 1 is broken" in str(caught.value)
    assert "RuntimeError: term 1 is broken" in (partial_folder(store, broken) / "traceback.txt").read_text()
    assert value_of(store, Sum(term=2)) == 2


def test_a_run_whose_start_failed_is_not_tried_and_says_why(store):
    broken = Sum(term=1, broken=True)
    middle = Sum(term=2, start=broken)
    with pytest.raises(RunsFailedError) as caught:
        store.get([Sum(term=3, start=middle), Sum(term=4)])
    assert computed(store) == [1, 4]
    assert f"starts from sum {store.folder(broken).name}, which failed" in str(caught.value)
    assert f"starts from sum {store.folder(middle).name}, which failed" in str(caught.value)


def test_a_folder_appears_only_when_whole(store):
    broken = Sum(term=1, broken=True)
    with pytest.raises(RunsFailedError):
        store.get([broken])
    assert (partial_folder(store, broken) / "half.txt").exists()
    assert not store.folder(broken).exists()
    assert not store.has(broken)


def test_a_failed_run_is_tried_again_and_its_traceback_goes(store, monkeypatch):
    settings = Sum(term=7)
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "finish", lambda *args: 1 / 0)
        with pytest.raises(RunsFailedError, match="ZeroDivisionError"):
            store.get([settings])
    (run,) = store.get([settings])
    assert sorted(path.name for path in run.folder.iterdir()) == ["half.txt", "record.json", "value.txt"]
    assert not partial_folder(store, settings).exists()


def test_an_interrupt_stops_everything_and_keeps_what_was_done(store, monkeypatch):
    def interrupted(settings, work):
        (work.folder / "checkpoint.pt").write_text("epoch 3")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Sum, "compute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.get([Sum(term=1), Sum(term=2)])
    assert (partial_folder(store, Sum(term=1)) / "checkpoint.pt").read_text() == "epoch 3"
    assert not partial_folder(store, Sum(term=2)).exists()
    (run,) = store.get([Sum(term=1)])
    assert not (run.folder / "checkpoint.pt").exists()


def test_what_a_killed_process_had_half_written_does_not_stay_in_the_finished_folder(store):
    settings = Sum(term=1)
    partial_folder(store, settings).mkdir(parents=True)
    for name in (".checkpoint.pt.4711.partial", ".log.csv.4711.partial", "checkpoint.pt", "traceback.txt"):
        (partial_folder(store, settings) / name).write_text("left by an earlier attempt")
    (run,) = store.get([settings])
    assert sorted(path.name for path in run.folder.iterdir()) == ["half.txt", "record.json", "value.txt"]


def test_after_each_run_failed_or_not_its_freed_memory_is_returned(store, monkeypatch):
    returned = []
    monkeypatch.setattr(attempts, "return_freed_memory", lambda: returned.append(computed(store)))
    with pytest.raises(RunsFailedError):
        store.get([Sum(term=1, broken=True), Sum(term=2)])
    assert returned == [[1], [1, 2]]


# --- records ---


def test_a_record_tells_what_made_the_run(store):
    (run,) = store.get([Sum(term=3, start=Sum(term=2))])
    record = run.record
    start = {"kind": "sum", "term": 2, "start": None, "scale": 1.0, "broken": False}
    assert record["settings"] == {"kind": "sum", "term": 3, "start": start, "scale": 1.0, "broken": False}
    assert record["data_key"] == "toy"
    assert record["data"]["is_phantom"] is True
    assert record["facts"] == {"total": 5}
    assert record["versions"] == versions()
    assert record["device"] == "cpu"
    assert isinstance(record["commit"], str)
    assert 0 <= record["seconds"] < 60
    assert record["peak_memory_mib"] > 50  # Python and torch alone take more


@pytest.mark.parametrize(
    "change", [{"data_key": "other"}, {"settings": {"kind": "sum", "term": 4}}, {"results_version": -1}]
)
def test_a_record_of_something_else_is_refused(store, change):
    (run,) = store.get([Sum(term=3)])
    path = run.folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="other settings than asked for; delete that folder"):
        toy_store(store.results_dir).get([Sum(term=3)])


def test_opening_a_run_that_was_not_computed_names_its_folder(store):
    with pytest.raises(FileNotFoundError, match=store.folder(Sum(term=3)).name):
        store.open(Sum(term=3))


# --- several processes ---


def test_two_processes_that_ask_for_the_same_run_compute_it_once(store):
    settings = Sum(term=11)
    # a fork is there at once; elsewhere than on Linux it is not safe beside threads
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    queue = context.Queue()
    processes = [context.Process(target=ask_for_sum, args=(store.results_dir, 11, queue)) for _ in range(2)]
    store.folder(settings).parent.mkdir(parents=True)
    lease = lease_of(store, settings)
    assert lease.acquire()  # neither can start before both have found the run missing
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [[settings], [settings]]
    time.sleep(0.3)  # for both to reach the lease
    assert computed(store) == []
    lease.release()
    assert [queue.get(timeout=60) for _ in processes] == [11, 11]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert computed(store) == [11]
    assert not partial_folder(store, settings).exists()
