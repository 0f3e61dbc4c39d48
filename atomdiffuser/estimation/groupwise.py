"""Refinement of a trajectory against the sample itself: each frame is fitted to the mean of all the others.

A pair of frames has the noise of both; near the end of a series, when little lattice is left, that is all a pair has.
The mean of the other aligned frames has little noise of its own, so that a frame's error is what its own counts
allow. Each frame is left out of its template, or its noise would hold it where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import PreparedFrames
from atomdiffuser.estimation.register import FitOptions, register_from
from atomdiffuser.estimation.template import aligned_part, sum_template

LEAST_FRAMES = 3
MANY_FRAMES = 8  # of which the mean is clean enough for the filter made for that
STILL_PX = 0.05  # a round that moves frames by less (RMS over them) leaves the mean as it is, and nothing to the next
LARGEST_CHANGE_SIGMAS = 6.0
LARGEST_CHANGE_PX = 0.25


@dataclass(frozen=True)
class Refined:
    """Frames fitted to the sample.

    Attributes
    ----------
    frame_from_reference
        (t, 3, 3); frames that could not be refined keep their affine.
    frame_sigma_px
        (t,) 1 σ of each frame against the sample, NaN where it was not refined.
    frame_covariance
        (t, 6, 6) of the six numbers of each frame's motion against the sample, appended on the reference side; NaN
        where it was not refined.
    """

    frame_from_reference: Tensor
    frame_sigma_px: np.ndarray
    frame_covariance: Tensor


def refine_trajectory(
    source: FrameSource,
    frame_from_reference: Tensor,
    sigma_px: np.ndarray,
    origin: int,
    options: FitOptions,
    *,
    rounds: int,
    advance: Callable[[], None] | None = None,
) -> Refined:
    """Fit every frame of a trajectory (t, 3, 3), NaN where invalid, to the mean of the others.

    `sigma_px` (t,) are the trajectory's σ: a refinement that moves a frame by much more than these is not believed.
    """
    frames = np.flatnonzero(torch.isfinite(frame_from_reference[:, 0, 0]).numpy())
    refined = _not_refined(frame_from_reference)
    if len(frames) < LEAST_FRAMES:
        return refined
    if len(frames) >= MANY_FRAMES:
        source = source.for_sample()
    options = replace(options, scales=source.scales, shared_reference=True)
    for left in reversed(range(rounds)):
        before = refined.frame_from_reference
        refined = _one_round(source, before, sigma_px, frames, origin, options, advance)
        moved = geometry.displacement_rms_px(refined.frame_from_reference[frames], before[frames], source.shape)
        if float(moved.square().mean().sqrt()) < STILL_PX:
            for _ in range(left * len(frames) if advance else 0):
                advance()
            break
    return refined


def _not_refined(affines: Tensor) -> Refined:
    t = len(affines)
    return Refined(affines.clone(), np.full(t, np.nan), torch.full((t, 6, 6), torch.nan, dtype=torch.float64))


def _one_round(source, start, sigma_px, frames, origin, options, advance) -> Refined:
    total = sum_template(source, start, frames)
    refined = _not_refined(start)
    fitted = refined.frame_from_reference
    for at in range(0, len(frames), source.batch):
        batch = frames[at : at + source.batch]
        templates = PreparedFrames.join([total.without(aligned_part(source, k, start[k])) for k in batch])
        found = register_from(templates, source.prepared(batch), start[batch].to(source.device), options)
        moved = geometry.displacement_rms_px(found.moving_from_reference.cpu(), start[batch], source.shape).numpy()
        believed = np.maximum(LARGEST_CHANGE_PX, LARGEST_CHANGE_SIGMAS * np.nan_to_num(sigma_px[batch]))
        for m, k in enumerate(batch):
            if bool(found.valid[m]) and moved[m] <= believed[m]:
                fitted[k] = found.moving_from_reference[m].cpu()
                refined.frame_sigma_px[k] = float(found.displacement_sigma_px[m])
                refined.frame_covariance[k] = found.motion_covariance[m].cpu()
            if advance:
                advance()
    fitted = fitted @ geometry.invert(fitted[origin])
    fitted[origin] = geometry.identity()  # exactly
    return replace(refined, frame_from_reference=fitted)
