"""One source of truth for what is installed, and what git carries."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml

from fetal_utils.environment import PROJECT_ROOT

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
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["dependencies"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_every_requirement_has_a_range_and_a_tested_version():
    constraints = dict(
        line.split("==") for line in (PROJECT_ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert all(re.fullmatch(r"[\w.-]+>=[\d.]+", line) for line in REQUIREMENTS)
    canonical = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in constraints.items()}
    missing = [name for name in NAMES if re.sub(r"[-_.]+", "-", name).lower() not in canonical]
    assert missing == []
    assert (canonical["torch"], canonical["torchvision"]) == ("2.14.1", "0.29.1")


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
