"""Linear probes: logistic regression on fixed features, its strength chosen on the validation patients."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fetal_utils.supervised import LabelledData

# Inverse regularisation strengths that a probe's validation patients choose from.
PROBE_STRENGTHS = tuple(np.logspace(-4, 1, 6).tolist())


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


def fit_probe(features: np.ndarray, labels: np.ndarray, *, strength: float, max_iter: int = 500) -> Pipeline:
    """Standardisation and balanced multinomial logistic regression.

    Parameters
    ----------
    features : ndarray, shape (n_images, n_features)
    labels : ndarray of int, shape (n_images,)
    strength : float
        Inverse regularisation, scikit-learn's ``C``.
    max_iter : int
        Of the solver; scikit-learn warns where they do not suffice.

    Returns
    -------
    Pipeline
    """
    with threadpool_limits(1):  # matrices this small are slower on several threads
        return build_probe(strength=strength, max_iter=max_iter).fit(features, labels)


def build_probe(*, strength: float, max_iter: int = 500) -> Pipeline:
    """The pipeline of `fit_probe`, not fitted yet."""
    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=max_iter)
    return make_pipeline(StandardScaler(), regression)
