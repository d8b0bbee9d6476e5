"""SimCLR: an encoder learns, without labels, to recognise two views of one image."""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from fetal_utils import models
from fetal_utils.data import Dataset, open_dataset
from fetal_utils.environment import terminate_as_interrupt, torch_generator
from fetal_utils.epochs import run_epochs
from fetal_utils.images import ExtraImages, open_extra_images
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import InitialWeights, ProjectionHead, build_optimizer, warmup_cosine
from fetal_utils.presets import check_known, check_type, read_yaml
from fetal_utils.runs import RunsFailedError, RunStore, Settings, Work
from fetal_utils.transforms import Augment, two_views

HEAD_FILE = "projection_head.safetensors"
WATCH_EVERY = 4  # epochs between looks at the development patients


class SimCLR(nn.Module):
    """An encoder and its projection head: images in, projections z out."""

    def __init__(self, encoder: nn.Module, *, projection_dim: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection_head = ProjectionHead(models.n_features(encoder), projection_dim=projection_dim, seed=seed)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.encoder(images))  # (n_images, projection_dim)


def simclr_step(
    model: SimCLR,
    optimizer: Optimizer,
    view_a: Tensor,
    view_b: Tensor,
    *,
    temperature: float,
    not_negatives: Tensor | None = None,
    chunk_size: int = 0,
) -> Tensor:
    """One optimizer step on two views of a batch, each (n_images, 1, image_size, image_size); the loss before it.

    Options are those of `nt_xent_loss` and `encode_in_chunks`. FloatingPointError, and no step, for a loss not finite.
    """
    model.train()
    views = torch.cat([view_a, view_b])  # one batch: shared batch statistics
    with models.mixed_precision(views.device):
        z_a, z_b = model.projection_head(encode_in_chunks(model.encoder, views, chunk_size)).chunk(2)
    loss = nt_xent_loss(z_a, z_b, temperature=temperature, not_negatives=not_negatives)
    models.check_finite(loss)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), models.MAX_GRADIENT_NORM)
    optimizer.step()
    return loss.detach()


def encode_in_chunks(encoder: nn.Module, views: Tensor, chunk_size: int) -> Tensor:
    """Features of all views, the encoder's activations of one chunk at a time in memory; 0: of all at once.

    The backward pass makes them again. Every view still meets all others as negatives, unlike with accumulated
    gradients; BatchNorm sees a chunk, not the batch (Gao et al. 2021, arXiv:2101.06983).
    """
    views = views.contiguous(memory_format=torch.channels_last)
    if not chunk_size or chunk_size >= len(views):
        return encoder(views)
    # lengths differ by one at most: a single view left over would have no variance for BatchNorm on a map of one pixel
    chunks = views.tensor_split(math.ceil(len(views) / chunk_size))
    once = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), keep_statistics(encoder))}
    return torch.cat([checkpoint(encoder, chunk, **once) for chunk in chunks])


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm works on its batch as in training, but its running statistics stay as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:  # `checkpoint` leaves its second pass by an exception
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def pool_rows(dataset: Dataset, pool: str) -> np.ndarray:
    """Positions of the images of training patients in a pool: all, or those of a task."""
    return dataset.rows("train", None if pool == "all" else dataset.task(pool))


def draw_batches(n_images: int, *, n_batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Positions of the images of each batch, shape (n_batches, batch_size): one random order after another, cut.

    Every image comes once before any comes again, and every batch is full: BatchNorm never meets a batch of one.
    """
    n_orders = math.ceil(n_batches * batch_size / n_images)
    orders = torch.cat([torch.randperm(n_images, generator=generator) for _ in range(n_orders)])
    return orders[: n_batches * batch_size].view(n_batches, batch_size)


@dataclass(frozen=True, kw_only=True)
class Pretrain(Settings):
    """One SimCLR pretraining (Chen et al. 2020, arXiv:2002.05709), on images of training patients only."""

    kind: ClassVar[str] = "simclr"
    weights: ClassVar[tuple[str, ...]] = (models.WEIGHTS_FILE, HEAD_FILE)
    start: InitialWeights  # of the encoder
    pool: str = "all"  # images to learn from: all, or the name of a task, whose images are then taken
    image_size: int = 96  # px, side of the views
    n_epochs: int = 40  # passes over the pool
    batch_size: int = 128  # images, each as two views
    lr: float = 2e-3  # reached after the warm-up, then falls to 0 as a cosine; chosen by the trials of 03
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.1  # of the steps
    optimizer: str = "adamw"  # adamw, sgd or lars; each wants its own lr, see `build_optimizer`
    temperature: float = 0.2  # of NT-Xent
    projection_dim: int = 128  # width of the projections z
    augmentation: str = "ultrasound"  # a preset of `fetal_utils.transforms`
    same_patient_negatives: bool = True  # other images of a patient count as negatives, as in the paper; else masked
    chunk_size: int = 0  # views that the encoder takes at a time, for batches that memory can't hold; 0: all
    extra_images: ExtraImages | None = None  # a folder of further images to learn from
    seed: int = 0  # decides order, views and the projection head's first weights

    @property
    def backbone(self) -> str:
        return self.start.backbone

    def encoder(self, store: RunStore) -> nn.Module:
        """The pretrained network, from a finished run."""
        return models.build_encoder(self.backbone, init=store.open(self).weights)

    def projection_head(self, store: RunStore) -> ProjectionHead:
        """The head trained with it, features h to projections z, to look at; what learns from labels takes h."""
        width = models.n_features(models.build_encoder(self.backbone, init="random", seed=0))
        head = ProjectionHead(width, projection_dim=self.projection_dim, seed=0)
        models.load_weights(head, store.open(self).folder / HEAD_FILE)
        return head.eval()

    def check(self, dataset: Dataset) -> None:
        self.start.check(dataset)
        rules = {
            "n_epochs, projection_dim of 1 or more": min(self.n_epochs, self.projection_dim) >= 1,
            "finite temperature above 0": 0 < self.temperature < math.inf,
            "chunk_size of 0, or 2 or more": self.chunk_size == 0 or self.chunk_size >= 2,
            f"optimizer of {', '.join(models.OPTIMIZERS)}": self.optimizer in models.OPTIMIZERS,
        }
        models.check_training(self, **rules)
        if self.extra_images:
            self.extra_images.check()
        if len(pool_rows(dataset, self.pool)) < 2:
            raise ValueError(f"pool={self.pool!r} has fewer than two training images to contrast")

    def steps(self, dataset: Dataset) -> tuple[int, int]:
        """Optimizer steps, and images in each; images of a further folder counted before any is left out."""
        n_images = len(pool_rows(dataset, self.pool)) + (self.extra_images.n_images if self.extra_images else 0)
        batch_size = min(self.batch_size, n_images)
        return self.n_epochs * (n_images // batch_size), batch_size

    def cost(self, dataset: Dataset) -> dict[str, int]:
        n_steps, batch_size = self.steps(dataset)
        n_watched = math.ceil(self.n_epochs / WATCH_EVERY) * len(dataset.rows("development"))
        return {"views": 2 * n_steps * batch_size, "images": n_watched}

    def compute(self, work: Work) -> None:
        pretrain(self, work)


class ContrastiveViews:
    """The images of a `Pretrain`'s pool, in memory, and pairs of views of them, for it and for the dual task.

    ``images`` are uint8 (n_images, image_size, image_size), ``patients`` codes of their patients, ``facts`` counts for
    the record. For a task's pool all training labels are looked at: ``n_pool_labels``.
    """

    def __init__(self, settings: Pretrain, work: Work, encoder: nn.Module, generator: torch.Generator) -> None:
        self.settings, self.device, self.generator = settings, work.device, generator
        dataset, size, show = work.dataset, settings.image_size, {"progress": work.store.progress}
        rows = pool_rows(dataset, settings.pool)
        images, patients = dataset.images(size, **show)[rows], np.unique(dataset.patients[rows], return_inverse=True)[1]
        self.facts = {"n_images": len(rows), "n_patients": len(set(patients)), "n_extra_images": 0}
        self.facts["n_pool_labels"] = 0 if settings.pool == "all" else len(dataset.rows("train"))
        if settings.extra_images:
            extra, self.facts["extra_left_out"] = settings.extra_images.images(dataset, size, **show)
            images, self.facts["n_extra_images"] = np.concatenate([images, extra]), len(extra)
            patients = np.append(patients, self.facts["n_patients"] + np.arange(len(extra)))  # each its own
        self.images, self.patients = torch.from_numpy(np.array(images)), torch.from_numpy(patients)
        mean, std = models.normalisation(encoder)
        self.augment = Augment(settings.augmentation, image_size=size, mean=mean, std=std)

    def draw(self, batch: Tensor) -> dict[str, object]:
        """Two views of the images at these positions, and how `simclr_step` or `dual_step` is to contrast them."""
        view_a, view_b = two_views(self.images[batch].to(self.device), self.augment, self.generator)
        same_patient = self.patients[batch][:, None] == self.patients[batch]
        masked = None if self.settings.same_patient_negatives else same_patient
        options = {"temperature": self.settings.temperature, "chunk_size": self.settings.chunk_size}
        return {"view_a": view_a, "view_b": view_b, "not_negatives": masked, **options}


def pretrain(settings: Pretrain, work: Work) -> None:
    """Train an encoder by SimCLR epoch by epoch and write its weights; what `Pretrain.compute` calls."""
    encoder, order = settings.start.encoder(work.store), torch_generator(settings.seed, 0)
    model = SimCLR(encoder, projection_dim=settings.projection_dim, seed=settings.seed)
    model.to(work.device, memory_format=torch.channels_last)
    views = ContrastiveViews(settings, work, encoder, torch_generator(settings.seed, 1))
    n_images = len(views.images)
    batch_size = min(settings.batch_size, n_images)
    n_batches = n_images // batch_size  # of an epoch
    n_steps = settings.n_epochs * n_batches
    optimizer = build_optimizer(model, lr=settings.lr, weight_decay=settings.weight_decay, name=settings.optimizer)
    schedule = warmup_cosine(optimizer, n_steps=n_steps, n_warmup=int(settings.warmup_fraction * n_steps))

    def train_epoch(epoch: int) -> dict[str, float]:
        losses = []
        for batch in draw_batches(n_images, n_batches=n_batches, batch_size=batch_size, generator=order):
            losses.append(simclr_step(model, optimizer, **views.draw(batch)))
            schedule.step()
        row = {"loss": torch.stack(losses).mean().item(), "lr": schedule.get_last_lr()[0]}
        is_watched = (epoch + 1) % WATCH_EVERY == 0 or epoch + 1 == settings.n_epochs
        return row | (watch_development(model, views.augment, work, batch_size) if is_watched else {})

    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    parts |= {"order": order, "views": views.generator}
    run_epochs(work, train_epoch, n_epochs=settings.n_epochs, parts=parts, desc=f"SimCLR from {settings.start.init}")
    models.save_trained(encoder, encoder, settings, work)
    models.save_weights(model.projection_head, work.folder / HEAD_FILE)
    counts = {"batch_size": batch_size, "optimizer_steps": n_steps, "views_seen": 2 * n_steps * batch_size}
    work.facts |= views.facts | counts


def watch_development(model: SimCLR, augment: Augment, work: Work, batch_size: int) -> dict[str, float]:
    """How the encoder does on development patients, who are not in the pool: for the log, nothing is chosen by it.

    ``top1_accuracy``: share of projections z of two views of a batch whose nearest neighbour is the other view;
    ``knn_macro_f1``: a vote of the ten nearest features h of other patients on plane and brain plane.
    """
    rows, size = work.dataset.rows("development"), augment.image_size
    patients, table = work.dataset.patients[rows], work.dataset.metadata.iloc[rows]
    n_others = len(rows) - np.unique(patients, return_counts=True)[1].max(initial=0)  # at least, for each image
    if n_others == 0:
        return {}
    images = work.dataset.images(size, progress=False)[rows]
    h = models.extract_features(model.encoder, images, image_size=size, device=work.device)
    planes = (table["plane"] + "/" + table["brain_plane"]).to_numpy(str)
    voters = KNeighborsClassifier(min(10, n_others), metric="cosine", weights="distance")
    votes = cross_val_predict(voters, h, planes, groups=patients, cv=LeaveOneGroupOut())
    generator = torch_generator(0, 2)  # the same batch and views each time
    batch = torch.from_numpy(images)[torch.randperm(len(rows), generator=generator)[:batch_size]].to(work.device)
    with torch.inference_mode():
        z = F.normalize(torch.cat([model.eval()(view) for view in two_views(batch, augment, generator)]))
    nearest = (z @ z.T).fill_diagonal_(-torch.inf).argmax(1)
    found = nearest == torch.arange(len(z), device=z.device).roll(len(batch))
    measured = {"top1_accuracy": found.float().mean().item(), "effective_rank": effective_rank(h)}
    return measured | {"knn_macro_f1": float(f1_score(planes, votes, average="macro", zero_division=0))}


def effective_rank(features: np.ndarray) -> float:
    """Dimensions that centred features really use: exp of the entropy of their singular values, 1 if they coincide
    (Roy and Vetterli 2007, EUSIPCO, equation 3; of representations: Garrido et al. 2023, arXiv:2210.02885)."""
    singular_values = np.linalg.svd(features - features.mean(0), compute_uv=False)
    singular_values = singular_values[singular_values > 1e-4 * np.linalg.norm(features)]  # the rest is rounding
    shares = singular_values / singular_values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def health(log: pd.DataFrame, *, batch_size: int) -> str:
    """A log in a plain sentence: healthy, stuck at chance, collapsed or getting worse, and why."""
    chance, first, last = math.log(2 * batch_size - 1), log["loss"].iloc[0], log["loss"].iloc[-1]
    rank = log["effective_rank"].iloc[-1] if "effective_rank" in log else math.inf
    seen = f"loss {first:.2f} at first, {last:.2f} at last, {chance:.2f} nats at chance; effective rank {rank:.1f}"
    if rank < 2:
        return f"Collapsed: the features of different images all but coincide ({seen}). Lower the learning rate."
    if last > 0.95 * chance:
        return f"Stuck at chance: the other view is not told from the rest ({seen}). Train longer; look at the views."
    if last > first:
        return f"Getting worse: the loss rose ({seen}). Lower the learning rate."
    return f"Healthy: the other view is found, and the features stay spread out ({seen})."


def as_path(text: str) -> Path:
    """A path as it is typed, from the working directory."""
    return Path(text).expanduser().resolve()


def settings_from(given: Mapping[str, str]) -> Pretrain:
    """A pretraining's settings from texts by name; UsageError if a name is no setting or a text has another type."""
    values = {entry.name: entry.default for entry in fields(Pretrain) if entry.name != "start"}
    values |= {"backbone": models.OFFLINE_BACKBONE, "init": "imagenet", "extra_images": ""}
    check_known(given, values, "a pretraining")
    for name, text in given.items():
        values[name] = check_type(name, read_yaml(text, f"-p {name} {text}"), type(values[name]))
    values["extra_images"] = open_extra_images(values["extra_images"] and as_path(values["extra_images"]))
    start = models.initial_weights(backbone=values.pop("backbone"), init=values.pop("init"), seed=values["seed"])
    return Pretrain(start=start, **values)


def main(arguments: Sequence[str] | None = None) -> int:
    """One pretraining from the command line, the run's folder printed last; the exit status is 1 if it failed, 2 if it
    can't be run, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.simclr", description=__doc__)
    parser.add_argument("--data-dir", type=as_path, help="folder with Images/ and the CSV; default: the phantom")
    parser.add_argument("--results-dir", type=as_path, default="results/demo", help="the run lies in its runs/simclr")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    options = parser.parse_args(arguments)
    try:
        with terminate_as_interrupt():
            settings = settings_from(dict(options.parameters))
            dataset = open_dataset(options.data_dir or "", results_dir=options.results_dir)
            settings.check(dataset)
            dataset.images(settings.image_size)  # a broken picture is found now
            (run,) = RunStore(options.results_dir, dataset, device=options.device).get([settings])
    except (RunsFailedError, ValueError, OSError, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        return {RunsFailedError: 1, KeyboardInterrupt: 130}.get(type(error), 2)
    print(run.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
