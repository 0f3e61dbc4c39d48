"""First look at the drift: the whole frames' features are correlated, and a small network reads the surface.

Among lattice-equivalent peaks the network takes what the rest of the surface and the distance from zero make likeliest;
two frames of a perfect lattice hold no more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser.model.config import STEM_STRIDE, ModelConfig
from atomdiffuser.model.layers import Stack, full_precision, scaled_init

PEAK_REACH = 2  # cells on either side of the peak that the position is averaged over


class ShiftSearch(nn.Module):
    """Log-odds of every shift on the grid of the fine features."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.features = scaled_init(nn.Conv2d(config.fine_width, config.shift_features, 3, padding=1), 1.0)
        self.enter = scaled_init(nn.Conv2d(2 * config.shift_features + 3, config.shift_width, 3, padding=1), 1.0)
        self.blocks = Stack(config.shift_width, config.condition, (1, 2, 4))
        self.leave = scaled_init(nn.Conv2d(config.shift_width, 1, 1), 0.1)

    def forward(self, reference: Tensor, moving: Tensor, reach: tuple[int, int], condition: Tensor) -> Tensor:
        """Log-odds (n, 2·reach_y+1, 2·reach_x+1) from projected features (n, k, y, x), already masked."""
        with full_precision(reference.device):
            reference, moving = _whitened(reference.float()), _whitened(moving.float())
            spectra = [torch.fft.rfft2(f, s=_padded(f.shape[-2:], reach)) for f in (reference, moving)]
            cross = _surface(spectra[0], spectra[1], _padded(reference.shape[-2:], reach), reach)
            itself = _surface(spectra[0], spectra[0], _padded(reference.shape[-2:], reach), reach)
            cross = cross / (cross.std((2, 3), keepdim=True) + 1e-4)
            itself = itself / (itself.std((2, 3), keepdim=True) + 1e-4)
        surface = torch.cat([cross, itself, _distance(reach, cross).expand(len(cross), -1, -1, -1)], dim=1)
        return self.leave(self.blocks(self.enter(surface), condition))[:, 0].float()


def shift_from_log_odds(log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Position of the likeliest peak (n, 2) [px], averaged over its surroundings, and the probability in them (n,)."""
    n, height, width = log_odds.shape
    probability = log_odds.flatten(1).softmax(1).reshape(n, 1, height, width)
    size = 2 * PEAK_REACH + 1
    around = F.avg_pool2d(probability, size, stride=1, padding=PEAK_REACH, count_include_pad=True) * size**2
    best = around.flatten(1).argmax(1)
    row, column = best // width, best % width
    rows = torch.arange(height, device=log_odds.device)
    columns = torch.arange(width, device=log_odds.device)
    near = ((rows - row[:, None]).abs() <= PEAK_REACH)[:, :, None] & ((columns - column[:, None]).abs() <= PEAK_REACH)[
        :, None
    ]
    weight = probability[:, 0] * near
    total = weight.sum((1, 2)).clamp_min(1e-12)
    y = (weight.sum(2) * (rows - height // 2)).sum(1) / total
    x = (weight.sum(1) * (columns - width // 2)).sum(1) / total
    return STEM_STRIDE * torch.stack([y, x], 1), total


def _whitened(features: Tensor) -> Tensor:
    return features / (features.square().mean((2, 3), keepdim=True) + 1e-8).sqrt()


def _padded(shape: tuple[int, int], reach: tuple[int, int]) -> tuple[int, int]:
    return tuple(_smooth_size(s + r) for s, r in zip(shape, reach, strict=True))


def _smooth_size(size: int) -> int:
    """The next even number without prime factors above 5."""
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and size % 2 == 0:
            return size
        size += 1


def _surface(first: Tensor, second: Tensor, size: tuple[int, int], reach: tuple[int, int]) -> Tensor:
    """Σ first(p)·second(p + d) for |d| ≤ reach, a share of the frame's energy."""
    surface = torch.fft.irfft2(first.conj() * second, s=size)
    index = [torch.arange(-r, r + 1, device=surface.device) % s for r, s in zip(reach, size, strict=True)]
    return surface[:, :, index[0]][:, :, :, index[1]] / (size[0] * size[1])


def _distance(reach: tuple[int, int], like: Tensor) -> Tensor:
    """(1, 3, …): how far a shift is from zero, in three shapes."""
    y, x = (STEM_STRIDE * torch.arange(-r, r + 1, device=like.device, dtype=like.dtype) for r in reach)
    length = torch.hypot(y[:, None], x[None, :])
    return torch.stack([length / 32, 1 / (1 + length / 4), torch.exp(-length / 12)])[None]
