"""Maps and CKA as figures: what is drawn is what was given."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_palette import VISIONS, smallest_difference

from fetal_utils.embedding_plots import (
    MOST_NAMES,
    PATIENT_COLOURS,
    PATIENT_MARKERS,
    plot_cka,
    plot_map,
    plot_maps,
    plot_settings,
    point_styles,
)
from fetal_utils.embeddings import EmbeddingMap
from fetal_utils.palette import PLANE_COLOURS

N_IMAGES = 20


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "plane": ["Fetal brain", "Other"] * 10,
            "patient": np.arange(20) // 2,
            "machine": ["Aloka"] * 15 + ["Voluson E6"] * 5,
        },
        index=range(50, 70),  # as after a choice of rows
    )


def make_map(method="tsne", **options):
    return EmbeddingMap(method, np.random.default_rng(0).normal(size=(N_IMAGES, 2)), options)


def drawn_points(ax):
    """Offset and colour of every point drawn."""
    return [
        (tuple(offset), to_hex(colour))
        for points in ax.collections
        for offset, colour in zip(points.get_offsets().tolist(), points.get_facecolors(), strict=True)
    ]


def score_row(score, value, *, label="plane", method="pca", setting="two components", low=np.nan, high=np.nan):
    return {
        "method": method,
        "setting": setting,
        "label": label,
        "score": score,
        "value": value,
        "low": low,
        "high": high,
    }


def test_every_image_is_a_point_in_the_colour_of_its_plane(table, ax):
    one = make_map()
    assert plot_map(one.points, table["plane"], ax) is ax
    colours = [PLANE_COLOURS[plane].lower() for plane in table["plane"]]
    assert drawn_points(ax) == list(zip(map(tuple, one.points.tolist()), colours, strict=True))
    assert not len(ax.get_xticks())


def test_patients_take_the_colours_in_turn_and_then_the_next_marker():
    patients = pd.Series(np.arange(100, 0, -1), name="patient")
    styles = point_styles(patients)
    n_colours, n_styles = len(PATIENT_COLOURS), len(PATIENT_COLOURS) * len(PATIENT_MARKERS)
    assert styles[1] == (PATIENT_COLOURS[0], PATIENT_MARKERS[0])
    assert styles[n_colours] == (PATIENT_COLOURS[-1], PATIENT_MARKERS[0])
    assert styles[n_colours + 1] == (PATIENT_COLOURS[0], PATIENT_MARKERS[1])
    assert len(set(list(styles.values())[:n_styles])) == n_styles
    assert styles[n_styles + 1] == styles[1]


def test_every_patient_is_drawn(table, ax):
    one = make_map()
    plot_map(one.points, table["patient"], ax)
    styles = point_styles(table["patient"])
    expected = {
        (tuple(point), styles[patient][0].lower())
        for point, patient in zip(one.points.tolist(), table["patient"], strict=True)
    }
    assert set(drawn_points(ax)) == expected
    assert len(ax.collections) == 2  # ten patients: six with the first marker, four with the second


@pytest.mark.parametrize("vision", VISIONS)
def test_the_colours_of_patients_stay_apart_in_every_vision(vision):
    assert smallest_difference(PATIENT_COLOURS, vision) > 10


def test_maps_stand_side_by_side_with_a_row_for_each_label(table):
    maps = [make_map("pca"), make_map("tsne", perplexity=30, seed=0)]
    figure = plot_maps(maps, table)
    assert len(figure.axes) == 6
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == [
        "PCA, two components",
        "t-SNE, perplexity=30, seed=0",
    ]
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["by plane", "by patient", "by machine"]
    legends = [ax.get_legend() for ax in figure.axes]
    assert [legend is not None for legend in legends] == [False, True] * 3
    assert [text.get_text() for text in legends[1].get_texts()] == ["brain", "other"]


def test_titles_hold_the_scores_of_their_map_and_label(table):
    scores = pd.DataFrame(
        [
            score_row("knn_accuracy", 0.912, low=0.88, high=0.94),
            score_row("separability_chance", 0.5),
            score_row("silhouette", 0.1, label="machine", low=0.05, high=0.2),
            score_row("trustworthiness", 0.871, label="all", low=0.86, high=0.89),
            score_row("knn_accuracy", 0.3, method="original", setting="features=512"),
        ]
    )
    figure = plot_maps([make_map("pca")], table, labels=["plane", "machine"], scores=scores)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0] == "PCA, two components\nkNN 0.91 (0.88 to 0.94)\ntrust 0.87 (0.86 to 0.89)"
    assert titles[1] == "PCA, two components\nsilhouette 0.10 (0.05 to 0.20)"


def test_scores_of_several_strategies_are_refused_in_one_figure(table):
    scores = pd.DataFrame([score_row("silhouette", 0.1), score_row("silhouette", 0.2)])
    with pytest.raises(ValueError, match="choose the rows of one task and strategy"):
        plot_maps([make_map("pca")], table, scores=scores)


def test_a_legend_of_many_patients_says_that_looks_repeat():
    n_patients = len(PATIENT_COLOURS) * len(PATIENT_MARKERS) + 1
    one = EmbeddingMap("pca", np.random.default_rng(0).normal(size=(n_patients, 2)))
    for patients, again in ((range(n_patients), True), (np.arange(n_patients) % (MOST_NAMES + 1), False)):
        figure = plot_maps([one], pd.DataFrame({"patient": patients}), labels=["patient"])
        (text,) = (text.get_text() for text in figure.axes[0].get_legend().get_texts())
        assert text.startswith(f"{len(set(patients))} patients")
        assert ("same look: not always\nthe same patient" in text) is again


def test_settings_make_a_grid_of_perplexities_by_seeds(table):
    maps = [make_map(perplexity=p, seed=s) for p, s in itertools.product([5, 50], [0, 1, 2])]
    row = score_row("knn_accuracy", 0.7, method="tsne", setting="perplexity=50, seed=1", low=0.6, high=0.8)
    figure = plot_settings(maps, table["plane"], scores=pd.DataFrame([row]))
    axes = figure.axes
    assert len(axes) == 6
    assert [ax.get_ylabel() for ax in axes[::3]] == ["perplexity=5", "perplexity=50"]
    assert [ax.get_xlabel() for ax in axes[3:]] == ["seed 0", "seed 1", "seed 2"]
    assert [ax.get_title(loc="left") for ax in axes] == ["", "", "", "", "kNN 0.70", ""]


def test_a_setting_that_lacks_a_seed_leaves_its_panel_empty(table):
    maps = [make_map(perplexity=5, seed=0), make_map(perplexity=5, seed=1), make_map(perplexity=50, seed=1)]
    axes = plot_settings(maps, table["plane"]).axes
    assert [ax.axison for ax in axes] == [True, True, False, True]
    assert not axes[2].collections


@pytest.mark.parametrize("maps", [[], [make_map("tsne", seed=0), make_map("umap", seed=0)], [make_map(), make_map()]])
def test_settings_of_several_methods_or_the_same_twice_are_refused(table, maps):
    with pytest.raises(ValueError, match="give those of one method, each with its own setting"):
        plot_settings(maps, table["plane"])


def test_points_without_their_values_are_refused(table, ax):
    with pytest.raises(ValueError, match="20 points and 19 values"):
        plot_map(make_map().points, table["plane"][:19], ax)
    with pytest.raises(ValueError, match=r"missing: \['operator'\]"):
        plot_maps([make_map()], table, labels=["operator"])
    with pytest.raises(ValueError, match="0 maps"):
        plot_maps([], table)


def test_cka_is_written_in_every_cell_that_has_a_value(ax):
    matrix = pd.DataFrame([[1.0, 0.254], [np.nan, -0.01]], index=["stem", "head"], columns=["stem", "layer4"])
    assert plot_cka(matrix, ax, names=("scratch", "simclr_scratch")) is ax
    assert {text.get_position(): text.get_text() for text in ax.texts} == {
        (0, 0): "1.00",
        (1, 0): "0.25",
        (1, 1): "-0.01",
    }
    assert [label.get_text() for label in ax.get_yticklabels()] == ["stem", "head"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["stem", "layer4"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("stage of scratch", "stage of simclr_scratch")
    image = ax.get_images()[0]
    assert image.get_clim() == (0, 1)
    np.testing.assert_array_equal(image.get_array().filled(np.nan), matrix)


def test_an_empty_matrix_is_refused(ax):
    with pytest.raises(ValueError, match="expected at least one stage of each encoder"):
        plot_cka(pd.DataFrame(), ax)
