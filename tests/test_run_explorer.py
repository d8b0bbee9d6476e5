"""One run at a time out of a grid of results."""

from types import SimpleNamespace

import pandas as pd
import pytest
from prediction_tables import make_predictions

from fetal_utils.run_explorer import RunExplorer, draw_run

CLASSES = ["Fetal brain", "Fetal femur"]


@pytest.fixture
def macro():
    grid = [(strategy, fraction) for strategy in ("imagenet", "simclr_imagenet") for fraction in (0.1, 1.0)]
    return pd.DataFrame(
        [
            {
                "task": "planes",
                "strategy": strategy,
                "protocol": "fine_tune",
                "label_fraction": fraction,
                "n_images": int(100 * fraction),
                "draw": 0,
                "seed": 0,
                "plane": "macro",
                "metric": "f1",
                "value": 0.5 + 0.1 * position,
                "low": 0.4,
                "high": 0.9,
            }
            for position, (strategy, fraction) in enumerate(grid)
        ],
        index=[7, 19, 31, 43],  # as chosen from a table of all metrics
    )


@pytest.fixture
def runs():
    """The run at position i takes i brains for femurs."""
    tables = [
        make_predictions([0] * 5 + [1] * 2, [1] * i + [0] * (5 - i) + [1] * 2, range(7), CLASSES) for i in range(4)
    ]
    return [SimpleNamespace(predictions=table) for table in tables]


def counts(figure):
    """The numbers written into the confusion matrix."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_run_is_shown_by_what_it_confused_and_by_a_ring_around_its_score(runs, macro):
    figure = draw_run(runs[3], 3, macro, CLASSES)
    assert counts(figure) == ["2", "3", "0", "2"]
    matrix, curves = figure.axes[:2]
    assert matrix.get_title(loc="left") == (
        "simclr_imagenet, 100 labelled images\nfine_tune, draw 0, seed 0, macro-F1 0.800"
    )
    assert curves.collections[-1].get_offsets().tolist() == [[100, pytest.approx(0.8)]]


def test_choosing_a_strategy_and_a_fraction_leaves_the_run_of_both(runs, macro):
    explorer = RunExplorer(runs, macro, CLASSES)
    before = bytes(explorer.picture.value)
    explorer.filters["strategy"].value = "simclr_imagenet"
    explorer.filters["label_fraction"].value = "10%"
    assert explorer.slider.options == (2,)
    assert bytes(explorer.picture.value) != before
    assert counts(explorer.draw(explorer.slider.value)) == ["3", "2", "0", "2"]


def test_runs_and_scores_that_do_not_fit_are_refused(runs, macro):
    with pytest.raises(ValueError, match="3 runs and 4 scores"):
        RunExplorer(runs[:3], macro, CLASSES)
    with pytest.raises(ValueError, match=r"missing: \['draw'\]"):
        RunExplorer(runs, macro.drop(columns="draw"), CLASSES)
