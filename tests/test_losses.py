import math

import pytest
import torch
from lightly.loss import NTXentLoss as LightlyNTXent
from pytorch_metric_learning.losses import NTXentLoss as MetricLearningNTXent

from fetal_utils.losses import nt_xent_loss


def projections(n_images=6, projection_dim=16, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n_images, projection_dim, generator=generator, dtype=dtype)


def equation_1(z_a, z_b, temperature, not_negatives=None):
    """Chen et al. 2020, equation 1 in plain Python: anchors i, positives j, candidates k."""
    z = [row.tolist() for row in torch.cat([z_a, z_b])]
    n_images = len(z_a)

    def similarity(u, v):
        return sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)

    total = 0.0
    for i in range(2 * n_images):
        j = (i + n_images) % (2 * n_images)
        denominator = 0.0
        for k in range(2 * n_images):
            masked = not_negatives is not None and not_negatives[i % n_images][k % n_images] and k != j
            if k != i and not masked:
                denominator += math.exp(similarity(z[i], z[k]) / temperature)
        total += -math.log(math.exp(similarity(z[i], z[j]) / temperature) / denominator)
    return total / (2 * n_images)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
def test_nt_xent_equals_a_double_loop_over_equation_1(temperature):
    z_a, z_b = projections()
    expected = equation_1(z_a, z_b, temperature)
    assert nt_xent_loss(z_a, z_b, temperature=temperature).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_two_published_implementations(temperature):
    z_a, z_b = projections(n_images=32, projection_dim=128, dtype=torch.float32)
    loss = nt_xent_loss(z_a, z_b, temperature=temperature).item()
    image = torch.arange(32).repeat(2)
    assert loss == pytest.approx(LightlyNTXent(temperature=temperature)(z_a, z_b).item(), rel=1e-5)
    metric_learning = MetricLearningNTXent(temperature=temperature)(torch.cat([z_a, z_b]), image).item()
    assert loss == pytest.approx(metric_learning, rel=1e-5)


def test_nt_xent_is_symmetric_in_the_views_and_blind_to_image_order_and_length():
    z_a, z_b = projections()
    loss = nt_xent_loss(z_a, z_b, temperature=0.2).item()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert nt_xent_loss(z_b, z_a, temperature=0.2).item() == pytest.approx(loss, rel=1e-12)
    assert nt_xent_loss(z_a[order], z_b[order], temperature=0.2).item() == pytest.approx(loss, rel=1e-12)
    assert nt_xent_loss(7 * z_a, 0.1 * z_b, temperature=0.2).item() == pytest.approx(loss, rel=1e-12)


def test_nt_xent_gradient_is_that_of_its_differences():
    z_a, z_b = (z.requires_grad_() for z in projections(n_images=3, projection_dim=4))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, temperature=0.3), (z_a, z_b))


def test_masked_pairs_leave_the_denominator():
    z_a, z_b = projections()
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[0, 3] = mask[3, 0] = mask[1, 2] = mask[2, 1] = True
    loss = nt_xent_loss(z_a, z_b, temperature=0.2, not_negatives=mask).item()
    assert loss == pytest.approx(equation_1(z_a, z_b, 0.2, mask.tolist()), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_give_the_float32_loss_of_the_same_numbers(dtype):
    half_a, half_b = projections(n_images=64, projection_dim=128, dtype=torch.float32).to(dtype)
    expected = nt_xent_loss(half_a.float(), half_b.float(), temperature=0.05).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent_loss(half_a.float(), half_b.float(), temperature=0.05).item() == expected
    assert nt_xent_loss(half_a, half_b, temperature=0.05).item() == expected


WRONG_SHAPES = [((4, 8), (4, 9), 0.1), ((4, 8), (5, 8), 0.1), ((1, 8), (1, 8), 0.1), ((8,), (8,), 0.1)]
WRONG_TEMPERATURES = [((2, 3), (2, 3), temperature) for temperature in (0.0, -0.1, math.nan)]


@pytest.mark.parametrize(("shape_a", "shape_b", "temperature"), WRONG_SHAPES + WRONG_TEMPERATURES)
def test_shapes_and_temperatures_that_do_not_fit_are_named(shape_a, shape_b, temperature):
    with pytest.raises(ValueError, match=rf"shapes \({shape_a[0]}.*temperature {temperature}: expected two tensors"):
        nt_xent_loss(torch.ones(shape_a), torch.ones(shape_b), temperature=temperature)


@pytest.mark.parametrize("mask", [torch.ones(4, 4), torch.ones(3, 4, dtype=torch.bool)])
def test_a_mask_of_the_wrong_kind_is_named(mask):
    with pytest.raises(ValueError, match=r"not_negatives: .*expected bool \(4, 4\)"):
        nt_xent_loss(torch.ones(4, 3), torch.ones(4, 3), temperature=0.1, not_negatives=mask)
