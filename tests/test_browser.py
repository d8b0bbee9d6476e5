"""Looking through a data set by plane, patient and machine."""

import numpy as np
import pandas as pd
import pytest

from fetal_utils.browser import PAGE, ImageBrowser, draw_page

N_IMAGES = 30


@pytest.fixture
def metadata():
    return pd.DataFrame(
        {
            "plane": ["Fetal brain", "Fetal femur", "Other"] * 10,
            "brain_plane": ["Trans-thalamic", "Not A Brain", "Not A Brain"] * 10,
            "patient": np.arange(N_IMAGES) // 3,
            "machine": ["Aloka"] * 20 + ["Voluson S10"] * 10,
        },
        index=range(500, 500 + N_IMAGES),  # as after a choice of rows
    )


@pytest.fixture
def images():
    return np.stack([np.full((4, 4), 8 * row, dtype=np.uint8) for row in range(N_IMAGES)])


def shown(figure):
    """Positions of the images of a page, by their gray."""
    return [int(ax.get_images()[0].get_array()[0, 0]) // 8 for ax in figure.axes if ax.get_images()]


def test_a_page_shows_the_images_asked_for_with_what_is_known_of_them(images, metadata):
    figure = draw_page(images, metadata, [3, 25])
    assert shown(figure) == [3, 25]
    titles = [ax.get_title() for ax in figure.axes if ax.get_images()]
    assert titles == ["brain, patient 1\nAloka", "femur, patient 8\nVoluson S10"]


def test_the_buttons_turn_the_page(images, metadata):
    browser = ImageBrowser(images, metadata)
    first = bytes(browser.picture.value)
    browser.following.click()
    assert browser.slider.value == PAGE
    assert shown(browser.draw(PAGE)) == [*range(PAGE, 2 * PAGE)]
    assert bytes(browser.picture.value) != first
    browser.previous.click()
    assert bytes(browser.picture.value) == first


def test_a_page_holds_only_what_the_filters_let_through(images, metadata):
    browser = ImageBrowser(images, metadata)
    browser.filters["machine"].value = "Voluson S10"
    browser.filters["plane"].value = "Fetal femur"
    assert shown(browser.draw(browser.slider.value)) == [22, 25, 28]
    assert list(browser.filters) == ["plane", "brain_plane", "patient", "machine"]


def test_a_table_that_does_not_fit_the_images_is_refused(images, metadata):
    with pytest.raises(ValueError, match="29 images and 30 rows"):
        ImageBrowser(images[1:], metadata)
    with pytest.raises(ValueError, match=r"missing: \['machine'\]"):
        draw_page(images, metadata.drop(columns="machine"), [0])
