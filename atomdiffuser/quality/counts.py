"""What a frame's raw counts say without knowing the specimen: saturation, repeated and missing rows, blank frames."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

TOP_SHARE = 1e-3  # of the pixels are looked at for a pile-up
LEAST_PILE = 10  # pixels
LEAST_PILE_SHARE = 1e-4
PILE_OVER_NEXT = 3.0  # a clipped top value is this many times as frequent as the next ones below
NEXT_VALUES = 3
BRIGHT_ROWS = 0.75  # quantile that stands for a row with specimen
SHORTEST_ROW = 16  # pixels; shorter ones are alike by chance
ABRUPT = 0.5  # of its signal, beside a row that is missing


@dataclass(frozen=True)
class CountFacts:
    """What one frame (Y, X) says.

    Attributes
    ----------
    mean
        Of the finite pixels; NaN without one.
    top
        Where the frame is clipped [counts]: its largest value, when so many pixels have it that the distribution piles
        up there, or the largest that its type can hold, when pixels have it; inf where it is not clipped.
    constant_rows
        (Y,) rows in which every pixel is the same, or none is finite.
    missing_rows
        (Y,) those among them that begin or end abruptly beside a row with signal: vacuum without a count fades in.
    row_hashes, digest
        (Y,) and one hash of the contents.
    """

    mean: float
    top: float
    constant_rows: np.ndarray
    missing_rows: np.ndarray
    row_hashes: np.ndarray
    digest: bytes


def count_facts(frame: np.ndarray) -> CountFacts:
    """Look at one frame (Y, X) of any dtype."""
    frame = np.ascontiguousarray(frame)
    finite = np.isfinite(frame) if frame.dtype.kind == "f" else None
    values = frame if finite is None else frame[finite]
    low, high = frame.min(axis=1), frame.max(axis=1)
    constant = low == high
    if finite is not None:
        constant |= ~finite.any(axis=1)
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in frame], dtype=np.uint64
    )
    return CountFacts(
        mean=float(values.mean(dtype=np.float64)) if values.size else float("nan"),
        top=_clipped_at(values.reshape(-1), frame.dtype),
        constant_rows=constant,
        missing_rows=_begins_abruptly(constant, frame),
        row_hashes=hashes,
        digest=hashlib.blake2b(hashes.tobytes(), digest_size=16).digest(),
    )


def saturated_fraction(frame: np.ndarray, top: float) -> float:
    """Share of a frame's finite pixels at or above the value `top` at which the series is clipped."""
    if not np.isfinite(top):
        return 0.0
    finite = np.isfinite(frame)
    return float((frame >= top).sum() / max(int(finite.sum()), 1))


def repeated_rows(now: CountFacts, before: CountFacts) -> float:
    """Share of the rows that are those of the frame before, those without contents left out."""
    judged = ~now.constant_rows
    same = judged & (now.row_hashes == before.row_hashes)
    return float(same.sum() / judged.sum()) if judged.any() else 0.0


def _begins_abruptly(constant: np.ndarray, frame: np.ndarray) -> np.ndarray:
    if constant.all() or not constant.any() or frame.shape[1] < SHORTEST_ROW:
        return np.zeros_like(constant)
    numbers = np.nan_to_num(frame[~constant].astype(np.float64))
    signal = np.zeros(len(frame))
    signal[~constant] = numbers.mean(axis=1)
    level = np.nan_to_num(frame[constant].astype(np.float64)).mean()
    enough = level + ABRUPT * (np.quantile(signal[~constant], BRIGHT_ROWS) - level)
    edges = np.flatnonzero(np.diff(np.r_[False, constant, False].astype(int)))
    missing = np.zeros_like(constant)
    for start, stop in edges.reshape(-1, 2):
        beside = [signal[n] for n in (start - 1, stop) if 0 <= n < len(signal)]
        missing[start:stop] = max(beside) > enough
    return missing


def _clipped_at(values: np.ndarray, dtype: np.dtype) -> float:
    if values.size == 0:
        return float("inf")
    count = max(64, int(TOP_SHARE * values.size))
    highest = np.partition(values, max(values.size - count, 0))[-count:] if values.size > count else values
    top = highest.max()
    pile = int((values == top).sum())
    if pile < max(LEAST_PILE, LEAST_PILE_SHARE * values.size):
        return float("inf")
    if dtype.kind in "iu" and top == np.iinfo(dtype).max:
        return float(top)
    below = highest[highest < top]
    if below.size == 0:  # everything that was looked at is clipped: look at all
        below = values[values < top]
    if below.size == 0:
        return float("inf")  # one value only: blank
    _, counts = np.unique(below, return_counts=True)
    return float(top) if pile > PILE_OVER_NEXT * counts[-NEXT_VALUES:].max() else float("inf")
