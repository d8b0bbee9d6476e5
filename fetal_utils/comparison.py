"""Intervals over patients, draws and seeds: paired differences, verdicts, label equivalence, and the study's claim."""

import itertools
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.isotonic import IsotonicRegression
from statsmodels.stats.multitest import multipletests

from fetal_utils.evaluation import ARM, score_runs

BASELINE = "imagenet"  # standard transfer learning
ALPHA = 0.05  # chance of any false verdict in a family
RELEVANT = 0.03  # of macro-F1: an interval within plus and minus this is no relevant difference
MIN_LEVELS = 3  # pairs (seeds, draws) behind a verdict: of two, a 95 % interval may hold the truth in 87 % of studies
MIN_FRACTIONS = 4  # of a curve that is read between its points
N_EQUIVALENCE = 300  # resamples of a label equivalence, which is read off a grid of numbers anyway
EXPLORATORY = "exploratory"
LABELLED = ("n_images", "n_patients")  # whose labels were used, means over draws
Arm = tuple[str, str]  # strategy and protocol
CLAIM_TASKS = ("brain_planes", "planes")  # the gain on the first minus the gain on the second
CLAIMS = (("simclr_imagenet", (0.1, 0.25, 0.5)), ("dual_imagenet", (0.1,)))  # over imagenet, fine-tuned; primary first


def pick(scores: pd.DataFrame, **names: object) -> pd.DataFrame:
    """The rows of `score_runs` whose index has these names, such as ``strategy="imagenet", label_fraction=0.1``."""
    return scores[(scores.index.to_frame()[list(names)] == list(names.values())).all(axis=1).to_numpy()]


def mean_level(arm: pd.DataFrame, level: str) -> float:
    """Mean over an arm's runs of a number in its index, say ``n_images``."""
    return float(arm.index.get_level_values(level).to_numpy().mean())


def align(arms: Sequence[pd.DataFrame]) -> list[np.ndarray]:
    """Scores of several arms of a protocol over the draws and seeds that all have: (n_draws, n_seeds, 1 + n_resamples).

    Fine-tuning pairs (draw k with seed k) lie on the first axis. A probe has every draw with every seed; where it has
    one draw (all labels) or one seed (an encoder that nothing random made), that axis has length 1: it is repeated when
    arms are subtracted, and so is never counted twice. ValueError if nothing is shared or the crossing has gaps.
    """
    arms, crossed = list(arms), "linear_probe" in arms[0].index.get_level_values("protocol")
    levels = ["draw", "seed"] if crossed else ["seed"]
    for level in levels:
        names = [set(arm.index.unique(level)) for arm in arms]
        shared = set.intersection(*([own for own in names if len(own) > 1 or not crossed] or names))
        for place, own in enumerate(names):
            kept = own if crossed and len(own) == 1 else shared
            arms[place] = arms[place][arms[place].index.isin(kept, level=level)]
    shapes = [[arm.index.unique(level).size for level in levels] for arm in arms]
    if any(len(arm) == 0 or len(arm) != np.prod(shape) for arm, shape in zip(arms, shapes, strict=True)):
        raise ValueError(f"draws and seeds {shapes} of {[*map(len, arms)]} shared runs: run all, or leave some out")
    ordered = [arm.sort_index(level=levels).to_numpy() for arm in arms]
    return [values.reshape(*[*shape, 1][:2], -1) for values, shape in zip(ordered, shapes, strict=True)]


def estimate(scores: np.ndarray, *, n_patients: float) -> dict[str, np.ndarray]:
    """Mean of scores from `align`, or of their differences, with its 95 % interval: draws or pairs, seeds, patients.

    ``value, low, high, standard_error, degrees, p`` (two-sided, of a mean of 0), each (...) from scores (..., n_draws,
    n_seeds, 1 + n_resamples). The variance is s^2 / n of the draws, plus that of the seeds, plus that of the mean over
    the resamples of patients; t with Satterthwaite's degrees (1946, Biometrics Bulletin 2:110). What pairs do on single
    patients is in two of them: the interval is rather too wide than too narrow.
    """
    mean, observed = scores.mean(axis=(-3, -2)), scores[..., 0]
    value, parts = mean[..., 0], [(np.nanvar(mean[..., 1:], axis=-1, ddof=1), n_patients - 1)]
    for others in (-1, -2):  # mean over seeds: a value for each draw; then the other way round
        levels = observed.mean(axis=others)
        if (n_levels := levels.shape[-1]) > 1:
            parts.append((levels.var(axis=-1, ddof=1) / n_levels, n_levels - 1))
    variance = np.asarray(sum(part for part, _ in parts))
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = variance**2 / sum(part**2 / n_free for part, n_free in parts)
        degrees, error = np.where(variance == 0, np.inf, degrees), np.sqrt(variance)
        p = np.where(value == 0, 1.0, 2 * stats.t.sf(np.abs(value) / error, degrees))
    half = stats.t.ppf(0.975, degrees) * error
    found = {"value": value, "low": value - half, "high": value + half}
    found |= {"standard_error": error, "degrees": degrees, "p": p}
    return {name: np.asarray(one)[()] for name, one in found.items()}  # a number where there is only one


def label_efficiency(scores: pd.DataFrame, *, under_trained: Collection[Arm] = ()) -> pd.DataFrame:
    """Rows of ``label_efficiency.csv``: mean, standard deviation over pairs, and interval of every arm's macro scores;
    ``under_trained`` holds the strategies, with protocol, that still gain from double their length."""
    rows = []
    for name, arm in pick(scores, plane="macro").groupby(level=ARM, sort=False):
        about = dict(zip(ARM, name, strict=True)) | {"n_pairs": len(arm), "sd_over_pairs": arm[0].std()}
        about |= {level: mean_level(arm, level) for level in LABELLED}
        about["under_trained"] = (about["strategy"], about["protocol"]) in under_trained
        rows.append(about | estimate(*align([arm]), n_patients=mean_level(arm, "n_test_patients")))
    return pd.DataFrame(rows).drop(columns=["plane", "standard_error", "degrees", "p"])


def by_group(runs: Sequence, weights: pd.DataFrame, *, column: str, training: pd.Series) -> pd.DataFrame:
    """Macro-F1 of one arm's runs within each machine or operator (``column``), over the classes that it has.

    ``training`` holds that column for each training image. A value with fewer than two test patients has no score.
    """
    rows, predictions = [], runs[0].predictions
    for value in sorted({*predictions[column], *training}):
        inside = predictions[predictions[column] == value]
        row = {column: value, "n_train_images": int((training == value).sum()), "n_images": len(inside)}
        row |= {"n_patients": inside["patient"].nunique(), "n_classes": inside["true"].nunique()}
        if row["n_patients"] > 1:
            arm = pick(score_runs(runs, weights, metrics=["f1"], within=(column, value)), plane="macro")
            row |= estimate(*align([arm]), n_patients=row["n_patients"])
        rows.append(row)
    counts = ["n_train_images", "n_images", "n_patients", "n_classes"]
    return pd.DataFrame(rows, columns=[column, *counts, "value", "low", "high"])


def compare(
    scores: pd.DataFrame,
    declared: Sequence[tuple[str, str]],
    *,
    demonstration: bool = False,
    under_trained: Collection[Arm] = (),
) -> pd.DataFrame:
    """Rows of ``comparisons.csv``: declared pairs of strategies, and every other strategy minus `BASELINE`.

    ``scores`` are rows of `score_runs`, all that a reader will look at together, and are compared over the draws and
    seeds that both strategies have. Only pairs that were ``declared`` (strategy, baseline) before anything was run have
    a verdict, on macro-F1. A family is a task and protocol, its members are the declared pairs at all label fractions;
    ``p_holm`` is corrected within it (Holm 1979). A ``demonstration``, of too few pairs on purpose, has intervals and
    no verdict; ``under_trained`` as in `label_efficiency`. ValueError if there is nothing to compare.
    """
    rows, by = [], ["metric", "task", "protocol", "label_fraction"]
    for (metric, task, protocol, fraction), group in pick(scores, plane="macro").groupby(level=by, sort=False):
        arms = dict(list(group.groupby(level="strategy", sort=False)))
        pairs = dict.fromkeys([*declared, *((strategy, BASELINE) for strategy in arms if strategy != BASELINE)])
        for pair in (pair for pair in pairs if set(pair) <= set(arms)):
            ours, theirs = align([arms[strategy] for strategy in pair])
            n_draws, n_seeds, _ = (ours - theirs).shape  # all labels can be drawn in one way only
            drawn = [n_draws] if protocol == "fine_tune" else [n_seeds] if fraction == 1 else [n_draws, n_seeds]
            row = {"task": task, "protocol": protocol, "label_fraction": fraction, "metric": metric}
            row |= {"strategy": pair[0], "baseline": pair[1], "n_pairs": n_draws * n_seeds, "levels": min(drawn)}
            row |= {level: mean_level(arms[pair[0]], level) for level in LABELLED}
            row["under_trained"] = any((strategy, protocol) in under_trained for strategy in pair)
            row["family"] = f"{task}, {protocol}" if metric == "f1" and pair in declared else ""
            rows.append(row | estimate(ours - theirs, n_patients=mean_level(arms[pair[0]], "n_test_patients")))
    if not rows:
        raise ValueError(f"nothing to compare: run {BASELINE!r} and another strategy at one label fraction")
    table = pd.DataFrame(rows).rename(columns={"value": "difference"})
    return add_verdicts(table, demonstration=demonstration).drop(columns="levels")


def add_verdicts(table: pd.DataFrame, *, demonstration: bool = False) -> pd.DataFrame:
    """Add ``p_holm, resolved, verdict`` to rows with ``family, levels, difference, low, high, p``."""
    table = table.assign(p_holm=np.nan, verdict="")
    members = table["family"] != ""
    judged = members & (table["levels"] >= MIN_LEVELS) & table["p"].notna() & (not demonstration)
    for _, family in table[judged].groupby("family"):
        table.loc[family.index, "p_holm"] = multipletests(family["p"], alpha=ALPHA, method="holm")[1]
    table["resolved"] = table["p_holm"] <= ALPHA
    table.loc[members, "verdict"] = [judge(row, demonstration=demonstration) for _, row in table[members].iterrows()]
    return table


def judge(row: pd.Series, *, demonstration: bool = False) -> str:
    """The verdict, in words, on a row with ``levels, difference, low, high, resolved``."""
    if demonstration:
        return "demonstration, too few pairs for a verdict"
    if row["levels"] < MIN_LEVELS:
        return "one seed, no finding" if row["levels"] == 1 else "two seeds, no finding"
    if row["resolved"]:
        return "advantage" if row["difference"] > 0 else "disadvantage"
    is_small = row["low"] >= -RELEVANT and row["high"] <= RELEVANT
    return "no relevant difference" if is_small else "not resolved"


def power(table: pd.DataFrame, *, gains: Sequence[float] = (0.05, 0.10, 0.15)) -> pd.DataFrame:
    """Rows of `compare` with the probability of seeing gains of these sizes at their own standard errors.

    The upper tail of the noncentral t, at `ALPHA` shared by the family as at Holm's first step.
    """
    n_tests = table.groupby("family")["family"].transform("size")
    critical = stats.t.isf(ALPHA / n_tests / 2, table["degrees"])
    tails = {gain: stats.nct.sf(critical, table["degrees"], gain / table["standard_error"]) for gain in gains}
    return table.assign(**{f"gain of {gain:.2f}": tail for gain, tail in tails.items()})


def label_equivalence(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``equivalence.csv``: the labelled images with which `BASELINE` reaches each arm's macro-F1, in words too.

    Infinite where all its labels do not suffice, 0 where its fewest are more than enough, NaN below four fractions.
    """
    rows, by = [], ["task", "protocol", "strategy", "label_fraction"]
    macro = pick(scores, metric="f1", plane="macro")
    for name, arm in macro.groupby(level=by, sort=False):
        group = pick(macro, task=name[0], protocol=name[1], strategy=BASELINE)
        curve = [one for _, one in group.groupby(level="label_fraction")]
        if curve and name[2] != BASELINE:
            about = dict(zip(by, name, strict=True)) | {"baseline": BASELINE, "n_pairs": len(arm)}
            about |= {level: mean_level(arm, level) for level in LABELLED} | {"score": arm[0].mean()}
            found = {"n_equivalent": np.nan, "low": np.nan, "high": np.nan, "reading": "too few fractions"}
            rows.append(about | (find_crossing(arm, curve) if len(curve) >= MIN_FRACTIONS else found))
    return pd.DataFrame(rows)


def find_crossing(arm: pd.DataFrame, curve: Sequence[pd.DataFrame]) -> dict[str, object]:
    """Where a monotone curve through a baseline's arms, one per label fraction, reaches the score of one arm.

    The curve is fitted to the means by isotonic regression and straight in log n between them. The interval holds the
    numbers at which the difference of arm and curve may be 0 at 95 % (Fieller's way); it may be open to either side.
    """
    target, *points = (scores[..., : 1 + N_EQUIVALENCE] for scores in align([arm, *curve]))
    knots = np.log([mean_level(one, "n_images") for one in curve])
    fitted = IsotonicRegression().fit_transform(knots, [point[..., 0].mean() for point in points])
    pooled = np.isclose(fitted[:, None], fitted, rtol=0, atol=1e-12)  # fractions between which the fit has no step
    x = np.unique([*knots, *np.linspace(knots[0], knots[-1], 201)])
    between = np.column_stack([np.interp(x, knots, unit) for unit in np.eye(len(knots))])  # (n_numbers, n_fractions)
    weights = (between @ (pooled / pooled.sum(axis=1))).T[..., None, None, None]
    ahead = target - sum(weight * point for weight, point in zip(weights, points, strict=True))  # falls with x
    found = estimate(ahead, n_patients=mean_level(arm, "n_test_patients"))
    numbers, reached = np.exp([*x, np.inf]), np.ones(1, dtype=bool)
    ends = [found["value"] <= 1e-12, found["low"] <= 0, found["high"] < 0]
    n, low, high = (numbers[np.concatenate([end, reached]).argmax()] for end in ends)
    n = 0.0 if found["value"][0] < -1e-12 else n
    low, high = (0.0 if end == numbers[0] else end for end in (low, high))
    reading = f"{n:.0f} labelled images" if n else f"fewer than {numbers[0]:.0f} labelled images"
    reading = reading if n < np.inf else f"not reached with {numbers[-2]:.0f} labelled images"
    return {"n_equivalent": n, "low": low, "high": high, "reading": reading}


def claim(scores: pd.DataFrame, *, demonstration: bool = False, under_trained: Collection[Arm] = ()) -> pd.DataFrame:
    """Rows of ``claim.csv``: how much more fine-tuning gains on brain planes than on planes, patients of both together.

    For each of `CLAIMS` its declared row first (the mean over the fractions in ``label_fraction``), then each fraction,
    then three equal numbers of labelled images within the range of both tasks (``matching`` "number"; arms with four
    fractions, straight in log n). Each stands on two scales: "f1", and "relative", which is gain / (1 - F1 of the
    baseline). Only declared rows on the first scale have a verdict; primary is that of the first strategy, if all its
    fractions were run. ``n_images`` is that of brain planes. Empty where an arm or a task is missing.
    """
    rows, macro = [], pick(scores, metric="f1", plane="macro", protocol="fine_tune")
    arms = dict(list(macro.groupby(level=["task", "strategy", "label_fraction"])))
    for strategy, declared in CLAIMS:
        keys = list(itertools.product(CLAIM_TASKS, (strategy, BASELINE)))
        found = [f for f in sorted({key[2] for key in arms}) if all((*key, f) in arms for key in keys)]
        if not found:
            continue
        curves = np.array(align([arms[(*key, f)] for key in keys for f in found]))
        ours, theirs = np.moveaxis(curves.reshape(2, 2, len(found), *curves.shape[1:]), 1, 0)  # (task, fraction, ...)
        numbers = np.array([[mean_level(arms[task, BASELINE, f], "n_images") for f in found] for task in CLAIM_TASKS])
        n_patients = max(mean_level(arm, "n_test_patients") for arm in arms.values())
        about = {"protocol": "fine_tune", "strategy": strategy, "baseline": BASELINE, "n_pairs": curves.shape[1]}
        about |= {"levels": curves.shape[1], "primary": False, "resolved": False}
        about["under_trained"] = any((name, "fine_tune") in under_trained for name in (strategy, BASELINE))
        gains, chosen = ours - theirs, [place for place, fraction in enumerate(found) if fraction in declared]
        points = []  # fractions in words, images, gains and baseline's scores (task, fraction, ...), whether declared
        for places in [chosen, *([place] for place in range(len(found)) if [place] != chosen)]:
            if places:
                text = ", ".join(f"{found[place]:g}" for place in places)
                points.append((text, numbers[0, places].mean(), gains[:, places], theirs[:, places], places is chosen))
        low, high = numbers.min(axis=1).max(), numbers.max(axis=1).min()
        for n in np.geomspace(low, high, 3) if len(found) >= MIN_FRACTIONS and low < high else []:
            weights = [[np.interp(np.log(n), np.log(own), one) for one in np.eye(len(found))] for own in numbers]
            between = (np.einsum("tf,tf...->t...", weights, one)[:, None] for one in (gains, theirs))
            points.append(("", n, *between, False))
        for (text, n, gain, base, is_declared), scale in itertools.product(points, ("f1", "relative")):
            gain = (relative_gain(gain, base) if scale == "relative" else gain).mean(axis=1)
            row = about | {"matching": "fraction" if text else "number", "label_fraction": text, "n_images": n}
            row |= {f"gain_{task}": one[..., 0].mean() for task, one in zip(CLAIM_TASKS, gain, strict=True)}
            row |= {"scale": scale, "verdict": EXPLORATORY} | estimate(gain[0] - gain[1], n_patients=n_patients)
            row["difference"] = row["value"]
            if is_declared and scale == "f1":
                is_whole = len(chosen) == len(declared)
                is_judged = is_whole and row["levels"] >= MIN_LEVELS and not demonstration
                row["resolved"], row["primary"] = is_judged and row["p"] <= ALPHA, is_whole and strategy == CLAIMS[0][0]
                found_so = judge(row, demonstration=demonstration)
                row["verdict"] = found_so if is_whole or demonstration else "fractions are missing, no verdict"
            rows.append(row)
    names = {"difference": "difference_of_gains"}
    return pd.DataFrame(rows).rename(columns=names).drop(columns=["value", "levels"], errors="ignore")


def relative_gain(gain: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Gain / (1 - baseline's score), (..., n_pairs, 1, 1 + n_resamples): a ratio of means, its pairs linearised."""
    room = 1 - base
    mean_gain, mean_room = (one.mean(axis=(-3, -2), keepdims=True) for one in (gain, room))
    mean_room = np.where(mean_room > 0, mean_room, np.nan)  # a resample that leaves nothing to gain has no share of it
    return mean_gain / mean_room + (gain - mean_gain / mean_room * room) / mean_room


def claim_sentence(table: pd.DataFrame) -> str:
    """The primary claim in Markdown, with a warning where its two scales differ in sign."""
    strategy, fractions = CLAIMS[0][0], ", ".join(f"{fraction:.0%}" for fraction in CLAIMS[0][1])
    needed = f"it needs `{strategy}`, `{BASELINE}`, both tasks, {fractions} of the labels"
    rows = table[(table["strategy"] == strategy) & (table["verdict"] != EXPLORATORY)] if len(table) else table
    if rows.empty:
        return f"**The claim is not computed**: {needed}."
    row, other = rows.iloc[0], table.iloc[rows.index[0] + 1]  # the same on the relative scale
    shares = ", ".join(f"{float(part):.0%}" for part in str(row["label_fraction"]).split(", "))
    text = (
        f"Fine-tuned with {shares} of the labels, `{strategy}` gains **{row['difference_of_gains']:+.3f}** more "
        f"macro-F1 over `{BASELINE}` on brain planes ({row['gain_brain_planes']:+.3f}) than on planes "
        f"({row['gain_planes']:+.3f}); 95 % interval {row['low']:+.3f} to {row['high']:+.3f}, {row['n_pairs']} pairs: "
        f"**{row['verdict']}**. As a share of what `{BASELINE}` leaves to gain: {other['difference_of_gains']:+.3f} "
        f"({other['low']:+.3f} to {other['high']:+.3f})."
    )
    if row["difference_of_gains"] * other["difference_of_gains"] < 0:
        text += " The two scales differ in sign: which task gains more depends on how a gain is measured."
    text += "" if row["primary"] else f" This is not the declared claim: {needed}."
    return text + (" An arm of it is under-trained." if row["under_trained"] else "")
