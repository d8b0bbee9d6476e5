"""Augmented views of grayscale images: kornia's operations, in named presets with a reason for each strength."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Row(NamedTuple):
    """One operation of a preset: its strength, and the probability that an image is changed by it."""

    operation: str
    strength: float
    probability: float
    reason: str


LARGEST = {  # strengths, in the order in which the operations are applied
    "crop": 0.99,  # share of the area cut away, anywhere; width to height from 3/4 to 4/3
    "zoom": 0.95,  # share of the area cut away by enlarging the middle
    "rotate": 180.0,  # degrees; zoom, rotate and shift are one resampling, with the largest of their probabilities
    "shift": 0.5,  # share of the side
    "flip": 1.0,  # left and right are exchanged
    "speckle": 1.0,  # standard deviation of multiplicative noise
    "blur": 0.05,  # Gaussian sigma, share of the side
    "gain": 1.0,  # relative change of brightness
    "time_gain": 1.0,  # relative change of brightness at a depth
    "contrast": 1.0,  # relative change of the distance to the mean
    "gamma": 2.0,  # gamma from 1 / (1 + strength) to 1 + strength
}
PRESETS: dict[str, tuple[Row, ...]] = {
    "ultrasound": (
        Row("zoom", 0.4, 1.0, "60 % of the area still holds the cavum or cerebellum that names a brain plane"),
        Row("rotate", 15.0, 1.0, "the probe and the fetus lie at any small angle; the sector still points down"),
        Row("shift", 0.1, 1.0, "the operator centres the plane by hand"),
        Row("flip", 1.0, 0.5, "the fetus lies to either side; never upside down, since depth runs downwards"),
        Row("speckle", 0.15, 0.5, "speckle differs between two frames of one plane and says nothing about it"),
        Row("blur", 0.006, 0.3, "focus and probe frequency; fine lines such as the falx must stay visible"),
        Row("gain", 0.3, 0.8, "a knob of the scanner"),
        Row("time_gain", 0.3, 0.5, "eight knobs of the scanner, one for each depth"),
        Row("contrast", 0.3, 0.8, "the dynamic range chosen on the scanner"),
        Row("gamma", 0.3, 0.5, "the gray map chosen on the scanner"),
    ),
    "simclr": (
        Row("crop", 0.92, 1.0, "area from 8 to 100 %, the paper's; may cut out all that names a plane"),
        Row("flip", 1.0, 0.5, "the paper's"),
        Row("blur", 2 / 224, 0.5, "sigma up to 2 px at 224 px, the paper's"),
        Row("gain", 0.8, 0.8, "brightness at the paper's strength 1; hue and saturation have no gray counterpart"),
        Row("contrast", 0.8, 0.8, "contrast at the paper's strength 1"),
    ),
    "weak": (
        Row("zoom", 0.15, 1.0, "supervised training needs the plane's own structures in every image"),
        Row("rotate", 10.0, 1.0, "small angle of the probe"),
        Row("shift", 0.05, 1.0, "the operator centres the plane by hand"),
        Row("flip", 1.0, 0.5, "the fetus lies to either side"),
        Row("gain", 0.1, 1.0, "a knob of the scanner"),
        Row("contrast", 0.1, 1.0, "the dynamic range chosen on the scanner"),
    ),
    "none": (),
}


def check_preset(preset: str | Sequence[Row]) -> tuple[Row, ...]:
    """The rows of a preset, a name in `PRESETS` or rows of one's own; ValueError if they make no sense."""
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"augmentation={preset!r} is unknown; known are {', '.join(PRESETS)}")
    rows = PRESETS[preset] if isinstance(preset, str) else tuple(Row(*row) for row in preset)
    names = [row.operation for row in rows]
    for name, strength, p, _ in rows:
        if names.count(name) > 1 or not (0 <= strength <= LARGEST.get(name, -1) and 0 <= p <= 1):
            expected = f"expected each at most once, a probability from 0 to 1, a strength from 0 to {LARGEST}"
            raise ValueError(f"operation {name!r} at strength {strength}, probability {p}: {expected}")
    return rows


def build_operations(rows: Sequence[Row], image_size: int) -> list[nn.Module]:
    """kornia's operations for the rows of a preset."""
    s = dict.fromkeys(LARGEST, 0.0) | {row.operation: row.strength for row in rows}
    p = dict.fromkeys(LARGEST, 0.0) | {row.operation: row.probability for row in rows if row.strength > 0}
    p["affine"] = max(p["zoom"], p["rotate"], p["shift"])
    sigma, side = max(s["blur"] * image_size, 0.02), (image_size, image_size)  # px
    enlarged, moved = (1.0, 1 / math.sqrt(1 - s["zoom"])), (s["shift"], s["shift"])
    operations = {
        # of every image, as the p of kornia's crop is a whole batch's
        "crop": K.RandomResizedCrop(side, scale=(1 - s["crop"], 1.0), cropping_mode="resample"),
        "affine": K.RandomAffine(s["rotate"], translate=moved, scale=enlarged, p=p["affine"]),
        "flip": K.RandomHorizontalFlip(p=p["flip"]),
        "speckle": Factor(speckle, s["speckle"], p=p["speckle"]),
        "blur": K.RandomGaussianBlur(2 * math.ceil(3 * sigma) + 1, (0.01, sigma), p=p["blur"]),
        "gain": K.ColorJitter(brightness=s["gain"], p=p["gain"]),
        "time_gain": Factor(time_gain, s["time_gain"], p=p["time_gain"]),
        "contrast": K.ColorJitter(contrast=s["contrast"], p=p["contrast"]),
        "gamma": K.RandomGamma((1 / (1 + s["gamma"]), 1 + s["gamma"]), p=p["gamma"]),
    }
    return [operation for name, operation in operations.items() if p[name] > 0]


class Factor(K.IntensityAugmentationBase2D):
    """Gray levels times a random field of mean 1, ``field(images, strength)``, so that black stays black."""

    def __init__(self, field: Callable[[Tensor, float], Tensor], strength: float, p: float) -> None:
        super().__init__(p=p)
        self.field, self.strength = field, strength

    def apply_transform(self, input: Tensor, params: dict, flags: dict, transform: Tensor | None = None) -> Tensor:
        return input * self.field(input, self.strength)


def speckle(images: Tensor, strength: float) -> Tensor:
    """Grains of about two pixels, drawn where the images are."""
    generator = torch.Generator(images.device).manual_seed(torch.randint(2**62, ()).item())
    coarse = (len(images), 1, *(math.ceil(side / 2) for side in images.shape[2:]))
    noise = torch.randn(coarse, generator=generator, device=images.device)
    noise *= strength / 0.625 * torch.rand(len(images), 1, 1, 1).to(images.device)
    return F.interpolate(1 + noise, images.shape[2:], mode="bilinear")  # keeps 0.75^2 + 0.25^2 of the deviation


def time_gain(images: Tensor, strength: float) -> Tensor:
    """A gain for each depth, linear between five random ones from the probe downwards."""
    gains = 1 + strength * (2 * torch.rand(len(images), 1, 5).to(images.device) - 1)
    return F.interpolate(gains, images.shape[2], mode="linear", align_corners=True)[..., None]


class Augment(nn.Module):
    """Random views of grayscale images by a preset, see `check_preset`, made in a batch where the images are.

    ``image_size`` is the side of the views in px; ``mean`` and ``std`` normalise them, see `models.normalisation`.
    """

    def __init__(self, preset: str | Sequence[Row], *, image_size: int, mean: float, std: float) -> None:
        super().__init__()
        self.image_size, self.mean, self.std = image_size, mean, std
        operations = build_operations(check_preset(preset), image_size)
        self.operations = K.ImageSequential(*operations) if operations else nn.Identity()

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One view of each image: uint8 (n_images, side, side) to float32 (n_images, 1, image_size, image_size).

        ``generator``, on the CPU, alone decides the views, and kornia's global one stays as it was; None: no operation.
        """
        if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise ValueError(f"images: {images.dtype} {tuple(images.shape)}; expected uint8 (n_images, side, side)")
        x, size = images[:, None].float() / 255, (self.image_size, self.image_size)
        x = x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)
        if generator:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(torch.randint(2**62, (), generator=generator).item())
                x = self.operations(x)
        return (x.clamp(0, 1) - self.mean) / self.std


def two_views(images: Tensor, augment: Augment, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two independent views of each image, each (n_images, 1, image_size, image_size): a positive pair."""
    return augment(images, generator), augment(images, generator)
