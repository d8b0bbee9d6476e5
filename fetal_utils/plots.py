"""Every figure of the study, to import from one place.

Each function draws on the axes given and returns it, or returns a new figure where it draws several axes. None
shows or saves; `save_figure` is for notebooks to call.
"""

from fetal_utils.data_plots import contact_sheet, plot_counts, plot_images_per_patient
from fetal_utils.efficiency_plots import plot_differences, plot_label_efficiency
from fetal_utils.figures import save_figure
from fetal_utils.palette import PLANE_COLOURS, STRATEGY_COLOURS, colours_for, short_names
from fetal_utils.result_plots import plot_confusion, plot_per_class
from fetal_utils.training_plots import LiveCockpit, plot_cockpit, plot_learning_curves, plot_trials

__all__ = [
    "PLANE_COLOURS",
    "STRATEGY_COLOURS",
    "LiveCockpit",
    "colours_for",
    "contact_sheet",
    "plot_cockpit",
    "plot_confusion",
    "plot_counts",
    "plot_differences",
    "plot_images_per_patient",
    "plot_label_efficiency",
    "plot_learning_curves",
    "plot_per_class",
    "plot_trials",
    "save_figure",
    "short_names",
]
