"""What is worked on next is read by a thread meanwhile, so that waiting for disks costs no time of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Iterable[T], *, depth: int = 1) -> Iterator[tuple[T, R]]:
    """Each item and what `read` makes of it, in order; up to `depth` more are read while one is worked on.

    One thread reads, so reads never overlap each other. What it raises is raised here, when its item is due. The thread
    is gone when the iterator is used up or closed, or when the loop around it ends by an error.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        pending: deque[tuple[T, Future[R]]] = deque()
        try:
            for item in items:
                pending.append((item, reader.submit(read, item)))
                if len(pending) > depth:
                    yield _next(pending)
            while pending:
                yield _next(pending)
        finally:
            for _, future in pending:
                future.cancel()


def _next(pending: deque[tuple[T, Future[R]]]) -> tuple[T, R]:
    item, future = pending.popleft()
    return item, future.result()
