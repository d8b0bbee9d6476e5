"""Supervised training on the labels of a run: a linear probe of fixed features, or fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fetal_utils.augmentations import check_preset
from fetal_utils.batches import draw_batches
from fetal_utils.dataset import Dataset
from fetal_utils.encoders import EncoderSource, Features, extract_features
from fetal_utils.environment import torch_generator
from fetal_utils.epochs import Best, GeneratorState, Stateful, run_epochs
from fetal_utils.files import replace_file
from fetal_utils.images import ImageFormat
from fetal_utils.models import Classifier, normalisation
from fetal_utils.optimisers import build_optimiser, check_optimisation, descend, train_output, warmup_cosine
from fetal_utils.probes import choose_probe
from fetal_utils.runs import Work
from fetal_utils.supervised import LabelledData, Supervised
from fetal_utils.transforms import Augment
from fetal_utils.weights import save_weights


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Supervised):
    """Multinomial logistic regression on an encoder's fixed features.

    The features are standardised with the labelled images' own mean and deviation; of
    `fetal_utils.probes.PROBE_STRENGTHS` the one with the highest macro-F1 on the validation patients is taken.

    Attributes
    ----------
    features : Features
    """

    kind: ClassVar[str] = "linear_probe"
    protocol: ClassVar[str] = "linear_probe"
    features: Features

    def compute(self, work: Work) -> None:
        data = LabelledData(work.dataset, self)
        features = self.features.load(work.store)
        probe, log = choose_probe(features, data)
        replace_file(work.folder / "log.csv", lambda path: log.to_csv(path, index=False))
        data.write_predictions(work, probe.predict_proba(features[data.test]))
        work.facts |= data.facts() | {
            "inverse_regularisation": probe[-1].C,
            "val_macro_f1": log["val_macro_f1"].max(),
        }


@dataclass(frozen=True, kw_only=True)
class FineTune(Supervised):
    """All weights of an encoder and a linear classifier, trained on the labelled images.

    A budget of optimiser steps, not of epochs, so that few labels do not mean less training.
    The weights with the best macro-F1 on the validation patients are kept.

    Attributes
    ----------
    source : EncoderSource
        Where the encoder starts from.
    image_size : int
        px.
    n_steps : int
        Optimiser steps.
    n_evaluations : int
        How often the validation patients are looked at; an "epoch" of the log is one of these.
    batch_size : int
    lr, weight_decay, warmup_fraction : float
        As for `Pretrain`.
    augmentation : str
        A preset of `fetal_utils.transforms`.
    """

    kind: ClassVar[str] = "fine_tune"
    protocol: ClassVar[str] = "fine_tune"
    source: EncoderSource
    image_size: int = 96
    n_steps: int = 200
    n_evaluations: int = 10
    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 1e-2
    warmup_fraction: float = 0.1
    augmentation: str = "weak"

    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        self.source.check(dataset)
        ImageFormat(self.image_size)
        check_preset(self.augmentation)
        check_optimisation(lr=self.lr, weight_decay=self.weight_decay, warmup_fraction=self.warmup_fraction)
        if not 1 <= self.n_evaluations <= self.n_steps or self.batch_size < 2:
            raise ValueError(
                f"n_steps={self.n_steps}, n_evaluations={self.n_evaluations}, batch_size={self.batch_size}: "
                "expected at least one step for each evaluation, and 2 images in a batch"
            )

    def compute(self, work: Work) -> None:
        tuning = FineTuning(self, work)
        run_epochs(
            work,
            tuning.train_epoch,
            n_epochs=self.n_evaluations,
            parts=tuning.parts,
            desc=f"fine-tuning {self.strategy}",
        )
        tuning.best.restore()
        save_weights(tuning.model, work.folder / "weights.safetensors")
        tuning.data.write_predictions(work, softmax(tuning.logits(tuning.data.test)))
        work.facts |= tuning.facts()


class FineTuning:
    """A fine-tuning under way: the images it sees and all that its steps change.

    Parameters
    ----------
    settings : FineTune
    work : Work
    """

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
        self.optimiser = build_optimiser(self.model, lr=settings.lr, weight_decay=settings.weight_decay)
        n_warmup = int(settings.warmup_fraction * settings.n_steps)
        self.schedule = warmup_cosine(self.optimiser, n_steps=settings.n_steps, n_warmup=n_warmup)
        mean, std = normalisation(encoder)
        self.augment = Augment(settings.augmentation, image_size=settings.image_size, mean=mean, std=std)
        self.order, self.views = torch_generator(settings.seed, 2), torch_generator(settings.seed, 3)
        self.best = Best(self.model)

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
        batches = draw_batches(
            len(self.data.train), n_batches=n_batches, batch_size=self.settings.batch_size, generator=self.order
        )
        losses = torch.stack([self.train_batch(batch) for batch in batches])
        return {"train_loss": losses.mean().item(), **self.validate(epoch)}

    def train_batch(self, batch: Tensor) -> Tensor:
        """One optimiser step on the labelled images at these positions; the loss, shape ()."""
        images = self.augment(self.train_images[batch].to(self.device), self.views)
        labels = self.labels[self.data.train[batch]].to(self.device)
        logits = train_output(self.model, images).float()
        loss = nn.functional.cross_entropy(logits, labels, weight=self.class_weights)
        descend(self.model, self.optimiser, self.schedule, loss)
        return loss.detach()

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


def steps_of_epochs(n_steps: int, n_evaluations: int) -> list[int]:
    """Optimiser steps before each evaluation, as even as whole numbers allow; they sum to ``n_steps``."""
    return np.diff(np.linspace(0, n_steps, n_evaluations + 1).astype(int)).tolist()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities, in float64 so that a row sums to 1; same shape."""
    return torch.from_numpy(logits).double().softmax(1).numpy()
