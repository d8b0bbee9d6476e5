"""How this process treats freed memory."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next arrays; where glibc is not, nothing changes.

    Giving every large array back to the system and asking for it again costs a training step on a CPU up to
    half of its time (`notebooks/90_performance`).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_max, 0)  # no array gets a mapping of its own, which would end with it
