"""One source of truth for what is installed, what git carries, and how thin the helper is."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml

from fetal_utils.environment import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
REQUIREMENTS = [
    line for line in (PROJECT_ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"
]
NAMES = [re.match(r"[\w.-]+", line).group() for line in REQUIREMENTS]
PACKAGE = PROJECT_ROOT / "fetal_utils"
MODULES = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def tracked(pattern: str = ".") -> list[str]:
    listed = subprocess.run(["git", "ls-files", pattern], cwd=PROJECT_ROOT, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (PROJECT_ROOT / name).exists()]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def test_the_package_and_conda_take_their_dependencies_from_the_requirements():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    environment = yaml.safe_load((PROJECT_ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert "-r requirements.txt" in pip


def test_the_tested_version_of_every_requirement_is_within_its_range():
    lines = (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    tested = {
        canonical(name): numbers(version) for name, version in (line.split("==") for line in lines if "==" in line)
    }
    bounds = [line.split(">=") for line in [*REQUIREMENTS, *PROJECT["project"]["optional-dependencies"]["test"]]]
    assert [name for name, low in bounds if tested[canonical(name)] < numbers(low)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_requirement_is_used(name):
    by_hand = {
        "jupyterlab": "jupyter lab",
        "ipykernel": "python3",
        "ipywidgets": "ipywidgets|tqdm.auto",
        "cryptography": "security=True",
    }
    files = metadata.files(name) or []
    tops = {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
    modules = "|".join(sorted(re.escape(top) for top in tops if re.fullmatch(r"[A-Za-z]\w*", top)))
    pattern = by_hand.get(name) or rf"(import|from) ({modules})\b"
    sources = [PROJECT_ROOT / path for path in tracked() if path.endswith((".py", ".ipynb", "Makefile"))]
    assert any(re.search(pattern, path.read_text()) for path in sources), f"{name} is required but never used"


@pytest.mark.parametrize("name", ["ruff", "nbstripout"])
def test_commits_are_checked_by_the_tested_versions(name):
    repos = yaml.safe_load((PROJECT_ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = [repo["rev"] for repo in repos if name in repo["repo"]]
    assert f"\n{name}=={revision.removeprefix('v')}\n" in (PROJECT_ROOT / "constraints.txt").read_text()


def test_notebooks_are_stripped_and_everything_is_formatted():
    notebooks = sorted(map(str, (PROJECT_ROOT / "notebooks").glob("*.ipynb")))
    subprocess.run([sys.executable, "-m", "nbstripout", "--keep-id", "--verify", *notebooks], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", str(PROJECT_ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "--quiet", str(PROJECT_ROOT)], check=True)


def test_git_carries_no_large_file_and_no_image_of_the_real_data():
    assert [name for name in tracked() if (PROJECT_ROOT / name).stat().st_size > 1_500_000] == []
    assert [name for name in tracked() if re.search(r"Patient\d{5}_Plane\d", name)] == []


def n_lines(paths) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_the_helper_stays_thin():
    assert len(MODULES) <= 25
    assert {name: n_lines([path]) for name, path in MODULES.items() if n_lines([path]) > 400} == {}
    assert n_lines(MODULES.values()) <= 5_000
    phantom = list((PACKAGE / "phantom").glob("*.py"))
    assert len(phantom) <= 10 and n_lines(phantom) <= 1400
    assert n_lines((PROJECT_ROOT / "tests").glob("*.py")) <= 8000


def test_modules_do_not_import_each_other_in_a_circle():
    uses = {}
    for name, path in MODULES.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        ours = [node for node in nodes if (node.module or "").split(".")[0] == "fetal_utils"]
        parts = [f"{node.module}.{alias.name}".split(".")[1] for node in ours for alias in node.names]
        uses[name] = {part for part in parts if part in MODULES}

    def circle(path):
        for name in uses[path[-1]]:
            if name in path:
                return [*path, name]
            if found := circle([*path, name]):
                return found
        return []

    assert {name: found for name in uses if (found := circle([name]))} == {}


def test_the_phantom_needs_no_more_of_the_helper_than_layout_and_environment():
    text = "\n".join(path.read_text() for path in (PACKAGE / "phantom").glob("*.py"))
    assert set(re.findall(r"from fetal_utils\.(\w+)", text)) <= {"environment", "images", "splits", "phantom"}


def test_the_package_names_imports_that_work():
    import fetal_utils

    lines = [line.strip() for line in fetal_utils.__doc__.splitlines() if " import " in line]
    assert len(lines) >= 10
    for line in lines:
        exec(line, {})
