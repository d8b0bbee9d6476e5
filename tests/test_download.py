"""The download of FETAL_PLANES_DB from a server that imitates Zenodo: whole, broken off, wrong, or not there."""

import hashlib
import io
import json
import socket
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fetal_utils import download, zenodo
from fetal_utils.data import CSV_NAME, IMAGE_DIR
from fetal_utils.download import ZIP_NAME, check_folder, main

RECORD_PATH = f"/api/records/{download.RECORD}"
FILE_PATH = f"{RECORD_PATH}/files/{ZIP_NAME}/content"
N_IMAGES = 174  # of the tiny phantom

Usage = namedtuple("Usage", "total used free")


def md5(content):
    return "md5:" + hashlib.md5(content, usedforsecurity=False).hexdigest()


def zip_of(folder, *, top="", leave_out=(), more=()):
    """CSV and images of a data folder as the bytes of a zip, with files that nobody needs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / CSV_NAME, f"{top}{CSV_NAME}")
        for path in sorted((folder / IMAGE_DIR).glob("*.png")):
            if path.name not in leave_out:
                archive.write(path, f"{top}{IMAGE_DIR}/{path.name}")
        for name in (f"{top}FETAL_PLANES_DB_data.xlsx", f"__MACOSX/{top}{IMAGE_DIR}/._a.png", *more):
            archive.writestr(name, b"not needed")
    return buffer.getvalue()


class Archive:
    """What the server holds and how it behaves, and what it was asked for.

    ``breaks`` holds, for the next downloads in turn, after how many bytes the connection breaks off;
    ``statuses``, for any next answers in turn, a status to give instead.
    """

    def __init__(self, content):
        self.content = content
        self.checksum = md5(content)
        self.size = len(content)
        self.knows_ranges = True
        self.breaks = []
        self.statuses = []
        self.asked = []  # (path, range)
        self.url = ""

    def publish(self, content):
        self.content, self.checksum, self.size = content, md5(content), len(content)

    @property
    def ranges(self):
        """The ranges asked for, one for each download begun."""
        return [asked_range for path, asked_range in self.asked if path == FILE_PATH]

    def record(self):
        # the fields of https://zenodo.org/api/records/3904280 that matter here
        return {
            "id": int(download.RECORD),
            "doi": f"10.5281/zenodo.{download.RECORD}",
            "metadata": {"title": "Common maternal-fetal ultrasound images", "license": {"id": "cc-by-4.0"}},
            "files": [
                {
                    "id": "5ad2",
                    "key": ZIP_NAME,
                    "size": self.size,
                    "checksum": self.checksum,
                    "links": {"self": f"{self.url}{FILE_PATH}"},
                }
            ],
        }


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        archive = self.server.archive
        archive.asked.append((self.path, self.headers["Range"]))
        if archive.statuses:
            self.answer(archive.statuses.pop(0), b"no")
        elif self.path == RECORD_PATH:
            self.answer(200, json.dumps(archive.record()).encode())
        elif self.path == FILE_PATH:
            self.send_content(archive)
        else:
            self.answer(404, b"no such path")

    def send_content(self, archive):
        start = 0
        if archive.knows_ranges and self.headers["Range"]:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        n_sent = archive.breaks.pop(0) if archive.breaks else None
        if start >= len(archive.content):
            self.answer(416, b"")
        else:
            headers = {"Content-Range": f"bytes {start}-{len(archive.content) - 1}/{len(archive.content)}"}
            self.answer(206 if start else 200, archive.content[start:], headers if start else {}, n_sent=n_sent)

    def answer(self, status, body, headers=None, *, n_sent=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[:n_sent])  # closed afterwards, as HTTP/1.0 does


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing where a client hangs up."""


@pytest.fixture(scope="session")
def whole_zip(tiny_phantom):
    return zip_of(tiny_phantom)


@pytest.fixture
def archive(whole_zip):
    """An archive on loopback that holds the tiny phantom under the names of the real data set."""
    archive = Archive(whole_zip)
    server = Server(("127.0.0.1", 0), Handler)
    server.archive = archive
    archive.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield archive
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(zenodo, "WAIT_S", 0)
    monkeypatch.setattr(zenodo, "CHUNK", 1000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "FETAL_PLANES_DB"


@pytest.fixture
def call(archive, out, capsys):
    """The command: its exit status, what it printed and what it complained of."""

    def run(*arguments):
        status = main(["--out", str(out), "--url", archive.url, *arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out, printed.err

    return run


def is_same(out, tiny_phantom):
    """Whether a folder holds the phantom's CSV and images, byte for byte, and nothing else."""
    found = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    wanted = [tiny_phantom / CSV_NAME, *(tiny_phantom / IMAGE_DIR).iterdir()]
    return found == {path.relative_to(tiny_phantom): path.read_bytes() for path in wanted}


def beside(out):
    """What lies beside the data folder, but for the lock."""
    return sorted(path.name for path in out.parent.iterdir() if path != out and path.suffix != ".lock")


# --- as it should go ---


@pytest.mark.parametrize("top", ["", "FETAL_PLANES_ZENODO/", "a/b/"])
def test_the_folder_holds_the_table_and_the_images_and_nothing_else(top, call, archive, out, tiny_phantom):
    archive.publish(zip_of(tiny_phantom, top=top))
    assert call()[0] == 0
    assert is_same(out, tiny_phantom)
    assert beside(out) == [ZIP_NAME]


def test_it_says_what_it_gets_under_which_licence_what_came_and_what_to_type_next(call, archive, out):
    _, said, _ = call()
    for words in ("Common maternal-fetal", "cc-by-4.0", "doi:10.5281/zenodo.3904280", "Burgos-Artizzu", "0.00 GB"):
        assert words in said
    assert f"{out}: {N_IMAGES} images of 24 patients, all there" in said
    assert said.splitlines()[-1] == f"next: python -m fetal_utils.study --preset laptop --data-dir {out}"


def test_a_second_call_asks_nobody_and_changes_nothing(call, archive, out):
    call()
    times = {path: path.stat().st_mtime_ns for path in out.parent.rglob("*")}
    archive.asked.clear()
    status, said, _ = call()
    assert status == 0
    assert archive.asked == []
    assert f"{N_IMAGES} images" in said
    assert {path: path.stat().st_mtime_ns for path in out.parent.rglob("*")} == times


def test_an_empty_folder_is_filled(call, out, tiny_phantom):
    out.mkdir(parents=True)
    assert call()[0] == 0
    assert is_same(out, tiny_phantom)


def test_a_folder_named_relative_counts_from_where_the_command_is_typed(call, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("--out", "data/FETAL_PLANES_DB")[0] == 0
    assert len(check_folder(out)) == N_IMAGES


# --- connections that break off ---


def test_the_rest_alone_is_asked_for_where_the_server_knows_ranges(call, archive, out, tiny_phantom):
    archive.breaks = [5000, 3000]
    assert call()[0] == 0
    assert archive.ranges == [None, "bytes=5000-", "bytes=8000-"]
    assert is_same(out, tiny_phantom)


def test_it_starts_again_where_the_server_does_not_know_ranges(call, archive, out, tiny_phantom):
    archive.knows_ranges = False
    archive.breaks = [5000]
    assert call()[0] == 0
    assert archive.ranges == [None, "bytes=5000-"]
    assert is_same(out, tiny_phantom)


def test_what_came_is_kept_under_another_name_and_the_next_call_goes_on_from_there(call, archive, out, tiny_phantom):
    archive.breaks = [5000] + [0] * zenodo.N_ATTEMPTS
    status, _, complaint = call()
    assert status == 1
    assert f"broke off after 5000 of {archive.size} bytes" in complaint
    assert archive.ranges == [None] + ["bytes=5000-"] * zenodo.N_ATTEMPTS
    assert not out.exists()
    (partial,) = beside(out)
    assert partial.endswith(".partial")
    archive.asked.clear()
    assert call()[0] == 0
    assert archive.ranges == ["bytes=5000-"]
    assert is_same(out, tiny_phantom)
    assert beside(out) == [ZIP_NAME]


def test_attempts_that_bring_nothing_new_come_to_an_end(call, archive, out):
    archive.knows_ranges = False
    archive.breaks = [5000] * 100
    status, _, complaint = call()
    assert status == 1
    assert "broke off after 5000" in complaint
    assert len(archive.ranges) == 1 + zenodo.N_ATTEMPTS


def test_the_beginning_of_another_version_is_not_gone_on_with(call, archive, out, tiny_phantom):
    right = archive.content
    archive.publish(zip_of(tiny_phantom, top="older/"))
    archive.breaks = [5000] + [0] * zenodo.N_ATTEMPTS
    assert call()[0] == 1
    archive.publish(right)
    archive.asked.clear()
    assert call()[0] == 0
    assert archive.ranges == [None]


def test_a_process_killed_in_the_download_leaves_what_the_next_one_goes_on_with(call, archive, out, tiny_phantom):
    file = zenodo.file_of_record(archive.record(), ZIP_NAME)
    out.parent.mkdir()
    file.partial_in(out.parent).write_bytes(archive.content[:7000])
    assert call()[0] == 0
    assert archive.ranges == ["bytes=7000-"]
    assert is_same(out, tiny_phantom)


def test_a_process_killed_before_the_checksum_was_right_needs_no_download_again(call, archive, out, tiny_phantom):
    file = zenodo.file_of_record(archive.record(), ZIP_NAME)
    out.parent.mkdir()
    file.partial_in(out.parent).write_bytes(archive.content)
    assert call()[0] == 0
    assert archive.ranges == []
    assert is_same(out, tiny_phantom)
    assert beside(out) == [ZIP_NAME]


def test_an_interrupt_ends_the_command_with_status_130_and_loses_nothing(call, archive, out, monkeypatch):
    archive.breaks = [5000]

    def interrupt(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(zenodo.time, "sleep", interrupt)
        status, _, complaint = call()
    assert status == 130
    assert complaint.splitlines()[-1] == "interrupted; type the same again to go on"
    (partial,) = beside(out)
    assert partial.endswith(".partial") and not out.exists()
    assert call()[0] == 0
    assert archive.ranges == [None, "bytes=5000-"]


# --- other bytes than promised ---


def test_a_zip_shorter_than_its_record_says_is_never_taken_for_whole(call, archive, out):
    archive.content = archive.content[:-100]
    status, _, complaint = call()
    assert status == 1
    assert "416" in complaint
    assert not out.exists() and not (out.parent / ZIP_NAME).exists()


def test_a_wrong_checksum_is_told_and_nothing_is_kept(call, archive, out, tiny_phantom):
    right, archive.content = archive.content, archive.content[:-1] + b"!"
    status, _, complaint = call()
    assert status == 1
    assert f"checksum {md5(archive.content)}, and the record says {archive.checksum}" in complaint
    assert beside(out) == [] and not out.exists()
    archive.content = right
    assert call()[0] == 0
    assert is_same(out, tiny_phantom)


def test_a_server_that_sends_more_than_its_record_says_is_not_listened_to_any_longer(call, archive, out):
    archive.content += bytes(10_000_000)
    assert call()[0] == 0
    assert (out.parent / ZIP_NAME).stat().st_size == archive.size


def test_another_part_than_was_asked_for_is_refused(call, archive, out, monkeypatch):
    archive.breaks = [5000]
    answer = Handler.answer

    def other_part(handler, status, body, headers=None, **options):
        answer(handler, status, body, {"Content-Range": "bytes 0-9/10"} if status == 206 else headers, **options)

    monkeypatch.setattr(Handler, "answer", other_part)
    status, _, complaint = call()
    assert status == 1
    assert "asked for the bytes from 5000 on and sent 'bytes 0-9/10'" in complaint


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("key", "OTHER.zip", r"no file FETAL_PLANES_ZENODO.zip, but ['OTHER.zip']"),
        ("checksum", "2a5fcc2cefb789bc", "checksum '2a5fcc2cefb789bc'"),
        ("size", 0, "size 0"),
        ("links", {}, "KeyError('self')"),
    ],
)
def test_a_record_without_what_is_needed_is_told(field, value, named, call, archive, monkeypatch):
    record = archive.record()
    record["files"][0][field] = value
    monkeypatch.setattr(archive, "record", lambda: record)
    status, _, complaint = call()
    assert status == 1
    assert "is not the record that was expected" in complaint and named in complaint
    assert archive.ranges == []


# --- no archive ---


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_without_a_network_it_says_how_to_do_it_by_hand(call, out):
    status, said, complaint = call("--url", f"http://127.0.0.1:{closed_port()}")
    assert status == 1
    assert said == ""
    assert complaint.startswith("error: http://127.0.0.1:") and "Connection refused" in complaint
    assert "https://zenodo.org/records/3904280" in complaint
    assert f"put it there: {out.parent / ZIP_NAME}" in complaint
    assert not out.exists()


def test_a_page_that_is_no_record_is_told(call, archive, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda record: "<html>please log in</html>")
    status, _, complaint = call()
    assert status == 1
    assert f"{archive.url}{RECORD_PATH} can't be read: Expecting value" in complaint


def test_an_overloaded_archive_is_asked_again(call, archive):
    archive.statuses = [503, 429, 500]
    assert call()[0] == 0
    assert [path for path, _ in archive.asked] == [RECORD_PATH] * 4 + [FILE_PATH]


@pytest.mark.parametrize(("status", "n_asked"), [(403, 1), (404, 1), (503, 5)])
def test_an_archive_that_refuses_is_told_with_its_status(status, n_asked, call, archive):
    archive.statuses = [status] * n_asked
    given, _, complaint = call()
    assert given == 1
    assert f"can't be read: {status} " in complaint
    assert len(archive.asked) == n_asked


def test_an_address_that_is_none_is_refused(call, out):
    status, _, complaint = call("--url", "zenodo.org")
    assert status == 2
    assert complaint == "error: --url 'zenodo.org': expected an address, say https://zenodo.org\n"
    assert not out.parent.exists()


# --- a zip put there by hand ---


def put_zip(out, content):
    out.parent.mkdir(exist_ok=True)
    (out.parent / ZIP_NAME).write_bytes(content)


def test_a_zip_with_the_checksum_of_the_record_is_not_downloaded(call, archive, out, tiny_phantom):
    put_zip(out, archive.content)
    assert call()[0] == 0
    assert archive.ranges == []
    assert is_same(out, tiny_phantom)


def test_a_zip_with_another_checksum_is_downloaded_anew(call, archive, out, tiny_phantom):
    put_zip(out, archive.content[:-20])
    status, said, _ = call()
    assert status == 0
    assert f"{ZIP_NAME} has checksum {md5(archive.content[:-20])}, and the record says {archive.checksum}" in said
    assert archive.ranges == [None]
    assert is_same(out, tiny_phantom)


def test_without_a_network_a_zip_with_the_known_checksum_is_used_and_no_other(call, archive, out, monkeypatch):
    archive.statuses = [404] * 2
    put_zip(out, archive.content)
    status, _, complaint = call()
    assert status == 1
    assert f"{ZIP_NAME} has checksum {archive.checksum}, not {download.KNOWN_CHECKSUM}" in complaint
    assert (out.parent / ZIP_NAME).read_bytes() == archive.content
    monkeypatch.setattr(download, "KNOWN_CHECKSUM", archive.checksum)
    status, said, _ = call()
    assert status == 0
    assert f"is used: its checksum is the known one, {archive.checksum}" in said
    assert len(check_folder(out)) == N_IMAGES


# --- room ---


def test_too_little_room_is_told_before_the_download_with_the_need_and_what_is_there(call, archive, out, monkeypatch):
    archive.size = 2_000_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, 4_100_000_000))
    status, _, complaint = call()
    assert status == 2
    assert f"{out.parent} has 4.10 GB free" in complaint and "needs 4.20 GB" in complaint  # 2 + 1.1 * 2
    assert archive.ranges == []
    assert not out.exists()


def test_what_is_there_already_needs_no_room_again(archive, out):
    file = zenodo.file_of_record(archive.record(), ZIP_NAME)
    out.parent.mkdir()
    assert file.n_bytes_missing(out.parent) == archive.size
    file.partial_in(out.parent).write_bytes(bytes(300))
    assert file.n_bytes_missing(out.parent) == archive.size - 300
    put_zip(out, archive.content)
    assert file.n_bytes_missing(out.parent) == 0


def test_too_little_room_to_unpack_is_told_and_the_zip_is_kept(call, archive, out, tiny_phantom, monkeypatch):
    free = iter([10**12, 100])
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, next(free)))
        status, _, complaint = call()
    assert status == 2
    assert f"unpacking {ZIP_NAME} needs" in complaint
    assert beside(out) == [ZIP_NAME] and not out.exists()
    assert call()[0] == 0
    assert len(archive.ranges) == 1


# --- zips that are not what they should be, though their checksum is right ---


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "C:\\evil.png", "Images/../../evil.png"])
def test_a_zip_that_climbs_out_is_refused_by_name_and_set_aside(name, call, archive, out, tmp_path, tiny_phantom):
    right = archive.content
    archive.publish(zip_of(tiny_phantom, more=[name]))
    status, _, complaint = call()
    assert status == 1
    assert repr(name) in complaint and f"set aside as {ZIP_NAME}.refused" in complaint
    assert beside(out) == [f"{ZIP_NAME}.refused"] and not out.exists()
    assert not list(tmp_path.rglob("*evil*"))
    archive.publish(right)
    assert call()[0] == 0
    assert archive.ranges == [None, None]


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b"x" * 5000])
def test_a_damaged_zip_is_told_and_set_aside(damage, call, archive, out):
    archive.publish(damage(archive.content))
    status, _, complaint = call()
    assert status == 1
    assert f"{ZIP_NAME} is damaged" in complaint
    assert beside(out) == [f"{ZIP_NAME}.refused"] and not out.exists()


def test_a_zip_that_lacks_images_makes_no_folder(call, archive, out, tiny_phantom):
    missing = sorted(path.name for path in (tiny_phantom / IMAGE_DIR).iterdir())[:2]
    archive.publish(zip_of(tiny_phantom, leave_out=missing))
    status, _, complaint = call()
    assert status == 1
    assert f"2 of {N_IMAGES} images are missing" in complaint and missing[0] in complaint
    assert beside(out) == [f"{ZIP_NAME}.refused"] and not out.exists()


def test_a_zip_without_the_table_makes_no_folder(call, archive, out):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as other:
        other.writestr("Images/a.png", b"a")
    archive.publish(buffer.getvalue())
    status, _, complaint = call()
    assert status == 1
    assert f"holds no {CSV_NAME}, but ['Images/a.png'] (1 files in all)" in complaint


# --- the folder ---


def test_a_process_killed_while_unpacking_leaves_what_the_next_one_replaces(call, archive, out, tiny_phantom):
    put_zip(out, archive.content)
    half = out.parent / ".FETAL_PLANES_DB.partial"
    (half / IMAGE_DIR).mkdir(parents=True)
    (half / IMAGE_DIR / "half.png").write_bytes(b"half")
    assert call()[0] == 0
    assert is_same(out, tiny_phantom)
    assert beside(out) == [ZIP_NAME]


def test_a_folder_that_lacks_an_image_is_named_and_left_as_it_is(call, archive, out):
    call()
    lost = next((out / IMAGE_DIR).iterdir())
    lost.unlink()
    archive.asked.clear()
    status, _, complaint = call()
    assert status == 2
    assert "1 of 174 images are missing" in complaint and lost.name in complaint and "move it away" in complaint
    assert archive.asked == []
    assert len(list((out / IMAGE_DIR).iterdir())) == N_IMAGES - 1


def test_a_folder_of_something_else_is_refused(call, archive, out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    status, _, complaint = call()
    assert status == 2
    assert "is there and is something else" in complaint
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert archive.asked == []


def test_a_phantom_is_not_taken_for_the_data_set(call, archive, tiny_phantom):
    status, _, complaint = call("--out", str(tiny_phantom))
    assert status == 2
    assert f"{tiny_phantom} is there and is something else (a phantom)" in complaint
    assert archive.asked == []


def test_the_default_is_the_record_at_zenodo_and_md5_its_checksum(monkeypatch, out):
    asked = []

    def read_nothing(*which, base_url, session):
        asked.append((*which, base_url))
        raise zenodo.NetworkError("not today")

    monkeypatch.setattr(download, "read_record", read_nothing)
    assert main(["--out", str(out)]) == 1
    assert asked == [("3904280", "FETAL_PLANES_ZENODO.zip", "https://zenodo.org")]
    assert len(zenodo.checksum_of(out.parent / ".FETAL_PLANES_DB.lock", like=download.KNOWN_CHECKSUM)) == 4 + 32
