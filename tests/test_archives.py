"""Zips that can be trusted, and those that must not be."""

import stat
import struct
import zipfile
from collections import namedtuple

import pytest

from fetal_utils.archives import ArchiveError, DiskSpaceError, check_entries, check_space, extract

Usage = namedtuple("Usage", "total used free")


def all_of(names):
    return {name: name for name in names}


def write_zip(path, entries, *, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def entry(name, *, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def patched(path, *, field, value, directory=b"PK\x01\x02"):
    """The zip with a field of its first central directory entry overwritten (offsets: PKWARE APPNOTE 4.3.12)."""
    offset, form = {"flags": (8, "<H"), "method": (10, "<H"), "packed": (20, "<I"), "size": (24, "<I")}[field]
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, content.index(directory) + offset, value)
    path.write_bytes(content)
    return path


# --- what is unpacked ---


def test_chosen_entries_go_where_they_are_wanted_and_the_others_stay_in_the_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("top/a.txt", b"first"), ("top/deep/b.txt", b"second"), ("c.txt", b"third")])
    extract(path, tmp_path / "out", choose=lambda names: {"top/a.txt": "a.txt", "top/deep/b.txt": "x/b.txt"})
    found = {
        file.relative_to(tmp_path / "out").as_posix(): file.read_bytes() for file in (tmp_path / "out").rglob("*.*")
    }
    assert found == {"a.txt": b"first", "x/b.txt": b"second"}


def test_folders_are_not_offered_as_files(tmp_path):
    path = write_zip(tmp_path / "a.zip", [(entry("Images/", mode=stat.S_IFDIR | 0o755), b""), ("Images/a.png", b"a")])
    offered = []
    extract(path, tmp_path / "out", choose=lambda names: offered.extend(names) or {})
    assert offered == ["Images/a.png"]


# --- names that leave the folder ---


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../evil.txt", "climbs out"),
        ("Images/../../evil.txt", "climbs out"),
        ("Images\\..\\..\\evil.txt", "climbs out"),
        ("/evil.txt", "absolute"),
        ("\\evil.txt", "absolute"),
        ("C:/evil.txt", "absolute"),
        ("C:evil.txt", "absolute"),
        ("//server/share/evil.txt", "absolute"),
    ],
)
def test_an_entry_that_leaves_the_folder_is_named_and_nothing_is_written(name, fault, compression, tmp_path):
    (tmp_path / "deep").mkdir()
    path = write_zip(tmp_path / "deep" / "a.zip", [("good.txt", b"good"), (name, b"evil")], compression=compression)
    with pytest.raises(ArchiveError, match=fault) as error:
        extract(path, tmp_path / "deep" / "out", choose=all_of)
    assert repr(name) in str(error.value)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.zip", "deep"]


def test_it_is_refused_even_where_it_is_not_among_the_chosen(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("good.txt", b"good"), ("../evil.txt", b"evil")])
    with pytest.raises(ArchiveError, match="climbs out"):
        extract(path, tmp_path / "out", choose=lambda names: {"good.txt": "good.txt"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(kind, tmp_path):
    path = write_zip(tmp_path / "a.zip", [(entry("Images", mode=kind | 0o777), b"/etc")])
    with pytest.raises(ArchiveError, match="'Images' is a link or device"):
        extract(path, tmp_path / "out", choose=all_of)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["a.txt", "A.TXT", "./a.txt"])
def test_a_name_that_stands_twice_is_refused(again, tmp_path):
    path = write_zip(tmp_path / "a.zip", [("a.txt", b"one"), (entry(again), b"two")])
    with pytest.raises(ArchiveError, match="stands twice"):
        extract(path, tmp_path / "out", choose=all_of)


def test_an_encrypted_entry_is_refused(tmp_path):
    path = patched(write_zip(tmp_path / "a.zip", [("a.txt", b"one")]), field="flags", value=1)
    with pytest.raises(ArchiveError, match=r"'a\.txt' is encrypted"):
        extract(path, tmp_path / "out", choose=all_of)


# --- sizes ---


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", [("a.bin", bytes(3_000_000)), ("b.bin", bytes(9_000_000))])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, 2_999_999))
    with pytest.raises(DiskSpaceError, match=r"0\.00 GB free, and unpacking a\.zip needs 0\.01 GB"):
        extract(path, tmp_path / "out", choose=all_of)
    with pytest.raises(DiskSpaceError):
        extract(path, tmp_path / "out", choose=lambda names: {"a.bin": "a.bin"})
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, 3_000_000))
    extract(path, tmp_path / "out", choose=lambda names: {"a.bin": "a.bin"})
    assert (tmp_path / "out" / "a.bin").stat().st_size == 3_000_000


def test_room_is_enough_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, 4_250_000_000))
    check_space(tmp_path, 4_250_000_000, purpose="this")
    with pytest.raises(DiskSpaceError, match=r"has 4\.25 GB free, and this needs 4\.26 GB; make room"):
        check_space(tmp_path, 4_260_000_000, purpose="this")


def test_an_entry_longer_than_it_declares_is_never_written_beyond_that(tmp_path):
    path = patched(write_zip(tmp_path / "a.zip", [("a.bin", bytes(5_000_000))]), field="size", value=1000)
    with pytest.raises(ArchiveError, match="damaged"):
        extract(path, tmp_path / "out", choose=all_of)
    assert (tmp_path / "out" / "a.bin").stat().st_size <= 1000


def test_entries_that_share_bytes_are_refused(tmp_path):
    # two entries in the directory, both pointing at the first one's data: the heart of the zip bombs of D. Fifield
    content = bytes(100_000)
    path = write_zip(tmp_path / "a.zip", [("a", content), ("b", content)], compression=zipfile.ZIP_STORED)
    archive = path.read_bytes()
    second, directory = archive.index(b"PK\x03\x04", 10), archive.index(b"PK\x01\x02")
    shorter = bytearray(archive[:second] + archive[directory:])
    first_entry = second
    second_entry = shorter.index(b"PK\x01\x02", first_entry + 4)
    struct.pack_into("<I", shorter, second_entry + 42, 0)  # its data begin where the first one's do
    end = shorter.index(b"PK\x05\x06")
    struct.pack_into("<I", shorter, end + 16, first_entry)
    path.write_bytes(shorter)
    with pytest.raises(ArchiveError, match="add up to 200000 packed bytes"):
        extract(path, tmp_path / "out", choose=all_of)
    assert not (tmp_path / "out").exists()


# --- damage ---


def test_a_zip_that_was_cut_off_anywhere_is_damaged(tmp_path):
    content = write_zip(tmp_path / "whole.zip", [("a.txt", b"one" * 100), ("b.txt", b"two" * 100)]).read_bytes()
    for n_bytes in range(0, len(content), 7):
        (tmp_path / "a.zip").write_bytes(content[:n_bytes])
        with pytest.raises(ArchiveError, match=r"a\.zip is damaged"):
            extract(tmp_path / "a.zip", tmp_path / "out", choose=all_of)


def test_a_changed_byte_of_the_content_is_damage(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("a.txt", b"one two three")], compression=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"two", b"TWO"))
    with pytest.raises(ArchiveError, match=r"a\.zip is damaged \(Bad CRC-32"):
        extract(path, tmp_path / "out", choose=all_of)


@pytest.mark.parametrize(("name", "offset"), [("", 0), ("a.txt", -1)])
def test_an_entry_without_a_name_or_before_the_first_byte_is_damage(name, offset):
    info = entry(name)
    info.header_offset = offset
    with pytest.raises(ArchiveError, match=f"entry {name!r} is damaged"):
        check_entries([info], n_bytes=100)


def test_a_compression_that_nobody_knows_is_damage(tmp_path):
    path = patched(write_zip(tmp_path / "a.zip", [("a.txt", b"one")]), field="method", value=77)
    with pytest.raises(ArchiveError, match="damaged"):
        extract(path, tmp_path / "out", choose=all_of)


def test_a_file_that_is_no_zip_is_damaged_and_one_that_is_missing_is_not_there(tmp_path):
    (tmp_path / "page.zip").write_text("<html>please log in</html>")
    with pytest.raises(ArchiveError, match=r"page\.zip is damaged \(File is not a zip file\)"):
        extract(tmp_path / "page.zip", tmp_path / "out", choose=all_of)
    with pytest.raises(FileNotFoundError):
        extract(tmp_path / "missing.zip", tmp_path / "out", choose=all_of)


def test_what_choose_refuses_is_told_with_the_name_of_the_zip(tmp_path):
    def refuse(names):
        raise ArchiveError(f"holds only {names}")

    path = write_zip(tmp_path / "a.zip", [("a.txt", b"one")])
    with pytest.raises(ArchiveError, match=r"a\.zip: holds only \['a\.txt'\]"):
        extract(path, tmp_path / "out", choose=refuse)
