"""The template moved onto the pixels of a raw frame.

Frames count in it by the square of their contrast. Early frames show most of the lattice, and show it before uneven
damage has changed what is seen where: a lattice that has faded in places would weigh the rest of the region too high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.damage.atom_sums import strips
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import shows_lattice, usable_margin_px
from atomdiffuser.estimation.spectrum import ImageScales
from atomdiffuser.estimation.template import TemplateSum, aligned_part
from atomdiffuser.interpolation import (
    affine_coordinates,
    inside_frame,
    near,
    sample_linear,
    sample_spline,
    spline_coefficients,
)

MAPS = ("intensity", "contrast")
POWER = 2  # of the typical contrast in a frame's weight
LEAST_TYPICAL = 0.1
LAG = 1.5  # widths of the local mean beyond the edge of the crystal where a step still shows


@dataclass(frozen=True)
class TemplateOnFrame:
    """What the other frames show at the pixels of a raw frame, each (1, Y, X).

    `noise_share` is the variance of their mean over that of one frame, `intensity` and `contrast` are the means of
    their maps (1 where these were not asked for). `inside` marks sound pixels that the reference grid holds, `crystal`
    where structure can be lattice, `level` where the local mean is surely level, so that nothing but lattice is left
    about it; (y, x) are the pixels' places on the reference grid.
    """

    mean: Tensor
    base: Tensor
    noise_share: Tensor
    intensity: Tensor
    contrast: Tensor
    inside: Tensor
    crystal: Tensor
    level: Tensor
    y: Tensor
    x: Tensor

    @property
    def usable(self) -> Tensor:
        """Where the frame's pixels can be compared with those of another frame at least."""
        return self.inside & (self.noise_share < 1.5)

    def rows(self, rows: slice) -> TemplateOnFrame:
        """The same for some rows of the frame."""
        return TemplateOnFrame(**{f.name: getattr(self, f.name)[:, rows] for f in fields(self)})


@dataclass(frozen=True)
class Template:
    """The weighted sum of the aligned frames and of their maps of intensity and contrast, where structure can be
    lattice, and where the local mean is level; images are (1, Y, X). `weights` are those of the frames.
    """

    total: TemplateSum
    intensity: Tensor
    contrast: Tensor
    crystal: Tensor
    level: Tensor
    weights: dict[int, float]
    margin_px: float

    @cached_property
    def mean_coefficients(self) -> Tensor:
        """Spline coefficients of the mean of all frames."""
        return _mean_coefficients(self.total.filtered, self.total.count)

    @cached_property
    def base_coefficients(self) -> Tensor:
        """Spline coefficients of the mean of all local means."""
        return _mean_coefficients(self.total.base, self.total.count)

    def looks(self) -> float:
        """Frames of equal weight that would leave the same noise in the middle of the field."""
        return float((self.total.count**2 / self.total.squares.clamp_min(1e-12)).median().clamp_min(1))

    def on_frame(
        self, source: FrameSource, index: int, frame_from_reference: Tensor, maps: tuple[Tensor, Tensor] | None = None
    ) -> TemplateOnFrame:
        """What the others show of raw frame `index`, whose affine is (3, 3) and whose maps are (1, Y, X) each.

        What is left out is the frame as it entered: resampled there and back, as its share of the sum is.
        """
        left = self._without(aligned_part(source, index, frame_from_reference), self.weights[index], maps)
        sound = torch.isfinite(source.prepared([index]).noise_share)  # raw frames have their faulty pixels still
        shape, device = self.crystal.shape[-2:], self.crystal.device
        y, x = affine_coordinates(geometry.invert(frame_from_reference)[None].to(device), shape)
        on_frame = lambda image: sample_linear(image, y, x)
        mean, base = (sample_spline(spline_coefficients(left.pop(name)), y, x) for name in ("mean", "base"))
        share = on_frame(left.pop("noise_share"))
        intensity, contrast = (
            (on_frame(left.pop(name)) for name in MAPS) if maps is not None else (torch.ones_like(share),) * 2
        )
        return TemplateOnFrame(
            mean=mean,
            base=base,
            noise_share=share,
            intensity=intensity,
            contrast=contrast,
            inside=inside_frame(y, x, shape, self.margin_px).logical_and_(sound),
            crystal=on_frame(self.crystal.float()) > 0.99,
            level=on_frame(self.level.float()) > 0.99,
            y=y,
            x=x,
        )

    def _without(self, own: TemplateSum, weight: float, maps: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        """The means of all frames but one, each (1, Y, X) float32, and the share of a frame's noise that they have."""
        total, given = self.total, dict(zip(MAPS, maps, strict=True)) if maps is not None else {}
        left = {
            name: torch.empty_like(total.count, dtype=torch.float32) for name in ("mean", "base", "noise_share", *given)
        }
        for rows in strips(total.count):
            own_count = own.count[:, rows]
            count = total.count[:, rows].sub(own_count, alpha=weight)
            known = count > 1e-4
            count.clamp_min_(1e-4)

            def keep(name: str, rest: Tensor, otherwise: float, rows=rows, known=known) -> None:
                left[name][:, rows] = torch.where(known, rest.float(), otherwise)

            for name, whole, part in (("mean", total.filtered, own.filtered), ("base", total.base, own.base)):
                keep(name, whole[:, rows].sub(part[:, rows], alpha=weight).div_(count), 0.0)
            for name, image in given.items():
                part = own_count * image[:, rows]
                keep(name, getattr(self, name)[:, rows].sub(part, alpha=weight).div_(count), 1.0)
            squares = total.squares[:, rows].sub(own.squares[:, rows], alpha=weight**2).clamp_min_(0)
            keep("noise_share", squares.div_(count.square_()), 4.0)
        return left


def typical(values: np.ndarray) -> float:
    """The median of a map where it is known; 1 where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else 1.0


def frame_weight(contrast: np.ndarray) -> float:
    """Weight of a frame in the template from its contrast map, NaN where unknown."""
    return float(np.clip(typical(contrast), LEAST_TYPICAL, 1.0)) ** POWER


def make_template(
    total: TemplateSum,
    intensity: Tensor,
    contrast: Tensor,
    weights: dict[int, float],
    reference_base: Tensor,
    scales: ImageScales,
) -> Template:
    """A template from weighted sums of aligned frames and of their maps of intensity and contrast, weights alike.

    The local mean of the reference frame (1, Y, X) tells where there is lattice: damage makes slopes of its own.
    """
    crystal, looked = shows_lattice(reference_base, scales), total.count > 0
    level = _level(crystal, scales.base_px) & looked  # where the view ends there is no edge
    return Template(total, intensity, contrast, crystal & looked, level, weights, usable_margin_px(scales))


def _mean_coefficients(total: Tensor, count: Tensor) -> Tensor:
    return spline_coefficients(torch.where(count > 1e-4, (total / count.clamp_min(1e-4)).float(), 0.0))


def _level(crystal: Tensor, base_px: float) -> Tensor:
    """Crystal (1, Y, X) without what lies so near an edge that the local mean still lags behind the step."""
    reach = math.ceil(LAG * base_px)
    return crystal & ~near(~crystal, reach)
