"""The sample as several aligned frames together show it, as reference or moving frame of a drift fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser.estimation.fit_frames import SPLINE_REACH, FitFrames, FitGrid, denoise
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import noise_of
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    inside_frame,
    sample_linear,
    sample_spline,
    spline_prefilter_kernel,
)


@dataclass(frozen=True)
class FitTemplateSum:
    """Sums over aligned frames on a fit grid, each (1, Y, X): lightly filtered image, local mean, and how many frames
    looked.
    """

    light: Tensor
    base: Tensor
    count: Tensor
    grid: FitGrid
    noise: NoiseModel

    def __add__(self, other: FitTemplateSum) -> FitTemplateSum:
        return FitTemplateSum(
            self.light + other.light, self.base + other.base, self.count + other.count, self.grid, self.noise
        )

    def __sub__(self, other: FitTemplateSum) -> FitTemplateSum:
        return FitTemplateSum(
            self.light - other.light, self.base - other.base, self.count - other.count, self.grid, self.noise
        )

    def mean(self, *, as_moving: bool = False) -> FitFrames:
        """The mean frame. As the moving frame of a fit it is sampled, so it needs spline coefficients, and its noise is
        taken alike everywhere.
        """
        known = self.count > 0.5
        mean = lambda total: torch.where(known, total / self.count.clamp_min(1), 0.0).float()
        light, base = mean(self.light), mean(self.base)
        variance = torch.where(known, noise_of(base, self.grid.noise(self.noise)) / self.count.clamp_min(1), 0.0)
        coefficients, share = torch.zeros_like(base), torch.where(known, 1 / self.count.clamp_min(1), torch.inf).float()
        if as_moving:
            prefilter = spline_prefilter_kernel(SPLINE_REACH)
            coefficients = filter_separable(light, prefilter, prefilter)
            share = torch.where(known, share, 0.0).sum((1, 2), keepdim=True) / known.sum((1, 2), keepdim=True)
        return FitFrames(
            coefficients=coefficients,
            base=base,
            lattice=light - base,
            clean=denoise(
                light - base, variance.float().mean((1, 2)), self.grid.filter_width, sharpen=self.grid.stride == 1
            ),
            noise_share=share,
            good=known.float(),
        )


def aligned_part(
    source: FrameSource, index: int, frame_from_reference: Tensor, *, coarse: bool = False
) -> FitTemplateSum:
    """What one frame adds to a template, given its affine (3, 3)."""
    frame, grid = source.fit_frames([index], coarse=coarse), source.grid(coarse=coarse)
    affine = grid.to_samples(frame_from_reference[None].to(source.device))
    y, x = affine_coordinates(affine, frame.shape)
    inside = inside_frame(y, x, frame.shape, grid.margin).float()
    if frame.good.shape[-2:] == frame.shape:
        inside = inside * (sample_linear(frame.good, y, x) > 0.99)
    return FitTemplateSum(
        (inside * sample_spline(frame.coefficients, y, x)).double(),
        (inside * sample_linear(frame.base, y, x)).double(),
        inside.double(),
        grid,
        source.noise,
    )


def sum_fit_template(
    source: FrameSource, frame_from_reference: Tensor, frames: Sequence[int], *, coarse: bool = False
) -> FitTemplateSum:
    """Add up `frames`; affines (t, 3, 3)."""
    parts = (aligned_part(source, k, frame_from_reference[k], coarse=coarse) for k in frames)
    total = next(parts)
    for part in parts:
        total = total + part
    return total
