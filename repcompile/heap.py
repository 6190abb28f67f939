"""Memory that was let go, given back to the system.

Weights are made among the larger temporaries of their folds, and outlive them. glibc's allocator keeps what was let go
in between, others in each run: up to a third of the memory of a model of one gigabyte and its fused model.
"""

from __future__ import annotations

import ctypes
import sys

EVERY = 32 << 20  # bytes that may be made before the holes among them are given back


class Heap:
    """Where weights are made one after the other. What lies between them goes back to the system now and then."""

    def __init__(self) -> None:
        self._made = 0

    def grown(self, count: int) -> None:
        """Take note of so many bytes that stay."""
        self._made += count
        if self._made > EVERY:
            self._made = 0
            give_back()


def give_back() -> None:
    """Of what is free, as much as the allocator offers; only glibc's keeps that much."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
