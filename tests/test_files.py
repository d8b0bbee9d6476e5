"""Files that appear whole or not at all."""

import pytest

from fetal_utils.files import replace_file


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
