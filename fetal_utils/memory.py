"""How this process treats the memory that it has freed."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next arrays; where glibc is not, nothing changes.

    Giving every large array back to the system and asking for it again costs a training step on a CPU up to
    half of its time (`notebooks/90_performance`). `return_freed_memory` is the other half of the bargain.
    """
    if libc := find_glibc():
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_max, 0)  # no array gets a mapping of its own, which would end with it


def return_freed_memory() -> None:
    """Give what is kept back to the system: between runs, which differ in the sizes of their arrays."""
    if libc := find_glibc():
        libc.malloc_trim(0)


def find_glibc() -> ctypes.CDLL | None:
    """This process's C library if it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
