"""A phantom of FETAL_PLANES_DB: simulated ultrasound planes of one parametric fetus per patient."""

from fetal_utils.phantom.dataset import MASK_DIR, RECORD_NAME, draw_image, phantom_dir, write_phantom
from fetal_utils.phantom.machines import ANATOMY, CALIPERS, TEXT
from fetal_utils.phantom.metadata import MIN_PATIENTS, draw_metadata

__all__ = [
    "ANATOMY",
    "CALIPERS",
    "MASK_DIR",
    "MIN_PATIENTS",
    "RECORD_NAME",
    "TEXT",
    "draw_image",
    "draw_metadata",
    "phantom_dir",
    "write_phantom",
]
