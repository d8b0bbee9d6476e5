"""Maps of features in two dimensions: PCA, t-SNE and UMAP, each the same again for the same seed.

t-SNE is openTSNE's. Its interpolated (FFT) repulsion takes a time proportional to the number of images, where
scikit-learn's Barnes-Hut tree takes n log n, so all of FETAL_PLANES_DB takes a fraction of the time on one thread; it
also calls back while it works, so that there is a bar to watch. scikit-learn gives maps of the same kind.

Features are scaled to unit length first, since this study compares them by their angle (NT-Xent, `neighbours`), and
then reduced by PCA, which is usual before both methods (van der Maaten and Hinton 2008, section 4.2): it saves time
and leaves out directions that hold little but noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from openTSNE import TSNE
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from fetal_utils.environment import bars_can_move, progress_bar

METHODS = ("pca", "tsne", "umap")
N_COMPONENTS = 50  # that t-SNE and UMAP start from
EXAGGERATED_STEPS, STEPS = 250, 500  # openTSNE's
STEPS_PER_CALL = 25  # of t-SNE, between two moves of its bar


@dataclass(frozen=True)
class EmbeddingMap:
    """Images as points of a plane.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    points : ndarray of float, shape (n_images, 2)
        In the order of the features. Axes and distances have no unit, and only those of PCA have a meaning.
    options : dict of str to int or float
        What the method was called with, say ``{"perplexity": 30, "seed": 0}``.
    """

    method: str
    points: np.ndarray
    options: dict[str, float] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The options in one line, for a table or a title."""
        return ", ".join(f"{name}={value:g}" for name, value in self.options.items()) or "two components"


def reduce_features(features: np.ndarray, *, n_components: int = N_COMPONENTS) -> np.ndarray:
    """Features at unit length, in their first principal components.

    Parameters
    ----------
    features : ndarray, shape (n_images, n_features)
    n_components : int
        At most; never more than there are features, or images less one.

    Returns
    -------
    ndarray of float32, shape (n_images, n_kept)
        What `draw_map` takes.

    Raises
    ------
    ValueError
        As `check_features`.
    """
    features = check_features(features)
    n_kept = min(n_components, features.shape[1], len(features) - 1)
    # the state matters only where scikit-learn takes its randomised solver, for large tables of many features
    with threadpool_limits(1):  # sums in another order would make another map
        return PCA(n_kept, random_state=0).fit_transform(normalize(features)).astype(np.float32)


def check_features(features: np.ndarray) -> np.ndarray:
    """Features as an array, if there is something to compare.

    Raises
    ------
    ValueError
        If they are not a table of at least 3 images and 2 columns, or hold NaN or infinity.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 3 or features.shape[1] < 2:
        raise ValueError(
            f"features of shape {features.shape}: expected (n_images, n_features), at least 3 images and 2 features"
        )
    if bad := int((~np.isfinite(features)).any(axis=1).sum()):
        raise ValueError(
            f"the features of {bad} of {len(features)} images hold NaN or infinity, expected finite numbers: look for "
            "a training that diverged, or leave these images out"
        )
    return features


def draw_map(reduced: np.ndarray, method: str, *, progress: bool = False, **options: float) -> EmbeddingMap:
    """One map.

    Parameters
    ----------
    reduced : ndarray, shape (n_images, n_components)
        From `reduce_features`.
    method : str
        "pca" (no options), "tsne" (``perplexity``, ``seed``) or "umap" (``n_neighbors``, ``seed``).
    progress : bool
        Show a bar.
    **options : int or float
        All that the method takes.

    Returns
    -------
    EmbeddingMap

    Raises
    ------
    ValueError
        If the method or its options are unknown, there are too few images for them, or features are bad.
    """
    reduced = check_features(reduced)
    drawers = {"pca": (_pca, ()), "tsne": (_tsne, ("perplexity", "seed")), "umap": (_umap, ("n_neighbors", "seed"))}
    if method not in drawers:
        raise ValueError(f"unknown method {method!r}: choose from {list(METHODS)}")
    draw, needed = drawers[method]
    if set(options) != set(needed):
        raise ValueError(f"{method} was given the options {sorted(options)}, expected {sorted(needed)}")
    with threadpool_limits(1):  # as above
        points = draw(reduced, progress=progress, **options)
    return EmbeddingMap(method, points, {name: options[name] for name in needed})


def draw_maps(
    features: np.ndarray,
    *,
    perplexities: Sequence[float] = (30,),
    n_neighbors: Sequence[int] = (15,),
    seeds: Sequence[int] = (0,),
    progress: bool = True,
) -> list[EmbeddingMap]:
    """PCA once, then t-SNE and UMAP at every setting and seed.

    Parameters
    ----------
    features : ndarray, shape (n_images, n_features)
    perplexities : sequence of float
        Of t-SNE: about how many neighbours an image pulls.
    n_neighbors : sequence of int
        Of UMAP.
    seeds : sequence of int
        What changes from seed to seed is not in the features. Both methods start from a projection that the features
        decide (PCA, spectral), which keeps large distances meaningful (Kobak and Linderman 2021, Nat Biotechnol
        39:156); a seed then decides less than it would from a random start.
    progress : bool
        Show a bar over the maps and one within each.

    Returns
    -------
    list of EmbeddingMap

    Raises
    ------
    ValueError
        As `reduce_features` and `draw_map`; options that do not fit are found before any map is drawn.
    """
    reduced = reduce_features(features)
    wanted = [("pca", {})]
    wanted += [("tsne", {"perplexity": value, "seed": seed}) for value in perplexities for seed in seeds]
    wanted += [("umap", {"n_neighbors": value, "seed": seed}) for value in n_neighbors for seed in seeds]
    for value in perplexities:
        check_perplexity(value, len(reduced))
    for value in n_neighbors:
        check_n_neighbors(value, len(reduced))
    maps = []
    with progress_bar(total=len(wanted), desc="maps", unit="map", show=progress, leave=False) as bar:
        for method, options in wanted:
            maps.append(draw_map(reduced, method, progress=progress, **options))
            bar.update()
    return maps


def check_perplexity(perplexity: float, n_images: int) -> None:
    """Raise a ValueError where t-SNE, which looks at 3 x perplexity neighbours, would not find them."""
    if not 1 <= perplexity < n_images / 3:
        raise ValueError(
            f"perplexity={perplexity} with {n_images} images: expected 1 or more, and less than a third of the images "
            f"({n_images / 3:.4g}); lower it or give more images"
        )


def check_n_neighbors(n_neighbors: int, n_images: int) -> None:
    """Raise a ValueError where an image has not that many neighbours, or so few that UMAP has nothing to join."""
    if not 2 <= n_neighbors < n_images:
        raise ValueError(
            f"n_neighbors={n_neighbors} with {n_images} images: expected 2 or more, and fewer than the images; lower "
            "it or give more images"
        )


def _pca(reduced: np.ndarray, *, progress: bool) -> np.ndarray:
    return PCA(2, random_state=0).fit_transform(reduced)


def _tsne(reduced: np.ndarray, *, perplexity: float, seed: int, progress: bool) -> np.ndarray:
    check_perplexity(perplexity, len(reduced))
    steps = EXAGGERATED_STEPS + STEPS
    with progress_bar(total=steps, desc=f"t-SNE {perplexity:g}", unit="step", show=progress, leave=False) as bar:
        tsne = TSNE(
            perplexity=perplexity,
            early_exaggeration_iter=EXAGGERATED_STEPS,
            n_iter=STEPS,
            random_state=seed,
            n_jobs=1,
            callbacks=_Tick(bar),
            callbacks_every_iters=STEPS_PER_CALL,
        )
        return np.asarray(tsne.fit(reduced))


class _Tick:
    """Moves a bar; openTSNE stops when a callback says True, which None is not."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def __call__(self, iteration: int, error: float, embedding: np.ndarray) -> None:
        self.bar.update(STEPS_PER_CALL)


def _umap(reduced: np.ndarray, *, n_neighbors: int, seed: int, progress: bool) -> np.ndarray:
    from umap import UMAP  # compiles on import and again on its first call: only for those who ask for it

    check_n_neighbors(n_neighbors, len(reduced))
    # found here, exactly: umap would compile an approximate search, which takes longer than all the rest
    distances, neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(reduced).kneighbors(reduced)
    bar = {"desc": f"UMAP {n_neighbors}", "unit": "epoch", "leave": False}
    bar["disable"] = not (progress and bars_can_move())  # it is umap's own, which would flood a log
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")  # needed only to place further images
        # n_jobs: what a seed implies, said here so that umap does not warn of it
        umap = UMAP(
            n_neighbors=n_neighbors,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(neighbours, distances),
            tqdm_kwds=bar,
        )
        return umap.fit_transform(reduced)
