"""Files that appear whole or not at all, and disks that are full."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fetal_utils.files import StorageError, check_writable, replace_file, storage_errors


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "table.csv"
    replace_file(path, lambda beside: beside.write_text("first"))
    replace_file(path, lambda beside: beside.write_text("second"))
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def breaks_off(beside):
        beside.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        replace_file(path, breaks_off)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(path, lambda beside: beside.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


# --- disks that are full ---

MIB = 2**20


@contextmanager
def files_of_at_most(n_bytes):
    """The system refuses longer files, as a full disk would; needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(MIB))


WRITERS = {
    "torch": lambda path: torch.save({"weight": torch.zeros(MIB)}, path),
    "torch, many tensors": lambda path: torch.save([torch.zeros(MIB // 100) for _ in range(100)], path),
    "safetensors": lambda path: save_file({"weight": torch.zeros(MIB)}, path),
    "NumPy": save_array,
    "text": lambda path: path.write_text("x" * 3 * MIB),
}


@pytest.mark.parametrize("library", WRITERS)
def test_whatever_a_library_says_of_a_disk_that_takes_no_more_is_told_as_such_and_the_old_file_stays(library, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with files_of_at_most(MIB), pytest.raises(StorageError, match=r"file can't be written: .*\(ulimit -f\)"):
        replace_file(path, WRITERS[library])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(path, WRITERS[library])
    assert path.stat().st_size > 3 * MIB - 1000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_named_with_what_is_free_and_what_to_do(tmp_path):
    with pytest.raises(
        StorageError, match=r"no space is left \([\d,.]+ MiB free, more is needed\)\. Make room"
    ) as error:
        replace_file(tmp_path / "log.csv", lambda beside: Path("/dev/full").write_text("x"))
    assert str(error.value).startswith(str(tmp_path / "log.csv"))
    assert error.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_none_of_the_disk_stays_what_it_is(tmp_path):
    def breaks_off(beside):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        replace_file(tmp_path / "file", breaks_off)
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "none").read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_the_systems_errors_about_the_disk_are_told_in_words(tmp_path, code):
    words = {errno.ENOSPC: "no space is left", errno.EDQUOT: "quota is used up", errno.EROFS: "system is read-only"}
    with pytest.raises(StorageError, match=words[code]), storage_errors(tmp_path):
        raise OSError(code, os.strerror(code))


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "new" / "results")
    assert list((tmp_path / "new" / "results").iterdir()) == []


def test_a_folder_in_the_place_of_a_file_cannot_be_written(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(StorageError, match=r"results.* can't be written"):
        check_writable(tmp_path / "results" / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_another_users_folder_cannot_be_written(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="this user may not write there"):
        check_writable(tmp_path)
    tmp_path.chmod(0o755)
