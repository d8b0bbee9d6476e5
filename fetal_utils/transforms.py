"""Augmented views of grayscale images, made in batches on the device that holds them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from fetal_utils.augmentations import FAMILIES, GEOMETRY, Row, check_preset


class Augment(nn.Module):
    """Random views of grayscale images, normalised for an encoder.

    Crop, stretch, rotation, shift and flip are one resampling; the other families follow in the order of
    `FAMILIES`. Each image draws its own numbers, and its view depends on no other image.

    Parameters
    ----------
    preset : str or sequence of Row
        A name in `PRESETS`, or rows of one's own.
    image_size : int
        Side of the square views, px.
    mean, std : float
        Normalisation of gray values in [0, 1], from `models.normalisation`.

    Raises
    ------
    ValueError
        If the preset (see `check_preset`), ``image_size`` or ``std`` makes no sense.
    """

    def __init__(self, preset: str | Sequence[Row], *, image_size: int, mean: float, std: float) -> None:
        super().__init__()
        self.rows = {row.family: row for row in check_preset(preset)}
        self.as_is = EvalTransform(image_size, mean=mean, std=std)

    def forward(self, images: Tensor, generator: torch.Generator, kept: Tensor | None = None) -> Tensor:
        """One view of each image.

        Parameters
        ----------
        images : Tensor of uint8, shape (n_images, side, side) or (n_images, 1, side, side)
            On any device; cheapest when ``side`` is ``image_size``. Larger ones are first reduced, without
            aliasing, to where a crop of average area has ``image_size`` pixels.
        generator : torch.Generator
            On the CPU; it alone decides the views, and no global generator is touched. Numbers are drawn
            for all families, wanted or not, so presets can be compared on the same draws. Speckle comes
            from a generator on the images' device, seeded from this one.
        kept : Tensor of int64, shape (n_kept,), optional
            Positions of the images whose views are made, where other processes make the rest; at least one.
            Numbers are drawn for all of them all the same, so a view does not depend on who makes it.

        Returns
        -------
        Tensor of float32, shape (n_images or n_kept, 1, image_size, image_size)
            ``(x / 255 - mean) / std`` of the view.

        Raises
        ------
        ValueError
            If the images are not uint8, gray and square.
        """
        kept = slice(None) if kept is None else kept
        x = to_unit_range(images[kept])  # (n, 1, side, side)
        draws = self._draw(len(images), kept, generator, x.device)
        noise = torch.Generator(x.device).manual_seed(torch.randint(2**62, (), generator=generator).item())
        size = self.as_is.image_size
        if self.rows.keys() & GEOMETRY:
            mean_area = 1 - self.rows["crop"].strength / 2 if "crop" in self.rows else 1
            x = resize(x, min(x.shape[-1], round(size / math.sqrt(mean_area))))
            x = _resample(x, _affine(draws), size)  # (n, 1, size, size), as all below
        else:
            x = resize(x, size)
        if "speckle" in self.rows:
            x = _speckle(x, *draws["speckle"], noise, len(images), kept)
        if "blur" in self.rows:
            x = _blur(x, *draws["blur"], self.rows["blur"].strength)
        for family, change in CHANGES.items():
            if family in self.rows:
                x = change(x, *draws[family])
        return self.as_is.normalise(x)

    def _draw(
        self, n_images: int, kept: Tensor | slice, generator: torch.Generator, device: torch.device
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each family: its strength where applied, else 0, (n, 1); uniform numbers in [0, 1), (n, n_draws)."""
        widths = [1 + family.n_draws for family in FAMILIES.values()]
        uniform = torch.rand(n_images, sum(widths), generator=generator)[kept].to(device)
        draws = {}
        for name, u in zip(FAMILIES, uniform.split(widths, dim=1), strict=True):
            row = self.rows.get(name, Row(name, 0.0, 0.0, "not in this preset"))
            draws[name] = row.strength * (u[:, :1] < row.probability), u[:, 1:]
        return draws


class EvalTransform(nn.Module):
    """Images as they are, resized and normalised: what ``Augment("none")`` gives, with nothing drawn.

    Parameters and errors are those of `Augment`; call it with images alone.
    """

    def __init__(self, image_size: int, mean: float, std: float) -> None:
        super().__init__()
        if image_size < 8 or not std > 0:
            raise ValueError(f"image_size is {image_size} px and std {std}; give at least 8 px and std > 0")
        self.image_size, self.mean, self.std = image_size, mean, std

    def forward(self, images: Tensor) -> Tensor:
        return self.normalise(resize(to_unit_range(images), self.image_size))

    def normalise(self, x: Tensor) -> Tensor:
        return (x.clamp(0, 1) - self.mean) / self.std


def two_views(
    images: Tensor,
    augment: Augment,
    generator: torch.Generator,
    *,
    kept: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Two independent views of each image, each (n_images, 1, image_size, image_size): a positive pair. With ``kept``
    only the first views, and the second, of the images at these positions."""
    return augment(images, generator, kept[0]), augment(images, generator, kept[1])


def to_unit_range(images: Tensor) -> Tensor:
    """Gray uint8 images, (n, side, side) or (n, 1, side, side), as float32 in [0, 1], (n, 1, side, side)."""
    x = images.unsqueeze(1) if images.ndim == 3 else images
    if images.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 1 or x.shape[2] != x.shape[3]:
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; give torch.uint8 of shape "
            "(n, side, side) or (n, 1, side, side): gray, padded or cropped to a square (stretching would "
            "change the anatomy)"
        )
    return x.float() / 255


def resize(x: Tensor, side: int) -> Tensor:
    """Square images at another side, px, without aliasing."""
    return x if x.shape[-1] == side else F.interpolate(x, (side, side), mode="bilinear", antialias=True)


def _signed(u: Tensor) -> Tensor:
    return 2 * u - 1


def _affine(draws: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Matrices (n, 2, 3) from a place in the view to its place in the image, both in [-1, 1]."""
    (cut, where), (stretch, u_ratio) = draws["crop"], draws["stretch"]
    ratio = torch.exp(torch.log1p(stretch) * _signed(u_ratio))  # (n, 1), of width to height
    area = (1 - cut * where[:, :1]).minimum(ratio).minimum(1 / ratio)  # neither side may exceed the image's
    size = torch.cat([area * ratio, area / ratio], dim=1).sqrt()  # (n, 2): width, height
    (shift, u_shift), (degrees, u_angle) = draws["shift"], draws["rotate"]
    centre = _signed(where[:, 1:]) * (1 - size) + 2 * shift * _signed(u_shift)  # (n, 2)
    angle = torch.deg2rad(degrees * _signed(u_angle))[:, 0]
    mirrored = draws["flip"][0][:, 0] > 0
    width, height = torch.where(mirrored, -size[:, 0], size[:, 0]), size[:, 1]  # a negative width mirrors
    column_x = torch.stack([angle.cos() * width, angle.sin() * width], dim=1)
    column_y = torch.stack([-angle.sin() * height, angle.cos() * height], dim=1)
    return torch.stack([column_x, column_y, centre], dim=2)


def _resample(x: Tensor, affine: Tensor, size: int) -> Tensor:
    """Views (n, 1, size, size) of the windows that the matrices cut out; black outside of the image."""
    # written out because F.affine_grid, a matrix product per image, takes three times as long on a CPU
    places = (torch.arange(size, device=x.device) + 0.5) * 2 / size - 1  # pixel centres
    across = affine[:, None, :, 0] * places[:, None]  # (n, size, 2)
    down = affine[:, None, :, 1] * places[:, None] + affine[:, None, :, 2]
    grid = down[:, :, None] + across[:, None]  # (n, size, size, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _speckle(
    x: Tensor, amount: Tensor, u: Tensor, noise: torch.Generator, n_images: int, kept: Tensor | slice
) -> Tensor:
    """Multiplicative noise with grains of about two pixels, so that black stays black."""
    height, width = (math.ceil(side / 2) for side in x.shape[2:])
    coarse = torch.randn(n_images, 1, height, width, generator=noise, device=x.device)[kept]
    coarse *= (amount * u / 0.625)[:, :, None, None]  # doubling the side keeps 0.75^2 + 0.25^2 of the deviation
    return torch.addcmul(x, x, F.interpolate(coarse, x.shape[2:], mode="bilinear"))


def _blur(x: Tensor, amount: Tensor, u: Tensor, max_sigma: float) -> Tensor:
    sigma = (amount * u * x.shape[-1]).clamp(min=1e-3)  # px, (n, 1); 1e-3 px changes nothing
    radius = max(1, math.ceil(3 * max_sigma * x.shape[-1]))  # px, the same for the batch
    return gaussian_blur2d(x, 2 * radius + 1, sigma.expand(-1, 2))


def _gain(x: Tensor, amount: Tensor, u: Tensor) -> Tensor:
    return x * (1 + amount * _signed(u))[:, :, None, None]


def _tgc(x: Tensor, amount: Tensor, u: Tensor) -> Tensor:
    knots = 1 + amount * _signed(u)  # (n, N_KNOTS), from the probe downwards
    return x * F.interpolate(knots[:, None], x.shape[2], mode="linear", align_corners=True)[..., None]


def _contrast(x: Tensor, amount: Tensor, u: Tensor) -> Tensor:
    return torch.lerp(x.mean((2, 3), keepdim=True), x, (1 + amount * _signed(u))[:, :, None, None])


def _gamma(x: Tensor, amount: Tensor, u: Tensor) -> Tensor:
    return x.clamp(0, 1) ** torch.exp(torch.log1p(amount) * _signed(u))[:, :, None, None]


def _erase(x: Tensor, amount: Tensor, u: Tensor) -> Tensor:
    ratio = 2 ** _signed(u[:, 1:2])  # of width to height, 1/2 to 2
    area = amount * u[:, :1]
    size = torch.cat([area * ratio, area / ratio], dim=1).sqrt().clamp(max=1)  # (n, 2), share of the side
    low = (u[:, 2:] * (1 - size))[:, :, None]
    places = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]  # pixel centres
    inside = (places >= low) & (places < low + size[:, :, None])  # (n, 2, side)
    return x.masked_fill((inside[:, 1, :, None] & inside[:, 0, None, :])[:, None], 0)


CHANGES = {"gain": _gain, "tgc": _tgc, "contrast": _contrast, "gamma": _gamma, "erase": _erase}
