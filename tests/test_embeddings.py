"""Maps of three clusters that anything should find, and what is refused."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from fetal_utils import embeddings
from fetal_utils.embeddings import METHODS, EmbeddingMap, check_features, draw_map, draw_maps, reduce_features
from fetal_utils.neighbourhoods import nearest_images, vote_is_right

CLUSTERS = np.repeat([0, 1, 2], 20)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return 5 * np.eye(3, 12)[CLUSTERS] + rng.normal(size=(60, 12)) * 0.5


@pytest.fixture(scope="module")
def maps(features):
    return draw_maps(features, perplexities=[5, 10], n_neighbors=[], seeds=[0, 1], progress=False)


def find(maps, method, **options):
    return next(one for one in maps if one.method == method and one.options == options)


def test_there_is_one_map_for_pca_and_one_for_each_setting_and_seed_of_the_others(maps):
    assert [(one.method, one.setting) for one in maps] == [
        ("pca", "two components"),
        ("tsne", "perplexity=5, seed=0"),
        ("tsne", "perplexity=5, seed=1"),
        ("tsne", "perplexity=10, seed=0"),
        ("tsne", "perplexity=10, seed=1"),
    ]
    assert all(one.points.shape == (60, 2) for one in maps)


def keeps_the_clusters(one):
    return vote_is_right(nearest_images(one.points, n_neighbours=3, metric="euclidean"), CLUSTERS).all()


def test_every_map_keeps_the_clusters_together(maps):
    assert [one.setting for one in maps if not keeps_the_clusters(one)] == []


def test_umap_keeps_the_clusters_and_its_seed_decides_the_map(features):
    # one test for all of UMAP: each process that meets it compiles it anew
    maps = draw_maps(features, perplexities=[], n_neighbors=[8], seeds=[0, 1], progress=False)
    assert [one.setting for one in maps] == ["two components", "n_neighbors=8, seed=0", "n_neighbors=8, seed=1"]
    assert all(keeps_the_clusters(one) for one in maps)
    assert not np.allclose(maps[1].points, maps[2].points)
    again = draw_map(reduce_features(features), "umap", n_neighbors=8, seed=1)
    np.testing.assert_array_equal(again.points, maps[2].points)


@pytest.mark.parametrize("method, options", [("pca", {}), ("tsne", {"perplexity": 5, "seed": 1})])
def test_the_same_seed_gives_the_same_map_again(features, maps, method, options):
    again = draw_map(reduce_features(features), method, **options)
    np.testing.assert_array_equal(again.points, find(maps, method, **options).points)


def test_another_seed_gives_another_map(maps):
    one, other = (find(maps, "tsne", perplexity=5, seed=seed).points for seed in (0, 1))
    assert not np.allclose(one, other)


def test_another_perplexity_gives_another_map(maps):
    one, other = (find(maps, "tsne", perplexity=value, seed=0).points for value in (5, 10))
    assert not np.allclose(one, other)


def test_the_map_of_pca_is_the_first_two_components_of_the_features_at_unit_length(features, maps):
    expected = PCA(2, svd_solver="full").fit_transform(normalize(features))
    np.testing.assert_allclose(np.abs(find(maps, "pca").points), np.abs(expected), atol=1e-5)


def test_a_reduction_to_all_components_keeps_the_distances_between_directions(features):
    reduced = reduce_features(features, n_components=50)
    assert reduced.shape == (60, 12)  # no more than there are
    np.testing.assert_allclose(pdist(reduced), pdist(normalize(features)), atol=1e-5)


def test_the_length_of_a_feature_does_not_count(features):
    lengths = np.random.default_rng(1).uniform(0.1, 9, size=(60, 1))
    np.testing.assert_allclose(reduce_features(features * lengths), reduce_features(features), atol=1e-5)


def test_components_are_fewer_than_images():
    assert reduce_features(np.random.default_rng(0).normal(size=(7, 30))).shape == (7, 6)


def test_the_bar_of_tsne_moves_to_its_end(features, monkeypatch):
    bars = []

    def watched(**options):
        bars.append(progress_bar(**{**options, "show": False}))
        bars[-1].moved = []
        bars[-1].update = bars[-1].moved.append
        return bars[-1]

    progress_bar = embeddings.progress_bar
    monkeypatch.setattr(embeddings, "progress_bar", watched)
    draw_map(reduce_features(features), "tsne", perplexity=5, seed=0, progress=True)
    assert sum(bars[0].moved) == embeddings.EXAGGERATED_STEPS + embeddings.STEPS
    assert len(bars[0].moved) > 10


def test_an_unknown_method_is_refused_with_those_there_are(features):
    with pytest.raises(ValueError, match=r"unknown method 'isomap': choose from \['pca', 'tsne', 'umap'\]"):
        draw_map(features, "isomap")
    assert METHODS == ("pca", "tsne", "umap")


def test_options_that_a_method_does_not_take_or_lacks_are_refused(features):
    with pytest.raises(ValueError, match=r"tsne was given the options \['seed'\], expected \['perplexity', 'seed'\]"):
        draw_map(features, "tsne", seed=0)
    with pytest.raises(ValueError, match=r"pca was given the options \['seed'\], expected \[\]"):
        draw_map(features, "pca", seed=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"perplexities": [5, 20]}, "perplexity=20 with 60 images: expected 1 or more, and less than a third"),
        ({"perplexities": [0.5]}, "perplexity=0.5 with 60 images"),
        ({"n_neighbors": [60]}, "n_neighbors=60 with 60 images: expected 2 or more, and fewer than the images"),
        ({"n_neighbors": [1]}, "n_neighbors=1 with 60 images"),
    ],
)
def test_too_few_images_for_a_setting_are_refused_before_any_map_is_drawn(features, monkeypatch, options, message):
    monkeypatch.setattr(embeddings, "draw_map", None)  # a call would be a TypeError
    with pytest.raises(ValueError, match=message):
        draw_maps(features, progress=False, **{"perplexities": [5], "n_neighbors": [5], **options})


def test_one_map_with_too_few_images_is_refused_too(features):
    with pytest.raises(ValueError, match="perplexity=30 with 60 images"):
        draw_map(features, "tsne", perplexity=30, seed=0)
    with pytest.raises(ValueError, match="n_neighbors=80 with 60 images"):
        draw_map(features, "umap", n_neighbors=80, seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_counted_and_refused(features, value):
    bad = features.copy()
    bad[[3, 3, 8], [0, 1, 2]] = value
    with pytest.raises(ValueError, match="features of 2 of 60 images hold NaN or infinity"):
        reduce_features(bad)


@pytest.mark.parametrize("shape", [(2, 5), (5, 1), (5,), (4, 2, 2)])
def test_what_is_no_table_of_features_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"features of shape \(.*expected \(n_images, n_features\)"):
        check_features(np.zeros(shape))


def test_a_setting_reads_in_one_line():
    assert EmbeddingMap("tsne", np.zeros((3, 2)), {"perplexity": 12.5, "seed": 3}).setting == "perplexity=12.5, seed=3"
