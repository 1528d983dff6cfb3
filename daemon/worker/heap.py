"""The C library's heap: what a batch gives back is kept for the next one.

A batch's tensors are some megabytes that live for a few milliseconds. As it comes, glibc gives such pieces back to
the kernel at once and gets them again, page by page, each with a fault and zeroed: 20 to 35 % of the time of a small
network. A model's weights are another matter: they go as a whole when the model does.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""

KEPT_BYTES: Final = 1 << 30
"""Larger pieces are mapped and unmapped one by one; and so much at the heap's end may stay unused."""

WEIGHT_BYTES: Final = 128 * 1024
"""While a model is loaded, larger pieces are mapped one by one: the C library's own first value."""

_libc = ctypes.CDLL(None)


def keep_freed() -> None:
    """From now on freed memory stays with the process. Does nothing where the C library has no such settings."""
    _set(KEPT_BYTES)


@contextmanager
def mapped_pieces() -> Iterator[None]:
    """Inside, large pieces are mapped on their own; behind it, what was freed is back with the kernel."""
    _set(WEIGHT_BYTES)
    try:
        yield
    finally:
        keep_freed()
        if hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(ctypes.c_size_t(0))


def _set(mapped_bytes: int) -> None:
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, mapped_bytes)
        _libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
