"""What a point of the phantom can be: the label of every tissue region."""

from enum import IntEnum, auto


class Structure(IntEnum):
    """Labels of the regions; ``NOTHING`` is left for whatever surrounds the body."""

    NOTHING = 0
    # around the fetus
    WALL = auto()
    MUSCLE = auto()
    MYOMETRIUM = auto()
    PLACENTA = auto()
    AMNIOTIC_FLUID = auto()
    # shared by every part of the fetus
    SKIN = auto()
    SOFT_TISSUE = auto()
    LONG_BONE = auto()
    SMALL_BONE = auto()
    # head
    SKULL = auto()
    BRAIN = auto()
    SULCUS = auto()
    FALX = auto()
    CAVUM = auto()
    DEEP_GRAY = auto()
    THALAMUS = auto()
    MIDBRAIN = auto()
    LATERAL_VENTRICLE = auto()
    CHOROID_PLEXUS = auto()
    CEREBELLUM = auto()
    VERMIS = auto()
    CISTERNA_MAGNA = auto()
    EYE = auto()
    # trunk
    RIB = auto()
    SPINE = auto()
    LIVER = auto()
    BOWEL = auto()
    STOMACH = auto()
    UMBILICAL_VEIN = auto()
    VESSEL = auto()
    KIDNEY = auto()
    BLADDER = auto()
    LUNG = auto()
    MYOCARDIUM = auto()
    HEART_CHAMBER = auto()
    HEART_SEPTUM = auto()
    FEMUR = auto()
    THIGH = auto()
    CORD_WALL = auto()
    CORD_VESSEL = auto()
    # mother
    CERVIX = auto()
    CERVICAL_CANAL = auto()
    CERVICAL_MUCOSA = auto()
    ARTERY_WALL = auto()
    ARTERY = auto()
