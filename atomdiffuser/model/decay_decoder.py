"""The two decay maps of an aligned pair, by a U-Net that starts at stride 4: the fields are smooth."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser.model.config import ModelConfig
from atomdiffuser.model.layers import Stack, scaled_init
from atomdiffuser.model.pair_statistics import PairStatistics
from atomdiffuser.model.time_embedding import Conditioning

LOG_LOWEST, LOG_HIGHEST = -5.0, 1.0
SIGMA_LOG_LOWEST, SIGMA_LOG_HIGHEST = -7.0, 0.5


class DecayDecoder(nn.Module):
    """Four maps (n, 4, y/4, x/4): rates of intensity and contrast per unit τ, and the logarithms of their σ.

    A rate h makes the map exp(τ·h), which is 1 at τ = 0 whatever the weights are; σ is τ times its own exponential.
    Time conditions every level.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, blocks = config.decoder_widths, (1,) * config.decoder_blocks
        self.conditioning = Conditioning(config.condition, with_time=True)
        self.statistics = PairStatistics(config.filters)
        self.enter = scaled_init(
            nn.Conv2d(self.statistics.channels + 3 * config.coarse_width, widths[0], 3, padding=1), 1.0
        )
        self.down_blocks = nn.ModuleList(Stack(w, config.condition, blocks) for w in widths)
        self.up_blocks = nn.ModuleList(Stack(w, config.condition, blocks) for w in widths[:-1])
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(scaled_init(nn.Conv2d(a, b, 2, stride=2), 1.0) for a, b in steps)
        self.up = nn.ModuleList(scaled_init(nn.Conv2d(b, a, 1), 0.5) for a, b in steps)
        self.leave = scaled_init(nn.Conv2d(widths[0], 4, 3, padding=1), 0.1)
        self.register_buffer("log_sigma_offset", torch.zeros(2))  # set after training, see training/calibration.py
        with torch.no_grad():
            self.leave.bias[2:] = -2.5

    def forward(self, statistics: Tensor, reference: Tensor, moving: Tensor, condition: Tensor) -> Tensor:
        """Pair statistics and the coarse features of both frames, all at stride 4."""
        product = reference * moving / (1 + reference.abs() + moving.abs())
        x = self.enter(torch.cat([statistics.to(reference.dtype), reference, moving, product], 1))
        kept = []
        for level, blocks in enumerate(self.down_blocks):
            x = blocks(x, condition)
            if level < len(self.down):
                kept.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.up))):
            x = kept[level] + F.interpolate(self.up[level](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.up_blocks[level](x, condition)
        numbers = self.leave(x).float()
        rates = _bounded(numbers[:, :2], LOG_LOWEST, LOG_HIGHEST)
        log_sigma = _bounded(numbers[:, 2:], SIGMA_LOG_LOWEST, SIGMA_LOG_HIGHEST)
        return torch.cat([rates, log_sigma + self.log_sigma_offset[:, None, None]], 1)


def _bounded(x: Tensor, low: float, high: float) -> Tensor:
    """Between two bounds, with slope about 1 in the middle and never quite 0."""
    return x.clamp(low, high) + 0.01 * (x - x.clamp(low, high))
