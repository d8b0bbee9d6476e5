"""Predictions, runs and whole studies made up for the tests."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.special import ndtri


def make_predictions(true, predicted, patient, classes, *, probabilities=None, machine="Voluson E6"):
    """A predictions table from class indices; without probabilities, 0.9 for the predicted class."""
    true, predicted = np.asarray(true), np.asarray(predicted)
    if probabilities is None:
        probabilities = np.full((len(true), len(classes)), 0.1 / (len(classes) - 1))
        probabilities[np.arange(len(true)), predicted] = 0.9
    names = np.asarray(classes, dtype=object)
    table = pd.DataFrame(
        {
            "image_name": [f"image_{index:05d}" for index in range(len(true))],
            "patient": patient,
            "operator": "Op. 1",
            "machine": machine,
            "true": names[true],
            "predicted": names[predicted],
        }
    )
    for index, name in enumerate(classes):
        table[f"probability_{name}"] = np.asarray(probabilities)[:, index]
    return table


def draw_predictions(rng, classes, *, n_images=200, n_patients=25, skill=1.0, n_true_classes=None):
    """A random table: softmax of noise plus ``skill`` for the true class, rounded so that scores tie."""
    true = rng.integers(n_true_classes or len(classes), size=n_images)
    logits = rng.normal(size=(n_images, len(classes))).round(1)
    logits[np.arange(n_images), true] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    patient = np.concatenate([np.arange(n_patients), rng.integers(n_patients, size=n_images - n_patients)])
    machine = rng.choice(["Aloka", "Voluson E6"], size=n_images)
    predicted = probabilities.argmax(axis=1)
    return make_predictions(true, predicted, patient, classes, probabilities=probabilities, machine=machine)


def make_patients_with_hits(hits_per_patient, n_images_per_patient):
    """Two classes, the same number of images for every patient, the given number of them right."""
    n_patients = len(hits_per_patient)
    true = np.tile(np.arange(n_images_per_patient) % 2, n_patients)
    rank = np.tile(np.arange(n_images_per_patient), n_patients)
    right = rank < np.repeat(hits_per_patient, n_images_per_patient)
    patient = np.repeat(np.arange(n_patients), n_images_per_patient)
    return make_predictions(true, np.where(right, true, 1 - true), patient, ["a", "b"])


def make_run(predictions, classes=("a", "b"), *, n_images=40, n_patients=11, class_counts=None, **settings):
    """As much of a finished supervised run as evaluation reads."""
    about = {"task": "planes", "protocol": "fine_tune", "strategy": "imagenet", "label_fraction": 0.1, "draw": 0}
    about |= {"seed": 0, **settings}
    facts = {"classes": list(classes), "n_images": n_images, "n_patients": n_patients}
    facts |= {"class_counts": class_counts} if class_counts else {}
    folder = Path("-".join(map(str, about.values())))
    return SimpleNamespace(
        settings=SimpleNamespace(**about), record={"facts": facts}, predictions=predictions, folder=folder
    )


def make_scores(values, *, n_test_patients=30, n_resamples=50, spread=0.0, seed=0):
    """Rows of `score_runs` from {(task, protocol, strategy, label_fraction, draw, seed, n_images): macro-F1}.

    ``spread`` is the standard deviation of the resamples, drawn afresh for each row.
    """
    rng = np.random.default_rng(seed)
    names = ["task", "protocol", "strategy", "label_fraction", "draw", "seed", "n_images"]
    index = pd.DataFrame(list(values), columns=names).assign(metric="f1", plane="macro")
    index = index.assign(n_patients=index["n_images"] // 2, n_test_patients=n_test_patients, key="made-up")
    observed = np.array(list(values.values()), dtype=float)[:, None]
    resampled = observed + spread * rng.normal(size=(len(observed), n_resamples))
    return pd.DataFrame(np.hstack([observed, resampled]), index=pd.MultiIndex.from_frame(index))


class SimulatedTestSet:
    """Test images of a task, on which predictions of many runs in many studies are simulated at once.

    Parameters
    ----------
    rng : Generator
    weights : DataFrame
        As `patient_weights` draws them, for patients 0, 1, ...
    n_images, n_patients, n_classes : int
        The patients are the first of those with weights; each has an image or more.
    """

    def __init__(self, rng, weights, *, n_images, n_patients, n_classes):
        self.rng, self.n_classes, self.n_patients = rng, n_classes, n_patients
        self.weights = weights.to_numpy(np.float32)
        self.patient = np.concatenate([np.arange(n_patients), rng.integers(n_patients, size=n_images - n_patients)])
        self.true = rng.integers(n_classes, size=n_images)

    def macro_f1(self, accuracy, difficulty, *, shares=(0.5, 0.25, 0.25)):
        """Macro-F1 of simulated predictions under all weights, shape (n_studies, n_arms, n_runs, 1 + n_resamples).

        Parameters
        ----------
        accuracy : ndarray, shape (n_studies, n_arms, n_runs)
            Share of right predictions that a run has in truth, over all patients.
        difficulty : ndarray, shape (n_studies, n_all_patients)
            Standard normal: how hard a patient is for all runs (and tasks).
        shares : (float, float, float)
            Of what decides over a prediction: the patient; patient x arm; patient x arm x run. They sum to 1.
        """
        return self.score(self.predict(accuracy, difficulty, shares=shares))

    def predict(self, accuracy, difficulty, *, shares):
        """Predicted classes, shape (n_studies, n_arms, n_runs, n_images); see `macro_f1`."""
        rng, (n_studies, n_arms, n_runs) = self.rng, accuracy.shape
        by_arm = rng.standard_normal((n_studies, n_arms, 1, difficulty.shape[1]), np.float32)[..., self.patient]
        by_run = rng.standard_normal((n_studies, n_arms, n_runs, difficulty.shape[1]), np.float32)[..., self.patient]
        effects = zip(shares, (difficulty[:, None, None, self.patient], by_arm, by_run), strict=True)
        threshold = ndtri(np.clip(accuracy, 0.01, 0.99)).astype(np.float32)[..., None]
        right = sum(np.float32(np.sqrt(share)) * effect for share, effect in effects) < threshold
        wrong = (self.true + rng.integers(1, self.n_classes, size=right.shape)) % self.n_classes
        return np.where(right, self.true, wrong)

    def score(self, predicted):
        """Macro-F1 of predicted classes under all weights, 2 hits / (true + predicted) of each class."""
        *shape, n_images = predicted.shape
        n_runs, k, n_patients = int(np.prod(shape)), self.n_classes, self.weights.shape[1]
        cells = (self.patient * n_runs + np.arange(n_runs)[:, None]) * k  # of a patient and a run
        predicted = predicted.reshape(n_runs, n_images)
        hits = predicted == self.true
        counted = [(cells + self.true)[hits], (cells + self.true).ravel(), (cells + predicted).ravel()]
        sums = (np.bincount(one, minlength=n_patients * n_runs * k).reshape(n_patients, -1) for one in counted)
        hits, true, predicted = (self.weights @ one.astype(np.float32) for one in sums)
        f1 = 2 * hits / np.maximum(true + predicted, 1)
        return np.moveaxis(f1.reshape(-1, *shape, k).mean(axis=-1), 0, -1)
