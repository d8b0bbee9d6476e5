"""A Jupyter server, and a browser that uses JupyterLab on it as a reader does: by its menus, panels and sliders."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHROMIUM = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), "")
QUIET = [
    "--no-sandbox",  # root in a container has no namespaces for it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # every cell has its nodes, also those that are scrolled out of sight
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


def write_with_parameters(notebook: Path, folder: Path, parameters: Mapping[str, object]) -> Path:
    """A copy of a notebook in another folder, with a cell of other values after its own, as papermill writes it."""
    copy = folder / notebook.name
    nbformat.write(parameterize_notebook(load_notebook_node(str(notebook)), dict(parameters)), copy)
    return copy


@contextmanager
def serve_lab(root: Path, home: Path) -> Iterator[str]:
    """Address of JupyterLab on a free port, with its token, until the block ends; ``home`` is for its settings."""
    port, token = _free_port(), secrets.token_hex(16)
    for name, values in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTER_RUNTIME_DIR": "runtime"}
    folders |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
                *(f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"),
                *("--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
            ],
            env=os.environ | {name: str(home / folder) for name, folder in folders.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for_server(server, f"{address}/api/status?token={token}", home / "server.log")
        yield f"{address}/lab?token={token}"
    finally:
        server.terminate()  # it ends its kernels first
        server.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def _wait_for_server(server: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start; the end of {log}:\n{log.read_text()[-2000:]}")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium without a window, until the block ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class NotebookPage:
    """A notebook open in JupyterLab, by its file from the server's root."""

    def __init__(self, browser: Browser, lab: str, name: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.page.set_default_timeout(240_000)  # the machine may have other work
        address, token = lab.split("?")
        self.page.goto(f"{address}/tree/{name}?reset&{token}")
        self.page.wait_for_function(f"() => {_CELLS}.length > 0 && {_KERNEL} === 'idle'")

    def run_all(self, *, timeout_s: float) -> None:
        """Run > Run All Cells, until every cell has run or one has failed."""
        self.page.get_by_role("menuitem", name="Run", exact=True).first.click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        done = "cell => cell.model.executionCount !== null || !cell.model.sharedModel.getSource().trim()"
        self.page.wait_for_function(
            f"() => {_FAILED}.length > 0 || ({_CODE}.every({done}) && {_KERNEL} === 'idle')", timeout=1000 * timeout_s
        )

    def errors(self) -> list[str]:
        """Error outputs of all cells, and widgets that could not be shown."""
        found = self.page.evaluate(f"() => {_FAILED}.map(one => one.ename + ': ' + one.evalue)")
        return found + self.page.get_by_text("Error displaying widget").all_inner_texts()

    def cell(self, name: str) -> Locator:
        """A cell, by its id in the file, brought into view."""
        position = self.page.evaluate(f"name => {_CELLS}.findIndex(cell => cell.model.id === name)", name)
        if position < 0:
            raise ValueError(f"no cell {name!r} in this notebook")
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(position)
        cell.scroll_into_view_if_needed()
        return cell

    def headings(self) -> list[str]:
        """What the table-of-contents panel lists."""
        self.page.get_by_role("tab", name="Table of Contents").first.click()
        entries = self.page.locator(".jp-TableOfContents-tree .jp-tocItem-content")
        entries.first.wait_for()
        return entries.all_inner_texts()

    def close(self) -> None:
        """Leave the page and let its kernel go."""
        self.page.evaluate(f"() => {_PANEL}.sessionContext.shutdown()")
        self.page.close()


_PANEL = "window.jupyterapp?.shell?.currentWidget"
_CELLS = f"({_PANEL}?.content?.widgets ?? [])"
_KERNEL = f"{_PANEL}?.sessionContext?.session?.kernel?.status"
_CODE = f"{_CELLS}.filter(cell => cell.model.type === 'code')"
_FAILED = f"{_CODE}.flatMap(cell => cell.model.outputs.toJSON()).filter(output => output.output_type === 'error')"


def read_picture(cell: Locator) -> str:
    """What a cell's widget shows, as a data URL."""
    return cell.locator(".jp-RenderedImage img").first.get_attribute("src")


def press_for_another_picture(cell: Locator, press: Callable[[Locator], object], *, timeout_s: float = 120) -> None:
    """Do something to a cell's widget once, and wait until it shows other pixels; an AssertionError if it does not."""
    before, end = read_picture(cell), time.monotonic() + timeout_s
    press(cell)
    while read_picture(cell) == before:
        assert time.monotonic() < end, f"the picture is still the same after {timeout_s} s"
        time.sleep(0.1)
