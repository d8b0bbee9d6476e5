"""What a run costs, known from its settings and the data before it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run costs, without the runs that it starts from.

    Attributes
    ----------
    backbone, image_size
        Of the network that is trained or applied; empty and 0 if none is.
    optimiser_steps : int
    views_seen : int
        Views that pass the network forwards and backwards.
    images_encoded : int
        Images that pass it forwards only.
    """

    backbone: str = ""
    image_size: int = 0
    optimiser_steps: int = 0
    views_seen: int = 0
    images_encoded: int = 0
