"""Which networks' maps are better than maps that know nothing."""

from __future__ import annotations

import pandas as pd

from fetal_utils.cam_baselines import BASELINES

# scores that say whether a map explains, and whether high (1) or low (-1) is good
BETTER = {"road": 1, "insertion": 1, "deletion": -1, "pointing_game_anatomy": 1, "energy_ratio_anatomy": 1}


def beats_baselines(rows: pd.DataFrame, *, score: str, plane: str = "all") -> pd.Series:
    """Whether each strategy's maps score better than all three baselines, intervals apart.

    Parameters
    ----------
    rows : DataFrame
        From `cam_rows`, of one task, protocol, label fraction, seed and method.
    score : str
        A key of `BETTER`.
    plane : str
        A plane, or "all".

    Returns
    -------
    Series of bool, by strategy
        Strict: the four maps are of the same images, so a paired difference might be told from zero where the
        intervals still touch. False where an interval is missing.

    Raises
    ------
    ValueError
        If the score says nothing of an explanation, or has no rows.
    """
    if score not in BETTER:
        raise ValueError(f"score={score!r}: expected one of {list(BETTER)}")
    own = rows[(rows["score"] == score) & (rows["plane"] == plane)]
    if own.empty:
        raise ValueError(f"no rows of score={score!r} and plane={plane!r}; there are {sorted(set(rows['score']))}")
    low, high = (own.pivot(index="strategy", columns="map", values=end) for end in ("low", "high"))
    if BETTER[score] > 0:
        better = low["model"] > high[list(BASELINES)].max(axis=1, skipna=False)
    else:
        better = high["model"] < low[list(BASELINES)].min(axis=1, skipna=False)
    return better.reindex(own["strategy"].unique())
