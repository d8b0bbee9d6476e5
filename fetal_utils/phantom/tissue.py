"""Acoustic properties of each structure: the only place where anatomy and image formation meet.

The values are relative and chosen by eye against real images; bone, fluid and soft tissue keep their order.
"""

import numpy as np

from fetal_utils.phantom.imaging import Tissue
from fetal_utils.phantom.structures import Structure as S

# structure: (backscatter dB, attenuation dB / cm there and back, impedance MRayl, unevenness dB)
_PROPERTIES = {
    S.NOTHING: (-90, 0.0, 1.48, 0),
    S.WALL: (-20, 1.0, 1.52, 4),
    S.MUSCLE: (-27, 1.1, 1.60, 3),
    S.MYOMETRIUM: (-24, 0.9, 1.58, 7),
    S.PLACENTA: (-19, 0.7, 1.57, 2),
    S.AMNIOTIC_FLUID: (-56, 0.02, 1.49, 1),
    S.SKIN: (-18, 1.0, 1.62, 4),
    S.SOFT_TISSUE: (-26, 0.8, 1.58, 3),
    S.LONG_BONE: (-7, 55.0, 2.8, 2),
    S.SMALL_BONE: (-5, 30.0, 2.6, 2),
    S.SKULL: (-20, 14.0, 2.7, 4),
    S.BRAIN: (-37, 0.45, 1.555, 5),
    S.SULCUS: (-19, 0.5, 1.60, 2),
    S.FALX: (-13, 0.6, 1.72, 2),
    S.CAVUM: (-50, 0.1, 1.50, 1),
    S.DEEP_GRAY: (-31, 0.5, 1.565, 7),
    S.THALAMUS: (-35, 0.5, 1.56, 3),
    S.MIDBRAIN: (-33, 0.5, 1.56, 2),
    S.LATERAL_VENTRICLE: (-48, 0.1, 1.50, 1),
    S.CHOROID_PLEXUS: (-16, 0.6, 1.60, 3),
    S.CEREBELLUM: (-31, 0.6, 1.58, 3),
    S.VERMIS: (-17, 0.6, 1.64, 2),
    S.CISTERNA_MAGNA: (-48, 0.1, 1.49, 1),
    S.EYE: (-48, 0.1, 1.50, 1),
    S.RIB: (-8, 24.0, 2.2, 3),
    S.SPINE: (-4, 26.0, 2.4, 3),
    S.LIVER: (-26, 0.8, 1.58, 3),
    S.BOWEL: (-23, 0.9, 1.58, 6),
    S.STOMACH: (-52, 0.05, 1.49, 1),
    S.UMBILICAL_VEIN: (-50, 0.1, 1.50, 1),
    S.VESSEL: (-48, 0.1, 1.50, 1),
    S.KIDNEY: (-30, 0.8, 1.58, 3),
    S.BLADDER: (-52, 0.05, 1.49, 1),
    S.LUNG: (-24, 0.9, 1.585, 3),
    S.MYOCARDIUM: (-30, 0.8, 1.60, 3),
    S.HEART_CHAMBER: (-42, 0.15, 1.53, 3),
    S.HEART_SEPTUM: (-21, 0.7, 1.66, 3),
    S.FEMUR: (-6, 70.0, 2.9, 2),
    S.THIGH: (-31, 0.8, 1.57, 5),
    S.CORD_WALL: (-14, 0.7, 1.62, 2),
    S.CORD_VESSEL: (-50, 0.1, 1.50, 1),
    S.CERVIX: (-23, 1.0, 1.59, 4),
    S.CERVICAL_CANAL: (-16, 0.8, 1.68, 3),
    S.CERVICAL_MUCOSA: (-32, 0.8, 1.56, 3),
    S.ARTERY_WALL: (-8, 0.8, 1.72, 2),
    S.ARTERY: (-46, 0.1, 1.50, 1),
}
_TABLE = np.array([_PROPERTIES[structure] for structure in S], np.float32).T.copy()  # (4, n_structures)


def tissue_of(labels: np.ndarray) -> Tissue:
    """Properties of every sample of a label map (n_ranges, n_beams)."""
    return Tissue(*(values[labels] for values in _TABLE))
