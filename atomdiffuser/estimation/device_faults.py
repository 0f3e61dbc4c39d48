"""What is done when a GPU has too little memory for what it is given, or fails: fewer pairs at a time, then the
processor, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch

WORDS = ("CUDA error", "CUDA driver", "cuDNN", "CUDNN", "CUBLAS", "cuBLAS", "CUFFT", "cuFFT", "CUSOLVER", "cuSOLVER")
"""In messages of errors that PyTorch raises as plain RuntimeError where a GPU or one of its libraries fails."""
T = TypeVar("T")

logger = logging.getLogger(__name__)


def is_device_fault(error: BaseException) -> bool:
    """Whether an error says that a GPU ran out of memory or failed, not that something is wrong with the work."""
    if isinstance(error, torch.OutOfMemoryError | getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def free_device_memory() -> None:
    """Give cached blocks back, so that what is tried next finds them; a broken device has none to give."""
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def in_smaller_parts(
    run: Callable[[Sequence[T]], Any], items: Sequence[T], size: int, clear: Callable[[], None] = free_device_memory
) -> tuple[list[Any], int]:
    """`run(part)` for parts of `size` items, halved each time that the device's memory does not hold one.

    Returns the results in order, and the size that was small enough. A single item that is too much raises.
    """
    results, at = [], 0
    while at < len(items):
        try:
            results.append(run(items[at : at + size]))
        except torch.OutOfMemoryError:
            if min(size, len(items) - at) < 2:
                raise
            held = False
        else:
            held = True
        if held:
            at += size
        else:  # only here are the tensors of the failed attempt gone: its traceback held them
            clear()
            size = (min(size, len(items) - at) + 1) // 2
            logger.warning("the GPU's memory is short: %d at a time from here on", size)
    return results, size


def with_processor_in_reserve(device: torch.device, work: Callable[[torch.device], T]) -> T:
    """`work(device)`; where that device has too little memory for the least or fails, all of it on the processor."""
    try:
        return work(device)
    except Exception as error:
        if device.type == "cpu" or not is_device_fault(error):
            raise
        warn_of_processor(error)
    free_device_memory()
    return work(torch.device("cpu"))


def warn_of_processor(error: BaseException) -> None:
    """Say that the work goes on without the GPU, and why."""
    told = str(error).strip().partition("\n")[0]
    logger.warning("the GPU cannot go on (%s); the processor does the rest, which takes longer", told)
