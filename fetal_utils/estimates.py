"""What a study would cost, before it starts: runs, steps, views, and hours by a short measurement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from fetal_utils.benchmarks import seconds_of
from fetal_utils.budgets import Budget
from fetal_utils.contrast import SimCLR, contrast_step
from fetal_utils.models import build_encoder, normalisation
from fetal_utils.optimisers import build_optimiser, warmup_cosine
from fetal_utils.runs import RunStore
from fetal_utils.settings import Settings
from fetal_utils.transforms import Augment, EvalTransform, two_views

N_IMAGES = 16  # in a timed step, so that a ResNet-50 at 224 px is timed within seconds on a CPU
N_ROUNDS = 3  # after one to warm up
RUN_SECONDS = 0.15  # of what is not the network: the run's folder, a linear probe's regressions

Asked = Mapping[str, tuple[RunStore, Sequence[Settings]]]  # notebook -> its store and the runs that it asks for


@dataclass(frozen=True)
class Speed:
    """What a network does in a second on one device.

    Attributes
    ----------
    views_per_s : float
        Views made and trained on.
    images_per_s : float
        Images encoded.
    """

    views_per_s: float = float("inf")
    images_per_s: float = float("inf")

    def seconds(self, *, views_seen: int, images_encoded: int) -> float:
        """Estimated seconds of a run."""
        return views_seen / self.views_per_s + images_encoded / self.images_per_s + RUN_SECONDS


def measure_speed(backbone: str, image_size: int, device: torch.device) -> Speed:
    """Time contrastive steps and encodings of random images, with random weights.

    Parameters
    ----------
    backbone : str
        A timm name.
    image_size : int
        px.
    device : torch.device
    """
    encoder = build_encoder(backbone, init="random", seed=0)
    model = SimCLR(encoder, projection_dim=128, seed=0).to(device, memory_format=torch.channels_last)
    optimiser = build_optimiser(model, lr=1e-6, weight_decay=0.0)
    schedule = warmup_cosine(optimiser, n_steps=N_ROUNDS + 1, n_warmup=0)
    mean, std = normalisation(encoder)
    augment = Augment("ultrasound", image_size=image_size, mean=mean, std=std)
    as_is = EvalTransform(image_size, mean, std)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (N_IMAGES, image_size, image_size), generator=generator, dtype=torch.uint8).to(device)

    def train() -> None:
        contrast_step(model, optimiser, schedule, *two_views(images, augment, generator), temperature=0.2)

    @torch.inference_mode()
    def encode() -> None:
        encoder.eval()(as_is(images))

    train_s, encode_s = (min([seconds_of(work) for _ in range(N_ROUNDS + 1)][1:]) for work in (train, encode))
    return Speed(views_per_s=2 * N_IMAGES / train_s, images_per_s=N_IMAGES / encode_s)


def seconds_of_budget(budget: Budget, speeds: Mapping[tuple[str, int], Speed]) -> float:
    """Estimated seconds of a run, by the speed of its backbone at its image size; without one, what any run takes."""
    speed = speeds.get((budget.backbone, budget.image_size), Speed())
    return speed.seconds(views_seen=budget.views_seen, images_encoded=budget.images_encoded)


def count_runs(asked: Asked) -> pd.DataFrame:
    """What notebooks ask for, with all that it starts from; each run once, where it is asked for first.

    Parameters
    ----------
    asked : mapping of str to (RunStore, sequence of Settings)

    Returns
    -------
    DataFrame
        A row per run: ``notebook, kind, done`` and the fields of `Budget`.
    """
    rows, counted = [], set()
    for notebook, (store, wanted) in asked.items():
        for settings in with_starts(wanted):
            if (folder := store.folder(settings)) not in counted:
                counted.add(folder)
                about = {"notebook": notebook, "kind": settings.kind, "done": store.has(settings)}
                rows.append(about | vars(settings.budget(store.dataset)))
    return pd.DataFrame(rows, columns=["notebook", "kind", "done", *vars(Budget())])


def with_starts(wanted: Iterable[Settings]) -> Iterator[Settings]:
    """The runs and, before each, those it starts from; a run may come more than once."""
    for settings in wanted:
        yield from with_starts(settings.starts_from())
        yield settings


def estimate(runs: pd.DataFrame, device: torch.device) -> pd.DataFrame:
    """What is still to do, summed for each notebook and kind of run.

    Parameters
    ----------
    runs : DataFrame
        As from `count_runs`.
    device : torch.device
        Where every network that is still to be trained is timed for a few steps.

    Returns
    -------
    DataFrame
        Columns ``notebook, kind, n_runs, n_done, optimiser_steps, views_seen, images_encoded, hours``, the last four of
        the runs that are not there yet, on this device and one after another.
    """
    missing = runs[~runs["done"]]
    networks = missing.loc[missing["backbone"] != "", ["backbone", "image_size"]].drop_duplicates()
    speeds = {key: measure_speed(*key, device) for key in networks.itertuples(index=False, name=None)}
    hours = [seconds_of_budget(run, speeds) / 3600 for run in missing.itertuples()]
    keys = ["notebook", "kind"]
    sums = ["optimiser_steps", "views_seen", "images_encoded", "hours"]
    counted = runs.groupby(keys, sort=False)["done"].agg(n_runs="size", n_done="sum")
    to_do = missing.assign(hours=hours).groupby(keys)[sums].sum()
    return counted.join(to_do).fillna(0).astype(dict.fromkeys(sums[:-1], int)).reset_index()
