"""Batches of small frames by several threads side by side: many threads on the few pixels of one mostly wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")
MOST_THREADS = 8  # that share work of which each part is short


def side_by_side(run: Callable[[T], R], parts: Iterable[T], threads: int) -> Iterator[R]:
    """`run(part)` for each part, in order; parts are taken as there is a thread for them.

    Meanwhile tensor operations in these threads, and in those that begin meanwhile, run on one thread each.
    """
    if threads < 2:
        yield from map(run, parts)
        return
    waiting: deque[Future[R]] = deque()
    with _one_thread_each():
        pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        try:
            for part in parts:
                waiting.append(pool.submit(run, part))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


_lock, _users, _before = Lock(), 0, 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """The last of those that use this at a time sets the number of threads back that the first one found."""
    global _users, _before
    with _lock:
        if _users == 0:
            _before = torch.get_num_threads()
        _users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_before)
