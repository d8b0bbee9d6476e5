"""A zip from elsewhere, unpacked without trusting it."""

from __future__ import annotations

import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from fetal_utils.environment import progress_bar

# what zipfile raises where bytes are wrong
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, UnicodeDecodeError)
ENCRYPTED = 0x1  # flag of an entry, PKWARE APPNOTE 4.4.4


class ArchiveError(ValueError):
    """A zip that is damaged, or that must not be unpacked."""


class DiskSpaceError(OSError):
    """There is no room for what is to be written."""


def in_gigabytes(n_bytes: float) -> str:
    """A number of bytes, for people."""
    return f"{n_bytes / 1e9:.2f} GB"


def check_space(folder: Path, n_bytes: float, *, purpose: str) -> None:
    """Raise a DiskSpaceError with the need and what is there, if the folder's disk has less free."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise DiskSpaceError(
            f"{folder} has {in_gigabytes(free)} free, and {purpose} needs {in_gigabytes(n_bytes)}; "
            "make room, or choose a folder on another disk"
        )


def extract(
    path: Path, folder: Path, *, choose: Callable[[list[str]], Mapping[str, str]], progress: bool = True
) -> None:
    """Unpack chosen entries of a zip into a new folder.

    Names of all entries, and sizes, are checked before anything is written. An entry that is longer
    than its declared size fails its own checksum: `zipfile` reads no byte beyond.

    Parameters
    ----------
    path : Path
        The zip.
    folder : Path
        Must not exist yet; half of it may be there after an error.
    choose : callable
        Takes the names of all files in the zip, gives for each wanted one its path within ``folder``.
    progress : bool
        Show a bar.

    Raises
    ------
    ArchiveError
        If an entry would leave the folder, is a link, or is encrypted (it is named), if entries share
        bytes or names, or the zip is damaged.
    DiskSpaceError
        If what is chosen does not fit on the disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_entries(archive.infolist(), n_bytes=path.stat().st_size)
            chosen = choose([entry.filename for entry in archive.infolist() if not entry.is_dir()])
            n_unpacked = sum(archive.getinfo(name).file_size for name in chosen)
            check_space(folder.parent, n_unpacked, purpose=f"unpacking {path.name}")
            write_entries(archive, chosen, folder, progress=progress)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None
    except DAMAGED as error:
        raise ArchiveError(f"{path} is damaged ({error})") from None


def check_entries(entries: Iterable[zipfile.ZipInfo], *, n_bytes: int) -> None:
    """Raise an ArchiveError that names the entry for which a zip of ``n_bytes`` must not be unpacked."""
    seen, n_packed = set(), 0
    for entry in entries:
        if fault := fault_of_entry(entry):
            raise ArchiveError(f"refused, entry {entry.filename!r} {fault}; nothing was written")
        name = PurePosixPath(entry.filename).as_posix().casefold()  # macOS does not tell a.png from A.png
        if name in seen:
            raise ArchiveError(f"refused, entry {entry.filename!r} stands twice; nothing was written")
        seen.add(name)
        n_packed += entry.compress_size
    if n_packed > n_bytes:  # the same bytes unpacked again and again: a zip bomb
        raise ArchiveError(f"refused, its entries add up to {n_packed} packed bytes and it has {n_bytes}")


def fault_of_entry(entry: zipfile.ZipInfo) -> str:
    """Why an entry must not be unpacked, or an empty string."""
    as_windows = PureWindowsPath(entry.filename)  # splits at / and at \
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not entry.filename or entry.header_offset < 0:
        return "is damaged"
    if as_windows.drive or as_windows.root:
        return "is an absolute path"
    if ".." in as_windows.parts:
        return "climbs out of the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or device, not a file"
    if entry.flag_bits & ENCRYPTED:
        return "is encrypted"
    return ""


def write_entries(archive: zipfile.ZipFile, chosen: Mapping[str, str], folder: Path, *, progress: bool) -> None:
    """Write each chosen entry to its path in the folder."""
    folder.mkdir()
    with progress_bar(total=len(chosen), desc="unpacking", unit="file", show=progress) as bar:
        for name, relative in chosen.items():
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, target.open("xb") as file:
                shutil.copyfileobj(packed, file)
            bar.update()
