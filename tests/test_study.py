"""The study command on tiny notebooks (see study_notebooks.py): exit statuses, what it leaves, what it refuses."""

import json
import os
import re
import shutil
import signal
import sys
import tarfile
import time
import types

import nbformat
import pytest
from data_folders import plane_lines, write_folder
from study_notebooks import PARAMETERS, TESTS, outputs_of, start_command, write_notebook
from toy_runs import Sum, computed, toy_store

from fetal_utils import cluster, study
from fetal_utils.data import Dataset, keep_metadata
from fetal_utils.models import initial_weights
from fetal_utils.presets import STUDY
from fetal_utils.runs import RESULTS_VERSION
from fetal_utils.study import INTERRUPTED, main

ONE, TWO, THREE, REPORT = STUDY[0], STUDY[1], STUDY[2], STUDY[-1]
LIGHT = 'data_dir: str = ""\nresults_dir: str = "r"\nx: int = 1'  # of notebooks that want no runs, so need no torch


class Toy:
    """A study of tiny notebooks."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.notebooks, self.results_dir = folder / "notebooks", folder / "results"
        self.copies, self.preset = self.results_dir / "notebooks", folder / "mine.yaml"
        self.preset.write_text("description: mine")

    def write(self, name, *sources, **options):
        return write_notebook(self.notebooks / f"{name}.ipynb", *sources, **options)

    def arguments(self, *further):
        return ["--preset", str(self.preset), "--results-dir", str(self.results_dir), *map(str, further)]

    def run(self, *further):
        return main(self.arguments(*further), notebook_dir=self.notebooks)

    def left(self):
        return sorted(path.name for path in self.copies.iterdir()) if self.copies.exists() else []


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "merge_tables", lambda results_dir: None)
    return Toy(tmp_path)


@pytest.fixture
def executed(monkeypatch):
    """Nothing is executed; the names that would be."""
    names = []
    monkeypatch.setattr(study, "execute", lambda execution: names.append(execution.name))
    monkeypatch.setitem(sys.modules, "fetal_utils.report", types.SimpleNamespace(write_report=lambda copy, page: None))
    return names


# --- what is refused before anything is computed ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "nope"], "--preset nope: there is none"),
        (["--from", "05"], "05: no such notebook"),
        (["-p", "imge_width", "32"], "did you mean image_width?"),
        (["-p", "image_width", "[4"], "-p image_width [4 is not YAML"),
        (["-p", "terms", "3"], "terms=3 is of type int; expected list[int]"),
        (["-p", "terms", "[]"], f"{ONE} wants no run"),
        (["-p", "terms", "[1, -2]"], "term=-2: expected 0 or more"),  # by the settings' own check
        (["-p", "lr", "-1.0"], f"{ONE}: lr=-1.0: expected more than 0"),  # by the setup cell
        (["-p", "data_dir", "5"], "data_dir=5 is of type int"),
        (["--scheduler", "local:two"], "expected local:N"),
        (["-p", "scheduler", "local:0"], "expected local:N"),
        (["--scheduler", "tcp://127.0.0.1:9"], "does not answer"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(arguments, named, toy, executed, monkeypatch, capsys):
    toy.write(ONE)
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    assert toy.run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error
    assert "Traceback" not in error
    assert executed == [] and not (toy.results_dir / "runs").exists()


DATA = """
from fetal_utils.data import open_dataset
from fetal_utils.runs import RunStore
dataset = open_dataset(data_dir, results_dir=results_dir)
dataset.task(task)
image_size = 16
store = RunStore(results_dir, dataset, device="cpu", progress=False)
"""


def test_bad_data_ends_with_status_2_and_one_line(toy, executed, tmp_path, capsys):
    data_dir = write_folder(tmp_path / "data", plane_lines(n_train=12, n_test=4))
    notebook = nbformat.read(toy.write(ONE), as_version=4)
    notebook.cells[1:] = [nbformat.v4.new_code_cell(DATA, metadata={"tags": ["setup"]})]
    nbformat.write(notebook, toy.notebooks / f"{ONE}.ipynb")
    assert toy.run("--data-dir", data_dir) == 0
    broken = sorted((data_dir / "Images").iterdir())[3]
    whole = broken.read_bytes()
    for content, named in ((whole[:60], broken.name), (None, "images are missing")):
        broken.write_bytes(content) if content else broken.unlink()
        shutil.rmtree(toy.results_dir)
        assert toy.run("--data-dir", data_dir) == 2
        assert named in capsys.readouterr().err
    broken.write_bytes(whole)
    assert toy.run("--data-dir", data_dir, "-p", "task", "brain_planes") == 2
    assert toy.run("--data-dir", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert executed == [ONE]


# --- notebooks ---


def test_notebooks_run_in_order_the_report_last_and_a_second_call_computes_nothing(toy, monkeypatch, capfd):
    pages, merged = [], []
    monkeypatch.setattr(study, "merge_tables", lambda results_dir: merged.append((results_dir, toy.left())))
    fake = types.SimpleNamespace(write_report=lambda copy, page: pages.append((copy, page, copy.exists())))
    monkeypatch.setitem(sys.modules, "fetal_utils.report", fake)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    toy.write(ONE, "from toy_runs import *", "print([run.record['facts']['total'] for run in store.get(wanted)])")
    toy.write(REPORT, "print(results_dir)", parameters=LIGHT, tagged=False)
    toy.write("05_mine", "raise RuntimeError")  # not the study's own
    assert toy.run("-p", "terms", "[4, 5]") == 0
    assert pages == [(toy.copies / f"{REPORT}.ipynb", toy.results_dir / "report.html", True)]
    assert merged[1] == (toy.results_dir, [f"{ONE}.ipynb"])  # before the report's notebook
    assert toy.run("--only", "01", "-p", "terms", "[4, 5]") == 0
    assert toy.left() == [f"{ONE}.ipynb", f"{REPORT}.ipynb"]
    assert outputs_of(toy.copies / f"{ONE}.ipynb") == "[4, 5]\n"
    assert computed(toy_store(toy.results_dir)) == [4, 5]
    said = capfd.readouterr().out
    assert f"{ONE} ..." in said and "[4, 5]" in said
    assert re.search(rf"(?m)^\d{{4}}-\d\d-\d\d .* {ONE}: [\d.]+ s$", (toy.results_dir / "study.log").read_text())


def test_a_failing_notebook_leaves_its_copy_the_others_go_on_and_a_success_removes_it(toy, capsys):
    source = "import pathlib\nif not pathlib.Path('mended').exists():\n    raise ValueError(f'on purpose\\nat {x}')"
    toy.write(ONE, "1", source, parameters=LIGHT, tagged=False)
    toy.write(TWO, "import os; os.kill(os.getpid(), 9)", parameters=LIGHT, tagged=False)
    toy.write(THREE, "print(x)", parameters=LIGHT, tagged=False)
    assert toy.run("-p", "x", "5") == 1
    assert toy.left() == [f"{ONE}.failed.ipynb", f"{TWO}.failed.ipynb", f"{THREE}.ipynb"]
    shown = capsys.readouterr().err
    assert re.search(r"(?m)^2 of \d failed:$", shown)
    assert re.search(rf"{ONE} +[\d.]+ s  cell 4: ValueError: on purpose ... at 5", shown)
    assert re.search(rf"{TWO} +[\d.]+ s  its kernel died, as it does when memory is short", shown)
    assert THREE not in shown and "Traceback (most" not in shown
    assert "Traceback (most" in (toy.results_dir / "study.log").read_text()
    (toy.notebooks / "mended").touch()
    assert toy.run("--only", "01") == 0
    assert f"{ONE}.failed.ipynb" not in toy.left()


def test_a_full_disk_stops_the_study_with_the_reason(toy, capsys):
    source = "from fetal_utils.environment import StorageError\nraise StorageError('no space')"
    toy.write(ONE, source, parameters=LIGHT, tagged=False)
    toy.write(TWO, "1", parameters=LIGHT, tagged=False)
    assert toy.run() == 1
    assert "StorageError: no space" in capsys.readouterr().err
    assert toy.left() == [f"{ONE}.failed.ipynb"]


def test_no_page_is_made_of_a_report_that_failed_and_one_that_can_not_be_made_is_a_failure(toy, monkeypatch, capsys):
    def refuse(copy, page):
        raise ValueError("a picture has no alternative text")

    toy.write(REPORT, parameters=LIGHT, tagged=False)
    monkeypatch.setitem(sys.modules, "fetal_utils.report", types.SimpleNamespace(write_report=refuse))
    monkeypatch.setattr(study, "execute", lambda execution: None)
    assert toy.run() == 1
    assert "report.html" in (shown := capsys.readouterr().err) and "no alternative text" in shown
    monkeypatch.setattr(study, "execute", lambda execution: 1 / 0)
    assert toy.run() == 1
    assert "report.html" not in capsys.readouterr().err


def test_paths_with_braces_spaces_and_other_letters_and_the_home_folder(tmp_path, toy, monkeypatch):
    names = []
    odd = Toy(tmp_path / "a {b} ü 中")
    odd.write(ONE, "print(results_dir)", parameters=LIGHT, tagged=False)
    assert odd.run() == 0
    assert outputs_of(odd.copies / f"{ONE}.ipynb") == f"{odd.results_dir}\n"
    monkeypatch.setattr(study, "execute", lambda execution: names.append(execution.results_dir))
    monkeypatch.setenv("HOME", str(tmp_path / "a {b} ü 中"))
    assert main(["--preset", "~/mine.yaml", "--results-dir", "~/out"], notebook_dir=odd.notebooks) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["--preset", str(odd.preset), "--results-dir", "here"], notebook_dir=odd.notebooks) == 0
    assert names == [tmp_path / "a {b} ü 中" / "out", tmp_path / "here"]


def test_each_backbone_of_a_grid_has_its_own_report(toy, monkeypatch, executed):
    pages = []
    fake = types.SimpleNamespace(write_report=lambda copy, page: pages.append(page))
    monkeypatch.setitem(sys.modules, "fetal_utils.report", fake)
    toy.write(THREE, parameters=PARAMETERS, tagged=False)
    toy.write(REPORT, parameters=LIGHT, tagged=False)
    toy.preset.write_text("grid: {backbone: [r18, r50], task: [a, b]}")
    assert toy.run() == 0
    assert pages == [toy.results_dir / name / "report.html" for name in ("r18", "r50")]
    assert executed[:2] == [f"{THREE}.r18.a", f"{THREE}.r18.b"]


# --- runs ---


def test_runs_alone_need_no_jupyter_and_the_notebooks_then_find_them(toy):
    toy.write(ONE, "1 / 0")
    toy.write(TWO)
    process = start_command(toy.notebooks, *toy.arguments("--runs-only"))
    said, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert said.splitlines()[-1] == "loaded:"
    assert computed(toy_store(toy.results_dir)) == [1, 2]
    assert toy.left() == []


BROKEN = "wanted = [Sum(term=1, broken=True), Sum(term=2, start=Sum(term=1, broken=True)), Sum(term=3)]"


def test_runs_that_fail_are_a_table_of_failures_and_status_1(toy, capsys):
    notebook = nbformat.read(toy.write(ONE), as_version=4)
    notebook.cells[3].source = BROKEN
    nbformat.write(notebook, toy.notebooks / f"{ONE}.ipynb")
    assert toy.run("--runs-only") == 1
    shown = capsys.readouterr().err
    assert re.search(r"sum \w{16} +[\d.]+ s  RuntimeError: term 1 is broken", shown)
    assert re.search(r"sum \w{16} +[\d.]+ s  needs sum \w{16}, which failed", shown)
    assert computed(toy_store(toy.results_dir)) == [1, 3]
    assert main(["status", *toy.arguments()]) == 0
    said = capsys.readouterr().out
    assert re.search(r"kind +done +failed +seconds", said) and re.search(r"sum +1 +1 ", said)
    assert "RuntimeError: term 1 is broken" in said


def test_runs_of_all_notebooks_go_to_the_cluster_before_the_first_notebook(toy, executed, capfd):
    toy.write(ONE)
    toy.write(TWO, parameters=PARAMETERS.replace("[1, 2]", "[2, 3]"))
    assert toy.run("--scheduler", "local:1") == 0
    assert sorted(computed(toy_store(toy.results_dir))) == [1, 2, 3]
    assert executed == [ONE, TWO]


def test_weights_that_a_notebook_looks_into_are_made_again(toy):
    toy.write(ONE)
    assert toy.run("--runs-only") == 0
    store = toy_store(toy.results_dir)
    (store.folder(Sum(term=1)) / "value.txt").unlink()
    assert toy.run("--runs-only") == 0
    assert computed(store) == [1, 2]
    notebook = nbformat.read(toy.write(TWO), as_version=4)
    notebook.cells[3].source += "\nwanted_weights = True"
    nbformat.write(notebook, toy.notebooks / f"{TWO}.ipynb")
    assert toy.run("--runs-only") == 0
    assert computed(store) == [1, 2, 1]


def test_a_dry_run_counts_what_is_missing_and_computes_nothing(toy, capsys):
    toy.write(ONE)
    toy.write(TWO, parameters=PARAMETERS.replace("[1, 2]", "[2, 3]"))
    assert toy.run("--dry-run") == 0
    assert "3 runs are missing, 0 views to train on" in capsys.readouterr().out
    assert not toy.results_dir.exists()
    toy_store(toy.results_dir).get([Sum(term=2)])
    assert toy.run("--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"kind +missing +views +images +finished +mean_seconds +hours", said)
    assert re.search(r"sum +2 +0 +0 +1 +[\d.]+ ", said) and "2 runs are missing" in said


def test_status_shows_folders_of_several_backbones_and_a_folder_without_a_study_is_an_error(toy, capsys):
    for name in ("r18", "r50"):
        toy_store(toy.results_dir / name).get([Sum(term=1)])
    assert main(["status", "--results-dir", str(toy.results_dir)]) == 0
    assert capsys.readouterr().out.count(f"{toy.results_dir}/r") == 2
    assert main(["status", "--results-dir", str(toy.results_dir / "nowhere")]) == 2
    assert "holds no runs" in capsys.readouterr().err


# --- interrupted ---

WAITING = """
import pathlib, time
if not pathlib.Path("go_on").exists():
    pathlib.Path("waits").touch()
    time.sleep(300)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_in_one_line_and_leaves_what_was_executed(sent, toy):
    toy.write(ONE, "print(x)", WAITING, parameters=LIGHT, tagged=False)
    process = start_command(toy.notebooks, *toy.arguments())
    deadline = time.monotonic() + 120
    while not (toy.notebooks / "waits").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == INTERRUPTED and "Traceback" not in error
    assert toy.left() == [f"{ONE}.unfinished.ipynb"]
    if sent == signal.SIGINT:
        (toy.notebooks / "go_on").touch()
        assert toy.run() == 0
        assert toy.left() == [f"{ONE}.ipynb"]


# --- archives ---


@pytest.fixture
def finished(toy):
    """A results folder with two finished runs and one that failed."""
    store = toy_store(toy.results_dir)
    store.get([Sum(term=1), Sum(term=2)])
    store.compute(Sum(term=3, broken=True))
    for settings in (Sum(term=1), Sum(term=2)):
        (store.folder(settings) / "predictions.csv").write_text("image_name,true\na,b\n" * 50)
    return toy.results_dir


def contents(results_dir):
    return {path.relative_to(results_dir).as_posix() for path in results_dir.rglob("*") if path.is_file()}


def test_an_archive_holds_finished_runs_without_weights_and_restores_them(finished, tmp_path, capsys):
    file, other = tmp_path / "runs.tar.xz", tmp_path / "other"
    assert main(["archive", str(file), "--results-dir", str(finished)]) == 0
    assert "2 runs, 0.00 MB" in capsys.readouterr().out
    first = file.read_bytes()
    os.utime(next(finished.glob("runs/sum/*/record.json")), (0, 0))
    assert main(["archive", str(file), "--results-dir", str(finished)]) == 0
    assert file.read_bytes() == first
    assert main(["restore", str(file), "--results-dir", str(other)]) == 0
    assert "2 folders restored" in capsys.readouterr().out
    assert contents(other) == {
        f"runs/sum/{toy_store(other).folder(Sum(term=term)).name}/{name}"
        for term in (1, 2)
        for name in ("record.json", "predictions.csv")
    }
    store = toy_store(other)
    assert store.missing([Sum(term=1), Sum(term=2)]) == []
    assert store.missing([Sum(term=1)], weights=True) == [Sum(term=1)]
    assert store.get([Sum(term=5, start=Sum(term=2))])[0].record["facts"]["total"] == 7
    assert computed(store) == [2, 5]


def test_the_kept_table_of_the_data_set_goes_with_the_runs(finished, tmp_path):
    data_dir = write_folder(tmp_path / "source", plane_lines(n_train=12, n_test=4))
    keep_metadata(Dataset(data_dir, finished / "cache"))
    file = tmp_path / "runs.tar.xz"
    assert main(["archive", str(file), "--results-dir", str(finished)]) == 0
    assert main(["restore", str(file), "--results-dir", str(tmp_path / "other")]) == 0
    restored = tmp_path / "other" / "data"
    assert sorted(path.name for path in restored.iterdir()) == ["FETAL_PLANES_DB_data.csv", "data.json"]


def test_runs_that_are_there_are_never_overwritten(finished, tmp_path, capsys):
    file = tmp_path / "runs.tar.xz"
    main(["archive", str(file), "--results-dir", str(finished)])
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["restore", str(file), "--results-dir", str(finished)]) == 0
    assert "0 folders restored" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def a_run(unpacked):
    return next(unpacked.glob("runs/*/*"))


def break_record(unpacked):
    record = json.loads((a_run(unpacked) / "record.json").read_text())
    record["settings"]["term"] = 99
    (a_run(unpacked) / "record.json").write_text(json.dumps(record))


def age_record(unpacked):
    path = a_run(unpacked) / "record.json"
    path.write_text(path.read_text().replace(f'"results_version": {RESULTS_VERSION}', '"results_version": 1'))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda unpacked: (unpacked / "evil.sh").write_text("rm"), "evil.sh, which is no part of a run"),
        (lambda unpacked: (a_run(unpacked) / "record.json").unlink(), "record.json"),
        (lambda unpacked: (a_run(unpacked) / "log.csv").symlink_to("record.json"), "log.csv"),
        (break_record, "is of another run"),
        (age_record, f"results of version 1, not {RESULTS_VERSION}"),
    ],
)
def test_an_archive_with_anything_else_is_refused_and_nothing_is_restored(change, named, finished, tmp_path, capsys):
    file, unpacked = tmp_path / "runs.tar.xz", tmp_path / "unpacked"
    main(["archive", str(file), "--results-dir", str(finished)])
    with tarfile.open(file) as archive:
        archive.extractall(unpacked, filter="data")
    change(unpacked)
    with tarfile.open(file, "w:xz") as archive:
        archive.add(unpacked, "")
    assert main(["restore", str(file), "--results-dir", str(tmp_path / "other")]) == 2
    assert named in capsys.readouterr().err
    assert contents(tmp_path / "other") == set()


def test_a_file_that_is_no_archive_or_leads_out_of_its_folder_is_refused(finished, tmp_path):
    names = [tmp_path / f"{name}.tar.xz" for name in ("whole", "cut", "changed", "text", "evil", "nowhere")]
    whole, cut, changed, text, evil, _ = names
    main(["archive", str(whole), "--results-dir", str(finished)])
    content, middle = whole.read_bytes(), whole.stat().st_size // 2
    cut.write_bytes(content[:middle])
    changed.write_bytes(content[:middle] + bytes(20) + content[middle + 20 :])
    text.write_text("text")
    with tarfile.open(evil, "w:xz") as archive:
        archive.add(text, "../../evil.txt")
    for file in names[1:]:
        assert main(["restore", str(file), "--results-dir", str(tmp_path / "deep" / "other")]) == 2
    assert contents(tmp_path / "deep") == set() and not list(tmp_path.rglob("evil.txt"))


def test_an_archive_of_nothing_or_by_another_name_ends_with_status_2(finished, tmp_path, capsys):
    for name, folder, reason in [("a.tar.xz", tmp_path, "holds no finished runs"), ("a.zip", finished, "in .tar.xz")]:
        assert main(["archive", str(tmp_path / name), "--results-dir", str(folder)]) == 2
        assert reason in capsys.readouterr().err


def test_weights_that_the_hub_does_not_give_are_missed_before_the_first_run(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ConnectionError, match="resnet26"):
        initial_weights(backbone="resnet26", init="imagenet", seed=0).check()
