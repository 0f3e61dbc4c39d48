"""Loops compiled for the processor by Numba, where it is installed; tensor operations do the same work elsewhere."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

SWITCH = "ATOMDIFFUSER_COMPILED"
"""Environment variable: 0 keeps to tensor operations."""
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},  # sums in any order; not-a-number stays what it is
}
WORTH_SPLITTING = 2**18  # positions, below which handing out work takes longer than doing it


def compiled_here(device: torch.device) -> bool:
    """Whether loops over what lies on `device` run compiled."""
    return device.type == "cpu" and _available()


@lru_cache(maxsize=1)
def _available() -> bool:
    """Not where what was compiled cannot be kept: each process would take longer to compile than it saves."""
    if os.environ.get(SWITCH, "1") == "0" or importlib.util.find_spec("numba") is None:
        return False
    try:
        _kept(_nothing)()
    except Exception:  # a Numba that does not fit to this NumPy, no place to keep anything, or what was kept is broken
        return False
    return True


def _nothing() -> None:
    """What a place to keep it is looked for."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compiled when first called, which takes seconds, and kept beside the source or in the user's cache.

    Other threads run meanwhile. What it calls is made by `inner`, of the same module: a change elsewhere would not be
    noticed. Where the disk has become full, or what was kept is broken, it is compiled for this process alone.
    """
    ready = _kept(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal ready
        try:
            return ready(*arguments)
        except Exception:  # of keeping, reading or compiling it; what is wrong with the call is met again
            ready = inner(function)
            return ready(*arguments)

    return call


def _kept(function: Callable[..., Any]) -> Any:
    import numba

    return numba.njit(cache=True, **OPTIONS)(function)


def inner(function: Callable[..., Any]) -> Any:
    """Decorator of what compiled functions call: compiled as a part of these."""
    import numba

    return numba.njit(**OPTIONS)(function)


def array(tensor: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """A tensor on the processor as a contiguous array; no copy where it is one already."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        tensor = tensor.to(dtype).contiguous()
    return tensor.detach().numpy()


def in_parts(work: Callable[[int, int], None], count: int, size: int) -> None:
    """`work(first, last)` on `count` rows that hold `size` positions together, by as many threads as torch may use."""
    threads = max(1, min(torch.get_num_threads(), count, size // WORTH_SPLITTING))
    if threads == 1:
        work(0, count)
        return
    bounds = [count * k // threads for k in range(threads + 1)]
    elsewhere = [_helpers().submit(work, *bounds[k : k + 2]) for k in range(1, threads)]
    try:
        work(bounds[0], bounds[1])
    finally:
        wait(elsewhere)
    for part in elsewhere:
        part.result()


@lru_cache(maxsize=1)
def _helpers() -> ThreadPoolExecutor:
    """Threads that wait for work; those of a process are not there in its forks."""
    os.register_at_fork(after_in_child=_helpers.cache_clear)
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compiled")
