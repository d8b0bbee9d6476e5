"""A batch shared by several processes: each encodes its views, and all of them meet in the loss."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fetal_utils.contrast import SimCLR, even_pieces
from fetal_utils.ranks import Ranks
from fetal_utils.shared_norm import share_statistics


@dataclass(frozen=True)
class Share:
    """The views of a batch that each process encodes, and this process's own.

    Attributes
    ----------
    ranks : Ranks
    n_images : int
        Of the batch: twice as many views, all first ones before all second ones.
    pieces : tuple of tuple of Tensor
        Of each process, and of each piece that encoders take at a time: positions of its views, rising.
    """

    ranks: Ranks
    n_images: int
    pieces: tuple[tuple[Tensor, ...], ...]

    @property
    def own(self) -> Tensor:
        """Positions of this process's views among the batch's, rising; shape (n_own,)."""
        return torch.cat(self.pieces[self.ranks.rank])

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """Positions among the batch's images of those whose first, and whose second, view this process encodes."""
        own = self.own
        return own[own < self.n_images], own[own >= self.n_images] - self.n_images

    def split(self, views: Tensor) -> tuple[Tensor, ...]:
        """This process's views, shape (n_own, ...), in the pieces that its encoder takes at a time."""
        return views.split([len(piece) for piece in self.pieces[self.ranks.rank]])

    def gather(self, z: Tensor) -> Tensor:
        """The projections of the whole batch.

        Every process gets the same, so each can compute the whole loss, with gradients to its own rows: the others'
        flow where they were made.

        Parameters
        ----------
        z : Tensor, shape (n_own, projection_dim)
            Projections of this process's views.

        Returns
        -------
        Tensor, shape (2 * n_images, projection_dim)
        """
        positions = [torch.cat(pieces).to(z.device) for pieces in self.pieces]
        sent = z.new_zeros(max(map(len, positions)), z.shape[1])  # shares differ by a few rows, messages must not
        sent[: len(z)] = z.detach()
        received = [torch.empty_like(sent) for _ in positions]
        dist.all_gather(received, sent)
        everything = z.new_empty(2 * self.n_images, z.shape[1])
        for where, rows in zip(positions, received, strict=True):
            everything[where] = rows[: len(where)]
        return everything.index_copy(0, positions[self.ranks.rank], z)

    def scale(self, loss: Tensor) -> Tensor:
        """What to go backward from: DistributedDataParallel takes a mean of gradients that are parts of a sum."""
        return loss * self.ranks.world_size


class SharedSimCLR(nn.Module):
    """A `SimCLR` in this process whose gradients become those of the batch within the backward pass.

    Encoder and head are wrapped one by one, as a step may take the encoder's backward pass in pieces. The weights are
    the model's own.

    Parameters
    ----------
    model : SimCLR
        Its batch normalisations changed in place, see `share_statistics`.
    ranks : Ranks

    Raises
    ------
    ValueError
        If the processes can't share a layer's statistics.
    LostProcessError
        If another process is gone.
    """

    def __init__(self, model: SimCLR, ranks: Ranks) -> None:
        super().__init__()
        # said of the one channel of depthwise weights, whose stride nothing reads
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        share_statistics(model, next(model.parameters()).device)
        with ranks.listening():
            self.encoder, self.projection_head = (
                DistributedDataParallel(part, gradient_as_bucket_view=True)
                for part in (model.encoder, model.projection_head)
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.encoder(images))  # (n_own, projection_dim)


def share_batch(n_images: int, *, ranks: Ranks, chunk_size: int = 0) -> Share:
    """Divide the views of a batch: of each piece, every process takes every ``world_size``-th view.

    So the pieces, and what batch normalisation sees of them together, are those of one process alone; and where the
    number of processes divides that of the images, and there is one piece, each takes whole images.

    Parameters
    ----------
    n_images : int
    ranks : Ranks
    chunk_size : int
        Views that the encoders together take at a time, see `contrast_step`; 0: all.

    Raises
    ------
    ValueError
        If a process would be left without a view.
    """
    pieces = even_pieces(torch.arange(2 * n_images), chunk_size)
    largest = min(n_images, *map(len, pieces))
    if ranks.world_size > largest:
        raise ValueError(
            f"a batch of {n_images} images with chunk_size={chunk_size} can't be shared by {ranks.world_size} "
            f"processes, each with a view of every piece; start at most {largest}"
        )
    of_each = (tuple(piece[rank :: ranks.world_size] for piece in pieces) for rank in range(ranks.world_size))
    return Share(ranks, n_images, tuple(of_each))
