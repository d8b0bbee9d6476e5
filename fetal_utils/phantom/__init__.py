"""A phantom of FETAL_PLANES_DB: simulated ultrasound planes of one parametric fetus per patient."""

from fetal_utils.phantom.dataset import (
    FORMAT_VERSION,
    MASK_DIR,
    NOTICE,
    RECORD_NAME,
    phantom_dir,
    write_phantom,
)
from fetal_utils.phantom.drawing import draw_image
from fetal_utils.phantom.metadata import MIN_PATIENTS, draw_metadata
from fetal_utils.phantom.overlay import ANATOMY, CALIPERS, TEXT

__all__ = [
    "ANATOMY",
    "CALIPERS",
    "FORMAT_VERSION",
    "MASK_DIR",
    "MIN_PATIENTS",
    "NOTICE",
    "RECORD_NAME",
    "TEXT",
    "draw_image",
    "draw_metadata",
    "phantom_dir",
    "write_phantom",
]
