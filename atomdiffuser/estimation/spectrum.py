"""What the power spectrum of a series says: how wide the matched filter should be, and how large the lattice is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FILTER_CANDIDATES_PX = (0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0)
PEAK_OVER_RADIAL_MEDIAN = 10.0
PEAK_SHARE_OF_STRONGEST = 0.02


@dataclass(frozen=True)
class ImageScales:
    """Lengths that the estimation needs, all in pixels.

    Attributes
    ----------
    filter_px
        σ of the Gaussian that serves as matched filter.
    base_px
        σ of the Gaussian that separates the local mean (base) from the structure around it (lattice).
    period_px
        Largest lattice period seen; None without a lattice.
    """

    filter_px: float
    base_px: float
    period_px: float | None


def measure_scales(frames: Tensor) -> ImageScales:
    """Scales of frames (n, Y, X), from their mean power spectrum."""
    power, frequency, floor = mean_power(frames)
    signal = (power - floor).clamp_min(0)
    period = _largest_period(signal, frequency, floor, min(frames.shape[-2:]))
    filter_px = _matched_width(signal, frequency, floor)
    shorter = min(frames.shape[-2:])
    base = 0.55 * period if period else shorter / 10
    return ImageScales(filter_px, float(min(max(base, 2 * filter_px, 3.0), shorter / 6)), period)


def mean_power(frames: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean power spectrum of frames (n, Y, X) under a Hann window, |frequency| [1/px], and the noise floor."""
    shape = frames.shape[-2:]
    window = torch.hann_window(shape[0], device=frames.device)[:, None] * torch.hann_window(shape[1], device=frames.device)
    mean = (frames * window).sum((-2, -1), keepdim=True) / window.sum()
    power = torch.fft.rfft2((frames - mean) * window).abs().square().mean(0) / window.square().sum()
    fy = torch.fft.fftfreq(shape[0], device=frames.device)
    fx = torch.fft.rfftfreq(shape[1], device=frames.device)
    frequency = torch.hypot(fy[:, None], fx[None, :])
    corners = (fy.abs()[:, None] > 0.4) & (fx[None, :] > 0.4)
    floor = float(power[corners].median()) / math.log(2) if frames.shape[0] == 1 else float(power[corners].median())
    return power, frequency, floor


def _matched_width(signal: Tensor, frequency: Tensor, floor: float) -> float:
    """σ that minimises the predicted variance of a shift between two noisy frames.

    For a filter H the variance is Σ f²(2SN + N²)|H|⁴ / (Σ f² S|H|²)², S and N the powers of signal and noise in a frame.
    """
    usable = frequency < 0.5

    def variance(sigma: float) -> float:
        h2 = torch.exp(-((2 * math.pi * sigma * frequency) ** 2)) * usable
        top = (frequency**2 * (2 * signal * floor + floor**2) * h2**2).sum()
        bottom = (frequency**2 * signal * h2).sum() ** 2
        return float(top / bottom.clamp_min(1e-30))

    return min(FILTER_CANDIDATES_PX, key=variance)


def _largest_period(signal: Tensor, frequency: Tensor, floor: float, shorter: int) -> float | None:
    """1 / the lowest frequency at which a sharp peak stands out of its ring of the spectrum."""
    ring = (frequency * shorter).round().long()
    n_rings = int(ring.max()) + 1
    lowest = 4
    strong = torch.where((ring >= lowest) & (frequency < 0.45), signal, torch.zeros_like(signal))
    strongest = float(strong.max())
    if strongest <= PEAK_OVER_RADIAL_MEDIAN * floor:
        return None
    for r in range(lowest, min(n_rings, int(0.45 * shorter))):
        values = strong[ring == r]
        neighbourhood = strong[(ring >= r - 2) & (ring <= r + 2)]
        peak = float(values.max())
        if peak > PEAK_SHARE_OF_STRONGEST * strongest and peak > PEAK_OVER_RADIAL_MEDIAN * (float(neighbourhood.median()) + floor):
            window = (ring >= r - 1) & (ring <= r + 1) & (strong > 0.5 * peak)
            centre = float((frequency[window] * strong[window]).sum() / strong[window].sum())
            return 1.0 / centre
    return None
