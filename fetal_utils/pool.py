"""The images that a pretraining learns from, and how often its negatives are false."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fetal_utils.ranks import current_ranks
from fetal_utils.runs import Work

if TYPE_CHECKING:
    from fetal_utils.simclr import Pretrain

UNKNOWN = -1  # patient and plane of an image from a folder without a table


@dataclass(frozen=True)
class Pool:
    """Images to learn from.

    Attributes
    ----------
    images : Tensor of uint8, shape (n_images, image_size, image_size)
    patients, planes : Tensor of int64, shape (n_images,)
        Codes; `UNKNOWN` where there is no table. Only masks and the log see them.
    n_extra : int
        How many of the images, the last ones, come from a further folder.
    n_left_out : int
        Images of that folder that held-out patients have too.
    """

    images: Tensor
    patients: Tensor
    planes: Tensor
    n_extra: int = 0
    n_left_out: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def same_patient(self, batch: Tensor) -> Tensor:
        """Pairs of different images of one patient among these positions, bool, shape (n_images, n_images)."""
        return same(self.patients[batch])

    def rates(self, batches: Tensor) -> dict[str, float]:
        """How often what NT-Xent takes for a negative is none.

        Parameters
        ----------
        batches : Tensor of int64, shape (n_batches, batch_size)

        Returns
        -------
        dict
            ``same_patient_anchors``: share of images that meet, in their batch, another image of their patient
            and plane; ``same_class_negatives``: share of the pairs of a batch that show the same plane.
        """
        same_plane = same(self.planes[batches])
        siblings = same(self.patients[batches]) & same_plane
        n_pairs = batches.shape[1] - 1
        return {
            "same_patient_anchors": siblings.any(-1).float().mean().item(),
            "same_class_negatives": (same_plane.sum(-1) / n_pairs).mean().item(),
        }

    def facts(self) -> dict:
        """Counts for the run's record."""
        known = self.patients[self.patients != UNKNOWN]
        return {
            "n_images": len(self),
            "n_patients": len(known.unique()),
            "n_extra_images": self.n_extra,
            "n_extra_left_out": self.n_left_out,
        }


def same(codes: Tensor) -> Tensor:
    """Pairs of different positions with the same known code, bool, shape (..., n, n)."""
    equal = (codes[..., :, None] == codes[..., None, :]) & (codes[..., None] != UNKNOWN)
    return equal & ~torch.eye(codes.shape[-1], dtype=torch.bool)


def open_pool(settings: Pretrain, work: Work, rows: np.ndarray, planes: np.ndarray) -> Pool:
    """The pool of a pretraining.

    Parameters
    ----------
    settings : Pretrain
    work : Work
    rows : ndarray of int
        Positions of the data set's images to learn from.
    planes : ndarray of str, shape (n_rows of the data set,)
    """
    dataset, size, progress = work.dataset, settings.image_size, work.store.progress
    images = [dataset.images(size, progress=progress)[rows]]
    n_left_out = 0
    if settings.extra_images:
        extra, n_left_out = settings.extra_images.images(dataset, size, progress=progress)
        if current_ranks().is_first:
            print(f"{len(extra)} images of {settings.extra_images.folder}; {n_left_out} of held-out patients left out")
        images.append(extra)
    n_extra = sum(map(len, images[1:]))
    codes = (np.unique(values[rows], return_inverse=True)[1] for values in (dataset.patients, planes))
    patients, planes = (torch.from_numpy(np.append(code, np.full(n_extra, UNKNOWN))) for code in codes)
    # concatenated: a copy in memory, where a batch is gathered a hundred times faster than from the disk's map
    return Pool(torch.from_numpy(np.concatenate(images)), patients, planes, n_extra, n_left_out)
