import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fetal_utils.cam_plots import WRONG, plot_cam_scores, plot_cams, score_label
from fetal_utils.palette import INK, STRATEGY_COLOURS

TRUE = ["Fetal brain", "Fetal femur"]
IMAGES = np.full((2, 8, 8), 100, dtype=np.uint8)


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


def maps_of(*heights):
    """For each height a stack of two maps: the first even at this height, the second zero."""
    return [
        np.stack([np.full((8, 8), height, dtype=np.float32), np.zeros((8, 8), dtype=np.float32)]) for height in heights
    ]


def drawn_panels(maps, predicted=None):
    figure = plot_cams(IMAGES, maps, TRUE, predicted or {}, percentile=100)
    *panels, bar = figure.axes
    return figure, panels, bar


def test_all_panels_share_one_scale_that_the_bar_shows():
    a, b = maps_of(1.0, 4.0)
    figure, panels, bar = drawn_panels({"imagenet": a, "scratch": b})
    assert len(panels) == 4
    heat = [panel.images[1] for panel in panels]
    assert [float(image.get_array().max()) for image in heat] == [0.25, 0, 1, 0]
    assert {image.get_clim() for image in heat} == {(0, 1)}
    assert bar.get_ylim() == (0, 1)
    assert not plt.get_fignums()
    assert to_hex(figure.get_facecolor()) == "#ffffff"


def test_where_the_map_is_zero_the_image_is_seen_as_it_is():
    _, panels, _ = drawn_panels({"scratch": maps_of(2.0)[0]})
    assert panels[0].images[0].get_array().max() == 100
    assert panels[0].images[0].get_clim() == (0, 255)
    assert (panels[0].images[1].get_alpha() > 0.5).all()
    assert (panels[1].images[1].get_alpha() == 0).all()


def test_a_title_names_the_true_and_the_predicted_plane_and_a_wrong_one_is_red():
    a, b = maps_of(1.0, 1.0)
    _, panels, _ = drawn_panels({"imagenet": a, "random": b}, {"imagenet": ["Fetal brain", "Other"]})
    assert [panel.get_title() for panel in panels] == [
        "brain\npredicted brain",
        "femur\npredicted other",
        "",
        "",
    ]
    assert [panel.title.get_color() for panel in panels[:2]] == [INK, WRONG]
    assert [panel.get_ylabel() for panel in panels] == ["imagenet", "", "random", ""]


def test_panels_refuse_what_does_not_match():
    (maps,) = maps_of(1.0)
    with pytest.raises(ValueError, match=r"maps \{'a': \(2, 4, 4\)\}"):
        plot_cams(IMAGES, {"a": maps[:, :4, :4]}, TRUE, {})
    with pytest.raises(ValueError, match="'true': 1"):
        plot_cams(IMAGES, {"a": maps}, TRUE[:1], {})
    with pytest.raises(ValueError, match="predictions of \\['b'\\]"):
        plot_cams(IMAGES, {"a": maps}, TRUE, {"b": TRUE})
    with pytest.raises(ValueError, match="maps"):
        plot_cams(IMAGES, {}, TRUE, {})


def score_rows():
    rows = []
    for strategy, model in [("imagenet", 2.0), ("dual_imagenet", 3.0)]:
        for name, value in [("model", model), ("random", 1.0), ("gaussian", 1.5), ("reinitialised", 0.9)]:
            rows.append((strategy, name, "all", "energy_ratio_anatomy", value, value - 0.2, value + 0.3))
    rows.append(("imagenet", "model", "Fetal brain", "energy_ratio_anatomy", 5.0, 4.0, 6.0))
    return pd.DataFrame(rows, columns=["strategy", "map", "plane", "score", "value", "low", "high"])


def test_scores_are_points_with_intervals_in_the_strategys_colour_beside_gray_baselines(ax):
    assert plot_cam_scores(score_rows(), ax, score="energy_ratio_anatomy") is ax
    *models, random, gaussian, reinitialised = ax.containers
    for container, value, strategy in zip(models, (2.0, 3.0), ("imagenet", "dual_imagenet"), strict=True):
        points, _, bars = container
        assert points.get_ydata().tolist() == [value]
        assert sorted(bars[0].get_segments()[0][:, 1]) == pytest.approx([value - 0.2, value + 0.3])
        assert to_hex(points.get_color()).upper() == STRATEGY_COLOURS[strategy]
    for container, value in zip((random, gaussian, reinitialised), (1.0, 1.5, 0.9), strict=True):
        assert container[0].get_ydata().tolist() == [value, value]
        assert to_hex(container[0].get_color()) == "#777777"
    markers = {container[0].get_marker() for container in (models[0], random, gaussian, reinitialised)}
    assert len(markers) == 4
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(legend) == ["gaussian", "random", "reinitialised", "the network's map"]
    assert ax.get_ylabel() == "share of the map inside the anatomy\nover its share of the image"


def test_one_plane_can_be_drawn_and_is_named(ax):
    plot_cam_scores(score_rows(), ax, score="energy_ratio_anatomy", plane="Fetal brain")
    assert ax.get_title(loc="left") == "brain"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["imagenet"]


def test_scores_refuse_what_is_not_there_and_several_runs_at_once(ax):
    with pytest.raises(ValueError, match=r"score='road'.*energy_ratio_anatomy"):
        plot_cam_scores(score_rows(), ax, score="road")
    with pytest.raises(ValueError, match="several rows"):
        plot_cam_scores(pd.concat([score_rows()] * 2), ax, score="energy_ratio_anatomy")
    with pytest.raises(ValueError, match="'low'"):
        plot_cam_scores(score_rows().drop(columns="low"), ax, score="energy_ratio_anatomy")


def test_a_score_of_a_mask_names_what_is_marked():
    assert score_label("energy_corner") == "share of the map inside the scanner's corner"
    assert score_label("pointing_game_leak") == "peak inside the leaked text, share of images"
    assert score_label("road").startswith("ROAD")
    assert score_label("something_else") == "something_else"
