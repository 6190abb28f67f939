"""Memory that was let go, given back to the system.

Weights are made among the larger temporaries of their folds, and outlive them; a copy of a weight is let go after its
use, and something small that lies in its place keeps the next one out. glibc's allocator keeps what was let go, others
in each run: up to a third of the memory of a model of one gigabyte and its fused model.
"""

from __future__ import annotations

import ctypes
import sys

EVERY = 16 << 20  # bytes that may be made before the holes among them are given back
_made = 0  # since then: the allocator is one for the whole process


def allocated(count: int) -> None:
    """Take note of a weight, or a copy of one, of so many bytes. Now and then, what was let go is given back."""
    global _made  # threads may lose a note: it only comes later then
    _made += count
    if _made > EVERY:
        _made = 0
        give_back()


def give_back() -> None:
    """Of what is free, as much as the allocator offers; only glibc's keeps that much."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
