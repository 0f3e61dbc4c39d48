"""Data that the page's script works with, as JSON that cannot break out of its element."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np

from atomdiffuser.io.map_store import DecayMaps
from atomdiffuser.report.images import block_nanmean

MAP_SIDE = 96
"""Longer side of the maps inside a page: they are smooth, and the page interpolates."""

UNSEEN = -32768
STEPS_PER_UNIT = 5000
"""Maps are stored as integers, 1/5000 of the ratio to the reference: up to ±6.5."""

SIGNIFICANT_DIGITS = 6


def to_json(value: Any) -> str:
    """JSON for a `<script type="application/json">`: no `<`, `>` or `&`, non-finite numbers as null."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def plain(value: Any) -> Any:
    """Arrays and NumPy scalars as plain values, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def column(values: Any) -> list[float | None]:
    """A table's column for plotting, to six digits."""
    return [float(f"{v:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float)]


def chosen_states(valid: np.ndarray, first: int, last: int, most: int) -> list[int]:
    """Numbers of the frames whose maps go into a page: the valid ones, thinned evenly, ends kept."""
    frames = [int(k) for k in np.flatnonzero(valid) if first <= k <= last]
    if len(frames) <= most:
        return frames
    picks = np.unique(np.rint(np.linspace(0, len(frames) - 1, most)).astype(int))
    return [frames[i] for i in picks]


def map_states(maps: DecayMaps, frames: list[int], unsure_percent: float) -> dict[str, Any]:
    """Both maps of the given frames, block-averaged to at most MAP_SIDE samples, as base64 of little-endian int16.

    Samples whose 1 σ is above `unsure_percent` of the reference are marked in a bit mask, left out when there are none.
    """
    shape = tuple(int(n) for n in maps.intensity.shape[1:])
    factor = max(1, -(-max(shape) // MAP_SIDE))
    states = []
    size = (0, 0)
    for k in frames:
        state: dict[str, Any] = {"frame": k}
        for name in ("contrast", "intensity"):
            values = block_nanmean(np.asarray(getattr(maps, name)[k]), factor)
            sigma = block_nanmean(np.asarray(getattr(maps, f"{name}_sigma")[k]), factor)
            size = values.shape
            state[name] = _encode(values)
            unsure = np.isfinite(values) & ~(100 * sigma <= unsure_percent)
            if unsure.any():
                state[f"{name}_unsure"] = _encode_bits(unsure)
        states.append(state)
    return {
        "shape": size,
        "stride_px": maps.stride * factor,
        "steps": STEPS_PER_UNIT,
        "unseen": UNSEEN,
        "states": states,
    }


def _encode(values: np.ndarray) -> str:
    limit = 32767
    steps = np.clip(np.rint(np.nan_to_num(values) * STEPS_PER_UNIT), -limit, limit)
    steps = np.where(np.isfinite(values), steps, UNSEEN).astype("<i2")
    return base64.b64encode(steps.tobytes()).decode("ascii")


def _encode_bits(flags: np.ndarray) -> str:
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode("ascii")
