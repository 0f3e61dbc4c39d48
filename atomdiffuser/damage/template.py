"""The template moved onto the pixels of a raw frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.prepare import shows_lattice, usable_margin_px
from atomdiffuser.estimation.spectrum import ImageScales
from atomdiffuser.estimation.template import TemplateSum
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    inside_frame,
    sample_linear,
    sample_spline,
    spline_prefilter_kernel,
)

LAG = 1.5  # widths of the local mean beyond the edge of the crystal where a step still shows


@dataclass(frozen=True)
class TemplateOnFrame:
    """A template at the pixels of one raw frame, each (1, Y, X); (y, x) are the pixels' places on the reference grid.

    `intensity` and `contrast` are sums of the frames' maps; `crystal` marks where structure can be lattice, `level`
    where the local mean is surely level, so that nothing but lattice is left about it.
    """

    mean: Tensor
    base: Tensor
    count: Tensor
    intensity: Tensor
    contrast: Tensor
    inside: Tensor
    crystal: Tensor
    level: Tensor
    y: Tensor
    x: Tensor


@dataclass(frozen=True)
class Template:
    """Spline coefficients of the mean of the aligned frames and of its local mean, how many frames looked, the sums of
    their intensity and contrast maps, where structure can be lattice, and where the local mean is level; each
    (1, Y, X).
    """

    mean_coefficients: Tensor
    base_coefficients: Tensor
    count: Tensor
    intensity: Tensor
    contrast: Tensor
    crystal: Tensor
    level: Tensor
    margin_px: float

    def on_frame(self, frame_from_reference: Tensor) -> TemplateOnFrame:
        """The template at the pixels of a raw frame, moved there by its affine (3, 3)."""
        shape = self.count.shape[-2:]
        y, x = affine_coordinates(geometry.invert(frame_from_reference)[None].to(self.count.device), shape)
        return TemplateOnFrame(
            mean=sample_spline(self.mean_coefficients, y, x),
            base=sample_spline(self.base_coefficients, y, x),
            count=sample_linear(self.count, y, x),
            intensity=sample_linear(self.intensity, y, x),
            contrast=sample_linear(self.contrast, y, x),
            inside=inside_frame(y, x, shape, self.margin_px),
            crystal=sample_linear(self.crystal.float(), y, x) > 0.99,
            level=sample_linear(self.level.float(), y, x) > 0.99,
            y=y,
            x=x,
        )


def make_template(
    total: TemplateSum, intensity: Tensor, contrast: Tensor, reference_base: Tensor, scales: ImageScales
) -> Template:
    """The mean of a sum of aligned frames, ready to be sampled; `intensity` and `contrast` are sums of the same frames'
    maps.

    The local mean of the reference frame (1, Y, X) tells where there is lattice: damage makes slopes of its own.
    """
    prefilter = spline_prefilter_kernel()
    mean = lambda image: torch.where(total.count > 0, image / total.count.clamp_min(1), 0.0).float()
    coefficients = lambda image: filter_separable(image, prefilter, prefilter)
    base = mean(total.base)
    crystal = shows_lattice(reference_base, scales) & (total.count > 0)
    return Template(
        coefficients(mean(total.filtered)),
        coefficients(base),
        total.count.float(),
        intensity.float(),
        contrast.float(),
        crystal,
        _level(crystal, scales.base_px),
        usable_margin_px(scales),
    )


def _level(crystal: Tensor, base_px: float) -> Tensor:
    """Crystal (1, Y, X) without what lies so near an edge that the local mean still lags behind the step."""
    reach = math.ceil(LAG * base_px)
    near = torch.nn.functional.max_pool2d((~crystal)[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0
    return crystal & ~near
