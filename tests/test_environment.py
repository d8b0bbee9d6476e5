import errno
import math
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from fetal_utils import environment
from fetal_utils.environment import (
    PROJECT_ROOT,
    StorageError,
    check_writable,
    pick_device,
    progress_bar,
    project_path,
    read_json,
    read_table,
    replace_file,
    set_seed,
    torch_generator,
    write_json,
    write_table,
)


def test_a_notebooks_path_counts_from_the_repository_root_or_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert project_path("results/my {run} é") == PROJECT_ROOT / "results" / "my {run} é"
    assert project_path(tmp_path / "there") == tmp_path / "there"
    assert project_path("~/out") == tmp_path / "out"


def test_a_device_is_taken_by_its_name_and_refused_with_what_to_do_if_it_is_not_there():
    assert pick_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected
    for name in ("cuda:99", "no_such_device"):
        with pytest.raises(ValueError, match=f"device='{name}' can't be used here .*'auto' takes what is there"):
            pick_device(name)


def test_generators_of_the_same_seeds_draw_alike_and_those_of_others_do_not():
    def draw(*seeds):
        return torch.rand(4, generator=torch_generator(*seeds)).tolist()

    assert draw(3, 1) == draw(3, 1)
    assert len({tuple(draw(*seeds)) for seeds in [(3, 1), (1, 3), (3, 2), (4, 1), (2**40, 1)]}) == 5
    set_seed(5)
    first = torch.rand(1).item()
    set_seed(5)
    assert first == torch.rand(1).item()
    with pytest.raises(ValueError, match="Seed must be between 0"):
        set_seed(-1)


def test_bars_that_nobody_watches_are_a_few_whole_lines(capfd, monkeypatch):
    with progress_bar(total=50, desc="runs", unit="run") as bar:
        for _ in range(50):
            with progress_bar(total=3, desc="epochs", unit="epoch", leave=False) as inner:
                inner.update(3)
            bar.update()
    lines = capfd.readouterr().err.split("\n")
    assert [line.split("|")[0].split() for line in lines if line.strip()] == [["runs:", "0%"], ["runs:", "100%"]]
    monkeypatch.setattr(environment, "LINE_INTERVAL_S", 0.0)
    with progress_bar(total=3, desc="runs", unit="run") as bar:
        for _ in range(3):
            bar.update()
    assert capfd.readouterr().err.count("run/s") >= 3


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    replace_file(path, lambda beside: beside.write_text("old"))

    def half(beside):
        beside.write_text("half of the n")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        replace_file(path, half)
    assert path.read_text() == "old"
    replace_file(path, lambda beside: beside.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), StorageError),
        (OSError("Not enough free space to write 100 bytes"), StorageError),  # as NumPy says it
        (PermissionError(errno.EACCES, "of another user"), PermissionError),
    ],
)
def test_a_full_or_read_only_disk_is_told_from_other_errors_whatever_library_met_it(tmp_path, error, raised):
    def write(beside):
        beside.write_text("some of it")
        raise error

    with pytest.raises(raised, match=r"x.npy can't be written: .* run the same again|of another user"):
        replace_file(tmp_path / "x.npy", write)
    assert list(tmp_path.iterdir()) == []


WRITE_MUCH = """
import resource, signal, sys
import numpy as np, torch
from pathlib import Path
from safetensors.torch import save_file
from fetal_utils.environment import StorageError, replace_file
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tensor = torch.zeros(50_000)
writers = [
    lambda path: torch.save({"tensor": tensor}, path),
    lambda path: save_file({"tensor": tensor}, path),
    lambda path: path.write_bytes(bytes(200_000)),
    lambda path: np.save(path.open("wb"), tensor.numpy()),
]
for write in writers:
    try:
        replace_file(Path(sys.argv[1], "file"), write)
    except StorageError as error:
        print(error)
"""


def test_every_library_that_meets_a_limit_of_file_sizes_is_understood(tmp_path):
    """A stand-in for a full disk that needs no right to mount one."""
    command = [sys.executable, "-c", WRITE_MUCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert done.stdout.count("can't be written: File too large") == 4, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_found_before_anything_is_computed(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file/results"):
        check_writable(tmp_path / "file" / "results")


def test_json_is_read_as_written_and_a_broken_file_is_named(tmp_path):
    path = tmp_path / "record.json"
    content = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_json(path, content)
    assert read_json(path) == content
    for broken in (b'{"a": ', b"[1, 2]", b"\xff\xfe", b"", b"null"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"record.json is broken .*; delete its folder and run the same again"):
            read_json(path)


def test_text_of_a_table_stays_text_and_numbers_stay_exact(tmp_path):
    table = pd.DataFrame(
        {
            "image_name": ["0001", "1e5", "NA"],
            "operator": ["1", "", "None"],
            "machine": ["True", "False", "nan"],
            "true": ["0", "1", "No"],
            "patient": [1, 2, 3],
            "probability_0": [0.1 + 0.2, math.pi / 1e9, math.nan],
        }
    )
    write_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), table, check_exact=True)
