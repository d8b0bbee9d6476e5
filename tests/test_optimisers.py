import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from fetal_utils.models import build_encoder
from fetal_utils.optimisers import (
    MOMENTUM,
    OPTIMISERS,
    build_optimiser,
    check_finite,
    check_optimisation,
    check_optimiser,
    climb_down,
    descend,
    parameter_groups,
    train_output,
    warmup_cosine,
)


def one_weight(value=1.0):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def constant(optimiser):
    """A schedule that leaves the rate as it is."""
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


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


# --- optimisers ---


def weight_and_bias(name, *, weight_decay=0.25):
    """A layer with weight (3, 4), bias 2, and an optimiser of rate 0.1; gradients are (0.6, 0.8) and 1."""
    module = nn.Linear(2, 1)
    module.weight.data = torch.tensor([[3.0, 4.0]])
    nn.init.constant_(module.bias, 2.0)
    optimiser = build_optimiser(module, lr=0.1, weight_decay=weight_decay, name=name)

    def step():
        module.weight.grad, module.bias.grad = torch.tensor([[0.6, 0.8]]), torch.ones(1)
        optimiser.step()
        return [*module.weight[0].tolist(), module.bias.item()]

    return step


def test_adamw_is_the_default_and_its_first_step_is_the_rate_whatever_the_gradient():
    assert isinstance(build_optimiser(one_weight(), lr=0.1, weight_decay=0.0), torch.optim.AdamW)
    shrunk = 1 - 0.1 * 0.25  # decay is apart from the step, and not on the bias
    assert weight_and_bias("adamw")() == pytest.approx([3 * shrunk - 0.1, 4 * shrunk - 0.1, 2 - 0.1], rel=1e-6)


def test_sgd_adds_decay_to_the_gradient_and_goes_on_by_its_momentum():
    step = weight_and_bias("sgd")
    gradient = [0.6 + 0.25 * 3, 0.8 + 0.25 * 4, 1.0]
    first = [3 - 0.1 * gradient[0], 4 - 0.1 * gradient[1], 2 - 0.1]
    assert step() == pytest.approx(first)
    second = [0.6 + 0.25 * first[0], 0.8 + 0.25 * first[1], 1.0]
    moved = [MOMENTUM * before + now for before, now in zip(gradient, second, strict=True)]
    assert step() == pytest.approx([value - 0.1 * move for value, move in zip(first, moved, strict=True)])


def test_lars_adapts_the_rate_of_weights_that_decay_and_of_no_others():
    # You et al. 2017, equation 6: 0.001 |w| / (|g| + decay |w|), with |w| = 5 and |g| = 1
    trust = 0.001 * 5 / (1 + 0.25 * 5)
    weights = [3 - 0.1 * trust * (0.6 + 0.25 * 3), 4 - 0.1 * trust * (0.8 + 0.25 * 4)]
    assert weight_and_bias("lars")() == pytest.approx([*weights, 2 - 0.1 * 1.0])


def test_lars_without_decay_is_sgd():
    lars, sgd = (weight_and_bias(name, weight_decay=0.0) for name in ("lars", "sgd"))
    for _ in range(3):
        assert lars() == pytest.approx(sgd())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_goes_down_and_goes_on_from_its_state(name):
    def train(n_steps, state=None):
        module = nn.Linear(3, 1)
        for parameter in module.parameters():
            nn.init.constant_(parameter, 0.5)
        optimiser = build_optimiser(module, lr=0.05, weight_decay=1e-4, name=name)
        if state:
            module.load_state_dict(state[0])
            optimiser.load_state_dict(state[1])
        for _ in range(n_steps):
            loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
            descend(module, optimiser, constant(optimiser), loss)
        return loss.item(), copy.deepcopy((module.state_dict(), optimiser.state_dict()))

    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    (first, _), (last, _), (_, half) = train(1), train(8), train(4)
    assert last < first
    assert train(4, half)[0] == last


def test_an_unknown_optimiser_is_named_with_those_there_are():
    for name in OPTIMISERS:
        check_optimiser(name)
    message = r"optimiser='adam' is unknown; known are \('adamw', 'sgd', 'lars'\)"
    with pytest.raises(ValueError, match=message):
        check_optimiser("adam")
    with pytest.raises(ValueError, match=message):
        build_optimiser(one_weight(), lr=0.1, weight_decay=0.0, name="adam")


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
    descend(module, optimiser, constant(optimiser), (0.25 * module.weight**2).sum())  # gradient 0.5, below the clip
    assert module.weight.item() == pytest.approx(1 - 0.1 * 0.5)


def test_a_large_gradient_is_clipped_to_norm_one():
    module = one_weight(1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    descend(module, optimiser, constant(optimiser), (1000 * module.weight).sum())
    assert module.weight.item() == pytest.approx(1 - 0.1 * 1.0, abs=1e-6)


def test_gradients_of_an_earlier_step_are_forgotten():
    module = one_weight(1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for expected in (0.95, 0.90):
        descend(module, optimiser, constant(optimiser), (0.5 * module.weight).sum())
        assert module.weight.item() == pytest.approx(expected)


def test_a_step_is_one_of_the_schedule_too():
    module = one_weight(1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    schedule = warmup_cosine(optimiser, n_steps=4, n_warmup=2)
    for rate, expected in [(0.5, 0.95), (1.0, 0.85)]:
        assert schedule.get_last_lr() == [rate]
        descend(module, optimiser, schedule, (0.1 * module.weight).sum())
        assert module.weight.item() == pytest.approx(expected)
    assert schedule.last_epoch == 2


def test_gradients_that_are_there_already_are_climbed_down():
    module = one_weight(1.0)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = constant(optimiser)
    module.weight.grad = torch.full((1, 1), 5.0)  # clipped to 1
    climb_down(module, optimiser, schedule)
    assert module.weight.item() == pytest.approx(0.9, abs=1e-6)
    assert schedule.last_epoch == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_names_the_step_and_changes_nothing(value):
    module = one_weight(1.0)
    optimiser = build_optimiser(module, lr=0.1, weight_decay=0.1)
    schedule = warmup_cosine(optimiser, n_steps=10, n_warmup=0)
    for _ in range(3):
        descend(module, optimiser, schedule, module.weight.sum())
    before, gradient = module.weight.item(), module.weight.grad.clone()
    message = f"the loss is {value} at step 4: the training diverged; try a lower lr or a longer warm-up"
    with pytest.raises(FloatingPointError, match=message):
        descend(module, optimiser, schedule, module.weight.sum() * value)
    assert module.weight.item() == before
    assert torch.equal(module.weight.grad, gradient)
    assert schedule.last_epoch == 3


def test_any_finite_loss_passes():
    optimiser = torch.optim.SGD(one_weight().parameters(), lr=0.1)
    for value in (0.0, -5.0, 1e30):
        check_finite(torch.tensor(value), constant(optimiser))


def test_the_output_for_training_uses_the_statistics_of_the_batch():
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).eval()
    images = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    output = train_output(module, images)
    assert module.training
    assert output.mean().item() == pytest.approx(0, abs=1e-5)
    assert output.var(correction=0).item() == pytest.approx(1, abs=1e-4)
