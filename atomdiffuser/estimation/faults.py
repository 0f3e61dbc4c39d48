"""Pixels that a detector or a scan got wrong: they stay where they are while the specimen moves, and must not speak.

Not-a-number pixels, hot pixels, lines (rows or columns) of one value, runs of the largest value along a line
(saturation that bleeds). What is found is filled from around, so that no filter carries it further, and left out of
the fit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.compiled import array, compiled_here
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.interpolation import filter_separable, gaussian_kernel, near

HOT_SIGMAS = 12.0
BY_ROUNDING = 0.999  # of the limit for hot pixels, below which one is under it however it is computed
HOT_OVER_NEIGHBOURS = 2.5  # a probe that spans two pixels gives a neighbour at least half of the peak
FEWEST_EXPECTED = 30.0  # electrons on a line before a line without any is a fault
SATURATED_RUN_PX = 12
FEW_PX = 16
FILL_PX = (1.0, 4.0, 16.0)
DILATION_SIGMAS = 2.5


def find_faults(frame: Tensor, noise: NoiseModel) -> Tensor | None:
    """Faulty pixels of a frame (1, Y, X) [counts above the dark level], bool; None where there are none."""
    if compiled_here(frame.device) and _plainly_sound(frame, noise):
        return None
    bad = None if all_finite(frame) else ~torch.isfinite(frame)
    runs = _saturated_runs(frame if bad is None else torch.where(bad, -torch.inf, frame))
    for found in (_lines(frame, bad, noise, -1), _lines(frame, bad, noise, -2), runs):
        bad = _either(bad, found)
    sound = frame if bad is None else torch.where(bad, 0.0, frame)
    return _either(bad, _hot(sound, noise))


def _plainly_sound(frame: Tensor, noise: NoiseModel) -> bool:
    """Whether one look tells that none of the others would find anything."""
    from atomdiffuser.estimation.fault_kernels import first_look

    total, largest, count, flat = first_look(array(frame[0]))
    if flat or count >= SATURATED_RUN_PX or not math.isfinite(total):
        return False
    level = total / frame.numel()
    noise_at_level = max(noise.readout + noise.per_count * level, noise.floor) ** 0.5
    return largest < BY_ROUNDING * (level + HOT_SIGMAS * (noise_at_level + noise.per_count))


def all_finite(frame: Tensor) -> bool:
    """Whether every pixel is a finite number."""
    return math.isfinite(float((frame - frame).sum()))


def fill_faults(frame: Tensor, bad: Tensor) -> Tensor:
    """The frame (1, Y, X) with faulty pixels replaced by the weighted mean of the sound ones around."""
    filled, left = torch.where(bad, 0.0, frame), bad.clone()
    sound = (~bad).float()
    for width in FILL_PX:
        if not bool(left.any()):
            return filled
        kernel = gaussian_kernel(width)
        share = filter_separable(sound, kernel, kernel)
        mean = filter_separable(torch.where(bad, 0.0, frame), kernel, kernel) / share.clamp_min(1e-6)
        now = left & (share > 0.05)
        filled, left = torch.where(now, mean, filled), left & ~now
    return torch.where(left, frame[~bad].mean() if bool((~bad).any()) else torch.zeros(()), filled)


def touched(bad: Tensor, filter_px: float) -> Tensor:
    """Pixels (1, Y, X) that the matched filter carries faulty ones to, bool."""
    reach = max(1, round(DILATION_SIGMAS * filter_px))
    return near(bad, reach)


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a | b


def _lines(frame: Tensor, bad: Tensor | None, noise: NoiseModel, along: int) -> Tensor | None:
    """Lines of one value where the lines around say that there is something to see."""
    lines = frame if along == -1 else frame.mT  # (1, lines, length)
    known = lines if bad is None else torch.where((bad if along == -1 else bad.mT), lines[..., :1], lines)
    flat = _flat(known[0])
    if not bool(flat.any()) or bool(flat.all()):
        return None
    at, sound = torch.nonzero(flat)[:, 0], torch.nonzero(~flat)[:, 0]
    nearest = sound[(at[:, None] - sound).abs().argmin(1)]
    expected = torch.nan_to_num(lines[0, nearest]).sum(-1) / max(noise.per_count, 1e-12)
    fault = torch.zeros(lines.shape[-2], dtype=torch.bool, device=frame.device)
    fault[at[(expected > FEWEST_EXPECTED) | (lines[0, at, 0] > 0)]] = True
    if not bool(fault.any()):
        return None
    return (fault[:, None] if along == -1 else fault[None, :]).expand_as(frame)


def _flat(lines: Tensor) -> Tensor:
    """Which of the lines (k, length) have one value throughout, bool; most give themselves away in a few pixels."""
    few = lines[:, :: max(1, lines.shape[1] // FEW_PX)]
    flat = (few == few[:, :1]).all(1)
    left = torch.nonzero(flat)[:, 0]
    flat[left] = (lines[left] == lines[left, :1]).all(1)
    return flat


def _saturated_runs(frame: Tensor) -> Tensor | None:
    """Runs of the frame's largest value along a row or column."""
    largest = frame[0] == frame.amax()
    if int(largest.sum()) < SATURATED_RUN_PX:
        return None
    rows, columns = torch.nonzero(largest, as_tuple=True)
    found, size = torch.zeros_like(frame, dtype=torch.bool), frame.shape[-1] + frame.shape[-2]
    step = torch.arange(SATURATED_RUN_PX, device=frame.device)
    for line, place, along in ((rows, columns, -1), (columns, rows, -2)):
        order = (line * size + place).sort().values
        begins = order[: 1 - SATURATED_RUN_PX]
        begins = begins[order[SATURATED_RUN_PX - 1 :] - begins == SATURATED_RUN_PX - 1]
        line, place = begins // size, (begins % size)[:, None] + step
        target = found[0] if along == -1 else found[0].mT
        target[line[:, None], place] = True
    return found


def _hot(frame: Tensor, noise: NoiseModel) -> Tensor | None:
    """Pixels far above all but one of their neighbours (two hot ones may be next to each other)."""
    limit = frame.mean() + HOT_SIGMAS * (noise.variance(frame.mean()).sqrt() + noise.per_count)
    if not bool(frame.amax() > limit):
        return None
    rows, columns = torch.nonzero((frame > limit)[0], as_tuple=True)
    around = torch.arange(3, device=frame.device)
    padded = F.pad(frame[:, None], (1,) * 4, mode="replicate")[0, 0]
    near = padded[(rows[:, None] + around)[:, :, None], (columns[:, None] + around)[:, None, :]].flatten(1)
    value = near[:, 4]
    others = near[:, [0, 1, 2, 3, 5, 6, 7, 8]].sort(1).values
    level, rival = others[:, :7].mean(1), others[:, 6]
    hot = (value > level + HOT_SIGMAS * (noise.variance(level).sqrt() + noise.per_count)) & (
        value > HOT_OVER_NEIGHBOURS * rival
    )
    if not bool(hot.any()):
        return None
    found = torch.zeros_like(frame, dtype=torch.bool)
    found[0, rows[hot], columns[hot]] = True
    return found
