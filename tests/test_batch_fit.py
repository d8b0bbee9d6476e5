"""Memory of a contrastive step, on networks small enough to count it by hand."""

import copy
import re
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from fetal_utils import batch_fit
from fetal_utils.batch_fit import COPIES, SAFETY, bytes_per_view, check_batch_fits, free_bytes
from fetal_utils.contrast import SimCLR
from fetal_utils.depthwise import quicken_depthwise
from fetal_utils.encoders import InitialWeights
from fetal_utils.ranks import Ranks

# For one view of 8 x 8 px the convolution keeps its input, 8 * 8 floats, and the ReLU its output,
# 4 * 6 * 6 floats, which is also what the linear layer keeps.
SMALL = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
BYTES_PER_VIEW = 4 * (8 * 8 + 4 * 6 * 6)
N_WEIGHTS = 4 * 9 + 2 * 144 + 2
GIB = 2**30


def check(batch_size, free, **options):
    check_batch_fits(SMALL, batch_size=batch_size, image_size=8, free=int(free), **options)


def needed(n_views):
    """Bytes, by hand."""
    return COPIES * 4 * N_WEIGHTS + n_views * SAFETY * BYTES_PER_VIEW


def numbers_named(error):
    pattern = r"needs about (.+) GiB, and (.+) GiB are free on (.+); the largest that fits is about (\d+).*=(\d+),"
    need, free, device, largest, chunk_size = re.search(pattern, str(error.value)).groups()
    return float(need), float(free), device, int(largest), int(chunk_size)


# --- counting ---


def test_a_view_keeps_the_inputs_that_the_backward_pass_needs():
    assert bytes_per_view(SMALL, 8) == BYTES_PER_VIEW


def test_memory_of_a_view_grows_with_its_area():
    convolution = nn.Conv2d(1, 4, 3)
    assert bytes_per_view(convolution, 32) == 4 * bytes_per_view(convolution, 16) == 4 * 32 * 32


def test_quick_depthwise_layers_count_like_those_of_torch():
    plain = timm.create_model("test_efficientnet", num_classes=0, in_chans=1)
    expected = bytes_per_view(plain, 32)
    assert bytes_per_view(quicken_depthwise(plain), 32) == expected


def test_frozen_weights_keep_less():
    model = SimCLR(InitialWeights(backbone="test_efficientnet", init="random").encoder(), projection_dim=8, seed=0)
    whole = bytes_per_view(model, 32)
    model.encoder.requires_grad_(False)
    assert bytes_per_view(model, 32) < whole / 2


# --- what fits ---


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_a_batch_fits_into_exactly_what_it_needs_and_not_into_a_byte_less(batch_size):
    check(batch_size, needed(2 * batch_size))
    with pytest.raises(MemoryError):
        check(batch_size, needed(2 * batch_size) - 1)


def test_the_error_names_the_batch_what_it_needs_what_is_free_and_the_largest_that_fits():
    with pytest.raises(MemoryError, match=r"^batch_size=10000000 of 8 px needs about") as error:
        check(10_000_000, 8 * GIB)
    # 2e7 views of 1.25 * 832 bytes are 19.4 GiB; 8 GiB hold 4,129,773 pairs of them beside the weights
    assert numbers_named(error) == (19.4, 8.0, "cpu", 4_129_773, 4_129_773)
    assert "smaller image_size" in str(error.value)


@pytest.mark.parametrize("free", [needed(6) + 1, needed(1000) + 777, 3 * GIB])
def test_the_largest_that_it_names_fits_and_one_more_does_not(free):
    with pytest.raises(MemoryError) as error:
        check(10_000_000, free)
    *_, largest, _ = numbers_named(error)
    check(largest, free)
    with pytest.raises(MemoryError):
        check(largest + 1, free)


def test_in_the_pieces_that_it_names_the_batch_fits():
    with pytest.raises(MemoryError) as error:
        check(10_000_000, GIB)
    *_, chunk_size = numbers_named(error)
    check(10_000_000, GIB, chunk_size=chunk_size)


def test_pieces_of_a_size_that_memory_cannot_hold_are_refused_too():
    check(100, needed(10), chunk_size=10)
    with pytest.raises(MemoryError):
        check(100, needed(10), chunk_size=11)
    check(100, needed(200), chunk_size=10_000)  # never more than the batch has


def test_where_not_even_the_weights_fit_the_largest_is_none():
    with pytest.raises(MemoryError, match="the largest that fits is about 0"):
        check(2, 100)


def test_each_of_several_processes_needs_room_for_its_share_of_the_views():
    three = Ranks(1, 3)
    check(10, needed(7), ranks=three)  # 20 views: one process has 7
    with pytest.raises(MemoryError, match=r"the largest that fits is about 9\."):
        check(10, needed(6), ranks=three)
    check(9, needed(6), ranks=three)
    check(10, needed(3), chunk_size=9, ranks=three)


def test_processes_on_one_machine_share_the_memory_of_its_cpu(monkeypatch):
    monkeypatch.setattr(batch_fit.psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * needed(10)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_batch_fits(SMALL, batch_size=10, image_size=8, ranks=Ranks(0, 2))
    with pytest.raises(MemoryError):
        check_batch_fits(SMALL, batch_size=11, image_size=8, ranks=Ranks(0, 2))


def test_what_is_free_is_asked_of_the_system(monkeypatch):
    monkeypatch.setattr(batch_fit.psutil, "virtual_memory", lambda: SimpleNamespace(available=needed(20)))
    assert free_bytes(torch.device("cpu")) == needed(20)
    check_batch_fits(SMALL, batch_size=10, image_size=8)
    with pytest.raises(MemoryError):
        check_batch_fits(SMALL, batch_size=11, image_size=8)


def test_what_this_process_keeps_for_itself_counts_as_free(monkeypatch):
    available = [100]
    monkeypatch.setattr(batch_fit.psutil, "virtual_memory", lambda: SimpleNamespace(available=available[0]))
    monkeypatch.setattr(batch_fit, "return_freed_memory", lambda: available.insert(0, 500))
    assert free_bytes(torch.device("cpu")) == 500


# --- what it leaves ---


def test_the_model_stays_as_it_was_running_statistics_included():
    model = SimCLR(InitialWeights(backbone="test_efficientnet", init="random").encoder(), projection_dim=8, seed=0)
    before = copy.deepcopy(model.state_dict())
    check_batch_fits(model, batch_size=8, image_size=32, free=GIB)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert all(layer.track_running_stats for layer in layers)
