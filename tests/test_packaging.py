"""One source of truth for what is installed, and what git carries."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml

from fetal_utils.environment import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
REQUIREMENTS = [
    line for line in (PROJECT_ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"
]
NAMES = [re.match(r"[\w.-]+", line).group() for line in REQUIREMENTS]


def tracked(pattern: str = "") -> list[str]:
    listed = subprocess.run(["git", "ls-files", pattern or "."], cwd=PROJECT_ROOT, capture_output=True, text=True)
    return listed.stdout.splitlines()


def test_conda_takes_its_pip_part_from_the_requirements():
    environment = yaml.safe_load((PROJECT_ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert "-r requirements.txt" in pip
    named = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert {re.match(r"[\w-]+", entry).group() for entry in named} == {"python", "pip"}


def test_the_package_takes_its_dependencies_from_the_requirements():
    assert PROJECT["project"]["dynamic"] == ["dependencies"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_every_requirement_has_a_range_and_a_tested_version():
    constraints = dict(
        line.split("==") for line in (PROJECT_ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert all(re.fullmatch(r"[\w.-]+>=[\d.]+", line) for line in REQUIREMENTS)
    canonical = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in constraints.items()}
    missing = [name for name in NAMES if re.sub(r"[-_.]+", "-", name).lower() not in canonical]
    assert missing == []
    assert (canonical["torch"], canonical["torchvision"]) == ("2.14.1", "0.29.1")


def test_the_tested_version_of_every_requirement_is_within_its_range():
    tested = dict(line.split("==") for line in (PROJECT_ROOT / "constraints.txt").read_text().splitlines()[1:] if line)
    tested = {re.sub(r"[-_.]+", "-", name).lower(): numbers(version) for name, version in tested.items()}
    bounds = [line.split(">=") for line in [*REQUIREMENTS, *PROJECT["project"]["optional-dependencies"]["test"]]]
    late = [name for name, low in bounds if tested[re.sub(r"[-_.]+", "-", name).lower()] < numbers(low)]
    assert late == []


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("name", NAMES)
def test_every_requirement_is_used(name):
    modules = {"jupyterlab": "jupyter lab", "ipykernel": "ipykernel", "ipywidgets": "tqdm.auto"}
    imported = modules.get(name)
    if imported is None:
        files = metadata.files(name) or []
        tops = {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
        imported = "|".join(sorted(re.escape(top) for top in tops if re.fullmatch(r"[A-Za-z]\w*", top)))
        imported = rf"(import|from) ({imported})\b"
    sources = [PROJECT_ROOT / path for path in tracked() if path.endswith((".py", ".ipynb", "Makefile"))]
    assert any(re.search(imported, path.read_text()) for path in sources), f"{name} is required but never used"


@pytest.mark.parametrize("name", ["ruff", "nbstripout"])
def test_commits_are_checked_by_the_tested_versions(name):
    repos = yaml.safe_load((PROJECT_ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = [repo["rev"] for repo in repos if name in repo["repo"]]
    assert f"\n{name}=={revision.removeprefix('v')}\n" in (PROJECT_ROOT / "constraints.txt").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, built from what git carries."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT_ROOT / name, folder / "project" / name)
    pip(["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, folder / "project"])
    (built,) = folder.glob("*.whl")
    return built


def pip(arguments: list) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = [name for name in archive.namelist() if name.endswith("LICENSE")]
        assert archive.read(licence) == (PROJECT_ROOT / "LICENSE").read_bytes()
        (about,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        needs = re.findall(r"(?m)^Requires-Dist: ([^;\n]+)$", archive.read(about).decode())
    assert packed == {name for name in tracked("fetal_utils") if (PROJECT_ROOT / name).exists()}
    assert sorted(needs) == sorted(REQUIREMENTS)


USE_WHEEL = """
import importlib, pkgutil, sys
import fetal_utils
names = [module.name for module in pkgutil.walk_packages(fetal_utils.__path__, "fetal_utils.")]
found = [importlib.import_module(name).__file__ for name in names if not name.endswith("__main__")]
print(*found, sep="\\n")
sys.exit(fetal_utils.study.main([]))
"""


@pytest.fixture(scope="module")
def from_wheel(wheel, tmp_path_factory):
    """What a process says that uses the wheel, installed alone in a folder; the study is asked for last."""
    folder = tmp_path_factory.mktemp("installed")
    pip(["install", "--no-deps", "--no-compile", "--no-index", "--target", folder / "site", wheel])
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}  # before the project itself on the path
    command = [sys.executable, "-c", USE_WHEEL]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return folder / "site", done


def test_the_wheel_installs_into_an_empty_folder_and_every_module_imports_from_there(from_wheel):
    site, done = from_wheel
    found = done.stdout.split()
    assert len(found) > 80, done.stderr
    assert all(path.startswith(str(site)) for path in found)


def test_the_study_of_a_wheel_without_notebooks_says_where_to_run_it(from_wheel):
    _, done = from_wheel
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the study's notebooks are not at") and "clone" in last


def test_notebooks_are_stripped_and_formatted():
    notebooks = sorted(map(str, (PROJECT_ROOT / "notebooks").glob("*.ipynb")))
    subprocess.run([sys.executable, "-m", "nbstripout", "--keep-id", "--verify", *notebooks], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", str(PROJECT_ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "--quiet", str(PROJECT_ROOT)], check=True)


def test_git_carries_no_large_file_and_no_image_of_the_real_data():
    names = tracked()
    assert [name for name in names if (PROJECT_ROOT / name).stat().st_size > 1_500_000] == []
    assert [name for name in names if re.search(r"Patient\d{5}_Plane\d", name)] == []


def test_make_lab_opens_jupyterlab_on_the_first_notebook():
    made = subprocess.run(["make", "-n", "lab"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
    (opened,) = re.findall(r"--LabApp\.default_url=/lab/tree/(\S+)", made)
    assert PROJECT_ROOT / opened == min((PROJECT_ROOT / "notebooks").glob("*.ipynb"))
