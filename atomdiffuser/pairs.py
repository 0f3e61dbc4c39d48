"""Which pairs of frames are registered: every lag once, and always each usable frame with the next usable one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def choose_pairs(usable: Sequence[int], lags: Sequence[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs (reference, moving) of frame numbers.

    Parameters
    ----------
    usable
        Frame numbers that may be used, increasing.
    lags
        Distances in frames.

    Returns
    -------
    neighbours
        Each usable frame with the next usable one; they form an unbroken chain.
    others
        The remaining pairs at the given lags, sorted.
    """
    neighbours = list(itertools.pairwise(usable))
    present, chained = set(usable), set(neighbours)
    others = {(k, k + lag) for lag in lags for k in usable if k + lag in present} - chained
    return neighbours, sorted(others)
