"""Bootstrap intervals that resample patients, since the images of one patient are not independent."""

import numpy as np


def draw_patient_weights(n_patients: int, *, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each patient is drawn in each bootstrap resample, after one row for the data as they are.

    Parameters
    ----------
    n_patients : int
        Test patients, at least 2.
    n_resamples : int
        Resamples, at least 1; 2,000 steady the ends of a 95 % interval.
    rng : numpy Generator
        Give generators seeded alike to two strategies, and they are resampled alike.

    Returns
    -------
    ndarray of int, shape (1 + n_resamples, n_patients)
        The first row is all ones; every row sums to ``n_patients``.

    Raises
    ------
    ValueError
        If there are fewer than 2 patients or no resample is asked for.

    References
    ----------
    Field and Welsh 2007, J R Stat Soc B 69:369 (the cluster bootstrap).
    """
    if n_patients < 2:
        raise ValueError(
            f"{n_patients} test patient: an interval needs at least 2 to resample; test on more patients, "
            "or report the value without an interval"
        )
    if n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples}, expected at least 1 (2,000 for a 95 % interval)")
    drawn = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_resamples)
    return np.concatenate([np.ones((1, n_patients), dtype=drawn.dtype), drawn])


def percentile_interval(resampled: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval over the first axis, leaving out NaN (a class that a resample lacks).

    Parameters
    ----------
    resampled : ndarray, shape (n_resamples, ...)
        A statistic in each resample; may hold infinities, as a number of labels that is never enough does.
    level : float
        Nominal coverage, in 0..1.

    Returns
    -------
    low, high : ndarray, shape (...)
        NaN where no resample has a value. Both are values that some resample took, so infinities stay whole.

    References
    ----------
    Efron 1981, Can J Stat 9:139.
    """
    tail = (1 - level) / 2
    ordered = np.sort(resampled, axis=0)  # NaN goes last
    n_valid = (~np.isnan(resampled)).sum(axis=0)
    if len(ordered) == 0:
        return np.full(ordered.shape[1:], np.nan), np.full(ordered.shape[1:], np.nan)
    low, high = np.floor(tail * (n_valid - 1)).astype(int), np.ceil((1 - tail) * (n_valid - 1)).astype(int)
    # with no valid value both positions clip to 0, where NaN lies
    return tuple(np.take_along_axis(ordered, np.maximum(end, 0)[None], axis=0)[0] for end in (low, high))


def bootstrap_p_value(resampled: np.ndarray) -> float:
    """Two-sided p-value for a difference of 0: the level at which the percentile interval just reaches 0.

    Parameters
    ----------
    resampled : ndarray, shape (n_resamples,)
        The difference in each resample.

    Returns
    -------
    float
        Never below ``2 / (n_resamples + 1)``: resampling cannot show less. NaN if no resample has a value.

    References
    ----------
    Davison and Hinkley 1997, Bootstrap Methods and their Application, section 4.2.3 (the added ones).
    """
    valid = resampled[~np.isnan(resampled)]
    if not len(valid):
        return float("nan")
    smaller_tail = min(int((valid <= 0).sum()), int((valid >= 0).sum()))
    return min(1.0, 2 * (smaller_tail + 1) / (len(valid) + 1))
