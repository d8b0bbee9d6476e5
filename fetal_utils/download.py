"""``python -m fetal_utils.download --out DIR``: FETAL_PLANES_DB from Zenodo, whole, in the layout of the study."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd
from filelock import FileLock

from fetal_utils.archives import ArchiveError, check_space, extract, in_gigabytes
from fetal_utils.command_line import UsageError
from fetal_utils.data import CSV_NAME, IMAGE_DIR, read_metadata
from fetal_utils.images import image_paths
from fetal_utils.zenodo import ArchivedFile, NetworkError, checksum_of, fetch_file, open_session, read_record

ZENODO = "https://zenodo.org"
RECORD = "3904280"
ZIP_NAME = "FETAL_PLANES_ZENODO.zip"
CITATION = (
    "X. P. Burgos-Artizzu et al., Evaluation of deep convolutional neural networks for automatic classification of "
    "common maternal fetal ultrasound planes, Scientific Reports 10, 10200 (2020), doi:10.1038/s41598-020-67076-5"
)
# what the record said when this was written; decides only about a zip put there by hand where no record can be read
KNOWN_CHECKSUM = "md5:2a5fcc2cefb789bcc0f6c1f73e0ea43f"
UNPACKED = 1.1  # bytes unpacked for each of the zip, at most: PNGs hardly shrink


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if the data set is there, 1 if it can't be had, 2 if it can't be put there, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.download", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to make, say data/FETAL_PLANES_DB; the zip goes beside it")
    parser.add_argument("--url", default=ZENODO, help=f"address of the archive or of a mirror (default {ZENODO})")
    options = parser.parse_args(arguments)
    zip_path = Path(options.out).resolve().with_name(ZIP_NAME)
    try:
        table = download_dataset(options.out, base_url=options.url)
    except KeyboardInterrupt:
        print("\ninterrupted; type the same again to go on", file=sys.stderr)
        return 130
    except (NetworkError, ArchiveError) as error:
        print(f"error: {error}\n{steps_by_hand(zip_path)}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(table)} images of {table['patient'].nunique()} patients, all there")
    print(table["plane"].value_counts().to_string(header=False))
    if zip_path.exists():
        print(f"{zip_path} is not needed any more and may be deleted")
    print(f"next: python -m fetal_utils.study --preset laptop --data-dir {options.out}")
    return 0


def steps_by_hand(zip_path: Path) -> str:
    """What to do where the download does not work."""
    return (
        "Type the same again to go on from where it stopped. Or by hand:\n"
        f"  1. open {ZENODO}/records/{RECORD} in a browser and download {ZIP_NAME}\n"
        f"  2. put it there: {zip_path}\n"
        "  3. type the same again: a zip with the right checksum is used as it is"
    )


def download_dataset(folder: str | Path, *, base_url: str = ZENODO, progress: bool = True) -> pd.DataFrame:
    """FETAL_PLANES_DB in a folder: nothing is done if it is there, else it is downloaded and unpacked.

    Parameters
    ----------
    folder : path
        Becomes ``Images/<Image_name>.png`` and ``FETAL_PLANES_DB_data.csv``, all of it or nothing;
        the zip, and what an interruption leaves, lie beside it.
    base_url : str
        Address of the archive.
    progress : bool
        Show bars.

    Returns
    -------
    DataFrame
        The table, as `read_metadata` gives it.

    Raises
    ------
    NetworkError
        If the archive can't be reached or sends something else than its record says.
    ArchiveError
        If the zip is damaged or unsafe, or lacks images; it is set aside.
    UsageError
        If the folder holds something else, or ``base_url`` is none.
    OSError
        If it can't be written; a `DiskSpaceError` if there is too little room.

    References
    ----------
    Burgos-Artizzu et al. 2020, Sci Rep 10:10200; data set doi:10.5281/zenodo.3904280, CC BY 4.0.
    """
    if not base_url.startswith(("https://", "http://")):
        raise UsageError(f"--url {base_url!r}: expected an address, say {ZENODO}")
    folder = Path(folder).resolve()
    if (table := table_of(folder)) is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            table = table_of(folder)  # another process may have made it meanwhile
            if table is None:
                table = unpack(
                    fetch_zip(folder.parent, base_url=base_url, progress=progress), folder, progress=progress
                )
    return table


def check_folder(folder: Path) -> pd.DataFrame:
    """The table of a folder, if it reads and every image of it is there; ValueError or OSError otherwise."""
    table = read_metadata(folder)
    image_paths(folder, table["image_name"])
    return table


def table_of(folder: Path) -> pd.DataFrame | None:
    """The table of a data set that is there already, None where there is nothing yet."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        if (folder / "phantom.json").exists():
            raise ValueError("a phantom")
        return check_folder(folder)
    except (ValueError, OSError) as error:
        reason = f"{folder} is there and is something else ({error})"
        raise UsageError(f"{reason}; move it away, or give a folder that does not exist yet") from None


def fetch_zip(folder: Path, *, base_url: str, progress: bool) -> Path:
    """The zip in a folder, downloaded if it is not there with the checksum of the archive's record."""
    session = open_session()
    try:
        file = read_record(RECORD, ZIP_NAME, base_url=base_url, session=session)
    except NetworkError as error:
        return zip_by_hand(folder / ZIP_NAME, error)
    print(f"{file.title}\ndoi:{file.doi}, licence {file.licence}, {in_gigabytes(file.size)}")
    print(f"Please cite: {CITATION}", flush=True)  # before the bars
    check_room(file, folder)
    return fetch_file(file, folder, session=session, progress=progress)


def check_room(file: ArchivedFile, folder: Path) -> None:
    """Raise a DiskSpaceError unless what is missing of the zip fits beside what it will be unpacked to."""
    n_bytes = file.n_bytes_missing(folder) + UNPACKED * file.size
    check_space(folder, n_bytes, purpose=f"{file.name} with what it unpacks to")


def zip_by_hand(path: Path, error: NetworkError) -> Path:
    """A zip put there by hand, if its checksum is the known one: the archive, which had this error, can't be asked."""
    if not path.exists():
        raise error
    if (checksum := checksum_of(path, like=KNOWN_CHECKSUM)) != KNOWN_CHECKSUM:
        raise NetworkError(f"{error}; and {path} has checksum {checksum}, not {KNOWN_CHECKSUM}")
    print(f"{error}\n{path} is used: its checksum is the known one, {checksum}")
    return path


def unpack(zip_path: Path, folder: Path, *, progress: bool) -> pd.DataFrame:
    """Unpack beside the folder, check, rename: the folder appears whole or not at all. Its table."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        extract(zip_path, beside, choose=choose_layout, progress=progress)
        table = check_unpacked(zip_path, beside)
        if folder.exists():
            folder.rmdir()  # it is empty
        beside.rename(folder)
    except ArchiveError as error:
        aside = zip_path.replace(zip_path.with_name(f"{zip_path.name}.refused"))
        raise ArchiveError(f"{error}; set aside as {aside.name}, so that the next call downloads it anew") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return table


def choose_layout(names: Iterable[str]) -> dict[str, str]:
    """The files of a zip that make the data folder and their places in it; folders above the CSV are left away."""
    paths = {name: PurePosixPath(name) for name in names}
    tables = [path for path in paths.values() if path.name == CSV_NAME]
    if not tables:
        raise ArchiveError(f"holds no {CSV_NAME}, but {sorted(paths)[:3]} ({len(paths)} files in all)")
    top = min(tables, key=lambda path: len(path.parts)).parent
    return {
        name: path.relative_to(top).as_posix()
        for name, path in paths.items()
        if path == top / CSV_NAME or (path.parent == top / IMAGE_DIR and path.suffix == ".png")
    }


def check_unpacked(zip_path: Path, folder: Path) -> pd.DataFrame:
    """The table of what was unpacked; an ArchiveError if it or images are missing."""
    try:
        return check_folder(folder)
    except (ValueError, OSError) as error:
        raise ArchiveError(f"{zip_path} does not hold the whole data set ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
