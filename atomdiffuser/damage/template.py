"""The template moved onto the pixels of a raw frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.template import TemplateSum
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    sample_linear,
    sample_spline,
    spline_prefilter_kernel,
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


@dataclass(frozen=True)
class Template:
    """Spline coefficients (1, Y, X) of the mean of the aligned frames and of its local mean, and how many frames looked."""

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


def make_template(total: TemplateSum, margin_px: float) -> Template:
    """The mean of a sum of aligned frames, ready to be sampled."""
    prefilter = spline_prefilter_kernel()
    mean = lambda image: torch.where(total.count > 0, image / total.count.clamp_min(1), 0.0).float()
    coefficients = lambda image: filter_separable(mean(image), prefilter, prefilter)
    return Template(coefficients(total.filtered), coefficients(total.base), total.count.float(), margin_px)
