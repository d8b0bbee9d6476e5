import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fetal_utils import environment
from fetal_utils.environment import (
    PROJECT_ROOT,
    commit,
    describe_environment,
    peak_memory_mib,
    pick_device,
    progress_bar,
    project_path,
    set_seed,
    torch_generator,
    versions,
    what_it_means,
)


def test_relative_paths_count_from_the_repository_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_path("data/mine") == PROJECT_ROOT / "data" / "mine"
    assert (project_path("") / "pyproject.toml").is_file()


def test_absolute_paths_stay_and_the_home_folder_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert project_path(tmp_path / "a") == tmp_path / "a"
    assert project_path("~/a") == tmp_path / "a"


def test_the_device_asked_for_is_taken_and_auto_finds_one():
    assert pick_device("cpu") == torch.device("cpu")
    automatic = pick_device("auto")
    assert torch.ones(2, device=automatic).sum().item() == 2
    accelerated = torch.accelerator.is_available()
    assert (automatic.type != "cpu") == accelerated


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "tpu!"])
def test_a_device_that_is_not_there_is_named_with_what_to_do(device):
    with pytest.raises(ValueError, match=rf"device={device!r} can't be used here .*'auto' takes what is there"):
        pick_device(device)


def test_setting_the_seed_repeats_python_numpy_and_torch():
    draws = []
    for _ in range(2):
        set_seed(5)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_a_negative_seed_is_named():
    with pytest.raises(ValueError, match="seed=-1: expected 0 or more"):
        set_seed(-1)


def first_draw(*seeds):
    return torch.rand(1, generator=torch_generator(*seeds), dtype=torch.float64).item()


def test_a_generator_repeats_with_its_numbers_and_differs_with_each_of_them():
    pairs = [(seed, purpose) for seed in range(10) for purpose in range(10)]
    draws = {pair: first_draw(*pair) for pair in pairs}
    assert len(set(draws.values())) == len(pairs)  # (1, 2) is not (2, 1)
    assert draws[3, 4] == first_draw(3, 4)


def test_a_generator_neither_reads_nor_moves_the_global_one():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = first_draw(1, 2)
    assert torch.equal(torch.rand(1), expected)
    assert first_draw(1, 2) == first


def test_large_seeds_are_allowed_and_negative_ones_are_not():
    assert 0 <= first_draw(2**40, 2**70) < 1
    with pytest.raises(ValueError, match="non-negative"):
        torch_generator(-1, 0)


def test_versions_name_what_the_numbers_depend_on():
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert set(found) == {"python", *environment.PACKAGES}


@pytest.mark.parametrize(
    "device_type, threads, memory_gib, disk_gib, expected",
    [
        ("cpu", 2, 16, 50, ["CPU with 2 threads: the minutes above are for such a machine."]),
        ("cpu", 1, 16, 50, ["CPU with 1 thread: expect more minutes than above, which are for 2."]),
        ("cpu", 8, 16, 50, ["CPU with 8 threads: expect fewer minutes than above, which are for 2."]),
        ("cuda", 8, 16, 50, ["on **cuda**: expect fewer minutes than the CPU's above; none were measured on it."]),
        ("cpu", 2, 2.9, 50, ["CPU with 2 threads", "Less than 3 GiB of memory are free**: .* `image_size` of 64"]),
        ("cpu", 2, 16, 1.9, ["CPU with 2 threads", "Less than 2 GiB of disk are free**: give a `results_dir`"]),
    ],
)
def test_a_reader_is_told_what_the_machine_means_for_the_minutes(device_type, threads, memory_gib, disk_gib, expected):
    lines = what_it_means(device_type, threads=threads, memory_gib=memory_gib, disk_gib=disk_gib)
    assert len(lines) == len(expected)
    assert all(re.search(pattern.replace("**", r"\*\*"), line) for pattern, line in zip(expected, lines, strict=True))


def test_the_description_is_a_table_of_what_is_here_for_a_folder_that_need_not_exist_yet(tmp_path):
    text = describe_environment(tmp_path / "not" / "yet", data="a phantom").data
    first, *_ = [line for line in text.splitlines() if line.startswith("| **")]
    assert first == "| **data** | a phantom |"
    assert f"{tmp_path / 'not' / 'yet'}, " in text
    assert f"torch {versions()['torch']}" in text
    assert text.splitlines()[-1].startswith("- ")  # what it means comes last
    assert not (tmp_path / "not").exists()


def test_there_is_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(environment, "PROJECT_ROOT", tmp_path)
    assert commit() == ""
    monkeypatch.setenv("PATH", "")  # nor without git
    assert commit() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="compared with /proc")
def test_peak_memory_is_in_mib():
    status = Path("/proc/self/status").read_text()
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_memory_mib(torch.device("cpu")) == pytest.approx(peak_kib / 1024, rel=0.1)


def test_a_progress_bar_counts_and_can_be_hidden(capsys):
    for show in (True, False):
        with progress_bar(total=3, desc="decoding", unit="image", show=show) as bar:
            for _ in range(3):
                bar.update()
        shown = capsys.readouterr().err
        assert ("decoding" in shown) == show
        assert ("3/3" in shown) == show


def test_a_progress_bar_that_nobody_watches_writes_few_lines(capsys):
    with progress_bar(total=10_000, desc="decoding", unit="image") as bar:
        for _ in range(10_000):
            bar.update()
    assert capsys.readouterr().err.count("decoding") <= 3


def test_the_repository_root_holds_the_package():
    assert Path(environment.__file__).parent == PROJECT_ROOT / "fetal_utils"
