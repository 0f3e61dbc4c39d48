"""First look at the drift: the whole frames' features are correlated at a few turns, and a small network reads the
surfaces.

Among lattice-equivalent peaks the network takes what the rest of the surface and the distance from zero make likeliest;
two frames of a perfect lattice hold no more.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser import geometry
from atomdiffuser.model.config import STEM_STRIDE, ModelConfig
from atomdiffuser.model.encoder import BANDS
from atomdiffuser.model.layers import Stack, full_precision, scaled_init

PEAK_REACH = 2  # cells on either side of the peak that the position is averaged over


class ShiftSearch(nn.Module):
    """Log-odds of every turn tried and every shift on the grid of the fine features.

    A turn θ about the frame's centre and a shift d mean moving_from_reference = turn(θ) · translation(d).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.turns_deg = config.turns_deg
        self.enter = scaled_init(nn.Conv2d(2 * BANDS + 4, config.shift_width, 3, padding=1), 1.0)
        self.blocks = Stack(config.shift_width, config.condition, (1, 2, 4))
        self.leave = scaled_init(nn.Conv2d(config.shift_width, 1, 1), 0.1)

    def forward(self, reference: Tensor, moving: Tensor, reach: tuple[int, int], condition: Tensor) -> Tensor:
        """Log-odds (n, turns, 2·reach_y+1, 2·reach_x+1) from features (n, BANDS, y, x)."""
        turns, shape = self.turns_deg, reference.shape[-2:]
        with full_precision(reference.device), torch.no_grad():
            size = _padded(shape, reach)
            reference, moving = _whitened(reference.float()), _whitened(moving.float())
            first = torch.fft.rfft2(reference, s=size)
            itself = _normalised(_surface(first, first, size, reach))
            cross = [
                _normalised(_surface(first, torch.fft.rfft2(_turned(moving, turn), s=size), size, reach))
                for turn in turns
            ]
            n = len(reference)
            around = _distance(reach, reference).expand(n, -1, -1, -1)
            surfaces = [
                torch.cat([c, itself, around, torch.full_like(around[:, :1], abs(turn) / 4)], 1)
                for c, turn in zip(cross, turns, strict=True)
            ]
        surface = torch.stack(surfaces, 1).flatten(0, 1)
        odds = self.leave(self.blocks(self.enter(surface), condition.repeat_interleave(len(turns), 0)))
        return odds[:, 0].float().unflatten(0, (n, len(turns)))


def motion_from_log_odds(
    log_odds: Tensor, turns_deg: tuple[float, ...], shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The likeliest turn and shift as moving_from_reference (n, 3, 3), and the probability around them (n,).

    Both are averaged over their surroundings: the shift over the peak, the turn over all that put their peak there.
    """
    n, turns, height, width = log_odds.shape
    probability = log_odds.flatten(1).softmax(1).reshape(n, turns, height, width)
    size = 2 * PEAK_REACH + 1
    together = probability.sum(1, keepdim=True)
    around = F.avg_pool2d(together, size, stride=1, padding=PEAK_REACH, count_include_pad=True) * size**2
    best = around.flatten(1).argmax(1)
    row, column = best // width, best % width
    rows = torch.arange(height, device=log_odds.device)
    columns = torch.arange(width, device=log_odds.device)
    near = ((rows - row[:, None]).abs() <= PEAK_REACH)[:, :, None] & ((columns - column[:, None]).abs() <= PEAK_REACH)[
        :, None
    ]
    weight = probability * near[:, None]
    total = weight.sum((1, 2, 3)).clamp_min(1e-12)
    y = (weight.sum((1, 3)) * (rows - height // 2)).sum(1) / total
    x = (weight.sum((1, 2)) * (columns - width // 2)).sum(1) / total
    degrees = torch.tensor(turns_deg, device=log_odds.device)
    turn = (weight.sum((2, 3)) * degrees).sum(1) / total
    shift = STEM_STRIDE * torch.stack([y, x], 1)
    return turned_about_centre(turn.double(), shape) @ geometry.translation(shift.double()), total


def turned_about_centre(degrees: Tensor, shape: tuple[int, int]) -> Tensor:
    """(n, 3, 3): turns about the frame's centre, of the sign that `geometry.rotation_scale_shear` gives them."""
    angle = torch.deg2rad(degrees.double())
    centre = torch.tensor([(s - 1) / 2 for s in shape], dtype=torch.float64, device=degrees.device)
    affine = geometry.identity(len(degrees), device=degrees.device)
    affine[:, 0, 0] = affine[:, 1, 1] = angle.cos()
    affine[:, 0, 1], affine[:, 1, 0] = -angle.sin(), angle.sin()
    affine[:, :2, 2] = centre - affine[:, :2, :2] @ centre
    return affine


def _turned(features: Tensor, degrees: float) -> Tensor:
    """What the turned reference would see: features (n, k, y, x) sampled at turn(θ) · p about their middle."""
    if degrees == 0:
        return features
    height, width = features.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = (torch.arange(s, device=features.device) - (s - 1) / 2 for s in (height, width))
    at_y, at_x = cos * y[:, None] - sin * x, cos * x + sin * y[:, None]
    grid = torch.stack([at_x * (2 / (width - 1)), at_y * (2 / (height - 1))], -1)
    return F.grid_sample(features, grid.expand(len(features), -1, -1, -1), padding_mode="zeros", align_corners=True)


def _normalised(surface: Tensor) -> Tensor:
    return surface / (surface.std((2, 3), keepdim=True) + 1e-4)


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
