"""Locks that the operating system holds for a process and lets go when it ends, however it ends.

A file that merely lies there, as Snakemake's lock does, outlives a process that was killed; one that is locked with
flock(2) does not, so nobody has to judge whether a lock is stale.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TAKEN = (errno.EAGAIN, errno.EACCES)


class LockTaken(Exception):
    """Another process holds the lock."""


def take_lock(path: Path) -> int | None:
    """Lock a file, made if need be; returns its descriptor, or None where the file system knows no locks.

    The lock is held until the descriptor is closed, or the process ends. Programs that this process starts do not
    inherit it.

    Raises
    ------
    LockTaken
        When another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is None:
        os.close(descriptor)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in TAKEN:
            raise LockTaken(str(path)) from None
        return None
    return descriptor


@contextmanager
def holding(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock meanwhile; waits for another process that has it, and calls `on_wait` first."""
    try:
        descriptor = take_lock(path)
    except LockTaken:
        on_wait()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
