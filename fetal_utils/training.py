"""Supervised training on the labels of a run: a linear probe of fixed features, or fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fetal_utils.augmentations import check_preset
from fetal_utils.budgets import Budget
from fetal_utils.dataset import Dataset
from fetal_utils.encoders import EncoderSource, Features
from fetal_utils.epochs import run_epochs
from fetal_utils.files import replace_file
from fetal_utils.fine_tuning import FineTuning, softmax
from fetal_utils.images import ImageFormat
from fetal_utils.models import Classifier, build_encoder
from fetal_utils.optimisers import check_optimisation
from fetal_utils.probes import choose_probe
from fetal_utils.runs import RunStore, Work
from fetal_utils.supervised import LabelledData, Supervised
from fetal_utils.trained import describe_encoder
from fetal_utils.weights import load_weights, save_weights


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
    head_lr_factor : float
        Rate of the classifier's linear layer over that of the encoder, > 0.
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
    head_lr_factor: float = 1.0
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
        if not 0 < self.head_lr_factor < math.inf:
            raise ValueError(f"head_lr_factor={self.head_lr_factor}: expected more than 0; 1 is one rate for all")

    @property
    def backbone(self) -> str:
        return self.source.backbone

    def classifier(self, store: RunStore) -> Classifier:
        """The trained network, from a finished run, on the CPU."""
        run = store.open(self)
        encoder = build_encoder(self.backbone, init="random", seed=0)
        classifier = Classifier(encoder, len(run.record["facts"]["classes"]), seed=0)
        load_weights(classifier, run.weights)
        return classifier

    def encoder(self, store: RunStore) -> nn.Module:
        """The trained encoder without its classifier, so that its features can be looked at."""
        return self.classifier(store).encoder

    def budget(self, dataset: Dataset) -> Budget:
        data = LabelledData(dataset, self)
        return Budget(
            backbone=self.backbone,
            image_size=self.image_size,
            optimiser_steps=self.n_steps,
            views_seen=self.n_steps * min(self.batch_size, len(data.train)),
            images_encoded=self.n_evaluations * len(data.val) + len(data.test),
        )

    def begin(self, work: Work) -> FineTuning:
        """The training under way that these settings ask for."""
        return FineTuning(self, work)

    def compute(self, work: Work) -> None:
        tuning = self.begin(work)
        run_epochs(
            work,
            tuning.train_epoch,
            n_epochs=self.n_evaluations,
            parts=tuning.parts,
            desc=f"fine-tuning {self.strategy}",
        )
        tuning.best.restore()
        encoder = tuning.model.encoder
        about = describe_encoder(encoder, work.dataset, backbone=self.backbone, image_size=self.image_size)
        about |= {"classes": list(tuning.data.task.classes)}
        save_weights(tuning.model, work.folder / "weights.safetensors", about=about)
        tuning.data.write_predictions(work, softmax(tuning.logits(tuning.data.test)))
        work.facts |= tuning.facts()
