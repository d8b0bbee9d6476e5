"""``python -m fetal_utils.download --out DIR``: FETAL_PLANES_DB from Zenodo (doi:10.5281/zenodo.3904280, CC BY 4.0)."""

import argparse
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd
import pooch
from filelock import FileLock

from fetal_utils.data import read_metadata
from fetal_utils.images import CSV_NAME, IMAGE_DIR, image_paths

ZIP_NAME = "FETAL_PLANES_ZENODO.zip"
URL = f"https://zenodo.org/records/3904280/files/{ZIP_NAME}"
CHECKSUM = "md5:2a5fcc2cefb789bcc0f6c1f73e0ea43f"  # that the archive publishes
ZIP_BYTES = 2_150_000_000  # about; PNGs take as much when unpacked
HEADERS = {"User-Agent": "fetal_utils (https://doi.org/10.5281/zenodo.3904280)"}  # Zenodo refuses some default ones
CITATION = "Burgos-Artizzu et al., Scientific Reports 10, 10200 (2020), doi:10.1038/s41598-020-67076-5"


def download_dataset(folder: str | Path) -> pd.DataFrame:
    """FETAL_PLANES_DB in a folder, all of it or nothing, as the table that `read_metadata` gives.

    Nothing is done where it is there already; a zip beside the folder that has the archive's checksum is used.
    OSError or ValueError if it can't be had, there is too little room, or the folder or zip holds something else.
    """
    folder = Path(folder).expanduser().resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # of two at once, the second finds the folder made
        if not folder.is_dir() or not any(folder.iterdir()):
            zip_path = folder.with_name(ZIP_NAME)
            needed = ZIP_BYTES * (1 if zip_path.exists() else 2)
            if shutil.disk_usage(folder.parent).free < needed:
                raise OSError(f"{needed / 1e9:.1f} GB are needed in {folder.parent}, and it has less free space")
            fetch(zip_path)
            unpack(zip_path, folder)
        return check_folder(folder)


def fetch(zip_path: Path) -> None:
    """Download the zip, unless it is there with the right checksum; OSError that says how to do it by hand."""
    downloader = pooch.HTTPDownloader(headers=HEADERS, progressbar=True)
    try:
        pooch.retrieve(URL, CHECKSUM, fname=zip_path.name, path=zip_path.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # of the network or the disk; ValueError: another checksum
        raise OSError(
            f"{error}\nBy hand: curl -L -C - -o '{zip_path}' '{URL}' (or with a browser, put there), then type "
            f"the same again; a zip with checksum {CHECKSUM} is used as it is"
        ) from None


def unpack(zip_path: Path, folder: Path) -> None:
    """Table and images of the zip, checked, under the folder's name; folders above them in the zip are left away."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    with zipfile.ZipFile(zip_path) as archive:  # whose names can't lead out of the folder
        paths = {name: PurePosixPath(name) for name in archive.namelist() if not name.startswith("__MACOSX")}
        images = [name for name, path in paths.items() if path.parent.name == IMAGE_DIR and path.suffix == ".png"]
        archive.extractall(beside, [*images, *(name for name, path in paths.items() if path.name == CSV_NAME)])
    top = next((path.parent for path in beside.rglob(CSV_NAME)), beside)
    check_folder(top)
    top.replace(folder)  # which may be there, empty
    shutil.rmtree(beside, ignore_errors=True)


def check_folder(folder: Path) -> pd.DataFrame:
    """The table of a folder whose images are all there; ValueError or OSError otherwise."""
    table = read_metadata(folder)
    image_paths(folder, table["image_name"])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 if the data set is there, else 1 with the reason."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.download", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to make, say data/FETAL_PLANES_DB; the zip goes beside it")
    options = parser.parse_args(arguments)
    try:
        table = download_dataset(options.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(table)} images of {table['patient'].nunique()} patients. Please cite {CITATION}")
    print(f"next: python -m fetal_utils.study --preset laptop --data-dir {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
