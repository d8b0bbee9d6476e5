"""One file of a Zenodo record: what the archive says of it, and its bytes, resumed where they broke off."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from fetal_utils.environment import progress_bar

# Zenodo refuses the default names of some HTTP libraries, and byte ranges must be those of the file itself
HEADERS = {"User-Agent": "fetal_utils (https://doi.org/10.5281/zenodo.3904280)", "Accept-Encoding": "identity"}
TIMEOUT_S = 30  # without a byte
N_ATTEMPTS = 5  # in a row that bring nothing new
WAIT_S = 1.0  # after the first of them, longer after the others
CHUNK = 2**16  # bytes; a connection that breaks off loses at most this many


class NetworkError(RuntimeError):
    """The archive can't be reached, or what it sends is not what its record says."""


@dataclass(frozen=True)
class ArchivedFile:
    """A file of a record, as the archive describes it.

    Attributes
    ----------
    name : str
        Under this name it is kept.
    size : int
        Bytes.
    checksum : str
        ``algorithm:hexadecimal digits``.
    url : str
        Address of its bytes.
    title, licence, doi : str
        Of the record.
    """

    name: str
    size: int
    checksum: str
    url: str
    title: str
    licence: str
    doi: str

    def partial_in(self, folder: Path) -> Path:
        """Where its first bytes wait for the others; its checksum tells them from those of another version."""
        return folder / f".{self.name}.{self.checksum.split(':')[1][:8]}.partial"

    def n_bytes_missing(self, folder: Path) -> int:
        """What is still to be downloaded into a folder."""
        return 0 if n_bytes(folder / self.name) == self.size else self.size - n_bytes(self.partial_in(folder))


def n_bytes(path: Path) -> int:
    """Size of a file, 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


def open_session() -> requests.Session:
    """A session that asks again where the archive does not answer, is overloaded or asks for a pause."""
    retries = Retry(total=4, backoff_factor=WAIT_S, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)
    session = requests.Session()
    session.headers.update(HEADERS)
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries))
    return session


def reason_of(error: BaseException) -> str:
    """The innermost message, without the layers of HTTP libraries around it."""
    while isinstance(error, BaseException) and error.args:
        error = getattr(error, "reason", None) or error.args[0]
    return str(error)


def read_record(record: str, file_name: str, *, base_url: str, session: requests.Session) -> ArchivedFile:
    """What the archive says of one file of a record.

    Parameters
    ----------
    record : str
        The number at the end of its DOI.
    file_name : str
    base_url : str
        Address of the archive, "https://zenodo.org".
    session : Session
        From `open_session`.

    Raises
    ------
    NetworkError
        If the record can't be read, is none, or lacks the file, its size or its checksum.

    References
    ----------
    Zenodo, REST API, https://developers.zenodo.org (records).
    """
    address = f"{base_url.rstrip('/')}/api/records/{record}"
    try:
        response = session.get(address, timeout=TIMEOUT_S)
        response.raise_for_status()
        return file_of_record(response.json(), file_name)
    except requests.RequestException as error:  # an answer that is no JSON too
        raise NetworkError(f"{address} can't be read: {reason_of(error)}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise NetworkError(f"{address} is not the record that was expected: {error!r}") from None


def file_of_record(answer: dict, file_name: str) -> ArchivedFile:
    """The file of that name in a record; KeyError, TypeError or ValueError if it is not described there."""
    files = {file["key"]: file for file in answer["files"]}
    if file_name not in files:
        raise ValueError(f"no file {file_name}, but {sorted(files)}")
    file, metadata = files[file_name], answer["metadata"]
    if not re.fullmatch(r"\w+:[0-9a-fA-F]{8,}", file["checksum"]) or int(file["size"]) < 1:
        raise ValueError(f"{file_name} has checksum {file['checksum']!r} and size {file['size']!r}")
    return ArchivedFile(
        name=file_name,
        size=int(file["size"]),
        checksum=file["checksum"],
        url=file["links"]["self"],
        title=metadata["title"],
        licence=(metadata.get("license") or {}).get("id", "not stated"),
        doi=answer["doi"],
    )


def checksum_of(path: Path, *, like: str) -> str:
    """Checksum of a file, of the same algorithm as another checksum and written alike."""
    algorithm = like.split(":")[0].lower()
    return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"


def fetch_file(file: ArchivedFile, folder: Path, *, session: requests.Session, progress: bool = True) -> Path:
    """The file in a folder: the one that is there if its checksum is right, else downloaded.

    Under its own name it is never seen before it is whole and its checksum right. (`pooch.retrieve`
    would check it under a random name: what comes is lost if the process is killed meanwhile.)

    Raises
    ------
    NetworkError
        If it can't be downloaded (what came is kept, and the next call goes on from there), or its
        checksum is another than the record's (what came is removed).
    """
    path, partial = folder / file.name, file.partial_in(folder)
    if path.exists():
        if (checksum := checksum_of(path, like=file.checksum)) == file.checksum.lower():
            return path
        print(f"{path} has checksum {checksum}, and the record says {file.checksum}: it is downloaded anew")
    download(file, partial, session=session, progress=progress)
    if (checksum := checksum_of(partial, like=file.checksum)) != file.checksum.lower():
        partial.unlink()
        raise NetworkError(f"{file.url} sent a file with checksum {checksum}, and the record says {file.checksum}")
    return partial.replace(path)


def download(file: ArchivedFile, partial: Path, *, session: requests.Session, progress: bool) -> None:
    """Make a partial file whole, attempt after attempt as long as they bring bytes that none before had."""
    longest, n_failures = n_bytes(partial), 0
    while n_bytes(partial) < file.size:
        reason = attempt(file, partial, session=session, progress=progress)
        n_failures = 0 if n_bytes(partial) > longest else n_failures + 1
        longest = max(longest, n_bytes(partial))
        if n_failures == N_ATTEMPTS:
            raise NetworkError(f"{file.url} broke off after {n_bytes(partial)} of {file.size} bytes: {reason}")
        if n_bytes(partial) < file.size:
            time.sleep(WAIT_S * (1 + n_failures))


def attempt(file: ArchivedFile, partial: Path, *, session: requests.Session, progress: bool) -> str:
    """Add what one connection brings; why it ended, for people."""
    n_there = n_bytes(partial)
    headers = {"Range": f"bytes={n_there}-"} if n_there else {}
    try:
        with session.get(file.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                partial.unlink()  # these are no first bytes of what the server has: the next call starts anew
            response.raise_for_status()
            write(response, file, partial, n_there=n_there, progress=progress)
    except (requests.HTTPError, ValueError) as error:  # a status that will not change, or an address that is none
        raise NetworkError(f"{file.url} can't be downloaded: {reason_of(error)}") from None
    except requests.RequestException as error:
        return reason_of(error)
    return "the server sent no more"


def write(response: requests.Response, file: ArchivedFile, partial: Path, *, n_there: int, progress: bool) -> None:
    """Append the rest that was asked for; a server that does not know ranges sends all, from the start."""
    resumes = response.status_code == requests.codes.partial_content
    given = response.headers.get("Content-Range", "")
    if resumes and not given.startswith(f"bytes {n_there}-"):
        raise NetworkError(f"{file.url} was asked for the bytes from {n_there} on and sent {given!r}")
    start = n_there if resumes else 0
    bar = progress_bar(total=file.size, initial=start, desc=file.name, unit="B", unit_scale=True, show=progress)
    with bar, partial.open("ab" if resumes else "wb") as output:
        for chunk in response.iter_content(CHUNK):
            kept = chunk[: file.size - output.tell()]  # never more than the record says, however long it lasts
            output.write(kept)
            bar.update(len(kept))
            if output.tell() == file.size:
                break
