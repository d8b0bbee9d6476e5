"""A SimCLR pretraining under way: what it learns from, its steps, and what its log says of each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fetal_utils.batch_fit import check_batch_fits
from fetal_utils.batches import draw_batches
from fetal_utils.contrast import STEP_MEASURES, SimCLR, contrast_step
from fetal_utils.diagnostics import effective_rank, feature_spread, knn_macro_f1, probe_macro_f1
from fetal_utils.encoders import extract_features
from fetal_utils.environment import torch_generator
from fetal_utils.epochs import GeneratorState, Stateful
from fetal_utils.models import normalisation
from fetal_utils.optimisers import build_optimiser, warmup_cosine
from fetal_utils.pool import Pool, open_pool
from fetal_utils.ranks import ALONE, Ranks
from fetal_utils.runs import Work
from fetal_utils.shares import SharedSimCLR, share_batch
from fetal_utils.stopwatch import Stopwatch
from fetal_utils.transforms import Augment, two_views

if TYPE_CHECKING:  # at run time `simclr` reads this module, not the other way round
    from fetal_utils.simclr import Pretrain

LOOK_EVERY = 4  # epochs between looks at the held-out patients; a look costs a sixth of an epoch


class Pretraining:
    """The images that a pretraining learns from and all that its steps change.

    Parameters
    ----------
    settings : Pretrain
    work : Work
    ranks : Ranks
        The processes that share every batch, each of which makes one of these. All draw the same batches and the same
        numbers for the views, take the same steps, and end with the weights of one process alone but for the order
        of sums.

    Raises
    ------
    MemoryError
        If the batch does not fit; see `check_batch_fits`.
    ValueError
        If it can't be shared; see `share_batch` and `SharedSimCLR`.
    """

    def __init__(self, settings: Pretrain, work: Work, ranks: Ranks = ALONE) -> None:
        self.settings, self.device, self.ranks = settings, work.device, ranks
        self.images = work.dataset.images(settings.image_size, progress=work.store.progress)
        self.rows, self.held_out = settings.pool_rows(work.dataset), work.dataset.rows("val")
        self.strata = strata(work.dataset.metadata)
        self.pool: Pool = open_pool(settings, work, self.rows, self.strata)
        self.batch_size = min(settings.batch_size, len(self.pool))
        self.n_batches = len(self.pool) // self.batch_size  # of an epoch
        self.n_steps = settings.n_epochs * self.n_batches
        encoder = settings.start.encoder(work.store)
        self.model = SimCLR(encoder, projection_dim=settings.projection_dim, seed=settings.seed)
        self.model.to(work.device, memory_format=torch.channels_last)
        check_batch_fits(
            self.model,
            batch_size=self.batch_size,
            image_size=settings.image_size,
            chunk_size=settings.chunk_size,
            ranks=ranks,
        )
        self.share, self.network = None, self.model
        if ranks.world_size > 1:
            self.share = share_batch(self.batch_size, ranks=ranks, chunk_size=settings.chunk_size)
            self.network = SharedSimCLR(self.model, ranks)
        self.optimiser = build_optimiser(
            self.model, lr=settings.lr, weight_decay=settings.weight_decay, name=settings.optimiser
        )
        n_warmup = int(settings.warmup_fraction * self.n_steps)
        self.schedule = warmup_cosine(self.optimiser, n_steps=self.n_steps, n_warmup=n_warmup)
        mean, std = normalisation(encoder)
        self.augment = Augment(settings.augmentation, image_size=settings.image_size, mean=mean, std=std)
        self.order, self.views = torch_generator(settings.seed, 0), torch_generator(settings.seed, 1)

    @property
    def parts(self) -> dict[str, Stateful]:
        """All that a checkpoint must hold."""
        return {
            "model": self.model,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "order": GeneratorState(self.order),
            "views": GeneratorState(self.views),
        }

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the pool; its log row."""
        batches = draw_batches(
            len(self.pool), n_batches=self.n_batches, batch_size=self.batch_size, generator=self.order
        )
        whole, in_model = Stopwatch(self.device), Stopwatch(self.device)
        with whole:
            measured = torch.stack([self.train_batch(batch, in_model) for batch in batches])
        row = dict(zip(STEP_MEASURES, measured.mean(0).tolist(), strict=True))
        row |= self.pool.rates(batches)
        row["images_per_s"] = batches.numel() / whole.seconds
        row["share_outside_model"] = 1 - in_model.seconds / whole.seconds
        look = (epoch + 1) % LOOK_EVERY == 0 or epoch + 1 == self.settings.n_epochs
        return row | (self.look() if look and self.ranks.is_first else {})

    def train_batch(self, batch: Tensor, in_model: Stopwatch) -> Tensor:
        """One optimiser step on the pool's images at these positions; see `contrast_step`."""
        images, kept = self.pool.images[batch].to(self.device), self.share.images if self.share else (None, None)
        view_a, view_b = two_views(images, self.augment, self.views, kept=kept)
        masked = None if self.settings.same_patient_negatives else self.pool.same_patient(batch).to(self.device)
        with in_model:
            return contrast_step(
                self.network,
                self.optimiser,
                self.schedule,
                view_a,
                view_b,
                temperature=self.settings.temperature,
                not_negatives=masked,
                chunk_size=self.settings.chunk_size,
                share=self.share,
            )

    def look(self) -> dict[str, float]:
        """How the features h do on the validation patients, who are not in the pool; no weight is changed."""
        features, held_out = (self.encode(rows) for rows in (self.rows, self.held_out))
        labelled = features, self.strata[self.rows], held_out, self.strata[self.held_out]
        return {
            "feature_spread": feature_spread(torch.from_numpy(held_out)).item(),
            "effective_rank": effective_rank(torch.from_numpy(held_out)).item(),
            "knn_macro_f1": knn_macro_f1(*labelled),
            "probe_macro_f1": probe_macro_f1(*labelled),
        }

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Features h of the data set's images at these positions, shape (n_images, n_features)."""
        return extract_features(
            self.model.encoder, self.images[rows], image_size=self.settings.image_size, device=self.device
        )

    def facts(self) -> dict:
        """Counts for the run's record."""
        return self.pool.facts() | {
            "batch_size": self.batch_size,
            "optimiser_steps": self.n_steps,
            "views_seen": 2 * self.n_steps * self.batch_size,
            "world_size": self.ranks.world_size,
        }


def strata(metadata: pd.DataFrame) -> np.ndarray:
    """Plane and brain plane of each image together, shape (n_rows,): labels that only the log ever sees."""
    return (metadata["plane"] + "/" + metadata["brain_plane"]).to_numpy(str)
