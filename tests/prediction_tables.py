"""Predictions tables made up for the tests."""

import numpy as np
import pandas as pd


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
