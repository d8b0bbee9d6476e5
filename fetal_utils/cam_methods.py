"""The methods of the grad-cam package, with their maps left raw and the network left as it was.

The library's last two steps, which clip a map at zero and stretch it to 0..1 image by image, are left out: after them
the map of an image that says nothing looks like any other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr

import numpy as np
import pytorch_grad_cam as library
import torch
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction
from torch import Tensor, nn

from fetal_utils.cam_layers import TargetLayer
from fetal_utils.cam_targets import Target

MASKED_BYTES = 2**26  # of images that Score-CAM masks at once, one for each channel; it holds a few copies of them


class _Raw:
    """Takes the place of the library's clipping and stretching."""

    def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):
        kept = self.activations_and_grads
        activations = np.ascontiguousarray(kept.activations[0].float())  # Score-CAM takes no channels-last map
        gradients = kept.gradients[0].float().numpy() if self.uses_gradients else None
        kept.release()  # Score-CAM runs the network once more for each channel: nothing of that is to be kept
        return self.get_cam_image(input_tensor, self.target_layers[0], targets, activations, gradients, eigen_smooth)

    def aggregate_multi_layers(self, cam_per_target_layer):
        return cam_per_target_layer


class _GradCAM(_Raw, library.GradCAM): ...


class _HiResCAM(_Raw, library.HiResCAM): ...


class _GradCAMPlusPlus(_Raw, library.GradCAMPlusPlus): ...


class _ScoreCAM(_Raw, library.ScoreCAM): ...


class _LayerCAM(_Raw, library.LayerCAM): ...


class _EigenCAM(_Raw, library.EigenCAM):
    """The sign of a singular vector means nothing: here the value of largest magnitude is positive."""

    def get_cam_image(self, input_tensor, target_layer, targets, activations, gradients, eigen_smooth):
        return get_2d_projection_with_sign_correction(activations)


METHODS = {
    "gradcam": _GradCAM,
    "hirescam": _HiResCAM,
    "gradcam++": _GradCAMPlusPlus,
    "eigencam": _EigenCAM,
    "scorecam": _ScoreCAM,
    "layercam": _LayerCAM,
}


def grids_of(
    model: nn.Module, images: Tensor, targets: Sequence[Target] | None, *, method: str, layer: TargetLayer
) -> np.ndarray:
    """The raw maps of a batch on the layer's own grid; no hook outlives the call.

    Parameters
    ----------
    model : Module
        In evaluation mode and frozen, see `cam_layers.left_as_found`.
    images : Tensor, shape (n_images, channels, image_size, image_size)
    targets : sequence of Target, length n_images, or None
        What is explained; None for the largest output of each image.
    method : str
        A key of `METHODS`.
    layer : TargetLayer

    Returns
    -------
    ndarray of float32, shape (n_images, side, side)
        Of both signs.
    """
    images = images.detach().to(next(model.parameters()).device)
    with ExitStack() as stack:
        # nothing below the layer is differentiated: its output is where the graph begins ...
        stack.callback(layer.module.register_forward_hook(_begin_graph).remove)
        cam = METHODS[method](model, [layer.module])
        stack.callback(cam.activations_and_grads.release)
        # ... and what goes on is a copy, since an activation in place would change the map that is kept
        stack.callback(layer.module.register_forward_hook(_copy).remove)
        stack.enter_context(torch.set_grad_enabled(cam.uses_gradients))
        stack.enter_context(redirect_stderr(io.StringIO()))  # Score-CAM shows a bar for each image
        return np.asarray(cam(images, targets), dtype=np.float32)


def images_at_once(method: str, images: Tensor, layer: TargetLayer) -> int:
    """How many images a method takes in a batch without needing much memory."""
    if method != "scorecam":
        return len(images)
    return max(1, MASKED_BYTES // (4 * layer.n_channels * images[0].numel()))


def _begin_graph(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.detach().requires_grad_(torch.is_grad_enabled())


def _copy(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.clone()
