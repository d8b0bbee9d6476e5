"""Intervals over patients, draws and seeds; verdicts, label equivalence, the claim; and all of it simulated."""

import itertools

import numpy as np
import pandas as pd
import pytest
from prediction_tables import SimulatedTestSet, draw_predictions, make_predictions, make_run, make_scores
from scipy import stats

from fetal_utils.comparison import (
    add_verdicts,
    align,
    by_group,
    claim,
    claim_sentence,
    compare,
    estimate,
    label_efficiency,
    label_equivalence,
    pick,
    power,
)
from fetal_utils.evaluation import patient_weights, score_runs

DECLARED = (("simclr_imagenet", "imagenet"), ("simclr_imagenet", "imagenet_same_views"))


def pairs_of(values, *, task="planes", strategy="imagenet", label_fraction=0.1, n_images=40):
    """Entries of `make_scores`: macro-F1 of fine-tuning pairs 0, 1, ... of an arm."""
    draws = range(len(values)) if label_fraction < 1 else [0] * len(values)
    about = (task, "fine_tune", strategy, label_fraction)
    return {(*about, draw, seed, n_images): value for seed, (draw, value) in enumerate(zip(draws, values, strict=True))}


def probes_of(values, *, strategy="imagenet", label_fraction=0.1):
    """The same of probes, from rows of draws and columns of seeds."""
    about = ("planes", "linear_probe", strategy, label_fraction)
    return {(*about, *cell, 40): value for cell, value in np.ndenumerate(np.asarray(values, dtype=float))}


# --- intervals ---


def test_interval_and_p_value_worked_by_hand():
    scores = make_scores(pairs_of([0.5, 0.6, 0.7, 0.6]), spread=0.02)
    found = estimate(*align([scores]), n_patients=30)
    of_pairs, of_patients = np.var([0.5, 0.6, 0.7, 0.6], ddof=1) / 4, scores.mean(axis=0)[1:].var(ddof=1)
    variance = of_pairs + of_patients
    degrees = variance**2 / (of_pairs**2 / 3 + of_patients**2 / 29)
    half = stats.t.ppf(0.975, degrees) * np.sqrt(variance)
    assert [found[name] for name in ("value", "low", "high")] == pytest.approx([0.6, 0.6 - half, 0.6 + half])
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.6 / np.sqrt(variance), degrees))


def test_probes_add_the_variances_of_draws_and_seeds():
    values = np.array([[0.5, 0.6], [0.6, 0.7], [0.4, 0.8]])
    found = estimate(*align([make_scores(probes_of(values))]), n_patients=30)
    expected = values.mean(1).var(ddof=1) / 3 + values.mean(0).var(ddof=1) / 2
    assert found["standard_error"] ** 2 == pytest.approx(expected)


def test_a_probe_that_nothing_random_made_stands_for_all_seeds_and_is_not_counted_as_several():
    simclr, imagenet = np.array([[0.5, 0.6], [0.6, 0.7], [0.4, 0.8]]), np.array([[0.4], [0.7], [0.5]])
    entries = probes_of(simclr, strategy="simclr_imagenet") | probes_of(imagenet)
    row = compare(make_scores(entries), DECLARED).iloc[0]
    difference = simclr - imagenet
    expected = difference.mean(1).var(ddof=1) / 3 + difference.mean(0).var(ddof=1) / 2
    assert row["standard_error"] ** 2 == pytest.approx(expected)
    assert row["n_pairs"] == 6
    assert label_efficiency(make_scores(entries)).set_index("strategy")["n_pairs"].to_dict()["imagenet"] == 3


def test_with_all_labels_there_is_one_draw_and_the_seeds_still_count():
    entries = probes_of([[0.8, 0.9, 0.7]], strategy="simclr_imagenet", label_fraction=1.0)
    row = compare(make_scores(entries | probes_of([[0.7]], label_fraction=1.0)), DECLARED).iloc[0]
    assert row["standard_error"] ** 2 == pytest.approx(0.1**2 / 3)
    assert row["verdict"] == "not resolved"  # three seeds suffice for a verdict


def test_draws_and_seeds_are_matched_and_gaps_are_refused():
    whole = pairs_of([0.5, 0.6, 0.7])
    shuffled = dict(reversed(pairs_of([0.6, 0.7, 0.8], strategy="simclr_imagenet").items()))
    row = compare(make_scores(whole | shuffled), DECLARED).iloc[0]
    assert row[["difference", "standard_error"]].tolist() == pytest.approx([0.1, 0], abs=1e-9)
    fewer = make_scores(pairs_of([0.6, 0.8], strategy="simclr_imagenet") | whole)
    assert compare(fewer, DECLARED).iloc[0]["difference"] == pytest.approx((0.1 + 0.2) / 2)  # the pairs that both have
    probes = probes_of(np.full((3, 2), 0.5), strategy="simclr_imagenet") | probes_of(np.full((3, 1), 0.4))
    del probes["planes", "linear_probe", "simclr_imagenet", 0.1, 1, 1, 40]
    with pytest.raises(ValueError, match="draws and seeds"):
        compare(make_scores(probes), DECLARED)


def test_equal_runs_differ_by_nothing_and_an_equal_gain_of_every_run_and_patient_is_certain():
    entries = pairs_of([0.5, 0.5, 0.5]) | pairs_of([0.5, 0.5, 0.5], strategy="simclr_imagenet")
    row = compare(make_scores(entries), DECLARED).iloc[0]
    assert row[["difference", "low", "high", "p"]].tolist() == [0, 0, 0, 1]
    assert row["verdict"] == "no relevant difference"
    entries = pairs_of([0.5, 0.5, 0.5]) | pairs_of([0.75, 0.75, 0.75], strategy="simclr_imagenet")
    row = compare(make_scores(entries), DECLARED).iloc[0]
    assert row[["difference", "low", "high", "p"]].tolist() == [0.25, 0.25, 0.25, 0]
    assert row["verdict"] == "advantage"


def test_label_efficiency_is_the_mean_with_the_spread_over_pairs():
    scores = make_scores(pairs_of([0.5, 0.7], n_images=40) | pairs_of([0.8, 0.8], label_fraction=1.0, n_images=400))
    table = label_efficiency(scores, under_trained={("imagenet", "fine_tune")})
    assert table["value"].tolist() == pytest.approx([0.6, 0.8])
    assert table["sd_over_pairs"].tolist() == pytest.approx([0.2 / np.sqrt(2), 0])
    assert table[["n_images", "n_patients", "n_pairs"]].to_numpy().tolist() == [[40, 20, 2], [400, 200, 2]]
    assert table["under_trained"].all()


def test_groups_are_scored_each_and_said_to_be_unscored_with_one_patient():
    predictions = draw_predictions(np.random.default_rng(0), ["a", "b"], n_images=60, n_patients=20)
    predictions.loc[predictions["patient"] == 0, "machine"] = "rare"
    weights = patient_weights(predictions["patient"], n_resamples=100)
    runs = [make_run(predictions, seed=seed, draw=seed) for seed in (0, 1)]
    table = by_group(runs, weights, column="machine", training=pd.Series(["Aloka"] * 9 + ["never tested"]))
    table = table.set_index("machine")
    assert table["n_images"].sum() == 60
    assert table["n_train_images"].to_dict() == {"Aloka": 9, "Voluson E6": 0, "never tested": 1, "rare": 0}
    aloka = predictions[predictions["machine"] == "Aloka"]
    alone = score_runs([make_run(aloka)], weights, metrics=["f1"])
    assert table.loc["Aloka", "value"] == pytest.approx(pick(alone, plane="macro")[0].item())
    assert table.loc["Aloka", "low"] < table.loc["Aloka", "value"] < table.loc["Aloka", "high"]
    assert table.loc[["rare", "never tested"], "value"].isna().all()
    alone = [make_run(predictions.assign(machine=predictions["patient"].map("machine {}".format)))]
    assert by_group(alone, weights, column="machine", training=pd.Series(["Aloka"]))["value"].isna().all()


# --- verdicts ---


def rows_of(p_values, *, family="planes, fine_tune", difference=0.1, half=0.05, levels=5):
    table = pd.DataFrame({"p": p_values, "family": family, "difference": difference, "levels": levels})
    return table.assign(low=table["difference"] - half, high=table["difference"] + half)


def test_holm_corrects_within_a_family_and_for_its_members_alone():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 -> 0.02, 0.03, 0.06, then not below 0.06
    table = add_verdicts(
        pd.concat([rows_of([0.01, 0.04, 0.03, 0.005]), rows_of([0.04], family="other")], ignore_index=True)
    )
    assert table["p_holm"].tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02, 0.04])
    assert table["resolved"].tolist() == [True, False, False, True, True]
    exploratory = add_verdicts(pd.concat([rows_of([0.04]), rows_of([0.01] * 9, family="")], ignore_index=True))
    assert exploratory["p_holm"][0] == pytest.approx(0.04)
    assert set(exploratory["verdict"][1:]) == {""}


@pytest.mark.parametrize(
    ("difference", "half", "p", "verdict"),
    [
        (0.1, 0.05, 0.001, "advantage"),
        (-0.1, 0.05, 0.001, "disadvantage"),
        (0.005, 0.02, 0.6, "no relevant difference"),
        (0.02, 0.015, 0.2, "not resolved"),  # reaches to 0.035
        (0.05, 0.1, 0.3, "not resolved"),
        (0.1, 0.09, 0.06, "not resolved"),  # an interval above 0, which the correction for many looks does not leave
    ],
)
def test_verdicts(difference, half, p, verdict):
    assert add_verdicts(rows_of([p], difference=difference, half=half))["verdict"].item() == verdict


def test_one_or_two_seeds_are_no_finding_and_a_demonstration_has_no_verdict():
    table = add_verdicts(rows_of([1e-6, 1e-6, 0.04], levels=[1, 2, 3]))
    assert table["verdict"].tolist() == ["one seed, no finding", "two seeds, no finding", "advantage"]
    assert table["resolved"].tolist() == [False, False, True]  # 0.04 is alone in its family
    demonstration = add_verdicts(rows_of([1e-6], levels=2), demonstration=True)
    assert demonstration["verdict"].item() == "demonstration, too few pairs for a verdict"
    assert not demonstration["resolved"].item()


def test_only_declared_pairs_on_macro_f1_are_judged():
    rng = np.random.default_rng(0)
    runs = [
        make_run(draw_predictions(rng, ["a", "b"]), strategy=strategy, draw=k, seed=k)
        for strategy in ("imagenet", "simclr_imagenet", "scratch")
        for k in range(3)
    ]
    predictions = runs[0].predictions
    for run in runs:
        run.predictions["true"] = predictions["true"]
    scores = score_runs(runs, patient_weights(predictions["patient"], n_resamples=50), metrics=["f1", "sensitivity"])
    table = compare(scores, DECLARED, under_trained={("scratch", "fine_tune")}).set_index(
        ["metric", "strategy", "baseline"]
    )
    assert list(table.index) == [
        (metric, strategy, "imagenet")
        for metric in ("f1", "sensitivity")
        for strategy in ("simclr_imagenet", "scratch")
    ]
    judged = table[table["verdict"] != ""]
    assert list(judged.index) == [("f1", "simclr_imagenet", "imagenet")]
    assert judged["family"].item() == "planes, fine_tune"
    assert table["under_trained"].tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(pick(scores, strategy="scratch"), DECLARED)


def test_power_is_that_of_the_normal_test_where_degrees_are_many_and_falls_with_the_family():
    table = pd.DataFrame({"standard_error": 0.05, "degrees": 1e6, "family": ["a", "b", "b"]})
    found = power(table, gains=[0.1])["gain of 0.10"]
    assert found[0] == pytest.approx(stats.norm.sf(stats.norm.isf(0.025) - 2), abs=1e-3)
    assert found[1] == pytest.approx(stats.norm.sf(stats.norm.isf(0.0125) - 2), abs=1e-3)


# --- label equivalence ---


def curve_of(values, *, strategy="imagenet"):
    """Three equal pairs at 10, 100, 1,000 and 10,000 images."""
    entries = {}
    for fraction, n, value in zip((0.001, 0.01, 0.1, 1.0), (10, 100, 1000, 10_000), values, strict=False):
        entries |= pairs_of([value] * 3, strategy=strategy, label_fraction=fraction, n_images=n)
    return entries


def equivalence_of(value, baseline, **options):
    arm = pairs_of([value] * 3, strategy="simclr_imagenet", label_fraction=0.01, n_images=100)
    return label_equivalence(make_scores(curve_of(baseline) | arm, **options)).iloc[0]


def test_equivalence_lies_halfway_in_log_n_for_a_score_halfway():
    row = equivalence_of(0.65, [0.5, 0.6, 0.7, 0.8])
    assert row["n_equivalent"] == pytest.approx(10**2.5, rel=0.02)
    assert row["reading"] == "316 labelled images"
    assert [row["low"], row["high"]] == pytest.approx([row["n_equivalent"]] * 2, rel=0.04)  # nothing varies


def test_scores_off_the_curve_are_said_in_words():
    above, below = equivalence_of(0.85, [0.5, 0.6, 0.7, 0.8]), equivalence_of(0.4, [0.5, 0.6, 0.7, 0.8])
    assert above[["n_equivalent", "reading"]].tolist() == [np.inf, "not reached with 10000 labelled images"]
    assert below[["n_equivalent", "reading"]].tolist() == [0, "fewer than 10 labelled images"]


def test_a_dip_of_the_baseline_is_levelled_and_not_a_crossing():
    # 0.6, 0.7, 0.5 are pooled to 0.6: 0.65 is reached beyond them, halfway from 1,000 (0.6) to 10,000 (0.7) images
    row = equivalence_of(0.65, [0.6, 0.7, 0.5, 0.7])
    assert row["n_equivalent"] == pytest.approx(10**3.5, rel=0.02)


def test_fewer_than_four_fractions_are_no_curve():
    row = equivalence_of(0.65, [0.5, 0.6, 0.7])
    assert np.isnan(row["n_equivalent"])
    assert row["reading"] == "too few fractions"


def test_the_interval_of_an_equivalence_widens_with_noise_and_may_be_open():
    narrow, wide = (equivalence_of(0.65, [0.5, 0.6, 0.7, 0.8], spread=spread) for spread in (0.01, 0.2))
    assert 100 < narrow["low"] < narrow["n_equivalent"] < narrow["high"] < 1000
    assert [wide["low"], wide["high"]] == [0, np.inf]


# --- the claim ---

GAINS = {"brain_planes": (0.1, 0.2, 0.3), "planes": (0.0, 0.1, 0.1)}  # of the three pairs


def study_of(*, fractions=(0.1, 0.25, 0.5), base=None, sizes=None, gains=GAINS):
    """Fine-tuned imagenet and simclr_imagenet on both tasks."""
    base, entries = base or {"brain_planes": 0.5, "planes": 0.8}, {}
    for task, fraction in itertools.product(gains, fractions):
        n = round(fraction * (sizes or {"brain_planes": 100, "planes": 400})[task])
        about = {"task": task, "label_fraction": fraction, "n_images": n}
        entries |= pairs_of([base[task]] * 3, **about)
        entries |= pairs_of([base[task] + gain for gain in gains[task]], strategy="simclr_imagenet", **about)
    return entries


def test_the_claim_is_the_difference_of_gains_on_both_scales():
    table = claim(make_scores(study_of(), spread=0.001))
    row, relative = table.iloc[0], table.iloc[1]
    assert row[["strategy", "label_fraction", "scale", "primary"]].tolist() == [
        "simclr_imagenet", "0.1, 0.25, 0.5", "f1", True,
    ]  # fmt: skip
    assert row["difference_of_gains"] == pytest.approx(0.2 - 0.2 / 3)
    assert relative["difference_of_gains"] == pytest.approx(0.2 / 0.5 - 0.2 / 3 / 0.2)
    of_pairs = np.var(np.subtract(*GAINS.values()), ddof=1) / 3
    assert row["standard_error"] ** 2 == pytest.approx(of_pairs, rel=0.01)
    assert table["primary"].sum() == 1
    assert (table["verdict"] != "exploratory").sum() == 1
    assert row["verdict"] == "not resolved"


def test_the_sentence_says_the_verdict_and_when_the_two_scales_differ_in_sign():
    # +0.2 of 0.5 to gain on brain planes, +0.1 of 0.2 on planes: more in F1, less of what was left
    gains = {"brain_planes": (0.2, 0.2, 0.2), "planes": (0.1, 0.1, 0.1)}
    table = claim(make_scores(study_of(gains=gains)))
    assert table.iloc[0]["verdict"] == "advantage"
    assert "**+0.100**" in claim_sentence(table)
    assert "differ in sign" in claim_sentence(table)
    assert "differ in sign" not in claim_sentence(claim(make_scores(study_of())))
    assert "too few pairs for a verdict" in claim_sentence(claim(make_scores(study_of()), demonstration=True))
    weak = claim(make_scores(study_of()), under_trained={("imagenet", "fine_tune")})
    assert "under-trained" in claim_sentence(weak)
    assert "under-trained" not in claim_sentence(table)
    assert "with 10%, 25%, 50% of the labels" in claim_sentence(table)
    assert "not the declared claim" not in claim_sentence(table)


def test_a_claim_without_all_its_fractions_has_no_verdict_and_without_an_arm_is_not_computed():
    table = claim(make_scores(study_of(fractions=(0.1, 1.0))))
    assert table.iloc[0][["label_fraction", "verdict"]].tolist() == ["0.1", "fractions are missing, no verdict"]
    assert not table[["primary", "resolved"]].any(axis=None)
    for found in (table, claim(make_scores(study_of(fractions=(0.1, 1.0))), demonstration=True)):
        assert "not the declared claim: it needs" in claim_sentence(found)
    one_task = {name: value for name, value in study_of().items() if name[0] == "planes"}
    assert claim(make_scores(one_task)).empty
    assert "not computed" in claim_sentence(claim(make_scores(one_task)))


def test_equal_numbers_of_images_are_compared_within_the_range_of_both_tasks_straight_in_log_n():
    # brain planes have 10 to 100 images, planes 40 to 400; the gain of planes grows by 0.1 with each tenfold
    entries = {}
    for fraction in (0.1, 0.2, 0.5, 1.0):
        gain = {"brain_planes": (0.3,) * 3, "planes": (0.1 * np.log10(400 * fraction),) * 3}
        entries |= study_of(fractions=(fraction,), gains=gain, base={"brain_planes": 0.5, "planes": 0.5})
    table = claim(make_scores(entries))
    matched = table[(table["matching"] == "number") & (table["scale"] == "f1")]
    assert matched["n_images"].tolist() == pytest.approx([40, np.sqrt(4000), 100])
    assert matched["difference_of_gains"].tolist() == pytest.approx(
        0.3 - 0.1 * np.log10(matched["n_images"]).to_numpy()
    )
    assert set(matched["verdict"]) == {"exploratory"}
    three = claim(make_scores({name: value for name, value in entries.items() if name[3] != 0.2}))
    assert set(three["matching"]) == {"fraction"}


def test_the_dual_claim_is_declared_at_a_tenth_of_the_labels():
    entries = study_of(fractions=(0.1, 1.0)) | {
        (*name[:2], "dual_imagenet", *name[3:]): value
        for name, value in study_of(fractions=(0.1, 1.0)).items()
        if name[2] == "simclr_imagenet"
    }
    table = claim(make_scores(entries))
    dual = table[table["strategy"] == "dual_imagenet"]
    judged = dual[dual["verdict"] != "exploratory"]
    assert judged[["label_fraction", "verdict", "primary"]].to_numpy().tolist() == [["0.1", "not resolved", False]]


# --- simulated studies: 116 test patients, 142 images; 73 of the patients in the second task ---

N_STUDIES = 1000


@pytest.fixture(autouse=True)
def no_garbage(monkeypatch):
    """statsmodels collects garbage at every call of `multipletests`, 0.2 s each, and studies are many here."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def test_sets():
    rng = np.random.default_rng(0)
    weights = patient_weights(np.arange(116), n_resamples=80)
    planes = SimulatedTestSet(rng, weights, n_images=142, n_patients=116, n_classes=4)
    return planes, SimulatedTestSet(rng, weights, n_images=90, n_patients=73, n_classes=3)


def accuracies(rng, levels, n_runs, *, sd_pairs):
    """True accuracies of arms, (n_studies, n_arms, n_runs), whose differences vary by ``sd_pairs`` over runs."""
    shared = rng.normal(0, 0.05, size=(N_STUDIES, 1, n_runs))  # a lucky draw is lucky for all
    own = rng.normal(0, sd_pairs / np.sqrt(2), size=(N_STUDIES, len(levels), n_runs))
    return np.reshape(levels, (-1, 1)) + shared + own


@pytest.mark.parametrize("sd_pairs", [0.03, 0.06])
@pytest.mark.parametrize("n_pairs", [3, 5])
@pytest.mark.parametrize("shares", [(0.5, 0.25, 0.25), (0.5, 0.5, 0.0)])  # with and without patient x pair
def test_intervals_hold_the_truth_in_95_percent_of_studies(test_sets, sd_pairs, n_pairs, shares):
    rng = np.random.default_rng(1)
    difficulty = rng.standard_normal((N_STUDIES, 116), np.float32)
    options = {"difficulty": difficulty, "shares": shares}
    planes, brain = (
        one.macro_f1(accuracies(rng, [0.65, 0.65], n_pairs, sd_pairs=sd_pairs), **options) for one in test_sets
    )
    gain = {"planes": planes[:, 1] - planes[:, 0], "brain planes": brain[:, 1] - brain[:, 0]}
    gain["difference of gains"] = gain["brain planes"] - gain["planes"]
    for name, n_patients in {"planes": 116, "brain planes": 73, "difference of gains": 116}.items():
        found = estimate(gain[name][:, :, None], n_patients=n_patients)
        coverage = np.mean((found["low"] <= 0) & (found["high"] >= 0))  # the arms are equal: the truth is 0
        print(f"\n{name}, {n_pairs} pairs, sd {sd_pairs}, shares {shares}: coverage {coverage:.3f}", end="")
        assert 0.92 <= coverage <= 0.99


def test_the_standard_error_is_that_of_drawing_pairs_and_patients_again_together(test_sets):
    rng, n_pairs = np.random.default_rng(4), 20
    n_resamples = 2000
    test_set = SimulatedTestSet(
        rng, patient_weights(np.arange(116), n_resamples=n_resamples), n_images=142, n_patients=116, n_classes=4
    )
    truth = accuracies(rng, [0.65, 0.65], n_pairs, sd_pairs=0.06)[:10]
    scores = test_set.macro_f1(truth, rng.standard_normal((10, 116), np.float32), shares=(0.5, 0.5, 0.0))
    each = scores[:, 1] - scores[:, 0]  # (10 studies, n_pairs, 1 + n_resamples)
    drawn = rng.integers(n_pairs, size=(n_pairs, n_resamples))
    together = np.take_along_axis(each[:, :, 1:], drawn[None], axis=1).mean(axis=1).std(axis=1)
    ratio = estimate(each[:, :, None], n_patients=116)["standard_error"] / together
    assert ratio.mean() == pytest.approx(1, abs=0.1)


def laptop_study(rng, test_set, difficulty, gain):
    """Rows of all studies: a family of fine-tuning as in the preset `laptop`, where SimCLR gains ``gain``; and what the
    two claims are made of, the gains of simclr_imagenet at three fractions and that of dual_imagenet."""
    rows, of_simclr, of_dual = [], [], []
    for fraction, level in ((0.1, 0.5), (0.25, 0.6), (0.5, 0.65), (1.0, 0.7)):
        n_arms = 4 if fraction == 0.1 else 2  # imagenet, simclr_imagenet; same views and dual with the fewest labels
        truth = accuracies(rng, [level, level + gain, level, level][:n_arms], 5, sd_pairs=0.06)
        f1 = test_set.macro_f1(truth, difficulty)
        of_simclr += [f1[:, 1] - f1[:, 0]] if fraction < 1 else []
        of_dual += [f1[:, 3] - f1[:, 0]] if n_arms == 4 else []
        for ours, theirs in [(1, 0), (1, 2), (3, 0), (3, 2)] if n_arms == 4 else [(1, 0)]:
            found = estimate((f1[:, ours] - f1[:, theirs])[:, :, None], n_patients=test_set.n_patients)
            about = {"label_fraction": fraction, "pair": f"{ours}{theirs}", "study": np.arange(N_STUDIES), "levels": 5}
            rows.append(pd.DataFrame(about | found))
    table = pd.concat(rows, ignore_index=True).rename(columns={"value": "difference"})
    gains = np.array([np.mean(of_simclr, axis=0), *of_dual])
    return add_verdicts(table.assign(family=table["study"].astype(str))), gains


def probe_study(rng, test_set, difficulty):
    """The same of probes, 4 draws x 3 seeds; the encoder of imagenet is one for all seeds."""
    rows = []
    for fraction, level in ((0.05, 0.5), (0.25, 0.6), (1.0, 0.7)):
        n_draws = 1 if fraction == 1 else 4
        draw, seed = (rng.normal(0, 0.04, size=(N_STUDIES, 2, *shape)) for shape in ((n_draws, 1), (1, 3)))
        draw *= fraction < 1  # all labels can be drawn in one way only
        simclr, imagenet = level + draw[:, :1] + seed[:, :1], level + draw[:, 1:]
        ours, theirs = (
            test_set.macro_f1(one.reshape(N_STUDIES, 1, -1), difficulty).reshape(*one.shape[:1], *one.shape[2:], -1)
            for one in (simclr, imagenet)
        )
        found = estimate(ours - theirs, n_patients=test_set.n_patients)
        rows.append(pd.DataFrame({"study": np.arange(N_STUDIES), "levels": 3} | found))
    table = pd.concat(rows, ignore_index=True).rename(columns={"value": "difference"})
    return add_verdicts(table.assign(family=table["study"].astype(str)))


def test_with_no_difference_anywhere_few_families_have_a_false_verdict(test_sets):
    rng = np.random.default_rng(2)
    difficulty = rng.standard_normal((N_STUDIES, 116), np.float32)
    tuned, gains = zip(*(laptop_study(rng, one, difficulty, 0.0) for one in test_sets), strict=True)
    probed = [probe_study(rng, one, difficulty) for one in test_sets]
    wrong = [table.groupby("study")["resolved"].any() for table in (*tuned, *probed)]
    claims = estimate((gains[1] - gains[0])[:, :, :, None], n_patients=116)
    wrong += [pd.Series(p <= 0.05) for p in claims["p"]]
    share, studies = np.mean([one.mean() for one in wrong]), np.mean(np.any(wrong, axis=0))
    names = ("fine_tune planes", "fine_tune brain", "probes planes", "probes brain", "claim", "claim of the dual task")
    shares = {name: float(one.mean()) for name, one in zip(names, wrong, strict=True)}
    print(f"\nfalse verdicts in families: {shares}; in whole studies: {studies:.3f}")
    assert share <= 0.06
    assert max(one.mean() for one in wrong) <= 0.075
    assert studies <= 0.20  # four families and two claims, each at 5 %


def test_power_is_the_share_of_simulated_studies_that_see_the_gain(test_sets):
    rng = np.random.default_rng(3)
    difficulty = rng.standard_normal((N_STUDIES, 116), np.float32)
    for gain in (0.05, 0.10, 0.15):
        table, _ = laptop_study(rng, test_sets[1], difficulty, gain)
        row = table[(table["label_fraction"] == 0.25) & (table["pair"] == "10")]
        seen, told = (row["verdict"] == "advantage").mean(), power(table, gains=[gain]).loc[row.index]
        told = told[f"gain of {gain:.2f}"].mean()
        print(f"\ngain of {gain:.2f}: seen in {seen:.3f} of studies, power told {told:.3f}", end="")
        assert told == pytest.approx(seen, abs=0.1)  # Holm's later steps see a little more


def test_simulated_predictions_are_scored_as_runs_are(test_sets):
    rng, one = np.random.default_rng(0), test_sets[1]
    difficulty = rng.standard_normal((1, 116), np.float32)
    predicted = one.predict(np.full((1, 1, 1), 0.6), difficulty, shares=(0.5, 0.25, 0.25))
    predictions = make_predictions(one.true, predicted[0, 0, 0], one.patient, ["a", "b", "c"])
    weights = pd.DataFrame(one.weights.astype(int))
    expected = pick(score_runs([make_run(predictions, ["a", "b", "c"])], weights, metrics=["f1"]), plane="macro")
    assert one.score(predicted)[0, 0, 0] == pytest.approx(expected.to_numpy()[0], abs=1e-6)
