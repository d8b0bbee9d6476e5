"""Class activation maps of a network on batches of images, raw and comparable with each other."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from fetal_utils.cam_layers import TargetLayer, encoder_name, find_layer, left_as_found
from fetal_utils.cam_maps import enlarge
from fetal_utils.cam_methods import METHODS, grids_of, images_at_once
from fetal_utils.cam_targets import Target, class_targets, similarity_targets
from fetal_utils.models import Classifier, n_features


@dataclass(frozen=True)
class Cam:
    """Makes maps of images; opened by `open_cam`.

    Attributes
    ----------
    model : Module
        A `Classifier` or an encoder.
    method : str
        A key of `METHODS`.
    layer : TargetLayer
    image_size : int
        Side of images and maps, px.
    in_chans, batch_size : int
    """

    model: nn.Module
    method: str
    layer: TargetLayer
    image_size: int
    in_chans: int
    batch_size: int

    def of_classes(self, images: Tensor, classes: int | Sequence[int] | str = "predicted") -> np.ndarray:
        """Where a classifier sees a class.

        Parameters
        ----------
        images : Tensor of float32, shape (n_images, in_chans, image_size, image_size)
            As `EvalTransform` gives them.
        classes : int, sequence of int or "predicted"
            The class whose logit is explained: one for all, one for each image, or what the network says.

        Returns
        -------
        ndarray of float32, shape (n_images, image_size, image_size)
            Raw: of both signs and in the units of the method, enlarged bilinearly from the layer's grid.

        Raises
        ------
        ValueError
            If the model is no `Classifier`, a class is not there, or the images have another shape.
        """
        if not isinstance(self.model, Classifier):
            raise ValueError(f"{encoder_name(self.model)} is an encoder and has no classes; use of_similarity")
        self._check(images)
        if isinstance(classes, str) and classes != "predicted":
            raise ValueError(f"classes={classes!r}: expected 'predicted', a class's position, or one for each image")
        if isinstance(classes, str):
            return self._maps(images, None)
        n_classes = self.model.head.out_features
        return self._maps(images, class_targets(classes, n_images=len(images), n_classes=n_classes))

    def of_similarity(self, images: Tensor, references: Tensor | np.ndarray) -> np.ndarray:
        """Where an encoder sees what makes an image similar to a reference.

        Parameters
        ----------
        images : Tensor
            As for `of_classes`.
        references : Tensor or ndarray, shape (n_features,) or (n_images, n_features)
            Features of each image's other view, or a class's prototype, see `class_prototypes`.

        Returns
        -------
        ndarray of float32, shape (n_images, image_size, image_size)
            Of the cosine similarity, raw as in `of_classes`.

        Raises
        ------
        ValueError
            If the model is a `Classifier`, or images or references have another shape.
        """
        if isinstance(self.model, Classifier):
            raise ValueError("a similarity is one of features, and the model is a Classifier; open its encoder")
        self._check(images)
        width = n_features(self.model)
        return self._maps(images, similarity_targets(references, n_images=len(images), n_features=width))

    def _check(self, images: Tensor) -> None:
        expected = (self.in_chans, self.image_size, self.image_size)
        is_batch = isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4
        if not is_batch or images.shape[1:] != expected or not len(images):
            found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"images are {found}: expected a tensor of float32, at least one image of shape {expected}; give "
                "what EvalTransform makes of uint8 images"
            )

    def _maps(self, images: Tensor, targets: Sequence[Target] | None) -> np.ndarray:
        size = min(self.batch_size, images_at_once(self.method, images, self.layer))
        grids = [
            grids_of(self.model, images[start : start + size], targets and targets[start : start + size],
                     method=self.method, layer=self.layer)
            for start in range(0, len(images), size)
        ]  # fmt: skip
        return enlarge(np.concatenate(grids), self.image_size)


@contextmanager
def open_cam(
    model: nn.Module,
    *,
    image_size: int,
    method: str = "gradcam",
    layer: str | None = None,
    min_side: int = 1,
    in_chans: int = 1,
    batch_size: int = 32,
) -> Iterator[Cam]:
    """Class activation maps of a model, which is left as it was found.

    Parameters
    ----------
    model : Module
        A `Classifier`, or an encoder from `build_encoder`; frozen or not.
    image_size : int
        Side of the images, px.
    method : str
        "gradcam" (Selvaraju et al. 2017, arXiv:1610.02391), "hirescam" (Draelos and Carin 2020, arXiv:2011.08891),
        "gradcam++" (Chattopadhyay et al. 2018, arXiv:1710.11063), "eigencam" (Muhammad and Yeasin 2020,
        arXiv:2008.00299; knows no class), "scorecam" (Wang et al. 2020, arXiv:1910.01279; a pass for each channel)
        or "layercam" (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943).
    layer : str, optional
        Name of a layer of the encoder; by default `find_layer` chooses the deepest.
    min_side : int
        Least side of the chosen layer's maps, px.
    in_chans : int
        Channels of the images.
    batch_size : int
        Images at a time; fewer where Score-CAM would need much memory.

    Yields
    ------
    Cam
        For use inside of the ``with`` only.

    Raises
    ------
    ValueError
        If the method is unknown, or `find_layer` finds no layer.
    """
    if method not in METHODS:
        close = difflib.get_close_matches(method, METHODS, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"method={method!r} is unknown; expected one of {list(METHODS)}{meant}")
    encoder = model.encoder if isinstance(model, Classifier) else model
    with left_as_found(model):
        found = find_layer(encoder, image_size=image_size, in_chans=in_chans, name=layer, min_side=min_side)
        yield Cam(model, method, found, image_size, in_chans, batch_size)
