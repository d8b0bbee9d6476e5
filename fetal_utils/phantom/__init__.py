"""A phantom of FETAL_PLANES_DB: simulated ultrasound planes of one parametric fetus per patient."""

from fetal_utils.phantom.dataset import (
    FORMAT_VERSION,
    MASK_DIR,
    NOTICE,
    RECORD_NAME,
    draw_image,
    phantom_dir,
    write_phantom,
)
from fetal_utils.phantom.metadata import MIN_PATIENTS, draw_metadata
from fetal_utils.phantom.overlay import CALIPERS, TEXT
from fetal_utils.phantom.scene import ANATOMY

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
