"""Networks whose maps and scores can be written out by hand, for the tests of class activation maps."""

import torch
from torch import nn

from fetal_utils.models import Classifier, build_encoder


class Weighted(nn.Module):
    """Two classes of which the first has the probability "sum of an image's pixels, each with its weight"."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, images):
        p = (images * self.weights).sum(dim=(1, 2, 3)).clamp(1e-9, 1 - 1e-9)
        return torch.stack([p.log(), (1 - p).log()], dim=1)  # softmax gives p and 1 - p


def classifier_of(backbone="test_resnet", *, n_classes=3, seed=0):
    """A classifier in evaluation mode whose batch statistics are those of a real network: not all 0 and 1."""
    encoder = build_encoder(backbone, init="random", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.2, 0.8, generator=generator)
    return Classifier(encoder, n_classes, seed=seed).eval()


def inputs(n_images=5, side=64, seed=0):
    """Network inputs, (n_images, 1, side, side)."""
    return torch.randn(n_images, 1, side, side, generator=torch.Generator().manual_seed(seed))
