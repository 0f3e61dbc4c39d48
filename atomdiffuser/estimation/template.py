"""The sample as all aligned frames together show it, on the reference grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import PreparedFrames, usable_margin_px
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    inside_frame,
    sample_linear,
    sample_spline,
    spline_prefilter_kernel,
)

RINGING_PX = 5  # a spline's coefficients carry 1e-3 of a step so far


@dataclass(frozen=True)
class TemplateSum:
    """Sums over aligned frames, each (1, Y, X) float64: matched-filtered image, local mean, and how many frames
    looked. Where frames have weights, all are weighted sums, and `squares` is that of the squared weights.
    """

    filtered: Tensor
    base: Tensor
    count: Tensor
    squares: Tensor

    def without(self, own: TemplateSum) -> PreparedFrames:
        """The template of all frames but one, ready to be the reference of a fit."""
        differences = (getattr(self, name) - getattr(own, name) for name in ("filtered", "base", "count", "squares"))
        return TemplateSum(*differences).mean()

    def mean(self) -> PreparedFrames:
        """The mean frame, ready to be fitted; unknown close to where nothing is known, which its spline rings from."""
        known = self.count > 0.5
        mean = lambda total: torch.where(known, total / self.count.clamp_min(1), 0.0).float()
        base, filtered = mean(self.base), mean(self.filtered)
        sound = F.max_pool2d((~known).float()[:, None], 2 * RINGING_PX + 1, 1, RINGING_PX)[:, 0] == 0
        prefilter = spline_prefilter_kernel()
        return PreparedFrames(
            coefficients=filter_separable(filtered, prefilter, prefilter),
            base=base,
            lattice=filtered - base,
            noise_share=torch.where(sound, 1 / self.count.clamp_min(1), torch.inf).float(),
        )


def view(source: FrameSource, frame_from_reference: Tensor) -> Tensor:
    """Which pixels of the reference grid a frame shows, (1, Y, X) float64 0 or 1; its affine is (3, 3)."""
    return _place(source, frame_from_reference)[2]


def aligned_part(source: FrameSource, index: int, frame_from_reference: Tensor) -> TemplateSum:
    """What one frame adds to the template, given its affine (3, 3)."""
    prepared = source.prepared([index])
    y, x, inside = _place(source, frame_from_reference)
    if prepared.noise_share.shape[-2:] == prepared.shape:
        inside = inside * (sample_linear(torch.isfinite(prepared.noise_share).float(), y, x) > 0.99)
    prefilter = spline_prefilter_kernel()
    base = sample_spline(filter_separable(prepared.base, prefilter, prefilter), y, x)
    return TemplateSum(inside * sample_spline(prepared.coefficients, y, x), inside * base, inside, inside)


def sum_template(
    source: FrameSource,
    affines: Tensor,
    frames: Sequence[int],
    advance: Callable[[], None] | None = None,
    weights: Mapping[int, float] | None = None,
) -> TemplateSum:
    """Add up `frames`; `affines` (t, 3, 3) are frame_from_reference, the weights of frames by default 1."""
    blank = lambda: torch.zeros(1, *source.shape, dtype=torch.float64, device=source.device)
    total = TemplateSum(blank(), blank(), blank(), blank())
    for k in frames:
        part, weight = aligned_part(source, k, affines[k]), weights[k] if weights else 1.0
        total.filtered.add_(part.filtered, alpha=weight)
        total.base.add_(part.base, alpha=weight)
        total.count.add_(part.count, alpha=weight)
        total.squares.add_(part.squares, alpha=weight**2)
        if advance:
            advance()
    return total


def _place(source: FrameSource, frame_from_reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a frame has the pixels of the reference grid, y and x, and whether it shows them; each (1, Y, X)."""
    y, x = affine_coordinates(frame_from_reference[None].to(source.device), source.shape)
    return y, x, inside_frame(y, x, source.shape, usable_margin_px(source.scales)).double()
