"""What a map explains: the number, one for each image, that a network's output is reduced to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F

Target = Callable[[Tensor], Tensor]  # from the output for one image, (n_outputs,), to the number, ()


class SimilarityTarget:
    """Cosine of an image's features with a reference, such as the features of its other view.

    Parameters
    ----------
    reference : Tensor, shape (n_features,)
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference

    def __call__(self, features: Tensor) -> Tensor:
        return F.cosine_similarity(features, self.reference.to(features), dim=-1)


def class_targets(classes: int | Sequence[int], *, n_images: int, n_classes: int, probability: bool = False) -> list:
    """For each image the output of one class.

    Parameters
    ----------
    classes : int or sequence of int, length n_images
        Position in the task's classes; one for all images, or one for each.
    n_images, n_classes : int
    probability : bool
        The softmax probability, which the scores are about, and not the logit, which the maps are of.

    Returns
    -------
    list of Target, length n_images

    Raises
    ------
    ValueError
        If there is no such class, or not one for each image.
    """
    positions = np.full(n_images, classes) if np.ndim(classes) == 0 else np.asarray(classes)
    if positions.shape != (n_images,) or not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(
            f"classes of shape {positions.shape} and type {positions.dtype} for {n_images} images: "
            "expected a whole number, or one for each image"
        )
    if len(absent := np.setdiff1d(positions, np.arange(n_classes))):
        raise ValueError(f"class {absent.tolist()} is not there: the classifier has the classes 0 to {n_classes - 1}")
    target = ClassifierOutputSoftmaxTarget if probability else ClassifierOutputTarget
    return [target(int(position)) for position in positions]


def similarity_targets(references: Tensor | np.ndarray, *, n_images: int, n_features: int) -> list[SimilarityTarget]:
    """For each image the cosine similarity of its features to a reference.

    Parameters
    ----------
    references : Tensor or ndarray, shape (n_features,) or (n_images, n_features)
        Features of the other views, or prototypes from `class_prototypes`; one for all images, or one for each.
    n_images, n_features : int

    Returns
    -------
    list of Target, length n_images

    Raises
    ------
    ValueError
        If the shape is another, or a reference is zero or not finite.
    """
    references = torch.as_tensor(references).detach().float()
    if references.shape not in {(n_features,), (n_images, n_features)}:
        raise ValueError(
            f"references of shape {tuple(references.shape)}: expected ({n_features},) for all images or "
            f"({n_images}, {n_features}), as wide as the encoder's features"
        )
    norms = references.norm(dim=-1)
    if not (torch.isfinite(norms) & (norms > 0)).all():
        raise ValueError("a reference is zero or not finite, so nothing can be similar to it; leave its image out")
    return [SimilarityTarget(reference) for reference in references.expand(n_images, n_features)]


def class_prototypes(features: np.ndarray, labels: np.ndarray, *, n_classes: int) -> np.ndarray:
    """The mean direction of each class: of the L2-normalised features of its labelled images.

    Parameters
    ----------
    features : ndarray, shape (n_images, n_features)
        From `extract_features`.
    labels : ndarray of int, shape (n_images,)
        Positions of classes; -1 for images that are left out.
    n_classes : int

    Returns
    -------
    ndarray of float32, shape (n_classes, n_features)
        Not normalised again: a shorter one belongs to a class whose features differ more.

    Raises
    ------
    ValueError
        If a class has no labelled image.

    References
    ----------
    Snell et al. 2017, arXiv:1703.05175, equation 1, here on the sphere that NT-Xent works on.
    """
    if absent := [k for k in range(n_classes) if not (labels == k).any()]:
        raise ValueError(
            f"classes {absent} have no labelled image to make a prototype of; label one, or leave them out"
        )
    normalised = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)
    return np.stack([normalised[labels == k].mean(axis=0) for k in range(n_classes)]).astype(np.float32)


@torch.no_grad()
def target_scores(model: nn.Module, images: Tensor, targets: Sequence[Target], *, batch_size: int = 128) -> np.ndarray:
    """The targets' numbers for images, in batches.

    Parameters
    ----------
    model : Module
        In evaluation mode, see `cam_layers.left_as_found`.
    images : Tensor, shape (n_images, channels, side, side)
        Network inputs.
    targets : sequence of Target, length n_images
    batch_size : int

    Returns
    -------
    ndarray of float32, shape (n_images,)
    """
    device = next(model.parameters()).device
    outputs = torch.cat([model(batch.to(device)).float() for batch in images.split(batch_size)])
    return torch.stack([target(output) for target, output in zip(targets, outputs, strict=True)]).cpu().numpy()
