"""When a map counts as better than maps that know nothing."""

import numpy as np
import pandas as pd
import pytest

from fetal_utils.cam_verdicts import beats_baselines

NOTHING = {"random": (0.1, 0.3), "gaussian": (0.2, 0.4), "reinitialised": (0.0, 0.2)}


def rows_of(score: str, **model: tuple[float, float]) -> pd.DataFrame:
    """Rows of each strategy's interval beside the same baselines."""
    return pd.DataFrame(
        [
            {"strategy": name, "map": kind, "plane": "all", "score": score, "low": low, "high": high}
            for name, interval in model.items()
            for kind, (low, high) in {"model": interval, **NOTHING}.items()
        ]
    )


def test_a_map_beats_the_baselines_where_its_interval_is_beyond_all_of_theirs():
    rows = rows_of("road", apart=(0.41, 0.5), touching=(0.39, 0.9), below=(-0.3, -0.1), missing=(np.nan, np.nan))
    assert beats_baselines(rows, score="road").to_dict() == {
        "apart": True,
        "touching": False,
        "below": False,
        "missing": False,
    }


def test_where_low_is_good_the_interval_must_lie_below():
    rows = rows_of("deletion", below=(-0.3, -0.1), within=(-0.3, 0.05), above=(0.5, 0.6))
    assert beats_baselines(rows, score="deletion").to_dict() == {"below": True, "within": False, "above": False}


def test_a_score_that_explains_nothing_or_is_not_there_is_refused():
    with pytest.raises(ValueError, match="score='shift_stability'"):
        beats_baselines(rows_of("road", a=(0, 1)), score="shift_stability")
    with pytest.raises(ValueError, match="no rows of score='deletion'"):
        beats_baselines(rows_of("road", a=(0, 1)), score="deletion")
