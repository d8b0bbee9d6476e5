"""Supervised training on the labels of a run: a linear probe of fixed features, or fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from fetal_utils.batches import draw_batches
from fetal_utils.dataset import Dataset
from fetal_utils.encoders import EncoderSource, Features, extract_features
from fetal_utils.environment import torch_generator
from fetal_utils.epochs import Best, GeneratorState, replace_file, run_epochs
from fetal_utils.images import ImageFormat
from fetal_utils.models import Classifier, normalisation, save_weights
from fetal_utils.optimisers import build_optimiser, warmup_cosine
from fetal_utils.runs import Work
from fetal_utils.supervised import LabelledData, Supervised
from fetal_utils.transforms import Augment

# Inverse regularisation strengths that a probe's validation patients choose from.
PROBE_STRENGTHS = tuple(np.logspace(-4, 1, 6).tolist())


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Supervised):
    """Multinomial logistic regression on an encoder's fixed features.

    The features are standardised with the labelled images' own mean and deviation; of
    `PROBE_STRENGTHS` the one with the highest macro-F1 on the validation patients is taken.

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


def choose_probe(features: np.ndarray, data: LabelledData) -> tuple[Pipeline, pd.DataFrame]:
    """Fit a probe for each of `PROBE_STRENGTHS` and keep the best on the validation patients.

    Parameters
    ----------
    features : ndarray, shape (n_rows, n_features)
        Of every image of the data set.
    data : LabelledData

    Returns
    -------
    probe : Pipeline
        The strongest regularisation among equals.
    log : DataFrame
        Columns ``inverse_regularisation, val_macro_f1``.
    """
    probes = [fit_probe(features[data.train], data.labels[data.train], strength=c) for c in PROBE_STRENGTHS]
    scores = [data.macro_f1(data.val, probe.predict(features[data.val])) for probe in probes]
    log = pd.DataFrame({"inverse_regularisation": PROBE_STRENGTHS, "val_macro_f1": scores})
    return probes[int(np.argmax(scores))], log


def fit_probe(features: np.ndarray, labels: np.ndarray, *, strength: float) -> Pipeline:
    """Standardisation and balanced multinomial logistic regression.

    Parameters
    ----------
    features : ndarray, shape (n_images, n_features)
    labels : ndarray of int, shape (n_images,)
    strength : float
        Inverse regularisation, scikit-learn's ``C``.

    Returns
    -------
    Pipeline
    """
    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
    with threadpool_limits(1):  # matrices this small are slower on several threads
        return make_pipeline(StandardScaler(), regression).fit(features, labels)


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
        ImageFormat(self.image_size)
        if not 1 <= self.n_evaluations <= self.n_steps or self.batch_size < 2 or self.lr <= 0:
            raise ValueError(
                f"n_steps={self.n_steps}, n_evaluations={self.n_evaluations}, batch_size={self.batch_size}, "
                f"lr={self.lr}: expected at least one step for each evaluation, 2 images and a rate above 0"
            )

    def compute(self, work: Work) -> None:
        data = LabelledData(work.dataset, self)
        images = work.dataset.images(self.image_size, progress=work.store.progress)
        model = Classifier(self.source.encoder(work.store), len(data.task.classes), seed=self.seed)
        model.to(work.device, memory_format=torch.channels_last)
        optimiser = build_optimiser(model, lr=self.lr, weight_decay=self.weight_decay)
        steps = np.diff(np.linspace(0, self.n_steps, self.n_evaluations + 1).astype(int))
        n_warmup = int(self.warmup_fraction * self.n_steps)
        schedule = warmup_cosine(optimiser, n_steps=self.n_steps, n_warmup=n_warmup)
        mean, std = normalisation(model.encoder)
        augment = Augment(self.augmentation, image_size=self.image_size, mean=mean, std=std)
        order, views = torch_generator(self.seed, 2), torch_generator(self.seed, 3)
        train_images = torch.from_numpy(images[data.train])
        train_labels = torch.from_numpy(data.labels[data.train])
        weights = torch.from_numpy(data.class_weights).float().to(work.device)
        best = Best(model)

        def predict(rows: np.ndarray) -> np.ndarray:
            return extract_features(
                model, images[rows], image_size=self.image_size, device=work.device, encoder=model.encoder
            )

        def train_epoch(epoch: int) -> dict:
            batches = draw_batches(
                len(data.train), n_batches=int(steps[epoch]), batch_size=self.batch_size, generator=order
            )
            losses = []
            for batch in batches:
                inputs = augment(train_images[batch].to(work.device), views)
                labels = train_labels[batch].to(work.device)
                losses.append(train_step(model, optimiser, inputs, labels, class_weights=weights))
                schedule.step()
            val_logits = predict(data.val)
            macro_f1 = data.macro_f1(data.val, val_logits.argmax(1))
            best.update(macro_f1, epoch)
            val_loss = nn.functional.cross_entropy(
                torch.from_numpy(val_logits), torch.from_numpy(data.labels[data.val]), weight=weights.cpu()
            )
            return {
                "train_loss": torch.stack(losses).mean().item(),
                "val_loss": val_loss.item(),
                "val_macro_f1": macro_f1,
            }

        parts = {
            "model": model,
            "optimiser": optimiser,
            "schedule": schedule,
            "best": best,
            "order": GeneratorState(order),
            "views": GeneratorState(views),
        }
        run_epochs(work, train_epoch, n_epochs=self.n_evaluations, parts=parts, desc=f"fine-tuning {self.strategy}")
        best.restore()
        save_weights(model, work.folder / "weights.safetensors")
        data.write_predictions(work, softmax(predict(data.test)))
        batch_size = min(self.batch_size, len(data.train))
        work.facts |= data.facts() | {
            "batch_size": batch_size,
            "optimiser_steps": self.n_steps,
            "views_seen": self.n_steps * batch_size,
            "best_epoch": best.epoch + 1,
            "val_macro_f1": best.score,
        }


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor,
) -> Tensor:
    """One optimiser step of weighted cross-entropy.

    Parameters
    ----------
    model : Module
    optimiser : Optimizer
    images : Tensor, shape (n_images, 1, image_size, image_size)
    labels : Tensor of int64, shape (n_images,)
    class_weights : Tensor, shape (n_classes,)

    Returns
    -------
    Tensor, shape ()
        The loss in nats, detached.
    """
    model.train()
    device = images.device
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu"):
        logits = model(images)
    loss = nn.functional.cross_entropy(logits.float(), labels, weight=class_weights)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimiser.step()
    return loss.detach()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities, in float64 so that a row sums to 1; same shape."""
    return torch.from_numpy(logits).double().softmax(1).numpy()
