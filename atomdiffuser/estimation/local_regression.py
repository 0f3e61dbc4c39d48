"""Decay maps of aligned pairs by local regression on the reference frame.

In a Gaussian window around each point,

    intensity  μ = ⟨moving − κ·l_reference⟩ / ⟨reference − l_reference⟩
    contrast   κ = ⟨l_moving·l_reference⟩ / (⟨l_reference²⟩ − noise)

with l the matched-filtered frame less its local mean. In the slope the noise of the reference is subtracted (errors in
variables; Fuller, Measurement Error Models, 1987, eq. 1.2.3), which would bias it low.

The window's width is chosen per pair and witness by an unbiased estimate of the risk: the difference to the narrowest
window measures the bias, less what its noise explains (Mallows' C_p), and bias grows with the square of the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import PreparedFrames, noise_of, shows_lattice, usable_margin_px
from atomdiffuser.estimation.spectrum import ImageScales, lattice_noise_energy
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    gaussian_kernel,
    inside_frame,
    sample_spline,
    smooth,
)

BANDWIDTHS_PX = (8.0, 11.0, 16.0, 22.0, 32.0, 45.0, 64.0, 90.0, 128.0)
LOCAL_BIAS_WINDOWS = 2.5  # a local bias is judged over this many times the narrowest window
LEAST_SEEN = 0.05  # share of a window that must hold data
LARGEST_SIGMA = 1.0  # a map value less certain than this is not given


@dataclass(frozen=True)
class DecayMaps:
    """Maps of n pairs on the reference grid, each (n, Y', X') float32; NaN where not identifiable.

    `coverage` is the share of each cell that both frames saw; bandwidths are the σ of the windows [px].
    """

    intensity: Tensor
    contrast: Tensor
    intensity_sigma: Tensor
    contrast_sigma: Tensor
    coverage: Tensor
    intensity_bandwidth_px: Tensor
    contrast_bandwidth_px: Tensor


def estimate_decay_maps(
    reference: PreparedFrames,
    moving: PreparedFrames,
    moving_from_reference: Tensor,
    *,
    noise: NoiseModel,
    scales: ImageScales,
    stride: int = 4,
    bandwidth_px: float | None = None,
) -> DecayMaps:
    """Maps of n aligned pairs, `stride` times coarser than the frames (cell means).

    Parameters
    ----------
    moving_from_reference
        (n, 3, 3) drift.
    bandwidth_px
        σ of the window; None chooses it.
    """
    cells = _cell_statistics(reference, moving, moving_from_reference, noise, scales, stride)
    smallest = max(BANDWIDTHS_PX[0], 0.8 * (scales.period_px or 0.0), 2.0 * stride)
    limit = max(smallest, min(reference.shape) / 3)
    widths = [bandwidth_px] if bandwidth_px else [w for w in (smallest, *BANDWIDTHS_PX) if smallest <= w <= limit]
    widths = sorted(set(widths))
    contrast = _choose([_contrast(cells, w, stride) for w in widths], widths, stride)
    intensity = _choose([_intensity(cells, contrast.value, w, stride) for w in widths], widths, stride)
    return DecayMaps(
        *(torch.where(cells.coverage > 0, v, torch.nan) for v in (intensity.value, contrast.value)),
        *(torch.where(cells.coverage > 0, v, torch.nan) for v in (intensity.variance.sqrt(), contrast.variance.sqrt())),
        cells.coverage,
        intensity.bandwidth_px,
        contrast.bandwidth_px,
    )


def full_resolution(maps: Tensor, stride: int, shape: tuple[int, int]) -> Tensor:
    """Maps (n, Y', X') of cell means, interpolated bilinearly to frames (n, Y, X); NaN cells do not spread."""
    known = torch.isfinite(maps)
    size = (maps.shape[-2] * stride, maps.shape[-1] * stride)
    enlarge = lambda m: F.interpolate(m[:, None], size=size, mode="bilinear", align_corners=False)[
        :, 0, : shape[0], : shape[1]
    ]
    weight = enlarge(known.float())
    return torch.where(weight >= 0.5, enlarge(torch.nan_to_num(maps)) / weight.clamp_min(1e-6), torch.nan)


@dataclass(frozen=True)
class _Cells:
    """Sums over cells that the regressions need, each (n, Y', X'), already masked."""

    coverage: Tensor
    crystal: Tensor
    moving: Tensor
    reference: Tensor
    lattice: Tensor
    cross: Tensor
    square: Tensor
    moving_noise: Tensor
    reference_noise: Tensor
    lattice_noise: Tensor
    moving_at_structure: Tensor
    reference_at_structure: Tensor


@dataclass(frozen=True)
class _Estimate:
    value: Tensor
    variance: Tensor
    bandwidth_px: Tensor


def _cell_statistics(reference, moving, affine, noise, scales, stride) -> _Cells:
    shape, margin = reference.shape, usable_margin_px(scales)
    y, x = affine_coordinates(affine, shape)
    inside = inside_frame(y, x, shape, margin).float()
    warped = sample_spline(moving.coefficients, y, x)
    filtered = reference.base + reference.lattice
    cover = smooth(inside, scales.base_px).clamp_min(1e-3)
    local_mean = lambda image: smooth(image * inside, scales.base_px) / cover
    mean_moving, mean_reference = local_mean(warped), local_mean(filtered)
    crystal = inside * shows_lattice(reference.base, scales)
    lattice_moving, lattice_reference = (warped - mean_moving) * crystal, (filtered - mean_reference) * crystal
    kernel = gaussian_kernel(scales.filter_px)
    twice = filter_separable(lattice_reference, kernel, kernel)
    pool = lambda image: _pool(image * inside, stride)
    noise_moving, noise_reference = noise_of(mean_moving, noise), noise_of(mean_reference, noise)
    at_structure = lambda image: pool(
        twice**2 * noise_of(image, noise)
    )  # columns are brighter, so noisier, than the mean
    energy = lattice_noise_energy(scales)
    return _Cells(
        coverage=_pool(inside, stride),
        crystal=_pool(crystal.float(), stride),
        moving=pool(warped),
        reference=pool(filtered),
        lattice=pool(reference.lattice * crystal),
        cross=pool(lattice_moving * lattice_reference),
        square=pool(lattice_reference**2),
        moving_noise=pool(noise_moving),
        reference_noise=pool(noise_reference),
        lattice_noise=energy * pool(noise_reference * crystal),
        moving_at_structure=at_structure(warped),
        reference_at_structure=at_structure(filtered),
    )


def _intensity(c: _Cells, contrast: Tensor, width: float, stride: int) -> _Estimate:
    """Ratio of local means; windows that cut through unit cells see some lattice, which fades by itself."""
    moving, reference, lattice = (_window(v, width, stride) for v in (c.moving, c.reference, c.lattice))
    fading = torch.where(torch.isfinite(contrast), contrast, moving / reference.clamp_min(1e-12))
    moving, reference = moving - fading * lattice, reference - lattice
    value = moving / reference.clamp_min(1e-12)
    noise = _window_variance(c.moving_noise, width, stride) + value**2 * _window_variance(
        c.reference_noise, width, stride
    )
    variance = noise / reference.clamp_min(1e-12) ** 2
    seen = _window(c.coverage, width, stride) > LEAST_SEEN
    return _identifiable(value, variance, (reference > 0) & seen, width)


def _contrast(c: _Cells, width: float, stride: int) -> _Estimate:
    cross, square = _window(c.cross, width, stride), _window(c.square, width, stride)
    signal = square - _window(c.lattice_noise, width, stride)
    value = cross / signal.clamp_min(1e-12)
    noise = _window_variance(c.moving_at_structure, width, stride) + value**2 * _window_variance(
        c.reference_at_structure, width, stride
    )
    variance = noise / signal.clamp_min(1e-12) ** 2
    seen = _window(c.crystal, width, stride) > LEAST_SEEN
    return _identifiable(value, variance, (signal > 0) & seen, width)


def _identifiable(value: Tensor, variance: Tensor, possible: Tensor, width: float) -> _Estimate:
    good = possible & (variance < LARGEST_SIGMA**2)
    bandwidth = torch.full((value.shape[0],), width, device=value.device)
    return _Estimate(torch.where(good, value, torch.nan), torch.where(good, variance, torch.nan), bandwidth)


def _choose(estimates: list[_Estimate], widths: list[float], stride: int) -> _Estimate:
    """The width of least estimated risk, pair by pair; the bias that shows is added to the variance, where it shows."""
    pivot, narrow = estimates[0], widths[0]
    precision = 1 / pivot.variance  # NaN where not identifiable
    mean = lambda image: (
        torch.nansum(precision * image, dim=(1, 2))
        / torch.nansum(torch.where(torch.isfinite(image), precision, torch.nan), dim=(1, 2)).clamp_min(1e-30)
    )
    per_energy = pivot.variance / _window_energy(narrow)
    excesses, noises = [], []
    for estimate, width in zip(estimates[1:], widths[1:], strict=True):
        shared = 1 / (2 * math.pi * (width**2 + narrow**2))
        noise = per_energy * (_window_energy(width) + _window_energy(narrow) - 2 * shared)
        # Bias grows with the square of the width, in the pivot too: what differs is the share above the pivot's.
        whole = (width**2 / (width**2 - narrow**2)) ** 2
        excesses.append(whole * ((estimate.value - pivot.value) ** 2 - noise))
        noises.append(whole * noise)
    share = (narrow / widths[1]) ** 4 if len(widths) > 1 else 0.0
    excesses.insert(0, share * excesses[0] if excesses else torch.zeros_like(pivot.value))
    noises.insert(0, share * noises[0] if noises else torch.zeros_like(pivot.value))
    risks = [mean(e) + mean(per_energy * _window_energy(w)) for e, w in zip(excesses, widths, strict=True)]
    best = torch.stack(risks).argmin(0)
    rows = torch.arange(len(best), device=best.device)
    pick = lambda fields: torch.stack(fields)[best, rows]
    excess, noise = pick(excesses), pick(noises)
    local_width = LOCAL_BIAS_WINDOWS * narrow
    weight = _window(torch.isfinite(excess).float(), local_width, stride).clamp_min(1e-3)
    around = lambda image: _window(torch.nan_to_num(image), local_width, stride) / weight
    chance = around(noise) / LOCAL_BIAS_WINDOWS  # scatter of the local mean of squares where noise alone is at work
    bias = torch.maximum(mean(excess)[:, None, None], around(excess) - chance).clamp_min(0)
    variance = pick([e.variance for e in estimates]) + bias
    return _Estimate(pick([e.value for e in estimates]), variance, pick([e.bandwidth_px for e in estimates]))


def _window(cells: Tensor, width: float, stride: int) -> Tensor:
    """Gaussian-weighted sums over the cells around each cell; nothing lies beyond the frame."""
    sigma = width / stride
    reach = math.ceil(4 * sigma) + 1
    inner = (..., slice(reach, -reach), slice(reach, -reach))
    return smooth(F.pad(cells, (reach,) * 4), sigma)[inner]


def _window_variance(cells: Tensor, width: float, stride: int) -> Tensor:
    """What a window leaves of the variance of cells: sums with the squares of its weights."""
    return _window_energy(width) * _window(cells, width / math.sqrt(2), stride)


def _window_energy(width: float) -> float:
    """Σ g² of a unit-sum Gaussian window: the share of a pixel's variance that is left."""
    return 1 / (4 * math.pi * width**2)


def _pool(images: Tensor, stride: int) -> Tensor:
    return F.avg_pool2d(images[:, None], stride, ceil_mode=True, count_include_pad=False)[:, 0]
