"""SimCLR: an encoder learns, without labels, to recognise two views of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fetal_utils.batches import draw_batches
from fetal_utils.dataset import Dataset
from fetal_utils.encoders import InitialWeights
from fetal_utils.environment import torch_generator
from fetal_utils.epochs import GeneratorState, run_epochs
from fetal_utils.images import ImageFormat
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import ProjectionHead, build_encoder, n_features, normalisation, save_weights
from fetal_utils.optimisers import build_optimiser, warmup_cosine
from fetal_utils.runs import RunStore, Settings, Work
from fetal_utils.transforms import Augment, two_views

ALL_PLANES = "all"


@dataclass(frozen=True, kw_only=True)
class Pretrain(Settings):
    """One SimCLR pretraining, on images of training patients only.

    Attributes
    ----------
    start : InitialWeights
        Weights the encoder starts from.
    pool : str
        Images to learn from: "all" or the name of a task, whose images are then taken.
    image_size : int
        Side of the views, px.
    n_epochs, batch_size : int
        Passes over the pool; images per batch, each as two views.
    lr, weight_decay : float
        Of AdamW; the rate is reached after ``warmup_fraction`` of the steps, then falls as a cosine.
    warmup_fraction : float
    temperature : float
        Of NT-Xent.
    projection_dim : int
        Width of the projections z.
    augmentation : str
        A preset of `fetal_utils.transforms`.
    seed : int
        Decides order, views and the projection head's first weights.

    References
    ----------
    Chen et al. 2020, arXiv:2002.05709. The paper trains batches of 256 to 8,192 with LARS; for a
    data set of thousands AdamW at 5e-4 and a batch of 128 reach a good encoder in less time.
    """

    kind: ClassVar[str] = "simclr"
    start: InitialWeights
    pool: str = ALL_PLANES
    image_size: int = 96
    n_epochs: int = 40
    batch_size: int = 128
    lr: float = 5e-4
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.1
    temperature: float = 0.1
    projection_dim: int = 128
    augmentation: str = "ultrasound"
    seed: int = 0

    @property
    def backbone(self) -> str:
        return self.start.backbone

    def encoder(self, store: RunStore) -> nn.Module:
        """The pretrained network, from a finished run."""
        return build_encoder(self.backbone, init=store.open(self).weights)

    def pool_rows(self, dataset: Dataset) -> np.ndarray:
        """Positions of the images to learn from: training patients, neither val nor test."""
        return dataset.rows("train", None if self.pool == ALL_PLANES else dataset.task(self.pool))

    def check(self, dataset: Dataset) -> None:
        ImageFormat(self.image_size)
        if self.n_epochs < 1 or self.batch_size < 2 or self.lr <= 0 or self.temperature <= 0:
            raise ValueError(
                f"n_epochs={self.n_epochs}, batch_size={self.batch_size}, lr={self.lr}, "
                f"temperature={self.temperature}: expected at least 1 epoch, 2 images, and rates above 0"
            )
        if len(self.pool_rows(dataset)) < 2:
            raise ValueError(f"pool={self.pool!r} has fewer than two training images to contrast")

    def compute(self, work: Work) -> None:
        pool = torch.from_numpy(
            work.dataset.images(self.image_size, progress=work.store.progress)[self.pool_rows(work.dataset)]
        )
        model = SimCLR(self.start.encoder(work.store), projection_dim=self.projection_dim, seed=self.seed)
        model.to(work.device, memory_format=torch.channels_last)
        batch_size = min(self.batch_size, len(pool))
        n_batches = len(pool) // batch_size
        optimiser = build_optimiser(model, lr=self.lr, weight_decay=self.weight_decay)
        n_steps = self.n_epochs * n_batches
        schedule = warmup_cosine(optimiser, n_steps=n_steps, n_warmup=int(self.warmup_fraction * n_steps))
        augment = Augment(self.augmentation, image_size=self.image_size, **model.normalisation)
        order, views = torch_generator(self.seed, 0), torch_generator(self.seed, 1)

        def train_epoch(epoch: int) -> dict:
            batches = draw_batches(len(pool), n_batches=n_batches, batch_size=batch_size, generator=order)
            rows = []
            for batch in batches:
                images = pool[batch].to(work.device, non_blocking=True)
                view_a, view_b = two_views(images, augment, views)
                rows.append(train_step(model, optimiser, view_a, view_b, temperature=self.temperature))
                schedule.step()
            means = torch.stack(rows).mean(0).tolist()
            return dict(zip(("loss", "top1_accuracy"), means, strict=True))

        parts = {
            "model": model,
            "optimiser": optimiser,
            "schedule": schedule,
            "order": GeneratorState(order),
            "views": GeneratorState(views),
        }
        run_epochs(work, train_epoch, n_epochs=self.n_epochs, parts=parts, desc=f"SimCLR from {self.start.init}")
        save_weights(model.encoder, work.folder / "weights.safetensors")
        work.facts |= {
            "n_images": len(pool),
            "n_patients": int(work.dataset.metadata["patient"].iloc[self.pool_rows(work.dataset)].nunique()),
            "batch_size": batch_size,
            "optimiser_steps": n_steps,
            "views_seen": 2 * n_steps * batch_size,
        }


class SimCLR(nn.Module):
    """An encoder and its projection head.

    Parameters
    ----------
    encoder : Module
    projection_dim : int
    seed : int
        Decides the head's first weights.
    """

    def __init__(self, encoder: nn.Module, *, projection_dim: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection_head = ProjectionHead(n_features(encoder), projection_dim=projection_dim, seed=seed)

    @property
    def normalisation(self) -> dict[str, float]:
        """``mean`` and ``std`` of the encoder's input."""
        return dict(zip(("mean", "std"), normalisation(self.encoder), strict=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.encoder(images))  # (n_images, projection_dim)


def train_step(
    model: SimCLR, optimiser: torch.optim.Optimizer, view_a: Tensor, view_b: Tensor, *, temperature: float
) -> Tensor:
    """One optimiser step on a batch's two views.

    Parameters
    ----------
    model : SimCLR
    optimiser : Optimizer
    view_a, view_b : Tensor, shape (n_images, 1, image_size, image_size)
    temperature : float

    Returns
    -------
    Tensor, shape (2,)
        Loss in nats and contrastive top-1 accuracy, detached.
    """
    model.train()
    device = view_a.device
    both = torch.cat([view_a, view_b]).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu"):
        z_a, z_b = model(both).chunk(2)  # one batch through the network: shared batch statistics
    loss = nt_xent_loss(z_a, z_b, temperature=temperature)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimiser.step()
    return torch.stack([loss.detach(), top1_accuracy(z_a.detach(), z_b.detach())])


def top1_accuracy(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Share of the anchors whose most similar projection, of all 2 n_images - 1 others, is their other view."""
    z = nn.functional.normalize(torch.cat([z_a, z_b]).float(), dim=1)
    similarity = (z @ z.T).fill_diagonal_(-torch.inf)
    other_view = torch.arange(len(z), device=z.device).roll(len(z_a))
    return (similarity.argmax(1) == other_view).float().mean()
