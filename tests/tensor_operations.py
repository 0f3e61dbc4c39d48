"""The same work by tensor operations instead of compiled loops; shared by the tests that compare both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from atomdiffuser import compiled

R = TypeVar("R")


def both_ways(work: Callable[[], R]) -> tuple[R, R]:
    """What compiled loops give, and what tensor operations do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiled, "_available", lambda: True)
        by_loops = work()
        patched.setattr(compiled, "_available", lambda: False)
        return by_loops, work()
