"""What moves in JupyterLab, and the still figure that stands for it elsewhere."""

import numpy as np
import pytest

from fetal_utils.environment import somebody_watches
from fetal_utils.widgets import augmentation_lab, compare_presets, draw_views

SIDE = 32


@pytest.fixture
def images():
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)
    return np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[::-1, None], (1, SIDE))])


@pytest.fixture
def lab(images):
    return augmentation_lab(images, ["left to right", "bottom to top"], image_size=SIDE)


@pytest.mark.parametrize("control, value", [("image", 1), ("preset", "simclr"), ("strength x", 2.5), ("draw", 7)])
def test_every_control_of_the_lab_changes_the_picture(lab, control, value):
    controls = {child.description: child for child in lab.children[:4]}
    picture = lab.children[4]
    before = bytes(picture.value)
    controls[control].value = value
    assert bytes(picture.value) != before
    assert bytes(picture.value).startswith(b"\x89PNG")


def test_the_same_controls_give_the_same_picture_again(lab):
    draw, picture = lab.children[3], lab.children[4]
    before = bytes(picture.value)
    draw.value = 5
    draw.value = 0
    assert bytes(picture.value) == before


def test_the_table_of_the_lab_shows_the_rows_of_the_preset_at_the_chosen_strength(lab):
    strength, table = lab.children[2], lab.children[5]
    assert "the fetus lies to either side" in table.value
    assert "<td>0.4</td>" in table.value  # the crop's
    strength.value = 2.0
    assert "<td>0.8</td>" in table.value


def test_views_at_strength_zero_are_the_image(images):
    view_a, view_b = draw_views(images, "none", image_size=SIDE, seed=0)
    np.testing.assert_allclose(view_a, images / 255, atol=1e-6)
    np.testing.assert_array_equal(view_a, view_b)


def test_the_still_has_a_panel_for_each_image_and_two_for_each_preset(images):
    figure = compare_presets(images, ["ultrasound", "weak"], image_size=SIDE, seed=0)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["as stored", "ultrasound", "ultrasound", "weak", "weak"] * 2


@pytest.mark.parametrize(
    "environment, watched",
    [({"JPY_SESSION_NAME": "/notebooks/02.ipynb"}, True), ({"VSCODE_PID": "1"}, True), ({}, False)],
)
def test_a_kernel_is_watched_if_an_application_with_a_screen_started_it(monkeypatch, environment, watched):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD", "VSCODE_IPC_HOOK_CLI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert somebody_watches() is watched
