"""The study command: its options, what it leaves, and what it does with bad input and failing notebooks."""

import os
import re
import signal
import socket
import sys
import time
import types
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from data_folders import plane_lines, write_folder, write_table
from jupyter_client.kernelspec import KernelSpecManager
from study_notebooks import outputs_of, start_command, write_notebook
from toy_runs import Sum, toy_store

from fetal_utils import plans, study
from fetal_utils.runs import RunsFailedError, RunStore
from fetal_utils.study import main
from fetal_utils.tables import METRICS_COLUMNS

SMOKE = ["--preset", "smoke"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "nope"], "nope"),
        (["--preset", "missing.yaml"], "missing.yaml"),
        ([*SMOKE, "--only", "99"], "--only 99"),
        ([*SMOKE, "--from", "99"], "--from 99"),
        ([*SMOKE, "-p", "imge_size", "32"], "imge_size"),
        ([*SMOKE, "-p", "image_size", "big"], "image_size='big'"),
        ([*SMOKE, "-p", "image_size", "4"], "image_size=4"),
        ([*SMOKE, "-p", "image_size", "[4"], "not YAML"),
        ([*SMOKE, "-p", "image_size", "[32, 64]"], "image_size [32, 64]: expected one value"),
        ([*SMOKE, "-p", "label_fractions", "[0.5, 2]"], "label_fractions=2"),
        ([*SMOKE, "-p", "label_fractions", "[]"], "label_fractions is empty"),
        ([*SMOKE, "-p", "phantom_patients", "3"], "phantom_patients=3"),
        ([*SMOKE, "-p", "backbone", "resnet19"], "backbone='resnet19'"),
        ([*SMOKE, "-p", "task", "[planes, plane]"], "task='plane' is unknown"),
        ([*SMOKE, "-p", "augmentation", "strong"], "strong"),
        ([*SMOKE, "-p", "device", "abacus"], "abacus"),
        ([*SMOKE, "-p", "data_dir", "5"], "parameter data_dir=5 is of type int"),
        ([*SMOKE, "--only", "01", "-p", "n_steps", "5"], "-p n_steps: no such parameter in 01_data_preparation"),
        ([*SMOKE, "--data-dir", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(arguments, named, tmp_path, capsys):
    assert main([*arguments, "--results-dir", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert "Traceback" not in error
    assert not (tmp_path / "results" / "notebooks").exists()


def test_a_broken_image_is_named_before_the_first_notebook(tiny_phantom, tmp_path, capsys):
    data_dir = copy_data(tiny_phantom, tmp_path / "data")
    broken = sorted((data_dir / "Images").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:60])
    assert main([*SMOKE, "--data-dir", str(data_dir), "--results-dir", str(tmp_path / "results")]) == 2
    assert broken.name in capsys.readouterr().err
    assert not (tmp_path / "results" / "notebooks").exists()


LINES = plane_lines(n_train=12, n_test=4)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([LINES[0].replace("Fetal femur", "Fetal foot"), *LINES[1:]], "Fetal foot"),
        ([*LINES, LINES[0]], "stands twice"),
        ([*LINES[:-1], LINES[-1].replace(";16;", ";1;")], "patients [1]"),
        ([LINES[0].replace("p1_femur", "../p1_femur"), *LINES[1:]], "../p1_femur"),
        ([line for line in LINES if "femur" in line], "at least two"),
        (
            [line for line in LINES if "femur" in line or line.endswith("0 ")],
            "no training patient has ['Fetal thorax']",
        ),
        ([line + ";7" for line in LINES], "FETAL_PLANES_DB_data.csv"),
    ],
    ids=["class", "duplicate", "both-splits", "climbs-out", "one-class", "untrained-class", "extra-column"],
)
def test_bad_data_ends_with_status_2_and_one_line(lines, named, tmp_path, capsys):
    data_dir = write_folder(tmp_path / "data", LINES)
    write_table(data_dir, lines)
    folders = ["--data-dir", str(data_dir), "--results-dir", str(tmp_path / "results")]
    assert main([*SMOKE, "-p", "task", "planes", *folders]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert not (tmp_path / "results" / "notebooks").exists()


def test_good_data_of_the_same_kind_is_accepted(tmp_path, monkeypatch):
    data_dir = write_folder(tmp_path / "data", LINES)
    monkeypatch.setattr(study, "execute", lambda execution, source, *, listener: "")
    monkeypatch.setattr(study, "make_report", lambda execution: None)
    arguments = ["-p", "task", "planes", "--data-dir", str(data_dir), "--results-dir", str(tmp_path / "results")]
    assert main([*SMOKE, *arguments]) == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("parameters: [", "not YAML"),
        ("extra: 1", "extra"),
        ("- a", "expected a mapping"),
        ("parameters: {imge: 1}", "imge"),
    ],
)
def test_a_preset_of_ones_own_that_is_malformed_is_refused(text, named, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["--preset", str(path), "--results-dir", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err


def test_a_results_folder_that_cant_be_written_is_named(small, capsys):
    small.results_dir.write_text("a file")
    write_notebook(small.notebooks / "01_works.ipynb", "1")
    assert small.run() == 2
    assert str(small.results_dir) in capsys.readouterr().err


class Small:
    """A study of one's own tiny notebooks."""

    def __init__(self, folder: Path) -> None:
        self.notebooks = folder / "notebooks"
        self.results_dir = folder / "results"
        self.copies = self.results_dir / "notebooks"
        self.preset = folder / "mine.yaml"
        self.preset.write_text(yaml.safe_dump({"parameters": {"x": 5}}))

    def arguments(self, *further: str) -> list[str]:
        return ["--preset", str(self.preset), "--results-dir", str(self.results_dir), *further]

    def run(self, *further: str) -> int:
        return main(self.arguments(*further))

    def log(self) -> str:
        return (self.results_dir / "study.log").read_text()

    def left(self) -> list[str]:
        """Names of the executed copies."""
        return sorted(path.name for path in self.copies.iterdir())


@pytest.fixture
def small(tmp_path, monkeypatch) -> Small:
    monkeypatch.setattr(plans, "NOTEBOOK_DIR", tmp_path / "notebooks")
    return Small(tmp_path)


def fake_execute(monkeypatch, *failing: str) -> list[str]:
    """Executes nothing, fails for some; the names that were asked for."""
    asked = []

    def execute(execution, source, *, listener):
        asked.append(execution.name)
        return "cell train: ValueError: on purpose" if execution.name in failing else ""

    monkeypatch.setattr(study, "execute", execute)
    return asked


def test_a_failing_notebook_is_kept_under_another_name_until_it_succeeds_and_the_next_one_runs(small, capsys):
    source = "import pathlib\nif not pathlib.Path('mended').exists():\n    raise ValueError(f'on purpose\\nat {x}')"
    write_notebook(small.notebooks / "01_fails.ipynb", "1", source)
    write_notebook(small.notebooks / "02_works.ipynb", "print(x)")
    assert small.run() == 1
    assert small.left() == ["01_fails.failed.ipynb", "02_works.ipynb"]
    shown = capsys.readouterr().err
    assert re.search(r"1 of \d failed", shown)
    assert re.search(r"01_fails +[\d.]+ +cell cell-2: ValueError: on purpose ... at 5", shown)
    assert f"\ntraceback: {small.copies / '01_fails.failed.ipynb'}\n" in shown
    assert "02_works" not in shown
    assert "Traceback" not in shown
    failed = nbformat.read(small.copies / "01_fails.failed.ipynb", as_version=4)
    assert any(output.get("ename") == "ValueError" for cell in failed.cells for output in cell.get("outputs", []))
    assert outputs_of(small.copies / "02_works.ipynb") == "5\n"
    (small.notebooks / "mended").touch()
    assert small.run("--only", "01") == 0
    assert small.left() == ["01_fails.ipynb", "02_works.ipynb"]


def test_a_kernel_that_dies_is_a_failure_that_says_where(small, capsys):
    write_notebook(small.notebooks / "01_dies.ipynb", "print(x)", "import os; os.kill(os.getpid(), 9)", "print(x)")
    assert small.run() == 1
    assert "cell cell-2: its kernel died" in capsys.readouterr().err
    assert outputs_of(small.copies / "01_dies.failed.ipynb") == "5\n"


def test_without_keep_going_nothing_runs_after_a_failure(small, monkeypatch, capsys):
    for name in ("01_works", "02_fails", "03_waits"):
        write_notebook(small.notebooks / f"{name}.ipynb", "1")
    asked = fake_execute(monkeypatch, "02_fails")
    assert small.run("--keep-going") == 1
    assert asked == ["01_works", "02_fails", "03_waits"]
    asked.clear()
    capsys.readouterr()
    assert small.run("--no-keep-going") == 1
    assert asked == ["01_works", "02_fails"]
    shown = capsys.readouterr().err
    assert re.search(r"02_fails +[\d.]+ +cell train: ValueError: on purpose", shown)
    assert re.search(r"03_waits +0.0 +not run, since one before it failed", shown)


def test_from_runs_that_notebook_and_those_after_it(small, monkeypatch):
    for name in ("01_a", "02_b", "03_c", "90_d"):
        write_notebook(small.notebooks / f"{name}.ipynb", "1")
    asked = fake_execute(monkeypatch)
    assert small.run("--from", "02") == 0
    assert asked == ["02_b", "03_c"]
    with pytest.raises(SystemExit):  # argparse's own: which of the two is meant?
        small.run("--from", "02", "--only", "02")


PART = f"""
import pathlib
tables = pathlib.Path(results_dir, "tables")
tables.mkdir(exist_ok=True)
row = "planes,scratch,fine_tune,1.0,9,3,0,0,macro,f1,0.5,0.4,0.6"
(tables / "metrics.01.csv").write_text("{",".join(METRICS_COLUMNS)}\\n" + row + "\\n")
"""
SUMMARY = """
import pathlib
print(sorted(path.name for path in pathlib.Path(results_dir).glob("*.csv")))
"""


def fake_report(monkeypatch, write_report) -> None:
    monkeypatch.setitem(sys.modules, "fetal_utils.report", types.SimpleNamespace(write_report=write_report))


def test_the_report_finds_the_merged_tables_and_becomes_a_page(small, monkeypatch, capsys):
    calls = []
    fake_report(monkeypatch, lambda executed, page: calls.append((executed, page, executed.exists())))
    write_notebook(small.notebooks / "01_part.ipynb", PART)
    write_notebook(small.notebooks / "06_report.ipynb", SUMMARY)
    assert small.run() == 0
    copy = small.copies / "06_report.ipynb"
    assert outputs_of(copy) == "['metrics.csv', 'runs.csv']\n"
    assert calls == [(copy, small.results_dir / "report.html", True)]
    assert pd.read_csv(small.results_dir / "metrics.csv")["value"].tolist() == [0.5]


def test_tables_of_earlier_calls_are_merged_before_the_report_alone(small, monkeypatch):
    fake_report(monkeypatch, lambda executed, page: None)
    monkeypatch.setattr(
        study, "execute", lambda execution, source, *, listener: "" if merged().exists() else "no tables"
    )

    def merged():
        return small.results_dir / "metrics.csv"

    write_notebook(small.notebooks / "06_report.ipynb", "1")
    (small.results_dir / "tables").mkdir(parents=True)
    rows = "planes,scratch,fine_tune,1.0,9,3,0,0,macro,f1,0.5,0.4,0.6"
    (small.results_dir / "tables" / "metrics.01.csv").write_text(f"{','.join(METRICS_COLUMNS)}\n{rows}\n")
    assert small.run("--only", "06") == 0


def test_runs_of_all_notebooks_go_to_a_cluster_at_once_and_those_that_fail_are_left_to_their_notebooks(
    small, monkeypatch
):
    wanted = {"01_a": [Sum(term=1)], "02_b": [Sum(term=2, broken=True), Sum(term=3)], "03_c": None}
    asked = []

    def get(store, runs, *, scheduler):
        asked.append((runs, scheduler))
        raise RunsFailedError("1 of 3 runs failed")

    def asked_runs(execution):
        return (toy_store(small.results_dir), wanted[execution.name]) if wanted[execution.name] else None

    monkeypatch.setattr(RunStore, "get", get)
    monkeypatch.setattr(study, "asked_runs", asked_runs)
    executed = fake_execute(monkeypatch)
    for name in wanted:
        write_notebook(small.notebooks / f"{name}.ipynb", "1", parameters='x: int = 1\nscheduler: str = ""')
    assert small.run() == 0
    assert asked == []
    assert small.run("--scheduler", "tcp://here:1") == 0
    assert asked == [([Sum(term=1), Sum(term=2, broken=True), Sum(term=3)], "tcp://here:1")]
    assert executed == [*wanted] * 2
    assert "1 of 3 runs failed" in small.log()


def test_a_cluster_that_is_not_there_is_a_failure_of_the_study(small, monkeypatch, capsys):
    def get(store, runs, *, scheduler):
        raise ConnectionError(f"{scheduler} does not answer")

    monkeypatch.setattr(RunStore, "get", get)
    monkeypatch.setattr(study, "asked_runs", lambda execution: (toy_store(small.results_dir), [Sum(term=1)]))
    executed = fake_execute(monkeypatch)
    write_notebook(small.notebooks / "01_a.ipynb", "1", parameters='x: int = 1\nscheduler: str = ""')
    assert small.run("--scheduler", "tcp://here:1", "--no-keep-going") == 1
    assert "tcp://here:1 does not answer" in capsys.readouterr().err
    assert executed == []


def test_a_page_that_cant_be_made_is_a_failure_of_the_study(small, monkeypatch, capsys):
    def write_report(executed, page):
        raise ValueError("an image has no alternative text")

    fake_report(monkeypatch, write_report)
    fake_execute(monkeypatch)
    write_notebook(small.notebooks / "06_report.ipynb", "1")
    assert small.run() == 1
    shown = capsys.readouterr().err
    assert "report.html" in shown
    assert "ValueError: an image has no alternative text" in shown
    assert "Traceback" in small.log()


def test_no_page_is_made_of_a_report_that_failed(small, monkeypatch):
    fake_report(monkeypatch, lambda executed, page: pytest.fail("was called"))
    fake_execute(monkeypatch, "06_report")
    write_notebook(small.notebooks / "06_report.ipynb", "1")
    assert small.run() == 1


def test_each_backbone_of_a_grid_has_its_own_report(small, monkeypatch):
    calls = []
    fake_report(monkeypatch, lambda executed, page: calls.append(page))
    fake_execute(monkeypatch)
    write_notebook(small.notebooks / "03_train.ipynb", "1", parameters='backbone: str = "resnet18"')
    write_notebook(small.notebooks / "06_report.ipynb", "1")
    small.preset.write_text("grid: {backbone: [resnet18, resnet50]}")
    assert small.run() == 0
    assert calls == [small.results_dir / name / "report.html" for name in ("resnet18", "resnet50")]


def test_tables_that_cant_be_merged_are_a_failure_of_the_study(small, monkeypatch, capsys):
    fake_execute(monkeypatch)
    write_notebook(small.notebooks / "01_a.ipynb", "1")
    (small.results_dir / "tables").mkdir(parents=True)
    (small.results_dir / "tables" / "metrics.01.csv").write_text("task\nplanes\n")
    assert small.run() == 1
    assert f"tables in {small.results_dir}" in capsys.readouterr().err


def test_the_log_says_when_what_was_done_by_which_versions(small, monkeypatch, capsys):
    fake_execute(monkeypatch, "02_fails")
    for name in ("01_works", "02_fails"):
        write_notebook(small.notebooks / f"{name}.ipynb", "1")
    small.run("-p", "x", "7")
    lines = small.log().splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    text = "\n".join(line[20:] for line in lines)
    assert f"python -m fetal_utils.study --preset {small.preset} --results-dir {small.results_dir} -p x 7" in text
    assert re.search(r"(?m)^python 3\.\d+.*torch \d+.*commit", text)
    order = ["01_works (1 of 2) ...", "01_works: 0.0 s", "02_fails (2 of 2) ...", "02_fails: 0.0 s, failed: cell train"]
    assert [text.index(line) for line in order] == sorted(text.index(line) for line in order)
    n_lines = len(lines)
    small.run("--only", "01")
    assert small.log().splitlines()[:n_lines] == lines
    assert "02_fails (2 of 2) ..." in capsys.readouterr().out


def test_list_shows_presets_and_values_and_computes_nothing(small, monkeypatch, capsys):
    monkeypatch.setattr(study, "check_inputs", lambda executions: pytest.fail("looked at the data"))
    write_notebook(small.notebooks / "01_a.ipynb", "1", parameters="x: int = 1\nlr: float = 0.5")
    write_notebook(small.notebooks / "03_b.ipynb", "1", parameters='x: int = 1\ntask: str = "planes"')
    assert small.run("--list", "-p", "task", "[planes, brain_planes]", "--data-dir", "somewhere") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}: " in shown for name in ("demo", "laptop", "paper", "smoke"))
    sections = {part.split("\n")[0]: " ".join(part.split()) for part in shown.split("\n\n")}
    assert list(sections)[-3:] == ["01_a", "03_b.planes", "03_b.brain_planes"]
    assert "set: x=5," in sections["01_a"]
    assert "its own: lr=0.5" in sections["01_a"]
    assert "task='brain_planes'" in sections["03_b.brain_planes"]
    assert not small.results_dir.exists()


def test_a_dry_run_says_which_notebooks_were_executed_and_leaves_no_log(small, capsys):
    for name in ("01_a", "02_b"):
        write_notebook(small.notebooks / f"{name}.ipynb", "1")
    small.copies.mkdir(parents=True)
    (small.copies / "01_a.ipynb").touch()
    assert small.run("--dry-run") == 0
    shown = capsys.readouterr().out
    assert re.search(r"01_a +20\d\d-\d\d-\d\d \d\d:\d\d ", shown)
    assert re.search(r"02_b +not yet ", shown)
    assert "0 runs, 0 of them finished" in shown
    assert not (small.results_dir / "study.log").exists()


KERNEL = """
import os, sys
print(sys.executable)
print([name for name in os.environ if name.startswith(("VSCODE", "JPY_SESSION"))])
"""
BARS = """
import time
from fetal_utils.environment import progress_bar
for leave in (True, False):
    with progress_bar(total=3000, desc="runs", unit="run", leave=leave) as bar:
        for _ in range(3000):
            bar.set_postfix_str("fine_tune")
            bar.update()
            time.sleep(0.0005)
"""


@pytest.fixture
def decoy(tmp_path, monkeypatch) -> None:
    """An environment in which Jupyter finds a broken ``python3`` first, below an editor that shows notebooks."""
    folder = tmp_path / "decoy" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = '{"argv": ["/bin/false", "{connection_file}"], "display_name": "decoy", "language": "python"}'
    (folder / "kernel.json").write_text(spec)
    home = tmp_path / "home" / ".local" / "share" / "jupyter"
    home.mkdir(parents=True)
    (home / "kernels").symlink_to(folder.parent)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "decoy"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VSCODE_PID", "1")
    monkeypatch.setenv("JPY_SESSION_NAME", "02.ipynb")
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "/bin/false"


def test_the_kernel_is_this_python_wherever_one_stands_and_whatever_is_registered(
    small, decoy, tmp_path, monkeypatch, capsys
):
    write_notebook(small.notebooks / "01_kernel.ipynb", KERNEL, BARS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--preset", str(small.preset), "--results-dir", "mine"]) == 0
    copy = tmp_path / "elsewhere" / "mine" / "notebooks" / "01_kernel.ipynb"
    assert outputs_of(copy).splitlines()[:2] == [sys.executable, "[]"]
    bars = outputs_of(copy).splitlines()[2:]  # of six thousand updates, and of as many postfixes
    assert [line.split("[")[0] for line in bars] == ["runs:   0% 0/3000 ", "runs: 100% 3000/3000 "]
    assert "widgets" not in nbformat.read(copy, as_version=4).metadata
    shown, logged = capsys.readouterr().out, (tmp_path / "elsewhere" / "mine" / "study.log").read_text()
    for line in bars:
        assert f"    {line}\n" in shown
        assert f"    {line}\n" in logged
    assert "\r" not in shown + logged


WAITING = """
import pathlib, time
if not pathlib.Path("go_on").exists():
    pathlib.Path("waiting").touch()
    time.sleep(300)
"""


def test_interrupted_it_says_so_in_one_line_and_the_same_call_goes_on(small, tmp_path):
    write_notebook(small.notebooks / "01_works.ipynb", "print(x)")
    write_notebook(small.notebooks / "02_waits.ipynb", "print(x)", WAITING)
    process = start_command(small.notebooks, *small.arguments(), cwd=tmp_path)
    wait_for(small.notebooks / "waiting", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert err == f"\n{study.INTERRUPTED}\n"
    assert process.returncode == 130
    assert small.left() == ["01_works.ipynb", "02_waits.interrupted.ipynb"]
    assert outputs_of(small.copies / "02_waits.interrupted.ipynb") == "5\n"
    assert study.INTERRUPTED in small.log()
    (small.notebooks / "go_on").touch()
    assert small.run() == 0
    assert small.left() == ["01_works.ipynb", "02_waits.ipynb"]


def test_the_signal_of_a_batch_system_whose_time_is_up_does_what_ctrl_c_does(small, monkeypatch, capsys):
    def execute(execution, source, *, listener):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(study, "execute", execute)
    write_notebook(small.notebooks / "01_a.ipynb", "1")
    before = signal.getsignal(signal.SIGTERM)
    assert small.run() == 130
    assert capsys.readouterr().err == f"\n{study.INTERRUPTED}\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_copy_that_a_killed_study_left_is_removed_and_one_that_is_being_written_is_not(small):
    write_notebook(small.notebooks / "01_works.ipynb", "1")
    small.copies.mkdir(parents=True)
    (small.copies / f"01_works.unfinished-{socket.gethostname()}-{2**22 + 1}.ipynb").touch()  # above every process id
    alive = f"01_works.unfinished-{socket.gethostname()}-{os.getppid()}.ipynb"
    (small.copies / alive).touch()
    assert small.run() == 0
    assert small.left() == ["01_works.ipynb", alive]


def wait_for(path: Path, process) -> None:
    """Wait until a file is there."""
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail(f"{path} did not appear")


def copy_data(source: Path, target: Path) -> Path:
    """A copy of a data folder that a test may break."""
    (target / "Images").mkdir(parents=True)
    for path in [*source.glob("*.csv"), *(source / "Images").iterdir()]:
        (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target
