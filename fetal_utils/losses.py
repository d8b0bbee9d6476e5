"""The contrastive loss of SimCLR."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent_loss(z_a: Tensor, z_b: Tensor, *, temperature: float, not_negatives: Tensor | None = None) -> Tensor:
    """Contrastive loss of two augmented views of the same images (NT-Xent).

    Parameters
    ----------
    z_a, z_b : Tensor, shape (n_images, projection_dim)
        Projections; row ``i`` of both comes from image ``i``. L2-normalized here, and half-precision
        ones are computed in float32, under autocast too.
    temperature : float
        Softmax temperature, dimensionless, > 0.
    not_negatives : Tensor of bool, shape (n_images, n_images), optional
        Where ``[i, j]`` is True, no view of image ``j`` is a negative of a view of image ``i``: images of
        one patient, or known near-duplicates. The diagonal has no effect, since the two views of one
        image are a positive pair. Default: every other image is a negative, as in the paper.

    Returns
    -------
    Tensor, shape ()
        Mean over the ``2 * n_images`` anchors, in nats (Chen et al. 2020, arXiv:2002.05709, equation 1).

    Raises
    ------
    ValueError
        If a shape, the temperature or the type of ``not_negatives`` is another.
    """
    n_images = len(z_a)
    if z_a.ndim != 2 or z_a.shape != z_b.shape or n_images < 2 or not temperature > 0:
        raise ValueError(
            f"shapes {tuple(z_a.shape)} and {tuple(z_b.shape)}, temperature {temperature}: expected two tensors of "
            "one shape (n_images >= 2, projection_dim) and a temperature above 0"
        )
    excluded = torch.eye(2 * n_images, dtype=torch.bool, device=z_a.device)  # an anchor is not its own negative
    if not_negatives is not None:
        if not_negatives.dtype != torch.bool or not_negatives.shape != (n_images, n_images):
            shape = tuple(not_negatives.shape)
            raise ValueError(f"not_negatives: {not_negatives.dtype} {shape}; expected bool ({n_images}, {n_images})")
        other_images = ~torch.eye(n_images, dtype=torch.bool, device=z_a.device)  # keeps the positive pairs
        excluded |= (not_negatives.to(z_a.device) & other_images).repeat(2, 2)
    # float16 can hold neither exp(1 / 0.05) nor small differences of similarity, and autocast would choose it
    with torch.autocast(z_a.device.type, enabled=False):
        z = torch.cat([z_a, z_b])
        z = F.normalize(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, dim=1)  # (2n, dim)
        similarity = (z @ z.T / temperature).masked_fill(excluded, float("-inf"))  # (2n, 2n)
        other_view = torch.arange(2 * n_images, device=z.device).roll(n_images)
        return F.cross_entropy(similarity, other_view)
