"""What the README says: every command in it is run or started, and the paths and modules that it names are there."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_download import server, source  # noqa: F401 (fixtures)
from toy_runs import Sum, toy_store

from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.models import InitialWeights, extract_features
from fetal_utils.presets import NOTEBOOK_DIR, read_parameters
from fetal_utils.runs import RunStore
from fetal_utils.simclr import Pretrain

README = (PROJECT_ROOT / "README.md").read_text()
RUN_BY = {}  # a command as the README has it: the test that runs it


def blocks(language, text=README):
    """The README's blocks of code in a language, or those of another text."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def commands():
    """Each line of the README that a shell is given."""
    return [" ".join(line.split()) for line in "".join(blocks("sh")).splitlines() if line.strip()]


def runs(*written):
    """Mark a test as the one that runs these commands of the README; it is called once with each."""

    def register(test):
        RUN_BY.update(dict.fromkeys(written, test.__name__))
        return pytest.mark.parametrize("command", written)(test)

    return register


def call(command, *more):
    """Run a ``.venv/bin/python -m module`` of the README in this process; its exit status."""
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


@runs("make test")
def test_make_test_is_what_continuous_integration_runs(command):
    assert recipe(command) == ".venv/bin/python -m pytest"
    assert (PROJECT_ROOT / ".ci" / "run").read_text().rstrip().endswith(f"exec {command}")


@runs("make lab")
def test_make_lab_opens_jupyterlab_on_the_first_notebook(command):
    (opened,) = re.findall(r"--LabApp\.default_url=/lab/tree/(\S+)", recipe(command))
    assert PROJECT_ROOT / opened == min(NOTEBOOK_DIR.glob("*.ipynb"))


@runs(
    "make study",
    "make study PRESET=laptop DATA_DIR=path/to/folder",
    ".venv/bin/python -m fetal_utils.study --preset laptop --data-dir path/to/folder --results-dir path/to/results "
    "-p n_pairs 3",
    "make study PRESET=paper DATA_DIR=/shared/planes RESULTS_DIR=/shared/results "
    'ARGS="--scheduler tcp://10.0.0.1:8786"',
)
def test_a_study_has_its_names_and_values_as_written(command, tmp_path, capsys):
    written = recipe(command) if command.startswith("make") else command
    assert call(written, "--results-dir", tmp_path, "--list") == 0
    shown = capsys.readouterr().out
    for name, value in re.findall(r"--(data-dir|scheduler) (\S+)", written):
        assert value.strip("'") in shown, name
    assert ("n_pairs = 3" in shown) or "-p n_pairs" not in written


@runs(
    ".venv/bin/python -m fetal_utils.study status --results-dir path/to/results",
    ".venv/bin/python -m fetal_utils.study archive runs.tar.xz --results-dir path/to/results",
    ".venv/bin/python -m fetal_utils.study restore runs.tar.xz --results-dir path/to/other_results",
)
def test_runs_are_counted_kept_and_brought_back_as_written(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(command) == 2  # no study there yet
    toy_store(Path("path/to/results")).get([Sum(term=1)])
    if " restore " in command:
        assert call(command.replace(" restore ", " archive ").replace("other_", "")) == 0
    assert call(command) == 0
    assert "1" in capsys.readouterr().out


@runs(
    ".venv/bin/papermill notebooks/04_label_efficiency.ipynb 04.ipynb -p results_dir results/mine -p n_pairs 3 "
    '-y "fine_tune_fractions: [0.1, 1.0]"'
)
def test_papermill_is_given_parameters_that_the_notebook_has(command):
    program, notebook, _, *options = shlex.split(command)
    assert shutil.which(Path(program).name, path=str(Path(sys.executable).parent))
    names = [options[place + 1] for place, word in enumerate(options) if word == "-p"]
    names += [options[place + 1].split(":")[0] for place, word in enumerate(options) if word == "-y"]
    assert set(names) <= set(read_parameters(PROJECT_ROOT / notebook)[0])


@runs(
    ".venv/bin/dask scheduler --port 8786",
    "OMP_NUM_THREADS=4 .venv/bin/dask worker tcp://10.0.0.1:8786 --nworkers 4 --nthreads 1 --memory-limit 0",
)
def test_the_commands_of_a_cluster_have_options_that_dask_knows(command):
    words = shlex.split(command.split(".venv/bin/dask ")[1])
    asked = [str(Path(sys.executable).with_name("dask")), words[0], "--help"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert [word for word in words if word.startswith("--") and word not in said] == []


def test_the_lines_for_a_batch_system_are_python_and_start_the_command():
    (lines,) = [block for block in blocks("python") if "SLURMCluster" in block]
    compile(lines, "README.md", "exec")
    assert "from fetal_utils.study import main" in lines


@runs(".venv/bin/python -m fetal_utils.download --out data/FETAL_PLANES_DB")
def test_the_download_is_made_as_written_from_a_server_here(command, server, source, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert call(command) == 0
    assert len(list(Path("data/FETAL_PLANES_DB/Images").iterdir())) == len(list((source / "Images").iterdir()))


@runs(
    ".venv/bin/python -m fetal_utils.simclr --data-dir path/to/folder --results-dir path/to/results -p init imagenet "
    "-p n_epochs 40"
)
def test_a_pretraining_is_made_as_written_with_small_views_and_few_epochs(
    command, tiny_phantom, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    written = command.replace("path/to/folder", str(tiny_phantom))
    assert call(written, "-p", "image_size", 16, "-p", "n_epochs", 2) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder.parent == Path("path/to/results/runs/simclr").resolve()
    assert len(pd.read_csv(folder / "log.csv")) == 2
    assert json.loads((folder / "record.json").read_text())["settings"]["start"]["init"] == "imagenet"


@runs(".venv/bin/python -m fetal_utils.phantom --out data/my_phantom --patients 200 --seed 1")
def test_a_phantom_is_drawn_as_written_with_few_patients_and_pixels(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(command, "--patients", 12, "--image-height", 64, "--workers", 1) == 0
    assert json.loads(Path("data/my_phantom/phantom.json").read_text())["seed"] == 1


def test_the_lines_for_a_trained_encoder_give_the_same_features_where_this_package_is_unknown(tiny_dataset, tmp_path):
    store = RunStore(tmp_path, tiny_dataset, device="cpu", progress=False)
    start = InitialWeights(backbone="test_efficientnet", init="random", seed=1)
    settings = Pretrain(start=start, image_size=32, n_epochs=1, batch_size=40)
    (run,) = store.get([settings])
    images = tiny_dataset.images(32, progress=False)[:6]
    np.save(tmp_path / "images.npy", images[:, None])
    _, lines = blocks("python", (PROJECT_ROOT / "results" / "README.md").read_text())
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


def test_paths_and_modules_that_the_readme_names_are_there():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert [link for link in links if not (PROJECT_ROOT / link).exists()] == []
    layout = README.split("## Layout")[1].split("```")[1]
    modules = sorted((PROJECT_ROOT / "fetal_utils").glob("[a-z]*.py"))
    assert [path.stem for path in modules if not re.search(rf"\b{path.stem}\b", layout)] == []
    assert len(README.splitlines()) <= 250
