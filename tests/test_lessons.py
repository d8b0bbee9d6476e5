"""Lesson plans and glossary: they speak of what is there."""

import importlib
import re

import pytest
from notebook_cells import read_cells

from fetal_utils.environment import PROJECT_ROOT
from fetal_utils.landmarks import LANDMARKS
from fetal_utils.plans import NOTEBOOK_DIR
from fetal_utils.strategies import STRATEGIES
from fetal_utils.tasks import TASKS

PLANS = (NOTEBOOK_DIR / "README.md").read_text(encoding="utf-8")
GLOSSARY = (NOTEBOOK_DIR / "glossary.md").read_text(encoding="utf-8")


def lesson(title):
    """The rows of a lesson's table: minutes, notebook, sections, ..."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PLANS, re.DOTALL | re.MULTILINE)
    rows = [line.strip("|").split("|") for line in section.splitlines() if re.match(r"\| \d", line)]
    return [[part.strip() for part in row] for row in rows]


def headings(notebook):
    texts = (cell.source for cell in read_cells(notebook) if cell.cell_type == "markdown")
    return {line.lstrip("# ") for text in texts for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize(("title", "minutes"), [("Two hours", 120), ("Half a day", 240)])
def test_the_minutes_of_a_lesson_add_up(title, minutes):
    assert sum(int(row[0]) for row in lesson(title)) == minutes


@pytest.mark.parametrize("title", ["Two hours", "Half a day"])
def test_every_section_of_a_lesson_is_in_its_notebook(title):
    for _, link, sections, *_ in lesson(title):
        if link:
            (notebook,) = re.findall(r"\((\w+)\.ipynb\)", link)
            named = re.findall(r"\*([^*]+)\*", sections)
            assert named
            assert [section for section in named if section not in headings(notebook)] == []


@pytest.mark.parametrize("title", ["Two hours", "Half a day"])
def test_exercises_of_a_lesson_exist(title):
    for _, link, _, todo, _ in lesson(title):
        if link and (numbers := re.search(r"exercises? (\d)(?: (?:to|and) (\d))?", todo)):
            (notebook,) = re.findall(r"\((\w+)\.ipynb\)", link)
            (exercises,) = [cell.source for cell in read_cells(notebook) if cell.id == "exercises"]
            assert max(int(number) for number in numbers.groups() if number) <= len(
                re.findall(r"(?m)^\d\. ", exercises)
            )


@pytest.mark.parametrize("text", [PLANS, GLOSSARY], ids=["plans", "glossary"])
def test_links_lead_somewhere(text):
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (NOTEBOOK_DIR / link).exists()] == []


def test_links_of_the_notebooks_lead_somewhere():
    for path in NOTEBOOK_DIR.glob("*.ipynb"):
        text = "\n".join(cell.source for cell in read_cells(path.stem) if cell.cell_type == "markdown")
        links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
        assert [link for link in links if not (NOTEBOOK_DIR / link).exists()] == [], path.stem


def test_commands_of_the_lessons_are_targets_of_make():
    targets = set(re.findall(r"(?m)^([a-z]+):", (PROJECT_ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)^make (\w+)", PLANS)) <= targets


@pytest.mark.parametrize("plane", LANDMARKS)
def test_the_glossary_names_the_landmarks_that_the_picture_shows(plane):
    (row,) = [line.split("|") for line in GLOSSARY.splitlines() if line.startswith(f"| {plane} |")]
    assert set(re.findall(r"\*\*([^*]+)\*\*", row[2])) == set(LANDMARKS[plane])


def test_the_glossary_has_every_class_strategy_and_protocol_by_the_name_that_the_tables_use():
    for task in TASKS.values():
        assert [name for name in task.classes if f"| {name} |" not in GLOSSARY] == []
    names = {*TASKS, *STRATEGIES, *(protocol for way in STRATEGIES.values() for protocol in way.protocols)}
    assert [name for name in names if f"`{name}`" not in GLOSSARY] == []


@pytest.mark.parametrize("text", [PLANS, GLOSSARY], ids=["plans", "glossary"])
def test_modules_that_are_named_exist(text):
    for name in re.findall(r"`(fetal_utils\.\w+)`", text):
        importlib.import_module(name)
