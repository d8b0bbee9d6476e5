"""Runs on a disk that is full or read-only: stopped with a reason, nothing lost, and continued when it is not."""

import shutil
import subprocess
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from PIL import Image
from toy_runs import Sum, computed, toy_store

from fetal_utils.epochs import GeneratorState, run_epochs
from fetal_utils.files import StorageError
from fetal_utils.images import ImageFormat, open_image_files
from fetal_utils.run_status import run_status
from fetal_utils.settings import Settings
from fetal_utils.weights import save_weights

MIB = 2**20
DISK_BYTES = 16 * MIB


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small disk ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@dataclass(frozen=True, kw_only=True)
class Drift(Settings):
    """A layer of a MiB that drifts at random, epoch by epoch; ``drifted.txt`` tells which were really computed."""

    kind: ClassVar[str] = "drift"
    seed: int = 0
    n_epochs: int = 3

    def compute(self, work):
        layer = torch.nn.Linear(512, 512, bias=False)
        torch.nn.init.zeros_(layer.weight)
        generator = torch.Generator().manual_seed(self.seed)

        def train_epoch(epoch):
            with torch.no_grad():
                layer.weight += torch.randn(512, 512, generator=generator)
            return {"loss": layer.weight.detach().square().mean().item()}

        parts = {"layer": layer, "generator": GeneratorState(generator)}
        run_epochs(work, train_epoch, n_epochs=self.n_epochs, parts=parts, desc="drift")
        save_weights(layer, work.folder / "weights.safetensors")


def leave_room(folder, n_bytes):
    """Fill a disk with a file, but for so much."""
    path = folder / "ballast"
    path.write_bytes(bytes(shutil.disk_usage(folder).free - n_bytes))
    return path


def unfinished(store, settings):
    return store.folder(settings).with_suffix(".partial")


def files_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("room", "stopped"),  # MiB; for no checkpoint, for one but not its copy, for all of one run but not of two
    [(0.6, 1), (1.6, 1), (2.7, 2)],
)
def test_a_disk_that_fills_up_stops_the_study_which_goes_on_to_the_same_weights_when_there_is_room(
    small_disk, tmp_path, room, stopped
):
    store = toy_store(small_disk)
    wanted = [Sum(term=1), Drift(), Drift(seed=1), Sum(term=2)]
    store.get(wanted[:1])
    ballast = leave_room(small_disk, int(room * MIB))
    with pytest.raises(StorageError, match=r"can't be written: no space is left .* free, more is needed") as error:
        store.get(wanted)
    assert str(unfinished(store, wanted[stopped])) in str(error.value)
    assert computed(store) == [1]  # and not the one after it, which would have failed alike
    states = run_status(small_disk).set_index("key")["state"]
    assert states[store.folder(wanted[stopped]).name] == "interrupted"
    assert set(files_of(unfinished(store, wanted[stopped]))) <= {"settings.json", "log.csv", "checkpoint.pt"}
    ballast.unlink()
    runs = store.get(wanted)
    undisturbed = toy_store(tmp_path / "other").get(wanted)
    for run, other in zip(runs[1:3], undisturbed[1:3], strict=True):
        assert run.weights.read_bytes() == other.weights.read_bytes()
        assert files_of(run.folder) == ["log.csv", "record.json", "weights.safetensors"]


def test_a_disk_without_any_room_is_found_before_the_first_run(small_disk):
    store = toy_store(small_disk)
    store.get([Sum(term=1)])
    leave_room(small_disk, 0)
    with pytest.raises(StorageError, match=rf"{small_disk} can't be written: no space is left \(0.0 MiB free\)"):
        store.get([Sum(term=1), Sum(term=2)])
    assert not store.folder(Sum(term=2)).with_suffix(".partial").exists()
    assert store.get([Sum(term=1)])[0].record["facts"] == {"total": 1}  # what is there is still read


def test_a_read_only_folder_is_found_before_the_first_run_and_finished_runs_are_still_read(small_disk):
    store = toy_store(small_disk)
    store.get([Sum(term=1)])
    assert mount("-o", "remount,ro", small_disk).returncode == 0
    with pytest.raises(StorageError, match="the file system is read-only"):
        store.get([Sum(term=1), Sum(term=2)])
    assert store.get([Sum(term=1)])[0].record["facts"] == {"total": 1}
    assert run_status(small_disk)["state"].tolist() == ["done"]


def test_a_run_that_can_no_longer_be_written_stops_the_study_which_goes_on_when_it_can(small_disk, tmp_path):
    store = toy_store(small_disk)
    folder = unfinished(store, Drift())

    def write_protect(settings, log):
        if len(log) == 2:  # a disk is refused this while it is in use, so its folder is made a mount of its own
            assert mount("--bind", folder, folder).returncode == 0
            assert mount("-o", "remount,bind,ro", folder).returncode == 0

    try:
        with pytest.raises(StorageError, match=rf"{folder}.*: the file system is read-only"):
            store.get([Drift(), Sum(term=1)], watch=write_protect)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert computed(store) == []
    seen = []
    (run, _) = store.get([Drift(), Sum(term=1)], watch=lambda settings, log: seen.append(len(log)))
    assert seen == [3]
    (undisturbed,) = toy_store(tmp_path / "other").get([Drift()])
    assert run.weights.read_bytes() == undisturbed.weights.read_bytes()


def test_images_that_do_not_fit_on_the_disk_are_an_error_and_not_the_end_of_the_process(small_disk, tmp_path):
    path = tmp_path / "gray.png"
    Image.new("L", (32, 32), 100).save(path)
    with pytest.raises(StorageError, match="no space is left"):  # 200 images of 320 px: 20 MiB
        open_image_files([path] * 200, ImageFormat(320), cache_dir=small_disk / "cache", progress=False)
    images = open_image_files([path] * 10, ImageFormat(320), cache_dir=small_disk / "cache", progress=False)
    assert images.shape == (10, 320, 320)
    assert (images == 100).all()
