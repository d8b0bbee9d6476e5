"""Learning from the labels of a run: a linear probe of fixed features, fine-tuning, and the dual task."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from fetal_utils import models
from fetal_utils.data import Dataset, predictions_table
from fetal_utils.environment import torch_generator, write_table
from fetal_utils.epochs import run_epochs
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import Classifier, Features, InitialWeights, ProjectionHead, check_finite, mixed_precision
from fetal_utils.runs import RunStore, Settings, Work
from fetal_utils.simclr import ContrastiveViews, Pretrain, draw_batches, encode_in_chunks, keep_statistics
from fetal_utils.splits import draw_labelled_subset
from fetal_utils.transforms import Augment

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C that a probe chooses from
STRENGTH_OF_FEW, N_FOLDS = 1e-2, 3  # where a class has fewer patients than folds nothing can be chosen
N_LOG_ROWS = 8  # of a fine-tuning: how often the development patients are watched
MIN_LABELLED_BATCH = 8  # of the dual task, over whose steps the labelled views are spread: enough for BatchNorm
MEASURES = ("loss", "contrastive_loss", "gradient_norm", "contrastive_gradient_norm")  # of a step, in the log
Predict = Callable[[np.ndarray], np.ndarray]  # rows of the data set's table to probabilities, (n_rows, n_classes)


@dataclass(frozen=True)
class Labels:
    """The labels that a run may see; rows are positions in the data set's table."""

    classes: tuple[str, ...]
    train: np.ndarray  # rows of labelled images
    development: np.ndarray  # rows that are watched
    evaluated: np.ndarray  # rows that get predictions
    codes: np.ndarray  # class of every row; -1 in all others, so that a hidden label can't be read

    @property
    def class_counts(self) -> np.ndarray:
        """Labelled images of each class, shape (n_classes,)."""
        return np.bincount(self.codes[self.train], minlength=len(self.classes))

    def class_weights(self) -> Tensor:
        """n / (K n_c), float32, shape (n_classes,): a mean of 1 over the labelled images."""
        return torch.from_numpy(len(self.train) / (len(self.classes) * self.class_counts)).float()

    def development_macro_f1(self, predict: Predict) -> float:
        """Over the classes that the development images have; NaN without any image."""
        if not len(self.development):
            return math.nan
        true, predicted = self.codes[self.development], predict(self.development).argmax(1)
        return float(f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0))


@dataclass(frozen=True, kw_only=True)
class Supervised(Settings):
    """What every run on labels is asked by."""

    protocol: ClassVar[str]
    task: str  # a name in the data set's tasks
    strategy: str  # a name in `fetal_utils.strategies`: a label only
    label_fraction: float = 1.0  # of the training patients, whose labels are used
    draw: int = 0  # which order of patients labels are drawn in, the same for all tasks and strategies
    seed: int = 0  # decides order, views and the head's first weights
    evaluate_on: str = "test"  # or development: a trial, which leaves the test images alone

    def check(self, dataset: Dataset) -> None:
        if min(self.draw, self.seed) < 0 or self.evaluate_on not in ("test", "development"):
            asked = f"draw={self.draw}, seed={self.seed}, evaluate_on={self.evaluate_on!r}"
            raise ValueError(f"{asked}: expected 0 or more, and 'test' or 'development'")
        labels = self.labels(dataset)
        if len(np.unique(dataset.patients[labels.evaluated])) < 2:
            raise ValueError(f"task {self.task!r} has fewer than two {self.evaluate_on} patients")

    def labels(self, dataset: Dataset) -> Labels:
        """What the run may see."""
        task, order = dataset.task(self.task), dataset.patient_order(self.draw)
        codes, pool = dataset.labels(task), dataset.rows("train", task)
        subset = draw_labelled_subset(codes[pool], dataset.patients[pool], order=order, fraction=self.label_fraction)
        rows = pool[subset], dataset.rows("development", task), dataset.rows(self.evaluate_on, task)
        seen = np.isin(np.arange(len(codes)), np.concatenate(rows))
        return Labels(task.classes, *rows, np.where(seen, codes, -1))

    def finish(self, work: Work, labels: Labels, predict: Predict, **facts: object) -> None:
        """Write ``predictions.csv`` and count what the run has seen."""
        rows, task = labels.evaluated, work.dataset.task(self.task)
        write_table(predictions_table(work.dataset, task, rows, predict(rows)), work.folder / "predictions.csv")
        n_patients = len(np.unique(work.dataset.patients[labels.train]))
        facts |= {"n_images": len(labels.train), "n_patients": n_patients}
        facts |= {"classes": list(labels.classes), "class_counts": labels.class_counts.tolist()}
        facts["n_test_images"] = len(rows) if self.evaluate_on == "test" else 0
        work.facts |= facts | {"development_macro_f1": labels.development_macro_f1(predict)}


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Supervised):
    """Multinomial logistic regression on an encoder's fixed ``features``; ``seed`` is that of the encoder."""

    kind: ClassVar[str] = "linear_probe"
    protocol: ClassVar[str] = "linear_probe"
    features: Features

    def compute(self, work: Work) -> None:
        labels = self.labels(work.dataset)
        features = standardise(self.features.load(work.store), work.dataset.rows("train"))
        train = labels.train
        probe, log = linear_probe(features[train], labels.codes[train], work.dataset.patients[train])
        write_table(log, work.folder / "log.csv")
        counts = {"C": probe.C, "optimizer_steps": 0, "views_seen": 0}
        self.finish(work, labels, lambda rows: probe.predict_proba(features[rows]), **counts)


def standardise(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Features of mean 0 and deviation 1 over these rows, float64: *all* training images, labelled or not."""
    features = np.asarray(features, dtype=np.float64)
    deviation = features[rows].std(0)
    return (features - features[rows].mean(0)) / np.where(deviation > 1e-6, deviation, 1.0)


def linear_probe(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, strengths: tuple[float, ...] = STRENGTHS
) -> tuple[LogisticRegression, pd.DataFrame]:
    """Class-balanced logistic regression on labelled images, from `standardise`, and how its C was chosen within them.

    Three folds of whole patients predict each image once; of the ``strengths``, which rise, the smallest with the
    highest macro-F1 is taken. Where a class has fewer than three patients C is 0.01. Penalised weights lie in the span
    of the images, so the same probe is found in as many coordinates as there are images, which takes less time.
    """
    span = np.linalg.qr(features.T)[0] if len(features) < features.shape[1] else np.eye(features.shape[1])
    x, folds, scores = features @ span, None, [math.nan]
    if len(strengths) > 1 and pd.Series(patients).groupby(labels).nunique().min() < N_FOLDS:
        strengths = (STRENGTH_OF_FEW,)
    probes = [LogisticRegression(C=strength, class_weight="balanced", max_iter=1000) for strength in strengths]
    with threadpool_limits(1):  # matrices this small are slower on several threads
        if len(probes) > 1:
            folds = list(StratifiedGroupKFold(N_FOLDS).split(x, labels, patients))
            guesses = [cross_val_predict(probe, x, labels, cv=folds) for probe in probes]
            scores = [f1_score(labels, guess, average="macro", zero_division=0) for guess in guesses]
        probe = probes[int(np.argmax(scores))].fit(x, labels)
    probe.coef_, probe.n_features_in_ = probe.coef_ @ span.T, features.shape[1]
    return probe, pd.DataFrame({"C": strengths, "macro_f1": scores})


@dataclass(frozen=True, kw_only=True)
class FineTune(Supervised):
    """All weights of an encoder and a linear classifier, trained for as many labelled views at every label fraction:
    where fewer images are labelled than a step takes, some come several times in it, each time as another view."""

    kind: ClassVar[str] = "fine_tune"
    protocol: ClassVar[str] = "fine_tune"
    weights: ClassVar[tuple[str, ...]] = (models.WEIGHTS_FILE,)
    source: InitialWeights | Pretrain  # what the encoder starts from
    image_size: int = 96  # px, side of the views
    n_views: int = 12_800  # labelled views in all
    batch_size: int = 32  # of them in a step
    lr: float = 5e-4  # of AdamW, reached after the warm-up, then falls to 0 as a cosine
    weight_decay: float = 1e-2
    warmup_fraction: float = 0.1  # of the steps
    augmentation: str = "weak"  # a preset of `fetal_utils.transforms`

    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        self.source.check(dataset)
        models.check_training(self, **{"n_views of batch_size or more": self.n_views >= self.batch_size})

    @property
    def backbone(self) -> str:
        return self.source.backbone

    def steps(self, dataset: Dataset) -> tuple[int, int]:
        """Optimizer steps, and labelled views in each."""
        return math.ceil(self.n_views / self.batch_size), self.batch_size

    def cost(self, dataset: Dataset) -> dict[str, int]:
        labels = self.labels(dataset)
        n_watched = (N_LOG_ROWS + 1) * len(labels.development)
        return {"views": math.prod(self.steps(dataset)), "images": n_watched + len(labels.evaluated)}

    def classifier(self, store: RunStore) -> Classifier:
        """The trained network, from a finished run, in evaluation mode on the CPU."""
        run, encoder = store.open(self), models.build_encoder(self.backbone, init="random", seed=0)
        classifier = Classifier(encoder, len(run.record["facts"]["classes"]), seed=0)
        models.load_weights(classifier, run.weights)
        return classifier.eval()

    def encoder(self, store: RunStore) -> nn.Module:
        """The trained encoder without its classifier, so that its features can be looked at."""
        return self.classifier(store).encoder

    def compute(self, work: Work) -> None:
        fine_tune(self, work)


@dataclass(frozen=True, kw_only=True)
class DualTask(FineTune):
    """A fine-tuning whose encoder also learns, in every step, by NT-Xent on two views of images without labels, as in
    Migliorelli et al. 2024, Comput Biol Med 174:108430. Prediction normalises by labelled views alone."""

    kind: ClassVar[str] = "dual_task"
    contrast: Pretrain  # not run: its pool, epochs, batch, views, temperature and head are taken
    contrastive_weight: float = 0.1  # of NT-Xent, whose gradient on the encoder is three to five times the other's

    def check(self, dataset: Dataset) -> None:
        super().check(dataset)
        self.contrast.check(dataset)
        if not 0 <= self.contrastive_weight < math.inf:
            raise ValueError(f"contrastive_weight={self.contrastive_weight}: expected 0 or more")

    def dependencies(self) -> list[Settings]:
        return [self.source] if isinstance(self.source, Settings) else []

    def steps(self, dataset: Dataset) -> tuple[int, int]:
        n_steps, _ = self.contrast.steps(dataset)
        return n_steps, max(MIN_LABELLED_BATCH, round(self.n_views / n_steps))

    def cost(self, dataset: Dataset) -> dict[str, int]:
        contrasted = self.contrast.cost(dataset)["views"]
        return super().cost(dataset) | {"views": math.prod(self.steps(dataset)) + contrasted}


def classification_loss(logits: Tensor, labels: Tensor, *, class_weights: Tensor) -> Tensor:
    """Class-weighted cross-entropy, shape (), over the batch size: torch's mean divides by the batch's weights."""
    return F.cross_entropy(logits.float(), labels, weight=class_weights, reduction="sum") / len(labels)


def supervised_step(
    model: Classifier, optimizer: Optimizer, images: Tensor, labels: Tensor, *, class_weights: Tensor
) -> Tensor:
    """One optimizer step on labelled views, (n_images, 1, image_size, image_size); returns the loss."""
    model.train()
    with mixed_precision(images.device):
        logits = model(images)
    loss = classification_loss(logits, labels, class_weights=class_weights)
    check_finite(loss)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_grad_norm_(model.parameters(), models.MAX_GRADIENT_NORM)
    optimizer.step()
    return loss.detach()


def dual_step(
    model: Classifier,
    projection_head: ProjectionHead,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    view_a: Tensor,
    view_b: Tensor,
    *,
    class_weights: Tensor,
    contrastive_weight: float,
    temperature: float,
    not_negatives: Tensor | None = None,
    chunk_size: int = 0,
) -> Tensor:
    """One optimizer step down cross-entropy + contrastive_weight * NT-Xent, on one encoder.

    Arguments are those of `supervised_step` and `simclr_step`. Returns what `MEASURES` names: both losses without the
    weight, and the norms of the gradients that they send into the encoder, with it and before clipping.
    """
    model.train()
    projection_head.train()
    encoder = model.encoder
    with mixed_precision(images.device):
        logits = model(images)
        with keep_statistics(encoder):  # BatchNorm's running ones, by which prediction normalises
            h = encode_in_chunks(encoder, torch.cat([view_a, view_b]), chunk_size)
        z_a, z_b = projection_head(h).chunk(2)
    loss = classification_loss(logits, labels, class_weights=class_weights)
    contrastive_loss = nt_xent_loss(z_a, z_b, temperature=temperature, not_negatives=not_negatives)
    check_finite(loss + contrastive_loss)
    optimizer.zero_grad(set_to_none=True)
    (contrastive_weight * contrastive_loss).backward()
    of_views = {p: p.grad.clone() for p in encoder.parameters() if p.grad is not None}
    loss.backward()  # adds to them: now the gradients are those of the sum
    norms = [get_total_norm([p.grad - of_views[p] for p in of_views]), get_total_norm(of_views.values())]
    clip_grad_norm_([*model.parameters(), *projection_head.parameters()], models.MAX_GRADIENT_NORM)
    optimizer.step()
    return torch.stack([loss.detach(), contrastive_loss.detach(), *norms])


def fine_tune(settings: FineTune, work: Work) -> None:
    """Train an encoder and its classifier, by both tasks if `DualTask` asks for it; what `FineTune.compute` calls."""
    dataset, device, size, seed = work.dataset, work.device, settings.image_size, settings.seed
    labels, images = settings.labels(dataset), dataset.images(size, progress=work.store.progress)
    train_images, train_labels = torch.from_numpy(images[labels.train]), torch.from_numpy(labels.codes[labels.train])
    weights = labels.class_weights().to(device)
    encoder = settings.source.encoder(work.store)
    model = Classifier(encoder, len(labels.classes), seed=seed)
    trained, contrast = nn.ModuleList([model]), None
    n_steps, batch_size = settings.steps(dataset)
    if isinstance(settings, DualTask):
        asked = settings.contrast
        contrast = ContrastiveViews(asked, work, encoder, torch_generator(seed, 5))
        head = ProjectionHead(models.n_features(encoder), projection_dim=asked.projection_dim, seed=seed)
        trained.append(head)
        about = {"n_batches": n_steps, "batch_size": asked.steps(dataset)[1]}
        contrasted = draw_batches(len(contrast.images), **about, generator=torch_generator(seed, 4))
    trained.to(device, memory_format=torch.channels_last)
    optimizer = models.build_optimizer(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = models.warmup_cosine(optimizer, n_steps=n_steps, n_warmup=int(settings.warmup_fraction * n_steps))
    mean, std = models.normalisation(encoder)
    augment = Augment(settings.augmentation, image_size=size, mean=mean, std=std)
    order, views = torch_generator(seed, 2), torch_generator(seed, 3)
    batches = draw_batches(len(train_images), n_batches=n_steps, batch_size=batch_size, generator=order)

    def train_batch(step: int) -> Tensor:
        batch = batches[step]
        x, y = augment(train_images[batch].to(device), views), train_labels[batch].to(device)
        if not contrast:
            return supervised_step(model, optimizer, x, y, class_weights=weights)[None]
        options = {"class_weights": weights, "contrastive_weight": settings.contrastive_weight}
        return dual_step(model, head, optimizer, x, y, **contrast.draw(contrasted[step]), **options)

    def predict(rows: np.ndarray) -> np.ndarray:
        logits = models.extract_features(model, images[rows], image_size=size, device=device)
        return softmax(logits.astype(np.float64), axis=1)

    def train_epoch(epoch: int) -> dict[str, float]:
        measured = []
        for step in np.array_split(np.arange(n_steps), n_rows)[epoch]:
            measured.append(train_batch(step))
            schedule.step()
        means = dict(zip(MEASURES, torch.stack(measured).mean(0).tolist(), strict=False))
        return means | {"lr": schedule.get_last_lr()[0], "development_macro_f1": labels.development_macro_f1(predict)}

    n_rows = min(N_LOG_ROWS, n_steps)
    parts = {"trained": trained, "optimizer": optimizer, "schedule": schedule, "views": views}
    parts |= {"contrastive_views": contrast.generator} if contrast else {}
    run_epochs(work, train_epoch, n_epochs=n_rows, parts=parts, desc=f"{settings.kind} {settings.strategy}")
    models.save_trained(model, encoder, settings, work, classes=list(labels.classes))
    facts = {"optimizer_steps": n_steps, "labelled_batch": batch_size, "views_seen": batches.numel()}
    if contrast:
        facts |= {"views_seen": batches.numel() + 2 * contrasted.numel(), "pool": contrast.facts}
    settings.finish(work, labels, predict, **facts)
