import itertools

import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from fetal_utils.plots import (
    PLANE_PALETTE,
    STRATEGY_DASHES,
    STRATEGY_MARKERS,
    STRATEGY_PALETTE,
    contact_sheet,
    plane_colours,
    plot_cam_grid,
    plot_confusion,
    plot_embedding,
    plot_log,
    save_figure,
    set_theme,
    short_name,
)

# Machado et al. 2009, IEEE Trans Vis Comput Graph 15:1291, severity 1, on linear RGB; gray is luminance
VISIONS = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "gray": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}  # fmt: skip
PLANES = list(PLANE_PALETTE.values())


@pytest.fixture(autouse=True)
def close_figures():
    set_theme()
    yield
    plt.close("all")


def smallest_difference(colours, vision):
    """Smallest CIEDE2000 difference between two colours; about 2 is just noticeable side by side."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISIONS[vision]).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    return min(deltaE_ciede2000(a, b) for a, b in itertools.combinations(lab, 2))


def test_the_simulation_makes_red_and_green_alike_where_they_are():
    assert smallest_difference(["#CC0000", "#558800"], "normal") > 60
    assert smallest_difference(["#CC0000", "#558800"], "deuteranopia") < 4
    assert min(smallest_difference(["black", "white"], vision) for vision in VISIONS) > 99


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("colours", [PLANES[:6], PLANES[6:], list(STRATEGY_PALETTE.values())])
def test_colours_drawn_together_stay_apart_in_every_vision_and_in_gray(colours, vision):
    assert smallest_difference(colours, vision) > (6 if vision == "gray" else 18)


def test_strategies_differ_without_colour_by_marker_and_line():
    assert len({(STRATEGY_MARKERS[name], STRATEGY_DASHES[name]) for name in STRATEGY_PALETTE}) == len(STRATEGY_PALETTE)
    table = pd.DataFrame([(name, x, x) for name in STRATEGY_PALETTE for x in (1, 2)], columns=["strategy", "x", "y"])
    styles = {"palette": STRATEGY_PALETTE, "markers": STRATEGY_MARKERS, "dashes": STRATEGY_DASHES}
    ax = sns.lineplot(table, x="x", y="y", hue="strategy", style="strategy", **styles)
    assert len(ax.get_legend().get_texts()) == len(STRATEGY_PALETTE)


def test_a_plane_keeps_its_colour_whatever_is_drawn_with_it_and_other_names_get_some():
    assert plane_colours(["Fetal brain"]) == {"Fetal brain": PLANE_PALETTE["Fetal brain"]}
    colours = plane_colours(["Voluson E6", "Fetal brain", "Aloka"])
    assert colours["Fetal brain"] == PLANE_PALETTE["Fetal brain"]
    assert len(set(colours.values())) == 3
    assert colours == plane_colours(["Aloka", "Voluson E6", "Fetal brain"])
    assert len(set(plane_colours([str(n) for n in range(90)]).values())) > 60


def test_short_names_are_distinct_and_others_stay():
    assert len({short_name(plane) for plane in PLANE_PALETTE}) == len(PLANE_PALETTE)
    assert list(map(short_name, ("Fetal brain", "Trans-thalamic", "My-Class"))) == ["brain", "thalamic", "My-Class"]


# --- contact sheets ---


def test_a_contact_sheet_shows_each_image_with_its_title_on_one_gray_scale():
    axes = contact_sheet([np.full((20, 30), value, np.uint8) for value in (10, 100, 250)], ["a", "b", "c"], n_columns=2)
    shown = [ax for ax in axes.ravel() if ax.images]
    assert axes.shape == (2, 2)
    assert [ax.get_title(loc="left") for ax in shown] == ["a", "b", "c"]
    assert [ax.images[0].get_array().max() for ax in shown] == [10, 100, 250]
    assert {ax.images[0].get_clim() for ax in shown} == {(0, 255)}


def test_a_contact_sheet_outlines_masks_and_names_them_once():
    mask = np.zeros((20, 30), bool)
    mask[5:10, 8:20] = True
    images = np.zeros((2, 20, 30))
    axes = contact_sheet(images, masks={"cerebellum": [mask, np.zeros_like(mask)]})
    outline = axes[0, 0].collections[0].get_paths()[0].get_extents()
    assert outline.extents == pytest.approx([7.5, 4.5, 19.5, 9.5])  # half a pixel around it
    assert not axes[0, 1].collections
    assert [text.get_text() for text in axes[0, 0].figure.legends[0].get_texts()] == ["cerebellum"]


def test_a_contact_sheet_draws_on_axes_that_are_given():
    axes = plt.subplots(1, 3)[1]
    assert contact_sheet(np.zeros((2, 8, 8)), axes=axes) is axes
    assert [len(ax.images) for ax in axes] == [1, 1, 0]


# --- curves and matrices ---


def test_a_log_is_drawn_measure_by_measure_and_bridges_what_was_not_measured():
    log = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2, 1], "knn_macro_f1": [0.2, np.nan, 0.4]})
    axes = plot_log(log, {"loss": "NT-Xent (nats)", "knn_macro_f1": "F1"})
    assert [ax.get_ylabel() for ax in axes.ravel()] == ["NT-Xent (nats)", "F1"]
    assert axes[0, 0].lines[0].get_ydata().tolist() == [3, 2, 1]
    assert axes[0, 1].lines[0].get_xydata().tolist() == [[1, 0.2], [3, 0.4]]


def test_trainings_of_strategies_have_their_colours_and_one_legend():
    log = pd.DataFrame({"epoch": [1, 2] * 2, "loss": [3.0, 2, 2, 1]})
    log["strategy"] = ["simclr_scratch"] * 2 + ["simclr_imagenet"] * 2
    axes = plot_log(log.assign(f1=log["loss"]), {"loss": "loss", "f1": "F1"}, hue="strategy")
    assert [line.get_color() for line in axes[0, 0].lines[:2]] == [
        STRATEGY_PALETTE["simclr_scratch"], STRATEGY_PALETTE["simclr_imagenet"],
    ]  # fmt: skip
    assert [ax.get_legend() is not None for ax in axes.ravel()] == [True, False]


def test_a_confusion_matrix_writes_counts_and_colours_shares_and_leaves_an_absent_class_blank():
    ax = plot_confusion([[3, 1], [0, 0]], ["Fetal brain", "Fetal femur"])
    assert [text.get_text() for text in ax.texts] == ["3", "1"]
    np.testing.assert_allclose(ax.collections[0].get_array().filled(np.nan), [[0.75, 0.25], [np.nan, np.nan]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["brain (4)", "femur (0)"]


# --- maps ---


def test_each_network_has_its_own_scale_and_wrong_answers_are_red():
    images, low = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8))
    low[0, 2, 3], low[1, 4, 4] = 0.5, 0.25
    answers = {"one": ["Fetal brain", "Other"]}
    axes = plot_cam_grid(images, {"one": low, "ten_fold": 10 * low}, ["Fetal brain"] * 2, answers=answers)
    heats = [[ax.images[1].get_array().max() for ax in row] for row in axes]
    assert heats == [[1, 0.5], [1, 0.5]]
    titles = [ax.findobj(lambda artist: getattr(artist, "get_text", str)().startswith("brain"))[0] for ax in axes[0]]
    assert [title.get_text() for title in titles] == ["brain\nsays brain", "brain\nsays other"]
    assert [title.get_color() for title in titles] == ["black", "#B90011"]
    empty = plot_cam_grid(images, {"nothing": 0 * low}, ["a", "b"])[0]
    assert [(ax.images[1].get_array().max(), ax.get_title(loc="left")) for ax in empty] == [(0, "a"), (0, "b")]


def test_an_embedding_has_the_planes_colours_and_no_legend_of_a_hundred_patients():
    points = np.random.default_rng(0).normal(size=(200, 2))
    ax = plot_embedding(points, pd.Series(["Fetal brain", "Other"] * 100, name="plane"))
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"Fetal brain", "Other"}
    colours = {tuple(np.round(colour[:3], 3)) for colour in ax.collections[0].get_facecolors()}
    assert colours == {tuple(np.round(to_rgb(PLANE_PALETTE[name]), 3)) for name in ("Fetal brain", "Other")}
    assert plot_embedding(points, pd.Series(np.arange(200) // 2, name="patient")).get_legend() is None


# --- files ---


def draw(height=2.0):
    ax = plt.subplots(figsize=(3, 2))[1]
    sns.lineplot(x=[0, 1], y=[0, height], ax=ax, label="line")
    ax.imshow([[0, 1], [1, 0]], extent=(0, 1, 0, 1))
    return ax.figure


def test_the_same_numbers_give_the_same_bytes_and_others_do_not(tmp_path):
    for name, height in {"a": 2.0, "b": 2.0, "c": 1.0}.items():
        save_figure(draw(height), tmp_path / "figures" / f"04_differences.{name}")
    content = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert len(content) == 6
    for ending in ("png", "svg"):
        a, b, c = (content[f"04_differences.{name}.{ending}"] for name in "abc")
        assert a == b != c
    text = content["04_differences.a.svg"].decode()
    assert "<dc:date>" not in text and 'href="http' not in text


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_files(tmp_path):
    save_figure(draw(), tmp_path / "a", dpi=50)
    assert Image.open(tmp_path / "a.png").size == (150, 100)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = draw()
    broken.axes[0].set_title("$\\frac{1$")  # not mathematics
    with pytest.raises(ValueError, match="frac"):
        save_figure(broken, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
