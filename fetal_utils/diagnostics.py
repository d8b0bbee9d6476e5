"""Is a contrastive pretraining healthy? Numbers of one epoch, and a plain sentence on all of them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

# Where a sentence of `judge_health` changes; rules of thumb, stated here so that they can be argued with.
NEAR_CHANCE = 0.95  # share of the chance loss above which nothing has been learnt yet
COLLAPSED_SPREAD = 0.1  # `feature_spread` of vectors that all but coincide
COLLAPSED_RANK = 2.0  # `effective_rank` of features that lie on a line
N_NEIGHBOURS = 10


def top1_accuracy(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Share of anchors whose most similar projection is their other view.

    Parameters
    ----------
    z_a, z_b : Tensor, shape (n_images, projection_dim)
        Projections of the two views; row ``i`` of both comes from image ``i``.

    Returns
    -------
    Tensor, shape ()
        Chance is 1 / (2 n_images - 1).
    """
    z = F.normalize(torch.cat([z_a, z_b]).float(), dim=1)
    similarity = (z @ z.T).fill_diagonal_(-torch.inf)
    other_view = torch.arange(len(z), device=z.device).roll(len(z_a))
    return (similarity.argmax(1) == other_view).float().mean()


def alignment(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Mean squared distance of the two views' projections on the unit sphere; 0 is perfect.

    References
    ----------
    Wang and Isola 2020, arXiv:2005.10242, section 4.1.1, alpha = 2.
    """
    return (F.normalize(z_a.float(), dim=1) - F.normalize(z_b.float(), dim=1)).square().sum(1).mean()


def uniformity(z: Tensor) -> Tensor:
    """Log of the mean Gaussian potential between projections on the unit sphere; lower is more even.

    0 when all coincide; about -4 for directions drawn at random in many dimensions.

    References
    ----------
    Wang and Isola 2020, arXiv:2005.10242, section 4.1.2, t = 2.
    """
    squared_distances = torch.pdist(F.normalize(z.float(), dim=1)).square()
    return squared_distances.mul(-2).exp().mean().log()


def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of the features on the unit sphere, times the root of their number.

    Near 1 for directions drawn at random, 0 when all features coincide: complete collapse. Features after
    a ReLU share a direction and lie between.

    References
    ----------
    Chen and He 2021, arXiv:2011.10566, section 4.1 (there without the root, as 1/sqrt(d)).
    """
    unit = F.normalize(features.float(), dim=1)
    return unit.std(0, correction=0).square().sum().sqrt()


def effective_rank(features: Tensor) -> Tensor:
    """Dimensions that the features really use: exp of the entropy of their singular values.

    Between 1 and min(n_images, n_features); the features are centred first, so that a common offset
    does not count as a dimension.

    References
    ----------
    Roy and Vetterli 2007, EUSIPCO, equation 3; used on representations by Garrido et al. 2023, arXiv:2210.02885.
    """
    singular_values = torch.linalg.svdvals((features - features.mean(0)).float())
    shares = singular_values / singular_values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp()


def knn_macro_f1(
    features: np.ndarray, labels: np.ndarray, held_out_features: np.ndarray, held_out_labels: np.ndarray
) -> float:
    """Macro-F1 of a vote of the nearest features by cosine, on patients held out from the pretraining.

    Parameters
    ----------
    features, held_out_features : ndarray, shapes (n_images, n_features) and (n_held_out, n_features)
    labels, held_out_labels : ndarray of int

    Returns
    -------
    float
        Over the classes that the held-out images have.
    """
    neighbours = KNeighborsClassifier(min(N_NEIGHBOURS, len(features)), metric="cosine", weights="distance")
    predicted = neighbours.fit(features, labels).predict(held_out_features)
    return macro_f1_of_present(held_out_labels, predicted)


def probe_macro_f1(
    features: np.ndarray, labels: np.ndarray, held_out_features: np.ndarray, held_out_labels: np.ndarray
) -> float:
    """Macro-F1 of a linear classifier of the features, on patients held out from the pretraining.

    Least squares on standardised features, which takes a tenth of a second; the probes of the study are
    logistic regressions, see `fetal_utils.probes`.

    Parameters and returned value are those of `knn_macro_f1`.
    """
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=features.shape[1], class_weight="balanced"))
    predicted = probe.fit(features, labels).predict(held_out_features)
    return macro_f1_of_present(held_out_labels, predicted)


def macro_f1_of_present(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Macro-F1 over the classes that the images have."""
    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


def chance_loss(batch_size: int) -> float:
    """NT-Xent of an encoder that tells nothing apart: ln(2N - 1) nats for N images."""
    return math.log(2 * batch_size - 1)


def judge_health(log: pd.DataFrame, *, batch_size: int) -> str:
    """One plain sentence: whether the run looks healthy, stuck at chance, or collapsed, and why.

    Parameters
    ----------
    log : DataFrame
        A pretraining's log, with ``loss``, ``feature_spread`` and ``effective_rank``.
    batch_size : int
        Images in a batch.

    Returns
    -------
    str
    """
    last, chance = log.iloc[-1], chance_loss(batch_size)
    seen = f"loss {last['loss']:.2f} of {chance:.2f} nats at chance, effective rank {last['effective_rank']:.0f}"
    if last["feature_spread"] < COLLAPSED_SPREAD or last["effective_rank"] < COLLAPSED_RANK:
        return (
            f"Collapsed: the features of different images all but coincide (spread {last['feature_spread']:.2f}; "
            f"{seen}). Lower the learning rate or lengthen the warm-up, and look at the views."
        )
    if last["loss"] > NEAR_CHANCE * chance:
        return (
            f"Stuck at chance: the other view is not told from the rest ({seen}). Train longer, or look at whether "
            "the views still show the same thing."
        )
    if last["loss"] > log["loss"].iloc[0]:
        return f"Getting worse: the loss rose from {log['loss'].iloc[0]:.2f} ({seen}). Lower the learning rate."
    return f"Healthy: the loss fell from {log['loss'].iloc[0]:.2f} and the features stay spread out ({seen})."
