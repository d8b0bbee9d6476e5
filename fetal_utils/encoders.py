"""Where an encoder comes from, and its features of every image, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from fetal_utils.budgets import Budget
from fetal_utils.dataset import Dataset
from fetal_utils.environment import progress_bar
from fetal_utils.files import replace_file
from fetal_utils.images import ImageFormat
from fetal_utils.models import build_encoder, check_backbone, normalisation
from fetal_utils.runs import RunStore, Work
from fetal_utils.settings import Settings
from fetal_utils.transforms import EvalTransform
from fetal_utils.weights import read_weights


class EncoderSource(Protocol):
    """Something that gives an encoder: `InitialWeights`, or a run that trained one."""

    @property
    def backbone(self) -> str: ...

    def check(self, dataset: Dataset) -> None: ...

    def encoder(self, store: RunStore) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """An encoder before any training of this study.

    Attributes
    ----------
    backbone : str
        A timm name.
    init : str
        "random", "imagenet" or a safetensors file, see `build_encoder`.
    seed : int
        Decides random weights; of no meaning, and best left at 0, for the others.
    """

    backbone: str
    init: str
    seed: int = 0

    def check(self, dataset: Dataset) -> None:
        """Raise a ValueError or FileNotFoundError for weights that there can't be, before any run starts."""
        check_backbone(self.backbone)
        if self.init not in ("random", "imagenet"):
            read_weights(self.init)

    def encoder(self, store: RunStore | None = None) -> nn.Module:
        """The network on the CPU."""
        return build_encoder(self.backbone, init=self.init, seed=self.seed)


def initial_weights(*, backbone: str, init: str, seed: int) -> InitialWeights:
    """`InitialWeights` whose seed counts only where weights are random, so that equal encoders
    have equal settings and are used once."""
    return InitialWeights(backbone=backbone, init=init, seed=seed if init == "random" else 0)


@dataclass(frozen=True, kw_only=True)
class Features(Settings):
    """The features h of every image of the data set; every probe of an encoder reads these.

    Attributes
    ----------
    source : EncoderSource
        The encoder.
    image_size : int
        px.
    """

    kind: ClassVar[str] = "features"
    source: EncoderSource
    image_size: int

    def check(self, dataset: Dataset) -> None:
        self.source.check(dataset)
        ImageFormat(self.image_size)

    def budget(self, dataset: Dataset) -> Budget:
        return Budget(backbone=self.source.backbone, image_size=self.image_size, images_encoded=len(dataset.metadata))

    def compute(self, work: Work) -> None:
        features = extract_features(
            self.source.encoder(work.store),
            work.dataset.images(self.image_size, progress=work.store.progress),
            image_size=self.image_size,
            device=work.device,
            progress=work.store.progress,
        )
        replace_file(work.folder / "features.npy", partial(save_array, features))
        work.facts |= {"n_images": len(features), "n_features": features.shape[1]}

    def load(self, store: RunStore) -> np.ndarray:
        """Float32, shape (n_rows, n_features), memory-mapped."""
        return np.load(store.open(self).folder / "features.npy", mmap_mode="r")


def save_array(array: np.ndarray, path: Path) -> None:
    """np.save under exactly the name given (it would add ``.npy`` to another ending)."""
    with path.open("wb") as file:
        np.save(file, array)


def extract_features(
    module: nn.Module,
    images: np.ndarray,
    *,
    image_size: int,
    device: torch.device,
    encoder: nn.Module | None = None,
    batch_size: int = 128,
    progress: bool = False,
) -> np.ndarray:
    """A network's output for images, in batches, without training it.

    Parameters
    ----------
    module : Module
        An encoder (gives features h) or a classifier (gives logits); left in evaluation mode.
    images : ndarray of uint8, shape (n_images, height, width)
    image_size : int
        Side of the network's input, px.
    device : torch.device
    encoder : Module, optional
        The encoder inside ``module``, whose normalisation is used; by default ``module`` itself.
    batch_size : int
    progress : bool
        Show a bar.

    Returns
    -------
    ndarray of float32, shape (n_images, n_outputs)
    """
    mean, std = normalisation(encoder or module)
    transform = EvalTransform(image_size, mean, std)
    # moved outside of inference mode, in which weights would become tensors that can't be trained or explained again
    module.to(device, memory_format=torch.channels_last).eval()
    outputs = []
    bar = progress_bar(total=len(images), desc="features", unit="image", show=progress, leave=False)
    with bar, torch.inference_mode():
        for start in range(0, len(images), batch_size):
            # the copy makes a writable array of the read-only memory map
            batch = torch.from_numpy(images[start : start + batch_size].copy()).to(device)
            outputs.append(module(transform(batch)).float().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(outputs)
