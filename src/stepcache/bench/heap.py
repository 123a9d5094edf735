"""glibc's heap, which must not decide a benchmark on a CPU."""

from __future__ import annotations

import ctypes


def keep_heap() -> bool:
    """Tell glibc's malloc, for the rest of this process, to keep freed memory. False where there is no glibc.

    It gives the free end of its heap back to the kernel and faults it in again when tensors grow: 3 to 11 % of a
    denoising loop, and the least for who holds the most memory between steps.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    m_mmap_threshold, m_trim_threshold = -3, -1  # malloc.h; 32 MiB is the most that the first one takes
    return bool(mallopt(m_mmap_threshold, 32 << 20) and mallopt(m_trim_threshold, 1 << 30))
