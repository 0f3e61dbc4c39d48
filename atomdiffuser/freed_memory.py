"""What the C library does with freed images: it keeps them for the next ones while they are small, and gives them back
to the system between large frames, so that a stage never holds much more than it uses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

GIVEN_BACK_FROM_PX = 2**20  # of frames whose images, left scattered over the heap, would add up to gigabytes


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 60 MB of freed images for the next ones.

    It gives blocks above a threshold back to the system at once, and new ones cost more than the sums done in them.
    glibc raises that threshold to the largest block ever freed, up to 32 MB; elsewhere this does nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def give_freed_memory_back(frame_px: int) -> None:
    """Return all freed memory to the system where frames are large; without glibc this does nothing."""
    if frame_px >= GIVEN_BACK_FROM_PX and (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return None
