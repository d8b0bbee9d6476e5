"""The download of FETAL_PLANES_DB from a server on loopback: whole, wrong, twice at once, or not there."""

import hashlib
import io
import shutil
import threading
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_folders import plane_lines, write_folder

from fetal_utils import download
from fetal_utils.download import ZIP_NAME, main
from fetal_utils.images import CSV_NAME, IMAGE_DIR

Usage = namedtuple("Usage", "total used free")


def zip_of(folder, *, top="", without=()):
    """Table and images of a folder as the bytes of a zip, with files that nobody needs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in [folder / CSV_NAME, *sorted((folder / IMAGE_DIR).iterdir())]:
            if path.name not in without:
                archive.write(path, f"{top}{path.relative_to(folder)}")
        for name in (f"{top}FETAL_PLANES_DB_data.xlsx", f"__MACOSX/{top}{IMAGE_DIR}/._a.png"):
            archive.writestr(name, b"not needed")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.n_asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.breaks_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def source(tmp_path):
    """A small folder in the layout of the data set."""
    return write_folder(tmp_path / "source", plane_lines())


@pytest.fixture
def server(source, monkeypatch):
    """Serves a zip of the folder, which is the one that is expected."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.status, server.breaks_after, server.n_asked = zip_of(source), 200, None, 0
    server.url = f"http://127.0.0.1:{server.server_port}/{ZIP_NAME}"
    expect(server, monkeypatch)
    monkeypatch.setattr(download, "URL", server.url)
    monkeypatch.setattr(download, "ZIP_BYTES", 10_000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def expect(server, monkeypatch):
    """Let the server's content be the published one."""
    checksum = hashlib.md5(server.content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(download, "CHECKSUM", f"md5:{checksum}")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data" / "FETAL_PLANES_DB"


@pytest.fixture
def call(server, out, capsys):
    """The command: its exit status, and what it complained of."""

    def run(*arguments):
        status = main(["--out", str(out), *arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.err

    return run


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("top", ["", "FETAL_PLANES_ZENODO/", "a/b/"])
def test_the_folder_holds_the_table_and_the_images_and_nothing_else(top, call, server, source, out, monkeypatch):
    server.content = zip_of(source, top=top)
    expect(server, monkeypatch)
    assert call()[0] == 0
    assert files(out) == files(source)
    assert {path.name for path in out.parent.iterdir()} <= {out.name, ZIP_NAME, f".{out.name}.lock"}
    assert (call()[0], server.n_asked) == (0, 1)


def test_an_empty_folder_is_filled_and_one_in_the_home_folder_found(call, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "planes").mkdir()
    assert call("--out", "~/planes")[0] == 0
    assert files(tmp_path / "planes") == files(source)


def test_a_zip_put_there_by_hand_is_used(call, server, out):
    out.parent.mkdir()
    (out.parent / ZIP_NAME).write_bytes(server.content)
    assert call()[0] == 0
    assert server.n_asked == 0


def test_two_side_by_side_download_once_and_both_find_the_folder(server, source, out):
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(download.download_dataset, out) for _ in range(2)]
    assert [len(one.result()) for one in calls] == [8, 8]
    assert server.n_asked == 1
    assert files(out) == files(source)


@pytest.mark.parametrize("trouble", ["status", "checksum", "breaks off", "nobody there"])
def test_what_can_not_be_had_leaves_nothing_and_says_how_to_do_it_by_hand(trouble, call, server, out, monkeypatch):
    whole = server.content
    if trouble == "status":
        server.status = 403
    elif trouble == "checksum":
        server.content = whole[:-1] + b"!"
    elif trouble == "breaks off":
        server.breaks_after = 1000
    else:
        monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/nothing")
    status, complaint = call()
    assert status == 1
    assert f"By hand: curl -L -C - -o '{out.parent / ZIP_NAME}' '{download.URL}'" in complaint
    assert [path.name for path in out.parent.iterdir() if path.suffix != ".lock"] == []
    server.status, server.content, server.breaks_after = 200, whole, None
    monkeypatch.setattr(download, "URL", server.url)
    assert call()[0] == 0


def test_a_zip_without_some_images_is_no_data_set(call, server, source, out, monkeypatch):
    server.content = zip_of(source, without=["p1_femur.png"])
    expect(server, monkeypatch)
    status, complaint = call()
    assert (status, out.exists()) == (1, False)
    assert "p1_femur.png" in complaint


def test_too_little_room_is_said_before_anything_is_downloaded(call, server, out, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100_000, 85_000, 15_000))
    status, complaint = call()
    assert (status, server.n_asked, out.exists()) == (1, 0, False)
    assert "0.0 GB are needed" in complaint and str(out.parent) in complaint


def test_a_folder_of_something_else_is_left_as_it_is(call, server, out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    status, complaint = call()
    assert (status, server.n_asked, [path.name for path in out.iterdir()]) == (1, 0, ["notes.txt"])
    assert str(out) in complaint
