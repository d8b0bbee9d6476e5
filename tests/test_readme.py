"""What the README says: every command in it is run, and its numbers are those of the tables."""

import importlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed.run
import yaml
from test_cluster import readme_commands
from test_download import archive, no_waiting, whole_zip  # noqa: F401 (fixtures)
from test_slurm import example  # noqa: F401 (a fixture)
from toy_runs import Sum, toy_store

from fetal_utils import study
from fetal_utils.encoders import InitialWeights, extract_features
from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.plans import list_notebooks
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain
from fetal_utils.trials import TABLE, read_plan

README = (PROJECT_ROOT / "README.md").read_text()
REAL = PROJECT_ROOT / "results" / "fetal_planes_subset"
RUN_BY = {}  # a command as the README has it: the test that runs it


def blocks(language):
    """The README's blocks of code in a language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", README)


def commands():
    """Each line of the README that a shell is given, without comments."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split(" #")[0].split()) for line in lines if line.strip() and line[0] != "#"]


def runs(*written):
    """Mark a test as the one that runs these commands of the README; it is called once with each."""

    def register(test):
        RUN_BY.update(dict.fromkeys(written, test.__name__))
        return pytest.mark.parametrize("command", written)(test)

    return register


def call(command, *more):
    """Run a ``.venv/bin/python -m module`` of the README in this process; its exit status.

    ``more`` are options after those that are written, to make it small or to keep it off the network.
    """
    python, dash_m, module, *arguments = shlex.split(command)
    assert (python, dash_m) == (".venv/bin/python", "-m")
    name = f"{module}.__main__" if module == "fetal_utils.phantom" else module
    return importlib.import_module(name).main([*arguments, *map(str, more)])


def recipe(command):
    """What a ``make`` of the README runs once everything is installed."""
    asked = ["make", "-n", "--old-file", ".venv/.installed", *shlex.split(command)[1:]]
    clean = {"PATH": os.environ["PATH"]}  # `make test` may have started this, with variables of its own
    said = subprocess.run(asked, cwd=PROJECT_ROOT, env=clean, capture_output=True, text=True, check=True).stdout
    return " ".join(said.replace("\\\n", " ").split())


def test_every_command_of_the_readme_is_run_by_a_test_here():
    assert len(commands()) == len(set(commands())) > 5
    assert [command for command in commands() if command not in RUN_BY] == [], "write a test with @runs(command)"
    assert [command for command in RUN_BY if command not in commands()] == [], "no longer in the README"


# --- make ---


@runs("make test")
def test_make_test_is_what_continuous_integration_runs(command):
    assert recipe(command) == ".venv/bin/python -m pytest"
    assert (PROJECT_ROOT / ".ci" / "run").read_text().rstrip().endswith(f"exec {command}")


@contextmanager
def server(written, port):
    """A Jupyter server, started as written but for the browser, and ended afterwards."""
    program, *arguments = shlex.split(written)
    assert program == ".venv/bin/jupyter"
    options = ["--no-browser", f"--ServerApp.port={port}", "--IdentityProvider.token=", "--allow-root"]
    jupyter = Path(sys.executable).with_name("jupyter")
    started = subprocess.Popen([jupyter, *arguments, *options], cwd=PROJECT_ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@runs("make lab")
def test_make_lab_serves_the_notebooks(command):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with server(recipe(command), port) as running:
        address = f"http://127.0.0.1:{port}/api/contents/notebooks/01_data_preparation.ipynb?content=0"
        for _ in range(600):
            assert running.poll() is None, running.communicate()[1]
            try:
                with urllib.request.urlopen(address) as answer:
                    assert json.load(answer)["type"] == "notebook"
                break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail("no answer from JupyterLab in two minutes")


# --- torchrun: test_following starts the same module by it, with two processes and a toy network ---


@runs(
    ".venv/bin/torchrun --standalone --nproc-per-node 4 -m fetal_utils.simclr --data-dir path/to/folder --results-dir path/to/results"  # noqa: E501
)
def test_torchrun_is_asked_for_the_module_that_another_test_runs_by_it(command):
    asked = torch.distributed.run.parse_args(shlex.split(command)[1:])
    assert (asked.standalone, asked.nproc_per_node, asked.module) == (True, "4", True)
    assert asked.training_script == "fetal_utils.simclr"
    given = dict(zip(asked.training_script_args[::2], asked.training_script_args[1::2], strict=True))
    assert given == {"--data-dir": "path/to/folder", "--results-dir": "path/to/results"}
    elsewhere = (PROJECT_ROOT / "tests" / "test_following.py").read_text()
    started = 'command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]'
    assert started in elsewhere and '"-m", "fetal_utils.simclr"' in elsewhere


# --- the study: its notebooks are executed, with the smoke preset, by test_notebooks ---


@runs(
    "make study",
    "make study PRESET=laptop DATA_DIR=path/to/folder",
    '.venv/bin/python -m fetal_utils.study --preset laptop --data-dir path/to/folder --results-dir path/to/results -p seeds "[0]"',  # noqa: E501
    'make study PRESET=paper DATA_DIR=/shared/planes RESULTS_DIR=/shared/results ARGS="--scheduler tcp://10.0.0.1:8786"',
)
def test_a_study_starts_as_written(command, tiny_phantom, tmp_path, monkeypatch):
    executed, asked = [], []
    monkeypatch.setattr(study, "execute", lambda execution, source, *, listener: executed.append(execution) or "")
    monkeypatch.setattr(study, "make_report", lambda execution: None)
    monkeypatch.setattr(RunStore, "get", lambda store, wanted, *, scheduler: asked.append(scheduler))
    written = recipe(command) if command.startswith("make") else command
    written = re.sub("path/to/folder|/shared/planes", str(tiny_phantom), written)
    # else `make study` would write into the repository's own results
    assert call(written, "--results-dir", tmp_path / "results") == 0
    assert list(dict.fromkeys(execution.notebook for execution in executed)) == list_notebooks()
    data_dir = str(tiny_phantom) if str(tiny_phantom) in written else None
    assert {execution.parameters.get("data_dir") for execution in executed if "data_dir" in execution.parameters} == (
        {data_dir} if data_dir else set()
    )
    schedulers = {execution.parameters.get("scheduler") for execution in executed} - {None}
    assert schedulers == {*asked} == ({"tcp://10.0.0.1:8786"} if "tcp://" in command else set())
    seeds = [execution.parameters.get("seeds") for execution in executed if execution.notebook.startswith("04")]
    assert all(value == [0] for value in seeds) is ("-p seeds" in command)


@runs(
    ".venv/bin/dask scheduler --port 8786",
    "OMP_NUM_THREADS=4 .venv/bin/dask worker tcp://10.0.0.1:8786 --nworkers 4 --nthreads 1 --memory-limit 0",
)
def test_the_commands_of_a_cluster_are_those_that_the_tests_of_clusters_run(command):
    assert shlex.split(command.split(".venv/bin/dask ")[1]) in readme_commands()


@runs(
    ".venv/bin/python examples/slurm.py --jobs 8 --cpus 4 --memory 12GB -- --preset paper --data-dir /shared/planes --results-dir /shared/results"  # noqa: E501
)
def test_jobs_of_a_batch_system_are_asked_for_as_written(command, example, monkeypatch):  # noqa: F811
    given = []
    monkeypatch.setattr(example, "study", lambda arguments: given.extend(arguments) or 0)
    monkeypatch.setattr(example.SLURMCluster, "adapt", lambda self, **jobs: given.append(jobs))
    assert example.main(shlex.split(command)[2:]) == 0
    assert given[0] == {"minimum_jobs": 8, "maximum_jobs": 8}
    assert given[1:7] == ["--preset", "paper", "--data-dir", "/shared/planes", "--results-dir", "/shared/results"]


@runs(".venv/bin/python -m fetal_utils.study status --results-dir path/to/results")
def test_the_status_is_asked_as_written(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(command) == 2  # no study there yet
    toy_store(Path("path/to/results")).get([Sum(term=1)])
    assert call(command) == 0
    assert "sum" in capsys.readouterr().out


# --- the other commands ---


@runs(".venv/bin/python -m fetal_utils.download --out data/FETAL_PLANES_DB")
def test_the_download_is_made_as_written(command, archive, no_waiting, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert call(command, "--url", archive.url) == 0  # a server here instead of Zenodo
    assert len(list(Path("data/FETAL_PLANES_DB/Images").iterdir())) == 174


@runs(
    ".venv/bin/python -m fetal_utils.simclr --data-dir path/to/folder --results-dir path/to/results -p init imagenet -p n_epochs 40"  # noqa: E501
)
def test_a_pretraining_is_made_as_written_with_small_views_and_few_epochs(
    command, tiny_phantom, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    written = command.replace("path/to/folder", str(tiny_phantom))
    assert call(written, "-p", "image_size", 16, "-p", "n_epochs", 4) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder.parent == Path("path/to/results/runs/simclr").resolve()
    assert len(pd.read_csv(folder / "log.csv")) == 4
    assert json.loads((folder / "record.json").read_text())["settings"]["start"]["init"] == "imagenet"


@runs(
    ".venv/bin/python -m fetal_utils.trials notebooks/trials.yaml --data-dir path/to/folder --results-dir path/to/results"  # noqa: E501
)
def test_trials_are_made_as_written_with_two_changes_of_a_toy_network(command, tiny_phantom, tmp_path, monkeypatch):
    plan = read_plan(PROJECT_ROOT / "notebooks" / "trials.yaml")
    toy = {"backbone": "test_efficientnet", "init": "random", "image_size": 32, "n_epochs": 1}
    small = {"base_seeds": [0], "tasks": ["planes"], "label_fractions": [1.0], "draws": [0]}
    (tmp_path / "notebooks").mkdir()
    text = yaml.safe_dump(plan | small | {"base": plan["base"] | toy, "changes": plan["changes"][:2]})
    (tmp_path / "notebooks" / "trials.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert call(command.replace("path/to/folder", str(tiny_phantom))) == 0
    assert len(pd.read_csv(Path("path/to/results") / TABLE)) == 3  # the base and two changes


@runs(".venv/bin/python -m fetal_utils.phantom --out data/my_phantom --patients 200 --seed 1")
def test_a_phantom_is_drawn_as_written_with_few_patients_and_pixels(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(command, "--patients", 12, "--image-height", 64, "--workers", 1) == 0
    assert json.loads(Path("data/my_phantom/phantom.json").read_text())["seed"] == 1


# --- a trained encoder elsewhere ---


def test_the_lines_of_the_readme_give_the_same_features_where_this_package_is_unknown(tiny_dataset, tmp_path):
    store = RunStore(tmp_path, tiny_dataset, device="cpu", progress=False)
    start = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
    settings = Pretrain(start=start, image_size=32, n_epochs=1, batch_size=40)
    (run,) = store.get([settings])
    images = tiny_dataset.images(32, progress=False)[:6]
    np.save(tmp_path / "images.npy", images[:, None])
    (lines,) = [block for block in blocks("python") if "timm.create_model" in block]
    assert "path/to/weights.safetensors" in lines
    script = f"""
import sys
sys.modules["fetal_utils"] = None  # an import of it fails
import numpy, torch
images = torch.from_numpy(numpy.load("images.npy"))
torch.set_grad_enabled(False)
{lines.replace("path/to/weights.safetensors", str(run.weights))}
numpy.save("features.npy", features.numpy())
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    here = extract_features(settings.encoder(store), images, image_size=32, device=torch.device("cpu"))
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), here, atol=1e-5 * np.abs(here).max())


# --- numbers ---


@pytest.fixture(scope="module")
def macro_f1():
    """Differences in macro-F1 to ImageNet weights on real images, with the number of labelled images."""
    differences = pd.read_csv(REAL / "comparisons.csv").query("metric == 'f1'")
    paths = sorted((REAL / "tables").glob("label_efficiency.*.csv"))
    labels = pd.concat(map(pd.read_csv, paths))
    keys = ["task", "protocol", "label_fraction", "strategy"]
    return differences.merge(labels[[*keys, "n_labelled_images"]], on=keys, validate="1:1").sort_values(keys)


def of(table, task, protocol, strategy=None):
    rows = table[(table["task"] == task) & (table["protocol"] == protocol)]
    return rows if strategy is None else rows[rows["strategy"] == strategy]


def said(text):
    """Whether the README has these words, across its line ends."""
    return text in " ".join(README.split())


def test_the_first_screen_has_the_differences_of_the_planes_that_look_different(macro_f1):
    probes = of(macro_f1, "planes", "linear_probe", "simclr_imagenet")
    few, everything = probes.iloc[0], probes.iloc[-1]
    assert (probes["resolved"] & (probes["difference"] > 0)).all()  # better with every number of labels
    assert said(
        f"{few['difference']:+.3f} macro-F1 with {few['n_labelled_images']:.0f} labelled images, "
        f"{everything['difference']:+.3f} with all {everything['n_labelled_images']:.0f}"
    )
    tuned = of(macro_f1, "planes", "fine_tune")
    assert not (tuned["resolved"] & (tuned["difference"] > 0)).any()  # none resolved as better


def test_the_first_screen_has_the_differences_of_the_planes_that_look_alike(macro_f1):
    few, everything = of(macro_f1, "brain_planes", "fine_tune", "simclr_imagenet").to_dict("records")
    assert (few["resolved"], everything["resolved"]) == (True, False)
    assert said(f"{few['difference']:+.3f} with {few['n_labelled_images']:.0f} labelled images")
    assert said(f"{everything['difference']:+.3f} with all {everything['n_labelled_images']:.0f}")
    probes = of(macro_f1, "brain_planes", "linear_probe", "simclr_imagenet")
    assert not probes["resolved"].any()
    assert said(f"{probes['difference'].min():.2f} to {probes['difference'].max():.2f} ahead")
    assert not of(macro_f1, "brain_planes", "fine_tune", "dual_imagenet")["resolved"].any()


def test_the_limits_name_the_test_set_of_the_tables():
    planes, brain = (
        pd.read_csv(REAL / "tables" / f"label_efficiency.{task}.csv") for task in ("planes", "brain_planes")
    )
    (tested,) = {*zip(planes["n_images"], planes["n_patients"], strict=True)}
    (brains,) = {*zip(brain["n_images"], brain["n_patients"], strict=True)}
    assert said("{} test images of {} patients for the planes".format(*tested))
    assert said("{} of {} for the brain planes".format(*brains))


def test_what_the_demo_takes_is_said_the_same_everywhere():
    rows = [line for line in README.splitlines() if line.startswith(("| `make study`", "| `demo`"))]
    minutes = [re.search(r"(\d+) minutes on 2 cores", row)[1] for row in rows]
    assert len(minutes) == 2 and len(set(minutes)) == 1


def test_paths_and_modules_that_the_readme_names_are_there():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (PROJECT_ROOT / link).exists()] == []
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_every_module_has_its_place_in_the_layout():
    layout = README.split("## Layout")[1].split("```")[1]
    modules = sorted((PROJECT_ROOT / "fetal_utils").glob("[a-z]*.py"))
    assert [path.stem for path in modules if not re.search(rf"\b{path.stem}\b", layout)] == []
