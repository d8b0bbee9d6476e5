"""Dual task: one encoder learns from the labelled images and, by contrast, from all images, in the same steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fetal_utils.batch_fit import check_batch_fits
from fetal_utils.batches import draw_batches
from fetal_utils.budgets import Budget
from fetal_utils.dataset import Dataset
from fetal_utils.dual_step import DUAL_MEASURES, DualNetwork, dual_step
from fetal_utils.environment import torch_generator
from fetal_utils.epochs import GeneratorState, Stateful
from fetal_utils.fine_tuning import FineTuning
from fetal_utils.models import normalisation
from fetal_utils.pool import open_pool
from fetal_utils.runs import Work
from fetal_utils.simclr import ALL_PLANES, Pretrain
from fetal_utils.training import FineTune
from fetal_utils.transforms import Augment, two_views
from fetal_utils.unlabelled import UnlabelledImages

# a field of `Pretrain`, and the field of `DualTask` that means the same
CONTRAST_FIELDS = {
    "pool": "pool",
    "batch_size": "contrastive_batch_size",
    "temperature": "temperature",
    "projection_dim": "projection_dim",
    "augmentation": "contrastive_augmentation",
    "same_patient_negatives": "same_patient_negatives",
    "chunk_size": "chunk_size",
    "extra_images": "extra_images",
}


@dataclass(frozen=True, kw_only=True)
class DualTask(FineTune):
    """A fine-tuning whose encoder is also taught, in every step, by NT-Xent on images without labels.

    The loss is cross-entropy on labelled images + ``contrastive_weight`` * NT-Xent on two views of images out of
    the pool: all training patients', labelled or not. With a weight of 0 it is `FineTune` to the last bit.

    Attributes
    ----------
    contrastive_weight : float
        Of NT-Xent beside the cross-entropy, 0 or more. On the shared encoder NT-Xent's gradient is three to five
        times the cross-entropy's, so 0.1 leaves the labels in the lead; on validation patients of real images it was
        no worse than 1.
    contrastive_batch_size : int
        Images of the pool in a step, each as two views.
    pool, temperature, projection_dim, same_patient_negatives, chunk_size, extra_images
        As for `Pretrain`.
    contrastive_augmentation : str
        Preset of the pool's views; ``augmentation`` is that of the labelled images.

    References
    ----------
    Migliorelli et al. 2024, Comput Biol Med 174:108430: SimCLR and the classification learned together.
    """

    kind: ClassVar[str] = "dual_task"
    contrastive_weight: float = 0.1
    contrastive_batch_size: int = 64
    pool: str = ALL_PLANES
    temperature: float = 0.1
    projection_dim: int = 128
    contrastive_augmentation: str = "ultrasound"
    same_patient_negatives: bool = True
    chunk_size: int = 0
    extra_images: UnlabelledImages | None = None

    @property
    def contrast(self) -> Pretrain:
        """The contrastive task as the pretraining it would be alone, for its checks and its pool."""
        shared = {theirs: getattr(self, ours) for theirs, ours in CONTRAST_FIELDS.items()}
        return Pretrain(start=self.source, image_size=self.image_size, seed=self.seed, **shared)

    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        if not 0 <= self.contrastive_weight < math.inf or self.contrastive_batch_size < 2:
            raise ValueError(
                f"contrastive_weight={self.contrastive_weight}, contrastive_batch_size={self.contrastive_batch_size}: "
                "expected a weight of 0 or more, and 2 images to contrast"
            )
        self.contrast.check(dataset)

    def budget(self, dataset: Dataset) -> Budget:
        supervised = super().budget(dataset)
        views_seen = supervised.views_seen + 2 * self.n_steps * self.n_contrasted(self.contrast.n_pool_images(dataset))
        return dataclasses.replace(supervised, views_seen=views_seen)

    def n_contrasted(self, n_pool_images: int) -> int:
        """Images of the pool in a step: none without a weight."""
        return min(self.contrastive_batch_size, n_pool_images) if self.contrastive_weight else 0

    def begin(self, work: Work) -> DualTuning:
        return DualTuning(self, work)


def contrast_settings(pretraining: Mapping[str, object]) -> dict[str, object]:
    """Of the settings of a `Pretrain`, those that a `DualTask` has too, under its names."""
    return {ours: pretraining[theirs] for theirs, ours in CONTRAST_FIELDS.items() if theirs in pretraining}


class DualTuning(FineTuning):
    """A fine-tuning with a pool of images to contrast, a projection head, and random generators for both.

    Parameters
    ----------
    settings : DualTask
    work : Work

    Raises
    ------
    MemoryError
        If the contrastive batch does not fit; see `check_batch_fits`.
    """

    measures = DUAL_MEASURES

    def __init__(self, settings: DualTask, work: Work) -> None:
        super().__init__(settings, work)
        contrast, dataset = settings.contrast, work.dataset
        no_planes = np.zeros(len(dataset.metadata))  # a pool knows planes only to count false negatives
        self.pool = open_pool(contrast, work, contrast.pool_rows(dataset), no_planes)
        self.n_contrasted = settings.n_contrasted(len(self.pool))
        self.network = DualNetwork(self.model, projection_dim=settings.projection_dim, seed=settings.seed)
        self.network.to(work.device)
        self.set_optimiser(self.network)
        check_batch_fits(
            self.network.simclr,
            batch_size=self.n_contrasted,
            image_size=settings.image_size,
            chunk_size=settings.chunk_size,
        )
        mean, std = normalisation(self.model.encoder)
        self.pool_augment = Augment(contrast.augmentation, image_size=settings.image_size, mean=mean, std=std)
        # of its own, so that the labelled images come in the order and views that they have in a `FineTune`
        self.pool_order, self.pool_views = torch_generator(settings.seed, 4), torch_generator(settings.seed, 5)

    @property
    def parts(self) -> dict[str, Stateful]:
        return super().parts | {
            "projection_head": self.network.simclr.projection_head,
            "pool_order": GeneratorState(self.pool_order),
            "pool_views": GeneratorState(self.pool_views),
        }

    def draw(self, n_batches: int) -> Iterable[tuple[Tensor, Tensor | None]]:
        """What `train_batch` is given in each step: positions of labelled images, and in the pool."""
        labelled = [batch for (batch,) in super().draw(n_batches)]
        if not self.n_contrasted:
            return [(batch, None) for batch in labelled]
        pool = draw_batches(
            len(self.pool), n_batches=n_batches, batch_size=self.n_contrasted, generator=self.pool_order
        )
        return zip(labelled, pool, strict=True)

    def train_batch(self, batch: Tensor | None, pool_batch: Tensor | None) -> Tensor:
        """One optimiser step on the labelled images and those of the pool at these positions; see `dual_step`."""
        return dual_step(
            self.network,
            self.optimiser,
            self.schedule,
            labelled=None if batch is None else self.labelled(batch),
            views=None if pool_batch is None else self.two_views(pool_batch),
            class_weights=self.class_weights,
            contrastive_weight=self.settings.contrastive_weight,
            temperature=self.settings.temperature,
            not_negatives=self.not_negatives(pool_batch),
            chunk_size=self.settings.chunk_size,
        )

    def two_views(self, pool_batch: Tensor) -> tuple[Tensor, Tensor]:
        """Two views of the pool's images at these positions, each (n, 1, image_size, image_size)."""
        return two_views(self.pool.images[pool_batch].to(self.device), self.pool_augment, self.pool_views)

    def not_negatives(self, pool_batch: Tensor | None) -> Tensor | None:
        """Pairs that `nt_xent_loss` leaves out, bool, shape (n, n); None if it leaves out none."""
        if pool_batch is None or self.settings.same_patient_negatives:
            return None
        return self.pool.same_patient(pool_batch).to(self.device)

    def facts(self) -> dict:
        facts = super().facts()
        facts["views_seen"] += 2 * self.settings.n_steps * self.n_contrasted
        facts["contrastive_batch_size"] = self.n_contrasted
        return facts | {name.replace("n_", "n_pool_", 1): count for name, count in self.pool.facts().items()}
