import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fetal_utils import plots, training_plots
from fetal_utils.palette import INK, STRATEGY_COLOURS


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture
def metadata():
    return pd.DataFrame(
        {
            "plane": ["Fetal brain"] * 3 + ["Other"] * 2,
            "split": ["test", "train", "train", "val", "train"],
            "patient": [1, 2, 2, 2, 3],
        }
    )


def lines_by_label(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_count_bars_are_the_crosstab_in_the_order_asked_for(metadata, ax):
    order = ["Other", "Fetal femur", "Fetal brain"]
    assert plots.plot_counts(metadata, ax, order=order) is ax
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in ax.containers}
    assert widths == {"train": [1, 0, 2], "val": [1, 0, 0], "test": [0, 0, 1]}
    assert [bar.get_x() for bar in ax.containers[2]] == [2, 0, 2]  # test begins where train and val end
    assert [label.get_text() for label in ax.get_yticklabels()] == ["other", "femur", "brain"]
    assert [text.get_text() for text in ax.texts] == ["2", "0", "3"]


def test_images_per_patient_are_counted_on_a_log_axis(metadata, ax):
    assert plots.plot_images_per_patient(metadata, ax) is ax
    assert [bar.get_height() for bar in ax.patches] == [2, 0, 1]  # two patients with 1 image, one with 3
    assert [bar.get_x() + bar.get_width() / 2 for bar in ax.patches] == pytest.approx([1, 2, 3])
    assert ax.get_yscale() == "log"


def test_every_patient_is_in_the_histogram_when_a_bar_holds_several_numbers(ax):
    metadata = pd.DataFrame({"patient": np.repeat(np.arange(130), np.arange(1, 131))})
    plots.plot_images_per_patient(metadata, ax)
    assert sum(bar.get_height() for bar in ax.patches) == 130


def test_contact_sheet_shows_each_image_with_its_title_on_one_gray_scale():
    images = [np.full((20, 30), value, dtype=np.uint8) for value in (10, 100, 250)]
    figure = plots.contact_sheet(images, ["a", "b", "c"], 2)
    shown = [panel for panel in figure.axes if panel.images]
    assert len(figure.axes) == 4
    assert [panel.get_title() for panel in shown] == ["a", "b", "c"]
    assert [panel.images[0].get_array().max() for panel in shown] == [10, 100, 250]
    assert {panel.images[0].get_clim() for panel in shown} == {(0, 255)}
    assert not plt.get_fignums()


def test_contact_sheet_outlines_the_mask_and_names_it_once():
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:10, 8:20] = True
    empty = np.zeros_like(mask)
    images = [np.zeros((20, 30), dtype=np.uint8)] * 2
    figure = plots.contact_sheet(images, ["a", "b"], 2, masks={"cerebellum": [mask, empty]})
    outline = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert outline.extents == pytest.approx([7.5, 4.5, 19.5, 9.5])  # half a pixel around it
    assert not figure.axes[1].collections
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cerebellum"]


def test_contact_sheet_refuses_what_does_not_match():
    image = np.zeros((4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match="0 images"):
        plots.contact_sheet([], [], 3)
    with pytest.raises(ValueError, match="titles"):
        plots.contact_sheet([image], ["a", "b"], 3)
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        plots.contact_sheet([image], ["a"], 3, masks={"cavum": [np.ones((5, 4))]})


def test_confusion_writes_counts_and_colours_the_share_of_the_row(ax):
    matrix = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert plots.plot_confusion(matrix, ["Trans-thalamic", "Trans-cerebellum", "Trans-ventricular"], ax) is ax
    assert [text.get_text() for text in ax.texts] == [str(count) for count in matrix.ravel()]
    share = ax.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(share, [[0.8, 0.2, 0], [0.25, 0.75, 0], [np.nan] * 3])
    assert [text.get_color() for text in ax.texts][:4] == ["white", INK, INK, INK]  # shares 0.8, 0.2, 0 and 0.25
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["thalamic (10)", "cerebellum (4)", "ventricular (0)"]


@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.ones((3, 3)), np.zeros((2, 2))])
def test_confusion_refuses_another_shape_and_no_images(matrix, ax):
    with pytest.raises(ValueError, match="2 square"):
        plots.plot_confusion(matrix, ["a", "b"], ax)


def test_learning_curves_are_the_columns_of_the_log(ax):
    log = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.5], "val_loss": [3.0, np.nan, 2.5]})
    assert plots.plot_learning_curves(log, ax) is ax
    lines = lines_by_label(ax)
    assert lines["train loss"].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1.5]]
    assert lines["val loss"].get_xydata().tolist() == [[1, 3], [3, 2.5]]  # the epoch without a value is bridged


def per_class_metrics():
    rows = [
        ("imagenet", "macro", "f1", 0.6, 0.5, 0.7),
        ("imagenet", "Trans-thalamic", "f1", 0.7, 0.55, 0.8),
        ("imagenet", "Trans-ventricular", "f1", np.nan, np.nan, np.nan),
        ("dual_imagenet", "macro", "f1", 0.65, 0.6, 0.72),
        ("dual_imagenet", "Trans-thalamic", "f1", 0.8, 0.7, 0.9),
        ("dual_imagenet", "Trans-ventricular", "f1", np.nan, np.nan, np.nan),
        ("imagenet", "macro", "auroc", 0.9, 0.8, 0.95),
    ]
    return pd.DataFrame(rows, columns=["strategy", "plane", "metric", "value", "low", "high"])


def test_per_class_draws_each_value_with_its_interval_in_the_colour_of_the_strategy(ax):
    assert plots.plot_per_class(per_class_metrics(), ax) is ax
    drawn = {container.get_label(): container for container in ax.containers}
    for strategy, value, interval in [("imagenet", 0.7, (0.55, 0.8)), ("dual_imagenet", 0.8, (0.7, 0.9))]:
        points, _, bars = drawn[strategy]
        assert points.get_ydata()[1] == pytest.approx(value)
        assert sorted(bars[0].get_segments()[1][:, 1]) == pytest.approx(interval)
        assert to_hex(points.get_color()).upper() == STRATEGY_COLOURS[strategy]
    assert drawn["imagenet"][0].get_xdata()[1] < drawn["dual_imagenet"][0].get_xdata()[1]  # beside each other


def test_per_class_marks_a_class_without_test_images(ax):
    plots.plot_per_class(per_class_metrics(), ax)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["macro", "thalamic", "ventricular\n(no test images)"]


def test_per_class_refuses_several_runs_at_once_and_a_metric_that_is_not_there(ax):
    metrics = per_class_metrics()
    with pytest.raises(ValueError, match="several rows"):
        plots.plot_per_class(pd.concat([metrics, metrics]), ax)
    with pytest.raises(ValueError, match="0 rows"):
        plots.plot_per_class(metrics, ax, metric="accuracy")


def efficiency_metrics():
    rows = []
    for draw, shift in [(0, -0.02), (1, 0.02)]:
        for fraction, n_images, value in [(1.0, 100, 0.8), (0.1, 10 + 2 * draw, 0.5)]:
            for strategy in ("imagenet", "simclr_imagenet"):
                gain = 0.1 if strategy == "simclr_imagenet" else 0
                score = value + gain + shift
                rows.append(("planes", "fine_tune", strategy, fraction, n_images, draw, "macro", "f1", score))
    columns = ["task", "protocol", "strategy", "label_fraction", "n_images", "draw", "plane", "metric", "value"]
    metrics = pd.DataFrame(rows, columns=columns)
    return metrics.assign(low=metrics["value"] - 0.05, high=metrics["value"] + 0.05)


def band_of(ax, index):
    return ax.collections[index].get_paths()[0].get_extents().extents


def test_label_efficiency_draws_the_mean_of_the_draws_and_their_range(ax):
    assert plots.plot_label_efficiency(efficiency_metrics(), ax) is ax
    line = lines_by_label(ax)["imagenet"]
    assert line.get_xydata() == pytest.approx(np.array([[11, 0.5], [100, 0.8]]))
    assert to_hex(line.get_color()).upper() == STRATEGY_COLOURS["imagenet"]
    assert lines_by_label(ax)["simclr_imagenet"].get_ydata() == pytest.approx([0.6, 0.9])
    assert band_of(ax, 0) == pytest.approx([11, 0.48, 100, 0.82])
    assert ax.get_xscale() == "log"
    assert "range of 2 runs" in ax.get_legend().get_title().get_text()


def test_label_efficiency_of_one_run_draws_its_interval(ax):
    metrics = efficiency_metrics()
    plots.plot_label_efficiency(metrics[metrics["draw"] == 0], ax)
    assert band_of(ax, 0) == pytest.approx([10, 0.43, 100, 0.83])
    assert "over patients" in ax.get_legend().get_title().get_text()


def test_label_efficiency_of_a_single_number_of_images_is_drawn(ax):
    metrics = efficiency_metrics()
    plots.plot_label_efficiency(metrics[metrics["label_fraction"] == 1], ax)
    assert lines_by_label(ax)["imagenet"].get_xydata() == pytest.approx(np.array([[100, 0.8]]))


def test_label_efficiency_refuses_to_mix_tasks(ax):
    metrics = efficiency_metrics()
    mixed = pd.concat([metrics, metrics.assign(task="brain_planes")])
    with pytest.raises(ValueError, match=r"task.*brain_planes.*planes"):
        plots.plot_label_efficiency(mixed, ax)


@pytest.mark.parametrize(
    "draw",
    [
        plots.plot_counts,
        plots.plot_images_per_patient,
        plots.plot_learning_curves,
        plots.plot_per_class,
        plots.plot_label_efficiency,
        lambda table, ax: plots.plot_trials(table, ax, task="planes", label_fraction=0.1),
    ],
)
def test_an_empty_table_and_a_missing_column_are_refused(draw, ax):
    with pytest.raises(ValueError, match="missing"):
        draw(pd.DataFrame({"something": [1.0]}), ax)
    every = ["plane", "split", "patient", "epoch", "loss", "train_loss", "val_loss", "strategy", "metric", "value",
             "low", "high", "label_fraction", "n_images",
             "task", "change", "difference", "difference_sd", "val_macro_f1"]  # fmt: skip
    with pytest.raises(ValueError, match="0 rows"):
        draw(pd.DataFrame(columns=every), ax)


def cockpit_log():
    log = pd.DataFrame({"epoch": [1, 2], "loss": [5.0, 4.0], "top1_accuracy": [0.1, 0.4], "alignment": [1.0, 0.5]})
    return log.assign(uniformity=[-1.0, -2.0], effective_rank=[math.nan, 9.0], knn_macro_f1=[math.nan, 0.6])


def test_the_cockpit_draws_each_instrument_of_each_log_and_skips_epochs_without_a_look():
    log = cockpit_log()
    figure = plots.plot_cockpit({"simclr_scratch": log, "simclr_imagenet": log}, batch_size=16)
    panels = {ax.get_ylabel(): ax for ax in figure.axes}
    loss = panels["NT-Xent loss (nats)"]
    assert list(lines_by_label(loss)["simclr_imagenet"].get_ydata()) == [5.0, 4.0]
    chance = next(line for label, line in lines_by_label(loss).items() if label.startswith("chance"))
    assert chance.get_ydata()[0] == pytest.approx(math.log(31))
    assert list(panels["effective rank, held-out"].get_lines()[0].get_xdata()) == [2]
    assert list(panels["neighbours' F1, held-out"].get_lines()[1].get_ydata()) == [0.6]
    assert len(figure.axes) == 12


def test_an_instrument_that_has_not_been_read_yet_has_an_empty_panel():
    figure = plots.plot_cockpit({"simclr_scratch": cockpit_log()}, batch_size=16)
    (spread,) = [ax for ax in figure.axes if ax.get_ylabel() == "feature spread, held-out"]
    assert len(spread.get_lines()[0].get_xdata()) == 0


def test_the_cockpit_needs_epochs_and_a_loss():
    with pytest.raises(ValueError, match="loss"):
        plots.plot_cockpit({"a": pd.DataFrame({"epoch": [1], "top1_accuracy": [1.0]})}, batch_size=4)


class Shown:
    """Stands for the output area of a cell."""

    def __init__(self):
        self.figures = []

    def __call__(self, figure, display_id):
        self.figures.append(figure)
        return self

    def update(self, figure):
        self.figures.append(figure)


def pretraining(init):
    return SimpleNamespace(kind="simclr", start=SimpleNamespace(init=init))


def test_the_live_cockpit_draws_into_one_output_and_holds_every_run_so_far(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(training_plots, "display", shown)
    monkeypatch.setattr(training_plots, "somebody_watches", lambda: True)
    live = plots.LiveCockpit(batch_size=16, every_s=0)
    live(pretraining("random"), cockpit_log())
    live(pretraining("imagenet"), cockpit_log())
    assert len(shown.figures) == 2
    assert {"simclr_scratch", "simclr_imagenet"} < set(lines_by_label(shown.figures[1].axes[0]))


def test_the_live_cockpit_draws_no_more_often_than_asked_and_not_where_nobody_watches(monkeypatch):
    shown = Shown()
    monkeypatch.setattr(training_plots, "display", shown)
    monkeypatch.setattr(training_plots, "somebody_watches", lambda: True)
    live = plots.LiveCockpit(batch_size=16, every_s=3600)
    for _ in range(3):
        live(pretraining("random"), cockpit_log())
    assert len(shown.figures) == 1
    monkeypatch.setattr(training_plots, "somebody_watches", lambda: False)
    plots.LiveCockpit(batch_size=16, every_s=0)(pretraining("random"), cockpit_log())
    assert len(shown.figures) == 1


def test_trials_are_drawn_from_worst_to_best_over_the_spread_of_the_seeds(ax):
    about = {"task": "planes", "label_fraction": 0.1, "difference_sd": 0.01, "n_draws": 5}
    rows = [("base", 0, 0.5, -0.01), ("base", 1, 0.52, 0.01), ("better", 0, 0.61, 0.1), ("worse", 0, 0.41, -0.1)]
    table = pd.DataFrame(rows, columns=["change", "seed", "val_macro_f1", "difference"]).assign(**about)
    plots.plot_trials(table, ax, task="planes", label_fraction=0.1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["worse", "better"]
    (band,) = ax.patches
    assert band.get_x() == pytest.approx(-0.01)
    assert band.get_width() == pytest.approx(0.02)


def test_differences_are_filled_where_they_are_resolved_and_side_by_side_at_a_fraction(ax):
    rows = [("scratch", 0.1, -0.2, -0.3, -0.1, True), ("dual_imagenet", 0.1, 0.02, -0.05, 0.09, False)]
    rows += [("dual_imagenet", 1.0, 0.01, -0.05, 0.07, False)]
    table = pd.DataFrame(rows, columns=["strategy", "label_fraction", "difference", "low", "high", "resolved"])
    assert plots.plot_differences(table, ax) is ax
    scratch, dual = [points for points in ax.collections if isinstance(points, PathCollection)]
    assert scratch.get_offsets()[:, 1].tolist() == [-0.2]
    assert dual.get_offsets()[:, 1].tolist() == [0.02, 0.01]
    assert scratch.get_offsets()[0, 0] < dual.get_offsets()[0, 0]  # both at the first fraction
    assert to_hex(scratch.get_facecolors()[0]) == STRATEGY_COLOURS["scratch"].lower()
    assert {to_hex(colour) for colour in dual.get_facecolors()} == {"#ffffff"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10%", "100%"]
