"""What moves in JupyterLab, and the still figure that stands for it elsewhere."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fetal_utils.environment import somebody_watches
from fetal_utils.explore import augmentation_lab, explore

TABLE = pd.DataFrame(
    {
        "plane": ["brain", "femur", "other"] * 10,
        "patient": np.arange(30) // 3,
        "machine": ["Aloka"] * 20 + ["Voluson S10"] * 10,
    },
    index=range(500, 530),  # as after a choice of rows
)


@pytest.fixture(autouse=True)
def no_figure_left():
    yield
    plt.close("all")


@pytest.fixture(params=[True, False], ids=["watched", "unwatched"])
def watched(request, monkeypatch):
    return watch(monkeypatch, request.param)


def watch(monkeypatch, watched=True):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD", "VSCODE_IPC_HOOK_CLI"):
        monkeypatch.delenv(name, raising=False)
    if watched:
        monkeypatch.setenv("JPY_SESSION_NAME", "/notebooks/01.ipynb")
    return watched


@pytest.fixture
def shown():
    """What `show` was asked for, in order."""
    return []


@pytest.fixture
def show(shown):
    def draw(rows):
        shown.append(rows)
        plt.figure(figsize=(1, 1)).text(0, 0, str(rows))

    return draw


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """The pixels of what was shown, in order."""
    found = []

    def keep():
        plt.gcf().canvas.draw()
        found.append(bytes(plt.gcf().canvas.buffer_rgba()))

    monkeypatch.setattr(plt, "show", keep)
    return found


def parts(widget):
    """Filters by name, slider and buttons of an explorer."""
    filters, controls = (line.children for line in widget.children[:2])
    return {one.description: one for one in filters}, *controls


def test_a_kernel_is_watched_if_an_application_with_a_screen_started_it(watched):
    assert somebody_watches() is watched


def test_unwatched_a_row_or_page_stands_in_the_cell_and_there_is_no_widget(monkeypatch, show, shown):
    watch(monkeypatch, False)
    assert explore(TABLE, show, filters=["plane"], still=4) is None
    assert explore(TABLE, show, page=12, still=24) is None
    assert shown == [4, [24, 25, 26, 27, 28, 29]]
    assert len(plt.get_fignums()) == 2


def test_the_buttons_turn_the_page_and_go_round(monkeypatch, show, shown, pictures):
    watch(monkeypatch)
    _, slider, previous, following = parts(explore(TABLE, show, page=12))
    following.click()
    assert slider.label == "12" and shown[-1] == [*range(12, 24)]
    previous.click()
    assert pictures[0] == pictures[2] != pictures[1]
    previous.click()
    assert shown[-1] == [*range(24, 30)]


def test_filters_let_through_what_fits_and_each_move_draws_once(monkeypatch, show, shown):
    watch(monkeypatch)
    filters, slider, *_ = parts(explore(TABLE, show, filters=["plane", "patient", "machine"]))
    assert filters["patient"].options == ("every", *map(str, range(10)))
    filters["machine"].value = "Voluson S10"
    filters["plane"].value = "femur"
    assert [row for row, _ in slider.options] == ["22", "25", "28"] and shown == [0, 20, 22]
    slider.label = "28"
    assert shown[-1] == 28


def test_a_filter_that_leaves_no_row_sets_the_others_back(monkeypatch, show, shown):
    watch(monkeypatch)
    filters, slider, *_ = parts(explore(TABLE, show, filters=["plane", "patient", "machine"], page=12))
    filters["machine"].value = "Voluson S10"
    filters["plane"].value = "femur"
    filters["patient"].value = "0"
    assert {name: one.value for name, one in filters.items()} == {"plane": "every", "patient": "0", "machine": "every"}
    assert slider.options == (("0", (0, 1, 2)),) and shown[-1] == [0, 1, 2]


# --- the augmentation lab ----------------------------------------------------------------------------

IMAGES = np.stack([np.full((16, 16), gray, dtype=np.uint8) for gray in (50, 200)])


def views(images, preset, strength, seed):
    """Brighter by the strength, darker by the seed."""
    return np.clip(images / 255 + 0.1 * strength * len(preset) / 4, 0, 1), images / 255 / (1 + seed)


def test_every_control_of_the_lab_changes_the_picture_and_back(monkeypatch, pictures):
    watch(monkeypatch)
    *controls, _ = augmentation_lab(IMAGES, views, presets=["weak", "ultrasound"], titles="ab").children
    for control, value in zip(controls, (1, "ultrasound", 2.5, 7), strict=True):
        old, control.value = control.value, value
        assert pictures[-1] != pictures[0], control.description
        control.value = old
        assert pictures[-1] == pictures[0]


def test_unwatched_the_lab_is_a_figure_of_all_presets(monkeypatch):
    watch(monkeypatch, False)
    assert augmentation_lab(IMAGES, views, presets=["weak", "ultrasound"], titles="ab") is None
    axes = plt.gcf().axes
    titles = [ax.get_title() + ax.get_title(loc="left") for ax in axes]
    assert titles == ["as stored", "weak", "weak", "ultrasound", "ultrasound"] * 2
    assert [round(float(ax.get_images()[0].get_array()[0, 0]), 3) for ax in axes[:2]] == [0.196, 0.296]
