"""Refining the drift: correlation in cells, read by a small network as displacement and confidence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser.model.config import CELL_STRIDE, STEM_STRIDE, ModelConfig
from atomdiffuser.model.encoder import BANDS
from atomdiffuser.model.layers import Stack, full_precision, scaled_init

POOL = CELL_STRIDE // STEM_STRIDE
DILATIONS = (1, 2, 4)
LOG_RANGE = 5.0


class LocalStep(nn.Module):
    """Displacement and its 2×2 information in every cell of 8 × 8 px, from frames that are aligned but for a little."""

    def __init__(self, config: ModelConfig, reach: int) -> None:
        super().__init__()
        self.reach = reach
        width, offsets = config.step_width, (2 * reach + 1) ** 2
        self.enter = scaled_init(nn.Conv2d(BANDS * (offsets + 2) + 1, width, 3, padding=1), 1.0)
        self.blocks = Stack(width, config.condition, tuple(DILATIONS[k % 3] for k in range(config.step_blocks)))
        self.leave = scaled_init(nn.Conv2d(width, 5, 1), 0.1)

    def forward(self, reference: Tensor, moving: Tensor, seen: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement (n, 2, y/8, x/8) [px] and information (n, 2, 2, y/8, x/8) [1/px²].

        Features (n, BANDS, y/2, x/2) and the mask of what both saw (n, y, x): a point p of the reference is found at
        p + displacement.
        """
        with full_precision(reference.device), torch.no_grad():
            mask = F.avg_pool2d(seen[:, None], STEM_STRIDE)
            volume = _correlations(reference * mask, moving * mask, self.reach)
            cells = F.avg_pool2d(mask, POOL)
        numbers = self.leave(self.blocks(self.enter(torch.cat([volume, cells], 1)), condition))
        with full_precision(reference.device):
            numbers = numbers.float()
            displacement = (self.reach + 1) * STEM_STRIDE * torch.tanh(numbers[:, :2])
            return displacement, _information(numbers[:, 2:]) * cells.float()[:, :, None] ** 2


def cell_centres(rows: Tensor, columns: Tensor) -> Tensor:
    """(c, 2) positions (y, x) [px] of cells, row by row."""
    middle = (CELL_STRIDE - 1) / 2
    y, x = torch.meshgrid(rows * CELL_STRIDE + middle, columns * CELL_STRIDE + middle, indexing="ij")
    return torch.stack([y, x], -1).flatten(0, 1)


def _correlations(first: Tensor, second: Tensor, reach: int) -> Tensor:
    """Σ first(p)·second(p + d) over each cell for all |d| ≤ reach, normalised, and the logarithms of both energies;
    (n, BANDS·(offsets + 2), y/8, x/8)."""
    height, width = first.shape[-2:]
    padded = F.pad(second, (reach,) * 4)
    volume = torch.cat([
        F.avg_pool2d(first * padded[:, :, dy : dy + height, dx : dx + width], POOL)
        for dy in range(2 * reach + 1)
        for dx in range(2 * reach + 1)
    ], 1)  # fmt: skip
    energies = [F.avg_pool2d(f.square(), POOL) + 0.1 for f in (first, second)]
    scale = torch.rsqrt(energies[0] * energies[1]).repeat(1, (2 * reach + 1) ** 2, 1, 1)
    return torch.cat([volume * scale, *(e.log() / 3 for e in energies)], 1)


def _information(numbers: Tensor) -> Tensor:
    """Positive definite (n, 2, 2, y, x) from three numbers: L Lᵀ."""
    a, b, c = numbers.unbind(1)
    bounded = lambda v: (LOG_RANGE * torch.tanh(v / LOG_RANGE)).exp()
    a, c = bounded(a), bounded(c)
    return torch.stack([torch.stack([a * a, a * b], 1), torch.stack([a * b, b * b + c * c], 1)], 1)
