"""A fine-tuning under way: what it learns from, its steps, and what its log says of each evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fetal_utils.batches import draw_batches
from fetal_utils.encoders import extract_features
from fetal_utils.environment import torch_generator
from fetal_utils.epochs import Best, GeneratorState, Stateful
from fetal_utils.models import Classifier, normalisation
from fetal_utils.optimisers import build_optimiser, descend, train_output, warmup_cosine
from fetal_utils.runs import Work
from fetal_utils.supervised import LabelledData
from fetal_utils.transforms import Augment

if TYPE_CHECKING:  # at run time `training` reads this module, not the other way round
    from fetal_utils.training import FineTune


class FineTuning:
    """The images that a fine-tuning sees and all that its steps change.

    Parameters
    ----------
    settings : FineTune
    work : Work
    """

    measures: tuple[str, ...] = ("train_loss",)  # of a step, in the log as their means

    def __init__(self, settings: FineTune, work: Work) -> None:
        self.settings, self.device = settings, work.device
        self.data = LabelledData(work.dataset, settings)
        self.images = work.dataset.images(settings.image_size, progress=work.store.progress)
        self.train_images = torch.from_numpy(self.images[self.data.train])  # a copy in memory
        self.labels = torch.from_numpy(self.data.labels)
        self.class_weights = torch.from_numpy(self.data.class_weights).float().to(work.device)
        encoder = settings.source.encoder(work.store)
        self.model = Classifier(encoder, len(self.data.task.classes), seed=settings.seed)
        self.model.to(work.device, memory_format=torch.channels_last)
        self.set_optimiser(self.model)
        mean, std = normalisation(encoder)
        self.augment = Augment(settings.augmentation, image_size=settings.image_size, mean=mean, std=std)
        self.order, self.views = torch_generator(settings.seed, 2), torch_generator(settings.seed, 3)
        self.best = Best(self.model)

    def set_optimiser(self, module: nn.Module) -> None:
        """Optimiser and schedule for a module that holds the classifier, and maybe more."""
        settings = self.settings
        self.optimiser = build_optimiser(
            module,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            head=self.model.head,
            head_lr_factor=settings.head_lr_factor,
        )
        n_warmup = int(settings.warmup_fraction * settings.n_steps)
        self.schedule = warmup_cosine(self.optimiser, n_steps=settings.n_steps, n_warmup=n_warmup)

    @property
    def parts(self) -> dict[str, Stateful]:
        """All that a checkpoint must hold."""
        return {
            "model": self.model,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "best": self.best,
            "order": GeneratorState(self.order),
            "views": GeneratorState(self.views),
        }

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """The steps up to an evaluation, and the evaluation; their log row."""
        n_batches = steps_of_epochs(self.settings.n_steps, self.settings.n_evaluations)[epoch]
        measured = torch.stack([self.train_batch(*batches) for batches in self.draw(n_batches)])
        return dict(zip(self.measures, measured.mean(0).tolist(), strict=True)) | self.validate(epoch)

    def draw(self, n_batches: int) -> Iterable[tuple[Tensor, ...]]:
        """What `train_batch` is given in each step: positions of labelled images, shape (batch_size,)."""
        batches = draw_batches(
            len(self.data.train), n_batches=n_batches, batch_size=self.settings.batch_size, generator=self.order
        )
        return zip(batches, strict=True)

    def train_batch(self, batch: Tensor) -> Tensor:
        """One optimiser step on the labelled images at these positions; its measures, shape (1,)."""
        loss = classification_loss(self.model, *self.labelled(batch), class_weights=self.class_weights)
        descend(self.model, self.optimiser, self.schedule, loss)
        return loss.detach()[None]

    def labelled(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Views, (n, 1, image_size, image_size), and labels, (n,), of the labelled images at these positions."""
        images = self.augment(self.train_images[batch].to(self.device), self.views)
        return images, self.labels[self.data.train[batch]].to(self.device)

    def validate(self, epoch: int) -> dict[str, float]:
        """Loss and macro-F1 on the validation patients; the best weights so far are kept."""
        rows = self.data.val
        logits = self.logits(rows)
        macro_f1 = self.data.macro_f1(rows, logits.argmax(1))
        self.best.update(macro_f1, epoch)
        loss = nn.functional.cross_entropy(torch.from_numpy(logits), self.labels[rows], weight=self.class_weights.cpu())
        return {"val_loss": loss.item(), "val_macro_f1": macro_f1}

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """The classifier's output for rows of the data set, float32, shape (n_rows, n_classes)."""
        return extract_features(
            self.model,
            self.images[rows],
            image_size=self.settings.image_size,
            device=self.device,
            encoder=self.model.encoder,
        )

    def facts(self) -> dict:
        """Counts and choices for the run's record."""
        batch_size = min(self.settings.batch_size, len(self.data.train))
        return self.data.facts() | {
            "batch_size": batch_size,
            "optimiser_steps": self.settings.n_steps,
            "views_seen": self.settings.n_steps * batch_size,
            "best_epoch": self.best.epoch + 1,
            "val_macro_f1": self.best.score,
        }


def classification_loss(model: Classifier, images: Tensor, labels: Tensor, *, class_weights: Tensor) -> Tensor:
    """Class-weighted cross-entropy in training mode, shape (); see `LabelledData.class_weights`.

    Parameters
    ----------
    model : Classifier
    images : Tensor, shape (n_images, 1, image_size, image_size)
    labels : Tensor of int64, shape (n_images,)
    class_weights : Tensor, shape (n_classes,)
    """
    return nn.functional.cross_entropy(train_output(model, images).float(), labels, weight=class_weights)


def steps_of_epochs(n_steps: int, n_evaluations: int) -> list[int]:
    """Optimiser steps before each evaluation, as even as whole numbers allow; they sum to ``n_steps``."""
    return np.diff(np.linspace(0, n_steps, n_evaluations + 1).astype(int)).tolist()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities, in float64 so that a row sums to 1; same shape."""
    return torch.from_numpy(logits).double().softmax(1).numpy()
