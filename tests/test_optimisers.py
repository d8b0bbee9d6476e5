import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from fetal_utils.models import build_encoder
from fetal_utils.optimisers import (
    build_optimiser,
    check_optimisation,
    descend,
    parameter_groups,
    train_output,
    warmup_cosine,
)


def one_weight(value=1.0):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def rates(*, n_steps, n_warmup, lr=1.0):
    """Learning rate of each optimiser step, and the one after the last."""
    optimiser = torch.optim.SGD(one_weight().parameters(), lr=lr)
    schedule = warmup_cosine(optimiser, n_steps=n_steps, n_warmup=n_warmup)
    seen = []
    for _ in range(n_steps):
        seen.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return [*seen, schedule.get_last_lr()[0]]


# --- weight decay ---


def test_weight_decay_is_not_on_biases_and_normalisation_layers():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))
    decayed, free = parameter_groups(module, weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight), id(module[4].weight)]
    expected = [module[0].bias, module[1].weight, module[1].bias, module[3].weight, module[3].bias, module[4].bias]
    assert [id(p) for p in free["params"]] == [id(p) for p in expected]


def test_every_trainable_parameter_of_a_network_is_in_one_group():
    module = build_encoder("test_efficientnet", init="random", seed=0)
    frozen = next(module.parameters()).requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(module, weight_decay=0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters() if p is not frozen)


def test_without_a_gradient_only_decayed_weights_shrink_and_by_lr_times_decay():
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 2.0)
    nn.init.constant_(module.bias, 2.0)
    optimiser = build_optimiser(module, lr=0.1, weight_decay=0.5)
    (0 * (module.weight + module.bias)).sum().backward()
    optimiser.step()
    assert module.weight.item() == pytest.approx(2 * (1 - 0.1 * 0.5))  # AdamW: w <- w - lr * decay * w
    assert module.bias.item() == 2.0


# --- schedule ---


def test_rates_of_a_short_training_by_hand():
    # two warm-up steps to 1, then (1 + cos(pi k / 4)) / 2 for k = 0..4
    low, high = (1 - math.sqrt(0.5)) / 2, (1 + math.sqrt(0.5)) / 2
    assert rates(n_steps=6, n_warmup=2) == pytest.approx([0.5, 1.0, 1.0, high, 0.5, low, 0.0], abs=1e-12)


def test_rates_scale_with_the_optimiser_rate():
    unscaled = rates(n_steps=9, n_warmup=3)
    assert rates(n_steps=9, n_warmup=3, lr=5e-4) == pytest.approx([5e-4 * rate for rate in unscaled])


def test_warmup_is_linear_to_the_peak_and_the_rate_then_never_rises():
    seen = rates(n_steps=50, n_warmup=10)
    assert seen[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert max(seen) == 1.0
    assert all(later <= earlier for earlier, later in pairwise(seen[9:]))
    assert seen[-2] == pytest.approx((1 - math.cos(math.pi / 40)) / 2)  # the last step: one 40th of the cosine left
    assert seen[-1] == pytest.approx(0, abs=1e-12)


def test_without_warmup_the_first_step_has_the_full_rate():
    assert rates(n_steps=2, n_warmup=0) == pytest.approx([1.0, 0.5, 0.0], abs=1e-12)


def test_a_schedule_goes_on_from_its_state():
    optimisers = [torch.optim.SGD(one_weight().parameters(), lr=1.0) for _ in range(2)]
    first, second = (warmup_cosine(optimiser, n_steps=10, n_warmup=3) for optimiser in optimisers)
    for _ in range(5):
        optimisers[0].step()
        first.step()
    optimisers[1].load_state_dict(optimisers[0].state_dict())
    second.load_state_dict(first.state_dict())
    for schedule, optimiser in zip((first, second), optimisers, strict=True):
        optimiser.step()
        schedule.step()
    assert (
        optimisers[0].param_groups[0]["lr"]
        == optimisers[1].param_groups[0]["lr"]
        == pytest.approx((1 + math.cos(3 * math.pi / 7)) / 2)
    )


@pytest.mark.parametrize(("n_steps", "n_warmup"), [(5, 5), (5, 6), (0, 0), (5, -1)])
def test_a_warmup_as_long_as_the_training_is_refused(n_steps, n_warmup):
    optimiser = torch.optim.SGD(one_weight().parameters(), lr=1.0)
    with pytest.raises(ValueError, match=f"n_warmup={n_warmup} of n_steps={n_steps}: expected fewer"):
        warmup_cosine(optimiser, n_steps=n_steps, n_warmup=n_warmup)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"lr": math.nan}, {"weight_decay": -0.1}, {"warmup_fraction": 1.0}, {"warmup_fraction": -0.1}],
)
def test_values_that_no_training_can_use_are_refused_by_name(wrong):
    right = {"lr": 1e-3, "weight_decay": 0.0, "warmup_fraction": 0.0}
    check_optimisation(**right)
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}={wrong[name]}"):
        check_optimisation(**right | wrong)


# --- step ---


def test_a_step_goes_down_the_loss_by_rate_times_gradient():
    module = one_weight(1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    descend(module, optimiser, (0.25 * module.weight**2).sum())  # gradient 0.5, below the clip
    assert module.weight.item() == pytest.approx(1 - 0.1 * 0.5)


def test_a_large_gradient_is_clipped_to_norm_one():
    module = one_weight(1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    descend(module, optimiser, (1000 * module.weight).sum())
    assert module.weight.item() == pytest.approx(1 - 0.1 * 1.0, abs=1e-6)


def test_gradients_of_an_earlier_step_are_forgotten():
    module = one_weight(1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for expected in (0.95, 0.90):
        descend(module, optimiser, (0.5 * module.weight).sum())
        assert module.weight.item() == pytest.approx(expected)


def test_the_output_for_training_uses_the_statistics_of_the_batch():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).eval()
    images = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    output = train_output(module, images)
    assert module.training
    assert output.mean().item() == pytest.approx(0, abs=1e-5)
    assert output.var(correction=0).item() == pytest.approx(1, abs=1e-4)
