"""SimCLR: an encoder learns, without labels, to recognise two views of one image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from fetal_utils.augmentations import check_preset
from fetal_utils.budgets import Budget
from fetal_utils.command_line import UsageError, add_parameters, check_type, parse_value
from fetal_utils.dataset import Dataset, open_dataset
from fetal_utils.encoders import InitialWeights, initial_weights
from fetal_utils.epochs import run_epochs
from fetal_utils.following import compute_together
from fetal_utils.images import ImageFormat
from fetal_utils.models import OFFLINE_BACKBONE, ProjectionHead, build_encoder
from fetal_utils.optimisers import check_optimisation, check_optimiser
from fetal_utils.pretraining import LOOK_EVERY, Pretraining
from fetal_utils.ranks import ALONE, LostProcessError, Ranks, current_ranks, meet
from fetal_utils.runs import RunsFailedError, RunStore, Work
from fetal_utils.settings import Settings
from fetal_utils.shares import share_batch
from fetal_utils.trained import describe_encoder
from fetal_utils.unlabelled import UnlabelledImages, open_unlabelled
from fetal_utils.weights import load_weights, read_weights, save_weights

ALL_PLANES = "all"
HEAD_FILE = "projection_head.safetensors"


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
        Of the optimiser; the rate is reached after ``warmup_fraction`` of the steps, then falls as a cosine.
    warmup_fraction : float
    optimiser : str
        "adamw", "sgd" or "lars"; each wants its own ``lr``, see `build_optimiser`.
    temperature : float
        Of NT-Xent.
    projection_dim : int
        Width of the projections z.
    augmentation : str
        A preset of `fetal_utils.augmentations`, see `check_preset`.
    same_patient_negatives : bool
        Whether other images of a patient count as negatives, as in the paper; else they are masked.
    chunk_size : int
        Views that the encoder takes at a time, for batches that memory can't hold; 0: all, see `contrast_step`.
    extra_images : UnlabelledImages, optional
        A folder of further images to learn from.
    seed : int
        Decides order, views and the projection head's first weights.

    References
    ----------
    Chen et al. 2020, arXiv:2002.05709. The paper trains batches of 256 to 8,192 with LARS; for a
    data set of thousands AdamW at 4e-3 and a batch of 128 reach a good encoder in less time. Both, and the
    temperature, were chosen on validation patients of real images, see `fetal_utils.trials`.
    """

    kind: ClassVar[str] = "simclr"
    start: InitialWeights
    pool: str = ALL_PLANES
    image_size: int = 96
    n_epochs: int = 40
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.1
    optimiser: str = "adamw"
    temperature: float = 0.2
    projection_dim: int = 128
    augmentation: str = "ultrasound"
    same_patient_negatives: bool = True
    chunk_size: int = 0
    extra_images: UnlabelledImages | None = None
    seed: int = 0

    @property
    def backbone(self) -> str:
        return self.start.backbone

    def encoder(self, store: RunStore) -> nn.Module:
        """The pretrained network, from a finished run."""
        return build_encoder(self.backbone, init=store.open(self).weights)

    def projection_head(self, store: RunStore) -> ProjectionHead:
        """The head that this run trained with the encoder: features h to projections z, to look at. What learns from
        labels takes h.

        Raises
        ------
        FileNotFoundError
            If the run was made before heads were kept; delete its folder to make it again.
        """
        weights = read_weights(store.open(self).folder / HEAD_FILE)
        hidden_dim, n_features = weights["0.weight"].shape
        head = ProjectionHead(n_features, hidden_dim=hidden_dim, projection_dim=self.projection_dim, seed=0)
        load_weights(head, store.open(self).folder / HEAD_FILE)
        return head.eval()

    def pool_rows(self, dataset: Dataset) -> np.ndarray:
        """Positions of the images to learn from: training patients, neither val nor test."""
        return dataset.rows("train", None if self.pool == ALL_PLANES else dataset.task(self.pool))

    def check(self, dataset: Dataset) -> None:
        self.start.check(dataset)
        ImageFormat(self.image_size)
        check_preset(self.augmentation)
        check_optimiser(self.optimiser)
        check_optimisation(lr=self.lr, weight_decay=self.weight_decay, warmup_fraction=self.warmup_fraction)
        whole_numbers_fit = self.n_epochs >= 1 and self.batch_size >= 2 and self.projection_dim >= 1 and self.seed >= 0
        if not (whole_numbers_fit and self.temperature > 0):
            raise ValueError(
                f"n_epochs={self.n_epochs}, batch_size={self.batch_size}, temperature={self.temperature}, "
                f"projection_dim={self.projection_dim}, seed={self.seed}: expected at least 1 epoch, 2 images, "
                "1 dimension, a temperature above 0, and a seed of 0 or more"
            )
        if self.chunk_size < 0 or self.chunk_size == 1:
            raise ValueError(f"chunk_size={self.chunk_size}: expected 2 views or more, or 0 for the whole batch")
        if self.extra_images:
            self.extra_images.check()
        if len(self.pool_rows(dataset)) < 2:
            raise ValueError(f"pool={self.pool!r} has fewer than two training images to contrast")

    def budget(self, dataset: Dataset) -> Budget:
        n_images = self.n_pool_images(dataset)
        batch_size = min(self.batch_size, n_images)
        n_steps = self.n_epochs * (n_images // batch_size)  # whole batches only
        n_looks = -(-self.n_epochs // LOOK_EVERY)
        n_looked_at = len(self.pool_rows(dataset)) + len(dataset.rows("val"))
        return Budget(
            backbone=self.backbone,
            image_size=self.image_size,
            optimiser_steps=n_steps,
            views_seen=2 * n_steps * batch_size,
            images_encoded=n_looks * n_looked_at,
        )

    def n_pool_images(self, dataset: Dataset) -> int:
        """Images to learn from, those of a further folder included; looked at, as held-out patients' don't count."""
        n_images = len(self.pool_rows(dataset))
        if self.extra_images:
            n_images += len(self.extra_images.images(dataset, self.image_size, progress=False)[0])
        return n_images

    def compute(self, work: Work) -> None:
        ranks = current_ranks()
        if ranks.is_first:  # it holds the run's lock: now the others may open what there is of the run, see `follow`
            ranks.say(work.folder.stem)
        pretraining = Pretraining(self, work, ranks)
        run_epochs(
            work,
            pretraining.train_epoch,
            n_epochs=self.n_epochs,
            parts=pretraining.parts,
            desc=f"SimCLR from {self.start.init}",
        )
        ranks.wait_for_all()  # none reads here any more: the folder may get its final name
        if ranks.is_first:
            encoder = pretraining.model.encoder
            about = describe_encoder(encoder, work.dataset, backbone=self.backbone, image_size=self.image_size)
            save_weights(encoder, work.folder / "weights.safetensors", about=about)
            save_weights(pretraining.model.projection_head, work.folder / HEAD_FILE)
        work.facts |= pretraining.facts()


def settings_from(given: Mapping[str, object]) -> Pretrain:
    """A pretraining's settings from values by name; what is not given has its default.

    Raises
    ------
    ValueError
        If a name is no setting or a value has another type.
    """
    start = {"backbone": OFFLINE_BACKBONE, "init": "imagenet"}
    defaults = start | {entry.name: entry.default for entry in fields(Pretrain) if entry.name != "start"}
    defaults["extra_images"] = ""  # a folder
    if unknown := sorted(set(given) - set(defaults)):
        raise UsageError(f"-p: {unknown} are no settings of a pretraining; known are {sorted(defaults)}")
    values = {name: check_type(name, value, defaults[name]) for name, value in given.items()}
    if "extra_images" in values:
        folder = values["extra_images"]
        values["extra_images"] = open_unlabelled(Path(folder).resolve() if folder else "")
    start |= {name: values.pop(name) for name in start if name in values}
    return Pretrain(start=initial_weights(**start, seed=values.get("seed", 0)), **values)


def main(arguments: list[str] | None = None) -> int:
    """One pretraining from the command line; prints the run's folder last. 0 if it is there, 1 if it failed, 2 if
    it can't be run, 130 if interrupted. Started by torchrun, one of several processes that share every batch."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.simclr", description=__doc__)
    parser.add_argument("--data-dir", default="", help="folder with Images/ and the CSV; default: the phantom")
    parser.add_argument("--results-dir", default="results/demo", help="the run lies in its runs/simclr")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    add_parameters(parser, help="a setting of Pretrain, or backbone or init; may be repeated")
    options = parser.parse_args(arguments)
    ranks = meet()
    try:
        return pretrain(options, ranks)
    except KeyboardInterrupt as interruption:
        ranks.report(f"\n{str(interruption) or 'interrupted'}")
        return 130


def pretrain(options: argparse.Namespace, ranks: Ranks = ALONE) -> int:
    """What the command's options ask for; its exit status unless interrupted."""
    try:
        ranks.join(options.device)
        with ranks.first_one_first():  # what it draws and decodes is there for the others
            settings, store = prepare(options, ranks)
        compute_together(settings, store, ranks)
    except (ValueError, OSError) as error:
        ranks.report(f"error: {error}")
        return 2
    except (RunsFailedError, LostProcessError) as error:
        ranks.report(f"error: {error}")
        return 1
    if ranks.is_first:
        print(store.folder(settings))
    ranks.leave()
    return 0


def prepare(options: argparse.Namespace, ranks: Ranks) -> tuple[Pretrain, RunStore]:
    """The settings and the store that the command's options name, checked as far as no training is needed."""
    settings = settings_from({name: parse_value(value) for name, value in options.parameters})
    data_dir = Path(options.data_dir).resolve() if options.data_dir else ""
    results_dir = Path(options.results_dir).resolve()
    dataset = open_dataset(data_dir, results_dir=results_dir)
    settings.check(dataset)
    dataset.images(settings.image_size, progress=ranks.is_first)  # a broken image is found now
    if ranks.world_size > 1:
        batch_size = min(settings.batch_size, settings.n_pool_images(dataset))
        share_batch(batch_size, ranks=ranks, chunk_size=settings.chunk_size)
    return settings, RunStore(results_dir, dataset, device=options.device, progress=ranks.is_first)


if __name__ == "__main__":
    sys.exit(main())
