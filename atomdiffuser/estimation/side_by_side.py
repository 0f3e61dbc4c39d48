"""Batches of small frames by several threads side by side: many threads on the few pixels of one mostly wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")


def side_by_side(run: Callable[[T], R], parts: Iterable[T], threads: int) -> Iterator[R]:
    """`run(part)` for each part, in order; parts are taken as there is a thread for them.

    Meanwhile tensor operations of this process run on one thread each.
    """
    if threads < 2:
        yield from map(run, parts)
        return
    before = torch.get_num_threads()
    pool: ThreadPoolExecutor | None = None
    waiting: deque[Future[R]] = deque()
    try:
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        for part in parts:
            waiting.append(pool.submit(run, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
