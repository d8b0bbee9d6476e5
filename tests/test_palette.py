import itertools

import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from skimage.color import deltaE_ciede2000, rgb2lab

from fetal_utils.palette import (
    FALLBACK_COLOURS,
    PLANE_COLOURS,
    SHORT_NAMES,
    STRATEGY_COLOURS,
    LooseFigure,
    add_legend,
    colours_for,
    finish,
    line_style,
    short_names,
)

# Machado et al. 2009, severity 1, on linear RGB
VISIONS = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
PLANES = ["Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other"]
BRAIN_PLANES = ["Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"]


def smallest_difference(colours, vision):
    """Smallest CIEDE2000 colour difference between any two; about 2 is just noticeable side by side."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISIONS[vision]).T, 0, 1)
    srgb = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(srgb[None])[0]
    return min(deltaE_ciede2000(a, b) for a, b in itertools.combinations(lab, 2))


def test_the_simulation_makes_red_and_green_alike_where_they_are_and_black_and_white_nowhere():
    assert smallest_difference(["#CC0000", "#558800"], "normal") > 60
    assert smallest_difference(["#CC0000", "#558800"], "deuteranopia") < 4
    assert min(smallest_difference(["black", "white"], vision) for vision in VISIONS) > 99


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize(
    "colours, limit",
    [
        ([PLANE_COLOURS[plane] for plane in PLANES], 25),
        ([PLANE_COLOURS[plane] for plane in BRAIN_PLANES], 25),
        (PLANE_COLOURS.values(), 10),  # no figure shows both tasks at once
        (STRATEGY_COLOURS.values(), 19),
    ],
    ids=["planes", "brain planes", "both tasks", "strategies"],
)
def test_colours_stay_well_apart_in_every_vision(colours, limit, vision):
    assert smallest_difference(colours, vision) > limit


def test_every_plane_and_strategy_has_its_own_colour_whatever_is_drawn_with_it():
    for names in (["imagenet"], ["imagenet", "my strategy"], list(STRATEGY_COLOURS)):
        assert colours_for(names)["imagenet"] == STRATEGY_COLOURS["imagenet"]
    assert colours_for(PLANES) == {plane: PLANE_COLOURS[plane] for plane in PLANES}


def test_unknown_names_get_the_same_distinct_colours_in_any_order():
    names = ["Op. 1", "Op. 2", "Op. 3", "imagenet", "Aloka", "Voluson E6", "Voluson S10"]
    colours = colours_for(names)
    assert list(colours) == names
    assert colours_for(names[::-1]) == colours
    assert len(set(colours.values())) == len(names)
    assert colours_for(["Aloka"]) == {"Aloka": "#009988"}  # pinned: the same in every process


def test_more_names_than_colours_repeat_instead_of_failing():
    names = [f"site {index}" for index in range(20)]
    assert set(colours_for(names).values()) == set(FALLBACK_COLOURS)


def test_strategies_differ_without_colour():
    styles = {tuple(line_style(strategy).values()) for strategy in STRATEGY_COLOURS}
    assert len(styles) == len(STRATEGY_COLOURS)


def test_short_names_are_distinct_and_unknown_ones_stay():
    assert len(set(SHORT_NAMES.values())) == len(SHORT_NAMES)
    assert short_names(["Fetal brain", "profile"]) == ["brain", "profile"]


def test_text_is_dark_on_white_under_a_dark_style_too():
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        figure = Figure()
        ax = figure.subplots()
        ax.plot([1, 2], label="line")
        assert finish(ax, xlabel="epoch", ylabel="loss", title="curve") is ax
        add_legend(ax, title="lines")
    texts = [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), ax.get_legend().get_title()]
    assert figure.get_facecolor() == ax.get_facecolor() == (1, 1, 1, 1)
    assert max(max(to_rgb(text.get_color())) for text in texts) < 0.3


def test_a_loose_figure_shows_itself_as_a_picture_without_pyplot_on_white_in_a_dark_theme_too():
    with matplotlib.style.context("dark_background"):
        figure = LooseFigure(2, 1)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert tuple(figure.get_size_inches()) == (2, 1) and figure.get_facecolor() == (1, 1, 1, 1)
