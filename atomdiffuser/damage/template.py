"""The sample as seen by all aligned frames together: what each raw frame is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import prepare_frames, usable_margin_px
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    sample_linear,
    sample_spline,
    spline_prefilter_kernel,
)


@dataclass(frozen=True)
class Template:
    """Mean of the aligned, matched-filtered frames on the reference grid, and how many frames saw each pixel.

    All (1, Y, X); `mean_coefficients` and `base_coefficients` are spline coefficients of the mean and of its local mean.
    """

    mean_coefficients: Tensor
    base_coefficients: Tensor
    count: Tensor
    margin_px: float

    def on_frame(self, frame_from_reference: Tensor) -> TemplateOnFrame:
        """The template at the pixels of a raw frame, moved there by its affine (3, 3)."""
        shape = self.count.shape[-2:]
        y, x = affine_coordinates(geometry.invert(frame_from_reference)[None].to(self.count.device), shape)
        m = self.margin_px
        inside = (y >= m) & (y <= shape[0] - 1 - m) & (x >= m) & (x <= shape[1] - 1 - m)
        return TemplateOnFrame(
            mean=sample_spline(self.mean_coefficients, y, x), base=sample_spline(self.base_coefficients, y, x),
            count=sample_linear(self.count, y, x), inside=inside, y=y, x=x,
        )


@dataclass(frozen=True)
class TemplateOnFrame:
    """A template at the pixels of one raw frame, each (1, Y, X); (y, x) are the pixels' places on the reference grid."""

    mean: Tensor
    base: Tensor
    count: Tensor
    inside: Tensor
    y: Tensor
    x: Tensor


def build_template(
    source: FrameSource, affines: Tensor, frames: Sequence[int], progress: Callable[[], None] | None = None
) -> Template:
    """Average `frames` on the reference grid; `affines` (t, 3, 3) are frame_from_reference."""
    shape, margin = source.shape, usable_margin_px(source.scales)
    total, total_base, count = (torch.zeros(1, *shape, device=source.device, dtype=torch.float64) for _ in range(3))
    prefilter = spline_prefilter_kernel()
    for k in frames:
        prepared = prepare_frames(source.raw(k), source.scales)
        y, x = affine_coordinates(affines[k][None].to(source.device), shape)
        inside = (y >= margin) & (y <= shape[0] - 1 - margin) & (x >= margin) & (x <= shape[1] - 1 - margin)
        total += inside * sample_spline(prepared.coefficients, y, x)
        total_base += inside * sample_spline(filter_separable(prepared.base, prefilter, prefilter), y, x)
        count += inside
        if progress:
            progress()
    known = count > 0
    mean, base = (torch.where(known, s / count.clamp_min(1), 0).float() for s in (total, total_base))
    coefficients = lambda image: filter_separable(image, prefilter, prefilter)
    return Template(coefficients(mean), coefficients(base), count.float(), margin)
