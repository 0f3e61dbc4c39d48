"""The memory that a stage may take: stated once, in bytes or as “2 GB”, and looked up where work is cut into pieces.

Without a limit nothing is looked up and everything is as large as it is fastest. With one, frames are read and pairs
are computed fewer at a time, and the network sees large frames in smaller windows. What a stage cannot do without is a
few images of one frame: where these do not fit, it says so and goes on.
"""

from __future__ import annotations

import logging
import math
import os
import re

from atomdiffuser.errors import SettingsError

VARIABLE = "ATOMDIFFUSER_MEMORY_LIMIT"
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|[kMGT]i?B)\s*", re.IGNORECASE)
PROGRAM_BYTES = 660e6
"""Python with torch and the libraries around it, weights, and what is kept at hand whatever the frames."""
LEAST_BYTES_PER_PX = {"convert": 16.0, "register": 230.0, "decay": 185.0, "damage": 300.0, "align": 80.0}
"""What a stage takes per pixel of one frame (of one pair, where it looks at pairs); measured, see docs/scaling.md."""

logger = logging.getLogger(__name__)


def parse_size(text: str) -> int:
    """Bytes from a number with a unit.

    >>> parse_size("2 GB"), parse_size("1.5GiB")
    (2000000000, 1610612736)
    """
    match = SIZE.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise SettingsError(f"{text!r} is not a size; expected a number with a unit, such as 2 GB or 1.5 GiB")
    prefix = match[2][0].lower() if len(match[2]) > 1 else ""
    return int(float(match[1]) * (1024 if "i" in match[2].lower() else 1000) ** " kmgt".index(prefix or " "))


def set_memory_limit(text: str | None) -> None:
    """Limit what this process and those it starts take; None leaves what the environment says."""
    if text is not None:
        parse_size(text)
        os.environ[VARIABLE] = text


def memory_limit() -> int | None:
    """Bytes that a stage may take; None where nothing is said."""
    text = os.environ.get(VARIABLE, "")
    return parse_size(text) if text else None


def room(beside_bytes: float = 0.0) -> float:
    """Bytes left by the limit beside the program itself and `beside_bytes` of data; infinite without a limit."""
    limit = memory_limit()
    return math.inf if limit is None else max(0.0, limit - PROGRAM_BYTES - beside_bytes)


def warn_if_too_small(stage: str, frame_shape: tuple[int, int]) -> None:
    """Say where the least that a stage needs for frames of this size is more than the limit."""
    limit, least = memory_limit(), PROGRAM_BYTES + LEAST_BYTES_PER_PX[stage] * frame_shape[0] * frame_shape[1]
    if limit is not None and least > limit:
        size = " × ".join(map(str, frame_shape))
        logger.warning(
            "memory_limit is %.3g GB, but %s takes about %.2g GB for frames of %s pixels", limit / 1e9, stage,
            least / 1e9, size,
        )  # fmt: skip
