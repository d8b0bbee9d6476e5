"""Freed memory that a process keeps or returns: what is asked of the C library, and that no number changes."""

import platform
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from fetal_utils import memory
from fetal_utils.memory import keep_freed_memory, return_freed_memory

BOTH = pytest.mark.parametrize("change", [keep_freed_memory, return_freed_memory])


@pytest.fixture
def asked(monkeypatch):
    """Calls of a stand-in for the C library, each as the name and what it was given."""
    calls = []
    functions = {name: lambda *given, name=name: calls.append((name, *given)) for name in ("mallopt", "malloc_trim")}
    libc = SimpleNamespace(**functions)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: libc)
    return calls


def test_both_can_be_asked_for_repeatedly_and_results_stay():
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    before = torch.nn.functional.conv2d(images, weights)
    for _ in range(3):
        keep_freed_memory()
        assert torch.equal(torch.nn.functional.conv2d(images, weights), before)
        return_freed_memory()
        assert torch.equal(torch.nn.functional.conv2d(images, weights), before)


def test_on_linux_nothing_is_trimmed_or_mapped_apart(asked, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()
    # of malloc.h: M_TRIM_THRESHOLD is -1, M_MMAP_MAX is -4
    assert asked == [("mallopt", -1, 2**31 - 1), ("mallopt", -4, 0)]


def test_on_linux_all_that_is_kept_is_returned(asked, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    return_freed_memory()
    assert asked == [("malloc_trim", 0)]


@BOTH
@pytest.mark.parametrize("name", ["darwin", "win32"])
def test_on_another_platform_nothing_is_asked_for(asked, monkeypatch, change, name):
    monkeypatch.setattr(sys, "platform", name)
    change()
    assert asked == []


@BOTH
def test_a_linux_without_glibc_is_left_as_it_is(monkeypatch, change):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    change()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is asked")
def test_a_freed_array_stays_with_the_process_until_it_is_returned():
    keep_freed_memory()
    array = np.ones(2**27, dtype=np.uint8)
    held = psutil.Process().memory_info().rss
    del array
    assert held - psutil.Process().memory_info().rss < 2**26
    return_freed_memory()
    assert held - psutil.Process().memory_info().rss > 2**26
