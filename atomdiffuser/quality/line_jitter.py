"""Scan-line jitter: how far each line of a frame is off along x, from the sample that all frames show together.

Line y of frame k shows the sample shifted by j_y. Against the template T of the other frames, moved onto frame k and
brought to its local mean and contrast, the least-squares offset of a line is

    ĵ_y = − Σ_x T_x (F − T) / Σ_x T_x T'_x

with T' the sharp image. The products in the denominator come from the frame itself, Σ T_x F_x, whose noise is not the
template's: neither noise in T nor the smoothing of T biases ĵ. Slow offsets along y (distortion, drift that was not
steady, what the affine leaves) are taken out by a high-pass, the noise's share by its known variance, and what the
template's own jitter adds by the number of frames in it.

Assumes lines scanned along x whose offsets are independent of the frame's content; offsets along y count only by their
projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.prepare import noise_of
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    gaussian_kernel,
    inside_frame,
    sample_spline,
    smooth,
    spline_coefficients,
)

DERIVATIVE = (
    torch.tensor([-1.0, 9.0, -45.0, 0.0, 45.0, -9.0, 1.0], dtype=torch.float64) / -60
)  # sixth order, as a convolution
SLOW_LINES = 8.0  # σ of the Gaussian over lines that tells slow offsets from jitter
WORST_LINE = 3.0  # lines whose offset is this many times less certain than the median line's do not count
LEAST_LINES = 24
FAINTEST_LINE_PX = 1.5  # median σ of a line's offset, beyond which the frame's lines show no structure to speak of
RIM_PX = 4
FAINTEST_CONTRAST = 0.05


@dataclass(frozen=True)
class LineOffsets:
    """Offsets along x of the lines of one frame [px].

    Attributes
    ----------
    offset, sigma
        (Y,) what each line is off, slow part included, and its 1 σ by counting noise; inf where it shows nothing.
    jitter, jitter_sigma
        RMS of the fast part, noise taken out, and its 1 σ; NaN where the lines show too little.
    """

    offset: np.ndarray
    sigma: np.ndarray
    jitter: float
    jitter_sigma: float

    def correction(self) -> np.ndarray:
        """(Y,) the fast part of the offsets as far as it stands out of the noise [px]: 0 where nothing is known.

        Each is shrunk by jitter²/(jitter² + σ²), which leaves the smallest error (Wiener).
        """
        known = np.flatnonzero(np.isfinite(self.sigma))
        correction = np.zeros(len(self.offset))
        if np.isfinite(self.jitter) and len(known):
            fast = _high_pass(known, self.sigma[known]) @ self.offset[known]
            correction[known] = fast * self.jitter**2 / np.maximum(self.jitter**2 + self.sigma[known] ** 2, 1e-12)
        return correction


@dataclass
class SampleSum:
    """Sum of raw frames aligned on the reference grid and how many looked, each (1, Y, X) float64."""

    total: Tensor
    count: Tensor

    @staticmethod
    def of(source: FrameSource, affines: np.ndarray, frames: list[int]) -> SampleSum:
        """Add up frames, given all affines (t, 3, 3) frame_from_reference."""
        whole = SampleSum(*(torch.zeros(1, *source.shape, dtype=torch.float64, device=source.device) for _ in range(2)))
        for k in frames:
            part = aligned(source, affines[k], k)
            whole.total += part.total
            whole.count += part.count
        return whole


def aligned(source: FrameSource, frame_from_reference: np.ndarray, frame: int) -> SampleSum:
    """What one frame adds."""
    y, x = affine_coordinates(torch.as_tensor(frame_from_reference)[None].to(source.device), source.shape)
    inside = inside_frame(y, x, source.shape, RIM_PX).double()
    return SampleSum(inside * sample_spline(spline_coefficients(source.raw(frame)), y, x), inside)


def measure_jitter(source: FrameSource, affines: np.ndarray, frames: list[int]) -> dict[int, LineOffsets]:
    """Line offsets of the given frames (valid affines), each against the mean of all the others; needs two frames."""
    if len(frames) < 2:
        return {}
    whole = SampleSum.of(source, affines, frames)
    return {k: line_offsets(source, whole, affines[k], k) for k in frames}


def line_offsets(source: FrameSource, whole: SampleSum, frame_from_reference: np.ndarray, frame: int) -> LineOffsets:
    """Line offsets of one frame against the rest of a sum that it is part of."""
    own = aligned(source, frame_from_reference, frame)
    count = whole.count - own.count
    mean = torch.where(count > 0.5, (whole.total - own.total) / count.clamp_min(1), 0.0).float()
    back = geometry.invert(torch.as_tensor(frame_from_reference)[None].to(source.device))
    y, x = affine_coordinates(back, source.shape)
    known = inside_frame(y, x, source.shape, RIM_PX) & (_nearest(count, y, x) > 0.5)
    others = float(_nearest(count, y, x)[known].mean()) if bool(known.any()) else 0.0
    if others == 0.0:
        return _nothing(source.shape[0])
    width = source.scales.filter_px
    kernel = gaussian_kernel(width)
    template = sample_spline(spline_coefficients(filter_separable(mean, kernel, kernel)), y, x)
    return _offsets(source, source.raw(frame), template, known, others)


def _offsets(source: FrameSource, raw: Tensor, template: Tensor, known: Tensor, others: float) -> LineOffsets:
    base_px = source.scales.base_px
    level = smooth(raw, base_px)
    structure, pattern = raw - level, template - smooth(template, base_px)
    contrast = smooth(structure * pattern, base_px) / smooth(pattern**2, base_px).clamp_min(1e-12)
    pattern = pattern * contrast.clamp_min(FAINTEST_CONTRAST)
    flat = torch.ones(1)
    slope = filter_separable(pattern, flat, DERIVATIVE) * known
    own_slope = filter_separable(structure, flat, DERIVATIVE)
    energy = (slope**2).sum(-1)[0].double()  # (Y,)
    gain = float((slope * own_slope).sum() / (slope**2).sum().clamp_min(1e-12))
    if not gain > 0:
        return _nothing(len(energy))
    response = (gain * energy).clamp_min(1e-12)
    # a line of the template has been averaged with its neighbours by the filter
    template_share = contrast.clamp(0, 1) ** 2 / (others * 2 * math.sqrt(math.pi) * source.scales.filter_px)
    variance = noise_of(level + pattern, source.noise) * (1 + template_share)
    offset = -(slope * (structure - pattern)).sum(-1)[0].double() / response
    sigma = (slope**2 * variance).sum(-1)[0].double().sqrt() / response
    sigma = torch.where(energy > 1e-6 * energy.max(), sigma, torch.inf)
    return _statistics(offset.cpu().numpy(), sigma.cpu().numpy(), others)


def _statistics(offset: np.ndarray, sigma: np.ndarray, others: float) -> LineOffsets:
    seen = np.isfinite(sigma)
    seen &= sigma < WORST_LINE * np.median(sigma[seen]) if seen.any() else False
    lines = np.flatnonzero(seen)
    if len(lines) < LEAST_LINES or np.median(sigma[lines]) > FAINTEST_LINE_PX:
        return LineOffsets(np.where(np.isfinite(sigma), offset, 0.0), sigma, np.nan, np.nan)
    high = _high_pass(lines, sigma[lines])
    fast = high @ offset[lines]
    squared = high**2
    noise = squared @ sigma[lines] ** 2
    passed = squared.sum(axis=1)  # what the high-pass leaves of independent offsets' variance
    weight = 1 / (noise + np.median(noise)) ** 2
    share = float(np.average(passed, weights=weight)) * (1 + 1 / others)
    jitter2 = float(np.average(fast**2 - noise, weights=weight)) / share
    spread = np.sqrt(2 * np.sum((weight * (noise + passed * max(jitter2, 0.0))) ** 2)) / weight.sum() / share
    jitter = np.sqrt(max(jitter2, 0.0))
    # near zero the variance's σ tells, above it the root's
    sigma_of_root = min(np.sqrt(spread), spread / (2 * jitter) if jitter > 0 else np.inf)
    return LineOffsets(np.where(np.isfinite(sigma), offset, 0.0), sigma, float(jitter), float(sigma_of_root))


def _high_pass(lines: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Matrix (n, n) that takes a weighted local mean over the lines off the offsets."""
    distance = (lines[:, None] - lines[None, :]) / SLOW_LINES
    weight = np.exp(-0.5 * distance**2) / sigma**2
    return np.eye(len(lines)) - weight / weight.sum(axis=1, keepdims=True)


def _nearest(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    rows = y.round().long().clamp(0, image.shape[-2] - 1)
    columns = x.round().long().clamp(0, image.shape[-1] - 1)
    return image[0][rows[0], columns[0]][None]


def _nothing(rows: int) -> LineOffsets:
    return LineOffsets(np.zeros(rows), np.full(rows, np.inf), np.nan, np.nan)
