"""Frames made ready for the fit: matched-filtered, split into base and lattice, with their spline coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.spectrum import ImageScales
from atomdiffuser.interpolation import chain_kernels, filter_separable, gaussian_kernel, smooth, spline_prefilter_kernel

EMPTY_SHARE = 0.25  # of the typical local mean: below this there is no specimen
LARGEST_STEP = 0.2  # relative change of the local mean within its own width
VACUUM_IN_VIEW = 0.01  # share of the local mean's window: vacuum within 2.3 of its σ
DIFFERENCE = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
SPLINE_AT_PIXELS = torch.tensor([1 / 6, 4 / 6, 1 / 6], dtype=torch.float64)
NEGLIGIBLE_TAP = 3e-5
FIELDS = ("coefficients", "base", "lattice", "noise_share")


@dataclass(frozen=True)
class PreparedFrames:
    """A batch of n frames, each field (n, Y, X) float32 on one device, counts above the dark level.

    Attributes
    ----------
    coefficients
        Cubic B-spline coefficients of the matched-filtered frame.
    base
        Local mean of the raw frame.
    lattice
        Matched-filtered frame less `base`.
    noise_share
        Noise variance as a share of a single frame's: 1 for a frame, 1/count for a mean of frames, inf where nothing is
        known; (n, 1, 1) or (n, Y, X).
    """

    coefficients: Tensor
    base: Tensor
    lattice: Tensor
    noise_share: Tensor

    def __len__(self) -> int:
        return self.base.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape[-2], self.base.shape[-1]

    def select(self, index: Tensor | list[int] | slice) -> PreparedFrames:
        """Frames at `index`, repeated as listed."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.base.device)
        return PreparedFrames(*(getattr(self, f)[index] for f in FIELDS))

    @staticmethod
    def join(parts: list[PreparedFrames]) -> PreparedFrames:
        """Concatenate batches."""
        shape = max((p.noise_share.shape[-2:] for p in parts), key=lambda s: s[0] * s[1])
        join = lambda f: [getattr(p, f) if f != "noise_share" else p.noise_share.expand(-1, *shape) for p in parts]
        return PreparedFrames(*(torch.cat(join(f)) for f in FIELDS))


def prepare_frames(frames: Tensor, scales: ImageScales) -> PreparedFrames:
    """Prepare raw frames (n, Y, X) float32 [counts above the dark level]."""
    kernel = spline_blur_kernel(scales.filter_px)
    coefficients = filter_separable(frames, kernel, kernel)
    base = smooth(frames, scales.base_px)
    return PreparedFrames(
        coefficients=coefficients,
        base=base,
        lattice=filter_separable(coefficients, SPLINE_AT_PIXELS, SPLINE_AT_PIXELS) - base,
        noise_share=torch.ones(len(frames), 1, 1, device=frames.device),
    )


def shows_lattice(base: Tensor, scales: ImageScales) -> Tensor:
    """Where structure around the local mean `base` (n, Y, X) can be lattice, bool.

    At the edge of a specimen the local mean lags behind the step, and what is left over looks like structure that no
    beam melts; in vacuum there is none. Both are told by the mean: close by it is nearly zero, or it changes much
    within its own width.
    """
    typical = base.flatten(1).median(1).values[:, None, None].clamp_min(1e-12)
    empty = base < EMPTY_SHARE * typical
    by_vacuum = smooth(empty.float(), scales.base_px) > VACUUM_IN_VIEW
    flat = torch.ones(1)
    slope_y, slope_x = filter_separable(base, DIFFERENCE, flat), filter_separable(base, flat, DIFFERENCE)
    step = torch.hypot(slope_y, slope_x) * scales.base_px / torch.maximum(base, EMPTY_SHARE * typical)
    return (step < LARGEST_STEP) & ~by_vacuum


def usable_margin_px(scales: ImageScales) -> float:
    """Width of the frame's rim that mirrored edges spoil for the fit [px]."""
    return 2 * scales.filter_px + 3


def noise_of(base: Tensor, noise: NoiseModel) -> Tensor:
    """Variance of a raw pixel where the local mean is `base` [counts²]."""
    return noise.variance(base.clamp_min(0))


@lru_cache
def spline_blur_kernel(filter_px: float) -> Tensor:
    """The matched filter as spline coefficients want it: less what the cubic B-spline itself blurs."""
    kernel = chain_kernels(gaussian_kernel(filter_px), spline_prefilter_kernel())
    reach = len(kernel) // 2
    while kernel[len(kernel) // 2 - reach].abs() < NEGLIGIBLE_TAP * kernel.max():
        reach -= 1
    middle = len(kernel) // 2
    kernel = kernel[middle - reach : middle + reach + 1]
    return kernel / kernel.sum()
