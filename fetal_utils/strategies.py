"""The strategies that the study compares, the runs of its grid, and how the trials of 03 are read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from fetal_utils.data import Dataset
from fetal_utils.environment import project_path
from fetal_utils.models import Features, initial_weights
from fetal_utils.runs import Run, Settings
from fetal_utils.simclr import Pretrain
from fetal_utils.training import DualTask, FineTune, LinearProbe, Supervised

PROTOCOLS = ("fine_tune", "linear_probe")


@dataclass(frozen=True)
class Strategy:
    """A way from first weights to a classifier."""

    init: str  # before any training of the study: random, imagenet or a safetensors file, from the repository root
    pretrains: bool = False  # SimCLR comes before the labels
    dual: bool = False  # SimCLR is learned together with the labels
    same_views: bool = False  # a control of cost: fine-tuned for the views of pretraining and fine-tuning together
    baselines: tuple[str, ...] = ()  # what it is compared with, declared before anything was run
    lr: float = 5e-4  # of its fine-tuning, for both tasks: chosen by the trials of 03
    n_views: int = 12_800  # labelled views of its fine-tuning, chosen likewise

    @property
    def protocols(self) -> tuple[str, ...]:
        """Those that make sense: what is learned with its classifier, or only for longer, has no encoder to freeze."""
        return PROTOCOLS[:1] if self.dual or self.same_views else PROTOCOLS


# A strategy of one's own is one entry more, before the runs are asked for:
#     STRATEGIES["fetal_net"] = Strategy(init="weights/fetal_net.safetensors")
STRATEGIES = {
    "scratch": Strategy("random", lr=3e-3),
    "imagenet": Strategy("imagenet"),
    "simclr_scratch": Strategy("random", pretrains=True, baselines=("scratch",), lr=7.5e-3),
    "simclr_imagenet": Strategy("imagenet", pretrains=True, baselines=("imagenet", "imagenet_same_views"), lr=3e-3),
    "dual_scratch": Strategy("random", dual=True, baselines=("scratch",), lr=3e-3),  # of dual_imagenet, not tried
    "dual_imagenet": Strategy("imagenet", dual=True, baselines=("imagenet", "imagenet_same_views"), lr=3e-3),
    "imagenet_same_views": Strategy("imagenet", same_views=True),
}


def declared_pairs() -> list[tuple[str, str]]:
    """Each strategy with each of its baselines."""
    return [(name, baseline) for name, about in STRATEGIES.items() for baseline in about.baselines]


def find_strategy(name: str) -> Strategy:
    """The strategy of that name, or a ValueError with the known ones."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy={name!r} is unknown; known are {list(STRATEGIES)}")
    return STRATEGIES[name]


def supervised_run(
    strategy: str,
    *,
    dataset: Dataset,
    protocol: str,
    task: str,
    backbone: str,
    image_size: int,
    label_fraction: float = 1.0,
    draw: int = 0,
    seed: int = 0,
    evaluate_on: str = "test",
    pretraining: Mapping[str, object] | None = None,
    training: Mapping[str, object] | None = None,
) -> Supervised:
    """The settings of a supervised run, with all that it needs; ValueError if strategy and protocol do not go together.

    ``pretraining`` holds further fields of `Pretrain`, ``training`` of `FineTune` and `DualTask`, where ``lr`` and
    ``n_views`` of 0 are the strategy's own. ``seed`` is also that of random weights and of the pretraining. With all
    labels there is one draw, 0; a probe of an encoder that nothing random made has seed 0.
    """
    about = find_strategy(strategy)
    if protocol not in about.protocols:
        raise ValueError(f"protocol={protocol!r} does not go with strategy={strategy!r}: expected {about.protocols}")
    init = about.init if about.init in ("random", "imagenet") else project_path(about.init)
    start = initial_weights(backbone=backbone, init=init, seed=seed)
    contrast = Pretrain(start=start, image_size=image_size, seed=seed, **(pretraining or {}))
    source = contrast if about.pretrains else start
    asked = {"task": task, "strategy": strategy, "label_fraction": label_fraction, "evaluate_on": evaluate_on}
    asked |= {"seed": seed, "draw": draw if label_fraction < 1 else 0}
    if protocol == "linear_probe":
        features = Features(source=source, image_size=image_size)
        return LinearProbe(**asked | {"seed": seed if about.pretrains else start.seed}, features=features)
    asked |= {"source": source, "image_size": image_size} | (training or {})
    asked["lr"], asked["n_views"] = asked.get("lr") or about.lr, asked.get("n_views") or about.n_views
    weight = asked.pop("contrastive_weight", DualTask.contrastive_weight)
    if about.dual:
        unused = {name: getattr(Pretrain, name) for name in ("lr", "weight_decay", "warmup_fraction", "optimizer")}
        return DualTask(**asked, contrast=replace(contrast, **unused), contrastive_weight=weight)
    if about.same_views:
        asked["n_views"] += contrast.cost(dataset)["views"]
    return FineTune(**asked)


def grid(
    dataset: Dataset,
    *,
    strategies: Sequence[str],
    tasks: Sequence[str],
    protocols: Sequence[str],
    label_fractions: Sequence[float],
    fine_tune_fractions: Sequence[float],
    dual_fractions: Sequence[float],
    n_draws: int,
    n_pairs: int,
    n_dual_pairs: int,
    **about: object,
) -> list[Supervised]:
    """All supervised runs of 04, each once, pairs outermost: what an early stop leaves is whole pairs.

    Pair k of a fine-tuning is draw k and seed k; probes, at ``label_fractions``, cross all draws with all seeds.
    ``dual_*`` and ``imagenet_same_views``, which cost most, have ``dual_fractions`` and the first ``n_dual_pairs``.
    """
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"protocols {sorted(unknown)} are unknown; known are {PROTOCOLS}")
    runs, fractions = [], {"linear_probe": label_fractions, "fine_tune": fine_tune_fractions}
    for seed, protocol, task, strategy in product(range(n_pairs), protocols, tasks, strategies):
        arm, asked = find_strategy(strategy), {"dataset": dataset, "protocol": protocol, "task": task, "seed": seed}
        is_costly = arm.dual or arm.same_views
        if protocol in arm.protocols and not (is_costly and seed >= n_dual_pairs):
            draws = range(n_draws) if protocol == "linear_probe" else [seed]
            own = dual_fractions if is_costly else fractions[protocol]
            cells = [{"label_fraction": part, "draw": draw} for part, draw in product(own, draws)]
            runs += [supervised_run(strategy, **asked, **cell, **about) for cell in cells]
    return list(dict.fromkeys(runs))


DEFAULT, LONGER = "default", "double length"  # settings in words
CELL = ["protocol", "task", "label_fraction", "draw", "seed"]  # what a trial shares with the default it is judged by
LENGTHS = ("n_views", "n_epochs")
RELEVANT = 0.02  # macro-F1


def with_dependencies(wanted: Iterable[Settings]) -> list[Settings]:
    """Runs and all that they need, each once: what a cost is summed over."""
    found = list(wanted)
    for settings in found:  # which grows meanwhile
        found += settings.dependencies()
    return list(dict.fromkeys(found))


def development_scores(runs: Iterable[Run]) -> pd.DataFrame:
    """What supervised runs reached on development patients, with the settings that trials vary: a row for each run."""
    rows = []
    for run in runs:
        settings, facts = run.settings, run.record["facts"]
        contrast = getattr(settings, "contrast", getattr(settings, "features", settings).source)
        row = {name: getattr(settings, name, np.nan) for name in ("strategy", *CELL, "lr", "n_views")}
        row |= {"pretraining_lr": getattr(contrast, "lr", np.nan), "n_epochs": getattr(contrast, "n_epochs", np.nan)}
        row |= {"temperature": getattr(contrast, "temperature", np.nan), "seconds": run.record["seconds"]}
        row |= {"backbone": contrast.backbone, "image_size": getattr(settings, "features", settings).image_size}
        row |= {name: facts[name] for name in ("development_macro_f1", "n_images", "n_patients")}
        rows.append(row | {"views": facts["views_seen"]})
    return pd.DataFrame(rows)


def gains(trials: pd.DataFrame, setting: str) -> pd.Series:
    """Paired differences of one strategy's setting to its default, one for each cell that has both."""
    tried, default = (trials[trials["setting"] == name].set_index(CELL) for name in (setting, DEFAULT))
    return (tried["development_macro_f1"] - default["development_macro_f1"]).dropna()


def choose(trials: pd.DataFrame) -> pd.DataFrame:
    """What is kept of the settings tried, `development_scores` with their ``setting``; a row for each but the default.

    The default stays unless another is better by one standard error of the paired difference; of several the best. A
    word and a colon before a setting ("SimCLR: ") set apart what is chosen for itself. ``widen`` names what would have
    to be tried further, as the value ``kept`` lies at the edge of those tried; fewer views or epochs only cost less.
    """
    rows, is_default = [], trials["setting"] == DEFAULT
    what = trials["setting"].str.extract(r"^(\w+): ")[0].fillna("labels")
    names = ["lr", "pretraining_lr", "temperature", *LENGTHS]
    for (strategy, _), tried in trials[~is_default].groupby(["strategy", what[~is_default]], sort=False):
        own = pd.concat([tried, trials[is_default & (trials["strategy"] == strategy)]])
        found = {setting: gains(own, setting) for setting in tried["setting"].unique()}
        about = [{"n": d.size, "gain": d.mean(), "standard_error": d.sem()} for d in found.values()]
        table = pd.DataFrame(about, index=pd.Index(found, name="setting"))
        better = table[table["gain"] > table["standard_error"]]
        kept = better["gain"].idxmax() if len(better) else DEFAULT
        low, high, value = own[names].min(), own[names].max(), own.loc[own["setting"] == kept, names].max()
        at_edge = (low < high) & ((value == high) | ((value == low) & ~low.index.isin(LENGTHS)))
        rows.append(table.assign(strategy=strategy, kept=kept, widen=", ".join(low.index[at_edge])).reset_index())
    return pd.concat(rows, ignore_index=True)


def still_rising(trials: pd.DataFrame) -> dict[tuple[str, str], bool]:
    """Whether double the length, of fine-tuning or of SimCLR, gains more than 0.02 macro-F1, mean over the cells tried:
    by strategy and protocol, of those for which it was tried. An arm of which it does is under-trained."""
    found = {}
    for arm, own in trials.groupby(["strategy", "protocol"]):
        lengths = own.groupby("setting")[list(LENGTHS)].max()
        longer = lengths.index[(lengths > lengths.reindex([DEFAULT]).iloc[0]).any(axis=1)]
        if len(longer):
            found[arm] = max(gains(own, setting).mean() for setting in longer) > RELEVANT
    return found


def training_warnings(scores: pd.DataFrame) -> list[str]:
    """Sentences on `development_scores`, over the label draws that both sides have: what is fine-tuned below its own
    probe by more than 0.02, and probes after pretraining below the one before."""
    by = ["protocol", "strategy", "task", "label_fraction", "draw"]
    means, found = scores.groupby(by)["development_macro_f1"].mean().unstack("draw"), []
    words = {"fine_tune": "fine-tuned {} below its own probe", "linear_probe": "a probe {} below that before SimCLR"}
    limits = {"fine_tune": -RELEVANT, "linear_probe": 0}
    for (protocol, strategy, task, fraction), own in means.iterrows():
        about = find_strategy(strategy)
        starts = [name for name, one in STRATEGIES.items() if one.init == about.init and not one.pretrains]
        before = strategy if protocol == "fine_tune" else (starts or [""])[0] if about.pretrains else ""
        probe = means.reindex([("linear_probe", before, task, fraction)]).iloc[0]
        if (change := (own - probe).mean()) < limits[protocol]:
            found.append(
                f"{strategy}, {task}, {fraction:.0%} of the labels: {words[protocol].format(f'{-change:.3f}')}"
            )
    return found
