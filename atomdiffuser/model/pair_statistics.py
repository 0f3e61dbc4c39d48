"""Sums over an aligned pair that carry what the maps can be known from, corrected for the noise in the reference.

Frames pass through linear filters w_k (learned, without mean, at three octaves). In a window

    intensity  ~ Σ moving / Σ reference
    contrast   ~ Σ f_k(moving)·f_k(reference) / (Σ f_k(reference)² − |w_k|²·noise)

where the noise of a pixel is its own mean number of electrons. Without the subtraction the slope would be biased low
(errors in variables; Fuller, Measurement Error Models, 1987, eq. 1.2.3). Both are given at two scales, and as
logarithms or bounded ratios, with how many electrons and how much signal over noise they rest on.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser.model.config import MAP_STRIDE
from atomdiffuser.model.layers import full_precision

FILTER_PX = 9
OCTAVES = (1, 2, 4)
WINDOW_CELLS = (3, 11)
INDEPENDENT_SHARE = 0.2  # of a window's pixels, after the filters' correlation


class PairStatistics(nn.Module):
    """(n, channels, y/4, x/4) from an aligned pair of values over the mean."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(_band_passes(filters)) for _ in OCTAVES)
        groups = len(OCTAVES) * (filters + 1) + 1
        self.channels = len(WINDOW_CELLS) * (2 + groups + len(OCTAVES) + 1)

    def forward(self, reference: Tensor, moving: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """Images (n, y, x), 0 where `mask` is 0; `level` (n,) electrons that a value of 1 stands for."""
        with full_precision(reference.device):
            both = mask[:, None]
            images = torch.stack([reference, moving], 1) * both  # (n, 2, y, x)
            per_value = 1 / level[:, None, None, None]
            cross, square, noise = [], [], []
            for octave, weight in zip(OCTAVES, self.weights, strict=True):
                c, s, v = self._octave(images, both, weight - weight.mean((2, 3), keepdim=True), octave, per_value)
                cross += [c.sum(1, keepdim=True), c]
                square += [s.sum(1, keepdim=True), s]
                noise += [v.sum(1, keepdim=True), v]
            totals = lambda parts: sum(parts[::2])
            cross, square, noise = (torch.cat([totals(p), *p], 1) for p in (cross, square, noise))
            sums = F.avg_pool2d(torch.cat([images, both], 1), MAP_STRIDE)
            features = [self._window(sums, cross, square, noise, level, cells) for cells in WINDOW_CELLS]
        return torch.cat(features, 1)

    def _octave(
        self, images: Tensor, mask: Tensor, weight: Tensor, octave: int, per_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cell means of products, squares and noise, (n, k, …) each."""
        binned, covered = F.avg_pool2d(images, octave), F.avg_pool2d(mask, octave)
        inside = (F.avg_pool2d(covered, FILTER_PX, stride=1, padding=FILTER_PX // 2) > 0.999).float()
        n, _, height, width = binned.shape
        filtered = F.conv2d(binned.reshape(2 * n, 1, height, width), weight, padding=FILTER_PX // 2)
        first, second = (filtered.unflatten(0, (n, 2)) * inside[:, None]).unbind(1)
        pool = lambda x: F.avg_pool2d(x, MAP_STRIDE // octave)
        energy = weight.square().sum((1, 2, 3))[:, None, None] / octave**2
        noise = energy * pool(binned[:, :1].clamp_min(0) * inside) * per_value
        return pool(first * second), pool(first.square()), noise

    def _window(self, sums: Tensor, cross: Tensor, square: Tensor, noise: Tensor, level: Tensor, cells: int) -> Tensor:
        """Features of windows of `cells` cells, (n, channels, …)."""
        wide = lambda x: F.avg_pool2d(x, cells, stride=1, padding=cells // 2)
        reference, moving, coverage = wide(sums).unbind(1)
        pixels = (cells * MAP_STRIDE) ** 2
        electrons = pixels * level[:, None, None]
        ratio = (
            ((moving * electrons + 1).clamp_min(0.1) / (reference * electrons + 1).clamp_min(0.1)).log().clamp(-2, 1)
        )
        count = (reference * electrons).clamp_min(0).log1p() / 5
        cross, square, noise = wide(cross), wide(square), wide(noise)
        signal = (square - noise).clamp_min(0)
        doubt = noise * math.sqrt(2 / (INDEPENDENT_SHARE * pixels)) + 1e-8
        slope = (cross * signal / (signal.square() + doubt.square())).clamp(-1, 2)
        certainty = (signal / doubt).log1p() / 3
        step = (cross.shape[1] - 1) // len(OCTAVES)
        picked = [0, *(1 + step * k for k in range(len(OCTAVES)))]  # all together, and each octave's sum
        return torch.cat([ratio[:, None], count[:, None], slope - 1, certainty[:, picked]], 1) * (coverage > 0)[:, None]


def _band_passes(count: int) -> Tensor:
    """(count, 1, 9, 9) fresh filters: Laplacians of Gaussians of several widths, each of unit energy."""
    x = torch.arange(FILTER_PX) - FILTER_PX // 2
    squared = (x[:, None] ** 2 + x[None, :] ** 2).float()
    widths = torch.linspace(0.9, 1.8, count)
    filters = []
    for width in widths.tolist():
        g = (1 - squared / (2 * width**2)) * torch.exp(-squared / (2 * width**2))
        g = g - g.mean()
        filters.append(g / g.norm())
    return torch.stack(filters)[:, None]
