"""SimCLR: an encoder learns, without labels, to recognise two views of one image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fetal_utils.augmentations import check_preset
from fetal_utils.batches import draw_batches
from fetal_utils.command_line import UsageError, add_parameters, check_type, parse_value
from fetal_utils.contrast import STEP_MEASURES, SimCLR, contrast_step
from fetal_utils.dataset import Dataset, open_dataset
from fetal_utils.diagnostics import effective_rank, feature_spread, knn_macro_f1
from fetal_utils.encoders import InitialWeights, extract_features, initial_weights
from fetal_utils.environment import torch_generator
from fetal_utils.epochs import GeneratorState, Stateful, run_epochs
from fetal_utils.images import ImageFormat
from fetal_utils.models import OFFLINE_BACKBONE, build_encoder, normalisation
from fetal_utils.optimisers import build_optimiser, check_optimisation, warmup_cosine
from fetal_utils.runs import RunsFailedError, RunStore, Work
from fetal_utils.settings import Settings
from fetal_utils.transforms import Augment, two_views
from fetal_utils.weights import save_weights

ALL_PLANES = "all"
LOOK_EVERY = 4  # epochs between looks at the held-out patients; a look costs a sixth of an epoch


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
        self.start.check(dataset)
        ImageFormat(self.image_size)
        check_preset(self.augmentation)
        check_optimisation(lr=self.lr, weight_decay=self.weight_decay, warmup_fraction=self.warmup_fraction)
        whole_numbers_fit = self.n_epochs >= 1 and self.batch_size >= 2 and self.projection_dim >= 1 and self.seed >= 0
        if not (whole_numbers_fit and self.temperature > 0):
            raise ValueError(
                f"n_epochs={self.n_epochs}, batch_size={self.batch_size}, temperature={self.temperature}, "
                f"projection_dim={self.projection_dim}, seed={self.seed}: expected at least 1 epoch, 2 images, "
                "1 dimension, a temperature above 0, and a seed of 0 or more"
            )
        if len(self.pool_rows(dataset)) < 2:
            raise ValueError(f"pool={self.pool!r} has fewer than two training images to contrast")

    def compute(self, work: Work) -> None:
        pretraining = Pretraining(self, work)
        run_epochs(
            work,
            pretraining.train_epoch,
            n_epochs=self.n_epochs,
            parts=pretraining.parts,
            desc=f"SimCLR from {self.start.init}",
        )
        save_weights(pretraining.model.encoder, work.folder / "weights.safetensors")
        work.facts |= pretraining.facts()


class Pretraining:
    """A pretraining under way: the images it learns from and all that its steps change.

    Parameters
    ----------
    settings : Pretrain
    work : Work
    """

    def __init__(self, settings: Pretrain, work: Work) -> None:
        self.settings, self.device = settings, work.device
        self.rows = rows = settings.pool_rows(work.dataset)
        self.held_out = work.dataset.rows("val")
        # plane and brain plane together: labels that only the log's nearest neighbours ever see
        self.strata = (work.dataset.metadata["plane"] + "/" + work.dataset.metadata["brain_plane"]).to_numpy(str)
        self.images = work.dataset.images(settings.image_size, progress=work.store.progress)
        self.pool = torch.from_numpy(self.images[rows])  # (n_images, image_size, image_size), a copy in memory
        self.n_patients = int(work.dataset.metadata["patient"].iloc[rows].nunique())
        self.batch_size = min(settings.batch_size, len(rows))
        self.n_batches = len(rows) // self.batch_size  # of an epoch
        self.n_steps = settings.n_epochs * self.n_batches
        encoder = settings.start.encoder(work.store)
        self.model = SimCLR(encoder, projection_dim=settings.projection_dim, seed=settings.seed)
        self.model.to(work.device, memory_format=torch.channels_last)
        self.optimiser = build_optimiser(self.model, lr=settings.lr, weight_decay=settings.weight_decay)
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
        means = torch.stack([self.train_batch(batch) for batch in batches]).mean(0).tolist()
        look = (epoch + 1) % LOOK_EVERY == 0 or epoch + 1 == self.settings.n_epochs
        return dict(zip(STEP_MEASURES, means, strict=True)) | (self.look() if look else {})

    def look(self) -> dict[str, float]:
        """How the features h do on the validation patients, who are not in the pool; no weight is changed."""
        pool, held_out = (self.encode(rows) for rows in (self.rows, self.held_out))
        return {
            "feature_spread": feature_spread(torch.from_numpy(held_out)).item(),
            "effective_rank": effective_rank(torch.from_numpy(held_out)).item(),
            "knn_macro_f1": knn_macro_f1(pool, self.strata[self.rows], held_out, self.strata[self.held_out]),
        }

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Features h of the data set's images at these positions, shape (n_images, n_features)."""
        return extract_features(
            self.model.encoder, self.images[rows], image_size=self.settings.image_size, device=self.device
        )

    def train_batch(self, batch: Tensor) -> Tensor:
        """One optimiser step on the pool's images at these positions; see `contrast_step`."""
        images = self.pool[batch].to(self.device, non_blocking=True)
        view_a, view_b = two_views(images, self.augment, self.views)
        measured = contrast_step(self.model, self.optimiser, view_a, view_b, temperature=self.settings.temperature)
        self.schedule.step()
        return measured

    def facts(self) -> dict:
        """Counts for the run's record."""
        return {
            "n_images": len(self.pool),
            "n_patients": self.n_patients,
            "batch_size": self.batch_size,
            "optimiser_steps": self.n_steps,
            "views_seen": 2 * self.n_steps * self.batch_size,
        }


def settings_from(given: Mapping[str, object]) -> Pretrain:
    """A pretraining's settings from values by name; what is not given has its default.

    Raises
    ------
    ValueError
        If a name is no setting or a value has another type.
    """
    start = {"backbone": OFFLINE_BACKBONE, "init": "imagenet"}
    defaults = start | {entry.name: entry.default for entry in fields(Pretrain) if entry.name != "start"}
    if unknown := sorted(set(given) - set(defaults)):
        raise UsageError(f"-p: {unknown} are no settings of a pretraining; known are {sorted(defaults)}")
    values = {name: check_type(name, value, defaults[name]) for name, value in given.items()}
    start |= {name: values.pop(name) for name in start if name in values}
    return Pretrain(start=initial_weights(**start, seed=values.get("seed", 0)), **values)


def main(arguments: list[str] | None = None) -> int:
    """One pretraining from the command line; prints the run's folder last. 0 if it is there, 1 if it failed, 2 if
    it can't be run."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.simclr", description=__doc__)
    parser.add_argument("--data-dir", default="", help="folder with Images/ and the CSV; default: the phantom")
    parser.add_argument("--results-dir", default="results/demo", help="the run lies in its runs/simclr")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    add_parameters(parser, help="a setting of Pretrain, or backbone or init; may be repeated")
    options = parser.parse_args(arguments)
    try:
        settings = settings_from({name: parse_value(value) for name, value in options.parameters})
        data_dir = Path(options.data_dir).resolve() if options.data_dir else ""
        results_dir = Path(options.results_dir).resolve()
        dataset = open_dataset(data_dir, results_dir=results_dir)
        settings.check(dataset)
        dataset.images(settings.image_size)  # a broken image is found now
        store = RunStore(results_dir, dataset, device=options.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        (run,) = store.get([settings])
    except RunsFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(run.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
