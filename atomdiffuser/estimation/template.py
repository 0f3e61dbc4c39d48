"""The sample as all aligned frames together show it, on the reference grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import PreparedFrames
from atomdiffuser.interpolation import (
    affine_coordinates,
    inside_frame,
    near,
    sample_linear,
    sample_spline,
    spline_coefficients,
)

RINGING_PX = 2  # a spline's coefficients carry 7 % of a step so far


@dataclass(frozen=True)
class TemplateSum:
    """Sums over aligned frames, each (1, Y, X) float64: matched-filtered image, local mean, and how many frames
    looked. Where frames have weights, all are weighted sums, and `squares` is that of the squared weights.
    """

    filtered: Tensor
    base: Tensor
    count: Tensor
    squares: Tensor

    def add(self, part: TemplateSum, weight: float = 1.0) -> None:
        """Count in one more frame."""
        self.filtered.add_(part.filtered, alpha=weight)
        self.base.add_(part.base, alpha=weight)
        self.count.add_(part.count, alpha=weight)
        self.squares.add_(part.squares, alpha=weight**2)

    def without(self, own: TemplateSum) -> PreparedFrames:
        """The template of all frames but one, ready to be the reference of a fit."""
        differences = (getattr(self, name) - getattr(own, name) for name in ("filtered", "base", "count", "squares"))
        return TemplateSum(*differences).mean()

    def mean(self) -> PreparedFrames:
        """The mean frame, ready to be fitted; unknown close to where nothing is known, which its spline rings from."""
        known = self.count > 0.5
        mean = lambda total: torch.where(known, total / self.count.clamp_min(1), 0.0).float()
        base, filtered = mean(self.base), mean(self.filtered)
        sound = ~near(~known, RINGING_PX)
        return PreparedFrames(
            coefficients=spline_coefficients(filtered),
            base=base,
            lattice=filtered - base,
            noise_share=torch.where(sound, 1 / self.count.clamp_min(1), torch.inf).float(),
        )


def empty_sum(source: FrameSource) -> TemplateSum:
    """Sums over no frame yet."""
    return TemplateSum(
        *(torch.zeros(1, *source.shape, dtype=torch.float64, device=source.device) for _ in fields(TemplateSum))
    )


def aligned_part(source: FrameSource, index: int, frame_from_reference: Tensor) -> TemplateSum:
    """What one frame adds to the template, given its affine (3, 3)."""
    prepared = source.prepared([index])
    y, x, inside = _place(source, frame_from_reference)
    if prepared.noise_share.shape[-2:] == prepared.shape:
        inside = inside * (sample_linear(torch.isfinite(prepared.noise_share).float(), y, x) > 0.99)
    base = sample_spline(spline_coefficients(prepared.base), y, x)
    return TemplateSum(inside * sample_spline(prepared.coefficients, y, x), inside * base, inside, inside)


def sum_template(
    source: FrameSource,
    affines: Tensor,
    frames: Sequence[int],
    advance: Callable[[], None] | None = None,
) -> TemplateSum:
    """Add up `frames`; `affines` (t, 3, 3) are frame_from_reference, each counts alike."""
    total = empty_sum(source)
    for k in frames:
        total.add(aligned_part(source, k, affines[k]))
        if advance:
            advance()
    return total


def _place(source: FrameSource, frame_from_reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a frame has the pixels of the reference grid, y and x, and whether it shows them; each (1, Y, X)."""
    y, x = affine_coordinates(frame_from_reference[None].to(source.device), source.shape)
    return y, x, inside_frame(y, x, source.shape, source.scales.filter_px).double()
