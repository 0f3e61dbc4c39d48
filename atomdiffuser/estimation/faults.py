"""Pixels that a detector or a scan got wrong: they stay where they are while the specimen moves, and must not speak.

Not-a-number pixels, hot pixels, lines (rows or columns) of one value, runs of the largest value along a line
(saturation that bleeds). What is found is filled from around, so that no filter carries it further, and left out of
the fit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.interpolation import filter_separable, gaussian_kernel

HOT_SIGMAS = 12.0
HOT_OVER_NEIGHBOURS = 2.5  # a probe that spans two pixels gives a neighbour at least half of the peak
FEWEST_EXPECTED = 30.0  # electrons on a line before a line without any is a fault
SATURATED_RUN_PX = 12
FILL_PX = (1.0, 4.0, 16.0)
DILATION_SIGMAS = 2.5


def find_faults(frame: Tensor, noise: NoiseModel) -> Tensor:
    """Faulty pixels of a frame (1, Y, X) [counts above the dark level], bool."""
    bad = ~torch.isfinite(frame)
    bad = bad | _lines(frame, bad, noise, -1) | _lines(frame, bad, noise, -2)
    bad = bad | _saturated_runs(frame)
    return bad | _hot(torch.where(bad, 0.0, frame), bad, noise)


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
    return F.max_pool2d(bad.float()[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0


def _lines(frame: Tensor, bad: Tensor, noise: NoiseModel, along: int) -> Tensor:
    """Lines of one value where the lines around say that there is something to see."""
    lines = frame if along == -1 else frame.mT  # (1, lines, length)
    known = torch.where((bad if along == -1 else bad.mT), lines[..., :1], lines)
    flat = (known.amax(-1) == known.amin(-1))[0]
    if not bool(flat.any()) or bool(flat.all()):
        return torch.zeros_like(bad)
    at, sound = torch.nonzero(flat)[:, 0], torch.nonzero(~flat)[:, 0]
    nearest = sound[(at[:, None] - sound).abs().argmin(1)]
    expected = torch.nan_to_num(lines[0, nearest]).sum(-1) / max(noise.per_count, 1e-12)
    fault = torch.zeros(lines.shape[-2], dtype=torch.bool, device=frame.device)
    fault[at[(expected > FEWEST_EXPECTED) | (lines[0, at, 0] > 0)]] = True
    return (fault[:, None] if along == -1 else fault[None, :]).expand_as(bad)


def _saturated_runs(frame: Tensor) -> Tensor:
    """Runs of the frame's largest value along a row or column."""
    largest = frame[torch.isfinite(frame)].max() if bool(torch.isfinite(frame).any()) else torch.inf
    top = (frame == largest).float()[:, None]
    found = torch.zeros_like(frame, dtype=torch.bool)
    if float(top.sum()) < SATURATED_RUN_PX:
        return found
    for size in ((SATURATED_RUN_PX, 1), (1, SATURATED_RUN_PX)):
        full = -F.max_pool2d(-top, size, stride=1)  # where a run begins
        padded = F.pad(full, (size[1] - 1, size[1] - 1, size[0] - 1, size[0] - 1))
        found |= F.max_pool2d(padded, size, stride=1)[:, 0] > 0
    return found


def _hot(frame: Tensor, bad: Tensor, noise: NoiseModel) -> Tensor:
    """Pixels far above all but one of their neighbours (two hot ones may be next to each other)."""
    limit = frame.mean() + HOT_SIGMAS * (noise.variance(frame.mean()).sqrt() + noise.per_count)
    rows, columns = torch.nonzero((frame > limit)[0], as_tuple=True)
    if len(rows) == 0:
        return torch.zeros_like(bad)
    around = torch.arange(3, device=frame.device)
    padded = F.pad(frame[:, None], (1,) * 4, mode="replicate")[0, 0]
    near = padded[(rows[:, None] + around)[:, :, None], (columns[:, None] + around)[:, None, :]].flatten(1)
    value = near[:, 4]
    others = near[:, [0, 1, 2, 3, 5, 6, 7, 8]].sort(1).values
    level, rival = others[:, :7].mean(1), others[:, 6]
    hot = (value > level + HOT_SIGMAS * (noise.variance(level).sqrt() + noise.per_count)) & (
        value > HOT_OVER_NEIGHBOURS * rival
    )
    found = torch.zeros_like(bad)
    found[0, rows[hot], columns[hot]] = True
    return found
