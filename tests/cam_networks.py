"""Networks whose maps can be written out by hand, for the tests of class activation maps."""

import torch
from torch import nn

from fetal_utils.models import Classifier, build_encoder


class PlainEncoder(nn.Sequential):
    """Two convolutions on large maps and their mean; a leak of any of it would show."""

    def __init__(self, width=32, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(
                nn.Conv2d(1, width, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                nn.ReLU(inplace=True),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
        self.num_features = width


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
