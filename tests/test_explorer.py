"""Walking through the images behind a map, and the still that stands for it."""

import numpy as np
import pandas as pd
import pytest

from fetal_utils.explorer import MapExplorer, Scene, choose_rows, draw_points
from fetal_utils.row_explorer import EVERY, RowExplorer

DEGREES = np.array([0, 10, 25, 90, 100, 115])
N_IMAGES = len(DEGREES)


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "plane": ["Fetal brain", "Fetal brain", "Fetal femur", "Fetal femur", "Fetal femur", "Fetal brain"],
            "patient": [2, 2, 10, 11, 11, 10],
            "machine": ["Aloka", "Aloka", "Voluson E6", "Voluson E6", "Aloka", "Aloka"],
            "predicted": ["Fetal brain", "Fetal femur", "Fetal femur", "Fetal femur", "Fetal femur", "Fetal brain"],
        },
        index=range(100, 100 + N_IMAGES),  # as after a choice of rows
    )


def make_scene(table, **options):
    angles = np.deg2rad(DEGREES)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    images = np.stack([np.full((12, 16), 40 * row, dtype=np.uint8) for row in range(N_IMAGES)])
    return Scene(
        **{"points": features, "features": features, "images": images, "table": table, "n_neighbours": 2} | options
    )


@pytest.fixture
def explorer(table):
    return MapExplorer(make_scene(table))


def picture(explorer):
    return bytes(explorer.picture.value)


def test_moving_the_slider_changes_the_picture_and_moving_it_back_restores_it(explorer):
    before = picture(explorer)
    explorer.slider.value = 4
    assert picture(explorer).startswith(b"\x89PNG")
    assert picture(explorer) != before
    explorer.slider.value = 0
    assert picture(explorer) == before


@pytest.mark.parametrize(
    "name, choice, rows",
    [
        ("plane", "Fetal femur", (2, 3, 4)),
        ("patient", "10", (2, 5)),
        ("machine", "Voluson E6", (2, 3)),
        ("prediction", "wrong", (1,)),
    ],
)
def test_a_filter_lets_its_images_through_and_shows_the_first(explorer, name, choice, rows):
    before = picture(explorer)
    explorer.filters[name].value = choice
    assert explorer.slider.options == rows
    assert explorer.slider.value == rows[0]
    assert picture(explorer) != before
    explorer.filters[name].value = EVERY
    assert explorer.slider.options == tuple(range(N_IMAGES))
    assert explorer.slider.value == rows[0]  # what is let through stays in view


def test_filters_work_together(explorer):
    explorer.filters["plane"].value = "Fetal brain"
    explorer.filters["machine"].value = "Aloka"
    explorer.filters["patient"].value = "10"
    assert explorer.slider.options == (5,)


def test_a_filter_that_would_leave_nothing_sets_the_others_back(explorer):
    explorer.filters["plane"].value = "Fetal brain"
    explorer.filters["machine"].value = "Aloka"
    explorer.filters["patient"].value = "11"
    assert {name: one.value for name, one in explorer.filters.items()} == {
        "plane": EVERY,
        "machine": EVERY,
        "patient": "11",
        "prediction": EVERY,
    }
    assert explorer.slider.options == (3, 4)


def test_patients_are_offered_in_the_order_of_their_numbers(explorer):
    assert explorer.filters["patient"].options == (EVERY, "2", "10", "11")


def test_next_and_previous_step_through_what_is_let_through_and_go_round(explorer):
    explorer.filters["plane"].value = "Fetal femur"
    seen = []
    for button in [explorer.following] * 3 + [explorer.previous]:
        button.click()
        seen.append(explorer.slider.value)
    assert seen == [3, 4, 2, 4]


def test_a_button_walks_to_the_neighbour_it_names(explorer):
    explorer.slider.value = 3  # at 90 degrees: 100, then 115
    explorer.walks[1].click()
    assert explorer.slider.value == 5


def test_walking_to_an_image_that_is_held_back_clears_the_filters(explorer):
    explorer.filters["plane"].value = "Fetal femur"
    assert explorer.slider.value == 2  # at 25 degrees; the nearest, at 10, shows a brain
    explorer.walks[0].click()
    assert explorer.slider.value == 1
    assert all(one.value == EVERY for one in explorer.filters.values())
    assert explorer.slider.options == tuple(range(N_IMAGES))


def test_without_predictions_there_is_no_filter_for_them(table):
    explorer = MapExplorer(make_scene(table.drop(columns="predicted")))
    assert list(explorer.filters) == ["plane", "patient", "machine"]


def test_neighbours_are_those_of_the_original_space_and_not_of_the_map(table):
    scene = make_scene(table, points=np.arange(12.0).reshape(6, 2)[::-1] ** 2)
    np.testing.assert_array_equal(scene.neighbours(3), [4, 5])


def test_the_still_shows_a_line_for_each_point_with_its_image_and_its_neighbours(table):
    scene = make_scene(table)
    figure = draw_points(scene, [1, 3])
    map_ax, *panels = figure.axes
    assert len(panels) == 2 * 3
    assert [text.get_text() for text in map_ax.texts] == ["1", "2"]  # beside the rings
    rings = np.concatenate([ring.get_offsets() for ring in map_ax.collections[-2:]])
    np.testing.assert_allclose(rings, scene.points[[1, 3]])
    shown = [int(panel.get_images()[0].get_array()[0, 0]) // 40 for panel in panels]
    assert shown == [1, 0, 2, 3, 4, 5]
    assert panels[0].get_title() == "1: brain, patient 2\nAloka\npredicted femur: WRONG"
    assert panels[4].get_title() == "nearest 1\nfemur, patient 11\nAloka\npredicted femur: right"


def test_a_cam_is_asked_for_by_row_and_covers_the_image(table):
    asked = []

    def cam(row):
        asked.append(row)
        return np.eye(3)

    panels = draw_points(make_scene(table, cam=cam), [4]).axes[1:]
    assert asked == [4]
    assert len(panels) == 4
    gray, heat = panels[1].get_images()
    assert [*gray.get_extent()] == [*heat.get_extent()] == [-0.5, 15.5, 11.5, -0.5]
    np.testing.assert_array_equal(heat.get_array(), np.eye(3))
    assert [len(panel.get_images()) for panel in panels] == [1, 2, 1, 1]


def test_a_still_shows_the_errors_there_are_and_the_same_points_for_the_same_seed(table):
    scene = make_scene(table)
    rows = choose_rows(scene, n_points=4, rng=np.random.default_rng(0))
    assert len(set(rows)) == 4
    assert 1 in rows  # the only one that is wrong
    np.testing.assert_array_equal(choose_rows(scene, n_points=4, rng=np.random.default_rng(0)), rows)


def test_half_of_a_still_is_wrong_where_there_are_enough_errors_and_the_rest_where_nothing_is_right(table):
    half = make_scene(table.assign(predicted=["Fetal brain"] * N_IMAGES))
    assert (~half.right().to_numpy()[choose_rows(half, n_points=4, rng=np.random.default_rng(0))]).sum() == 2
    none = make_scene(table.assign(predicted="Other"))
    assert len(choose_rows(none, n_points=4, rng=np.random.default_rng(0))) == 4


def test_a_still_of_more_points_than_images_shows_all(table):
    for rows in (table, table.drop(columns="predicted")):
        chosen = choose_rows(make_scene(rows), n_points=50, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(chosen, np.arange(N_IMAGES))


def test_a_scene_whose_parts_do_not_fit_is_refused(table):
    with pytest.raises(ValueError, match=r"'points': 5, 'features': 6.*one row of each for every image"):
        make_scene(table, points=np.zeros((5, 2)))
    with pytest.raises(ValueError, match="n_neighbours=6"):
        make_scene(table, n_neighbours=6)
    with pytest.raises(ValueError, match=r"missing: \['machine'\]"):
        make_scene(table.drop(columns="machine"))
    with pytest.raises(ValueError, match="name at least one image"):
        draw_points(make_scene(table), [])


def test_there_is_nothing_to_step_through_in_an_empty_table():
    with pytest.raises(ValueError, match=r"no rows, columns \['plane'\]"):
        RowExplorer(pd.DataFrame({"plane": []}))
