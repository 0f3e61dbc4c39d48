"""The two decay maps of an aligned pair: local regressions of five widths, blended and corrected by a U-Net.

The net works at stride 4, where the fields live: they are smooth. What it makes of intensity is looked at once more
(`second_look`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser.model.config import ModelConfig
from atomdiffuser.model.layers import Stack, scaled_init
from atomdiffuser.model.pair_statistics import FOLLOWING, WINDOW_CELLS, Evidence, PairStatistics
from atomdiffuser.model.second_look import SecondLook
from atomdiffuser.model.time_embedding import Conditioning

LOG_LOWEST, LOG_HIGHEST = -5.0, 1.0
SIGMA_LOG_LOWEST, SIGMA_LOG_HIGHEST = -9.0, 0.5
LEAST_CONTRAST = 0.02  # where the logarithm of a slope, which noise can make negative, bends to its floor
FIRST_WINDOW = 3  # the fourth width gets most of a fresh net's trust
WINDOWS = len(WINDOW_CELLS)
CANDIDATES = (WINDOWS, WINDOWS + len(FOLLOWING))
"""What is blended for intensity and for contrast."""
FOLLOWING_AT_FIRST = -1.0  # a fresh net hardly trusts what follows the intensity

CALIBRATED_AT_E = (1.0, 3.0, 9.0, 40.0, 200.0)
"""Mean electrons a pixel for which the σ of the maps is calibrated."""


class DecayDecoder(nn.Module):
    """Six maps (n, 6, y/4, x/4): rates of intensity and contrast per unit τ, the logarithms of their σ, and how little
    there is to see of either (`Evidence.log_doubt`).

    A rate h makes the map exp(τ·h), which is 1 at τ = 0 whatever the weights are; σ is τ times its own exponential.
    Time conditions every level.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, blocks = config.decoder_widths, (1,) * config.decoder_blocks
        self.conditioning = Conditioning(config.condition, with_time=True)
        self.statistics = PairStatistics()
        self.enter = scaled_init(nn.Conv2d(self.statistics.channels, widths[0], 3, padding=1), 1.0)
        self.down_blocks = nn.ModuleList(Stack(w, config.condition, blocks) for w in widths)
        self.up_blocks = nn.ModuleList(Stack(w, config.condition, blocks) for w in widths[:-1])
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(scaled_init(nn.Conv2d(a, b, 2, stride=2), 1.0) for a, b in steps)
        self.up = nn.ModuleList(scaled_init(nn.Conv2d(b, a, 1), 0.5) for a, b in steps)
        self.second_look = SecondLook()
        self.leave = scaled_init(nn.Conv2d(widths[0], sum(CANDIDATES) + 4, 3, padding=1), 0.1)
        # Set after training, see training/calibration.py: for either map, at each of `CALIBRATED_AT_E`.
        self.register_buffer("log_sigma_offset", torch.zeros(2, len(CALIBRATED_AT_E)))
        with torch.no_grad():
            for numbers, blended in zip(self._split(self.leave.bias[None]), CANDIDATES, strict=True):
                numbers[:, FIRST_WINDOW] = 1.5
                numbers[:, WINDOWS:blended] = FOLLOWING_AT_FIRST
                numbers[:, -1] = -2.5

    def forward(self, evidence: Evidence, condition: Tensor, electrons: Tensor, *, second_look: bool = True) -> Tensor:
        """What the pair shows, at stride 4, with the vector from `conditioning` and the mean electrons a pixel (n,).

        Without a `second_look` intensity is as the net blends it.
        """
        log_intensity, value, doubts = self.first_look(evidence, condition)
        if second_look:
            log_intensity, change = self.second_look(log_intensity, evidence)
            doubts = torch.stack([doubts[:, 0] + change, doubts[:, 1]], 1)
        positive = LEAST_CONTRAST * F.softplus(value / LEAST_CONTRAST)
        rates = _bounded(torch.stack([log_intensity, positive.clamp_min(1e-8).log()], 1), LOG_LOWEST, LOG_HIGHEST)
        return torch.cat(
            [rates, bounded_log_sigma(doubts) + self._offset(electrons)[..., None, None], evidence.log_doubt], 1
        )

    def first_look(self, evidence: Evidence, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log intensity and contrast (n, y, x) as the net blends them, and its log σ of both (n, 2, y, x)."""
        x = self.enter(evidence.channels)
        kept = []
        for level, blocks in enumerate(self.down_blocks):
            x = blocks(x, condition)
            if level < len(self.down):
                kept.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.up))):
            x = kept[level] + F.interpolate(self.up[level](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.up_blocks[level](x, condition)
        intensity, contrast = self._split(self.leave(x).float())
        value = _blend(contrast, torch.cat([evidence.contrast, evidence.following], 1))
        doubts = torch.stack([intensity[:, -1], contrast[:, -1]], 1)
        return _blend(intensity, evidence.log_intensity), value, doubts

    def _offset(self, electrons: Tensor) -> Tensor:
        """What calibration adds to log σ of either map (n, 2), linear in the logarithm between its points."""
        points = electrons.new_tensor(CALIBRATED_AT_E).log()
        place = electrons.log().clamp(points[0], points[-1])
        right = torch.searchsorted(points, place).clamp(1, len(points) - 1)
        share = (place - points[right - 1]) / (points[right] - points[right - 1])
        table = self.log_sigma_offset.to(electrons).T
        return torch.lerp(table[right - 1], table[right], share[:, None])

    @staticmethod
    def _split(numbers: Tensor) -> tuple[Tensor, Tensor]:
        """For intensity and contrast: a weight for each candidate, a correction, and log σ."""
        return numbers.split([c + 2 for c in CANDIDATES], dim=1)


def _blend(numbers: Tensor, candidates: Tensor) -> Tensor:
    """Weighted mean over the candidates plus the correction, (n, y, x)."""
    return (numbers[:, :-2].softmax(1) * candidates).sum(1) + numbers[:, -2]


def bounded_log_sigma(doubt: Tensor) -> Tensor:
    """log σ from what the net or the second look says."""
    return _bounded(doubt, SIGMA_LOG_LOWEST, SIGMA_LOG_HIGHEST)


def _bounded(x: Tensor, low: float, high: float) -> Tensor:
    """Between two bounds, with slope about 1 in the middle and never quite 0."""
    return x.clamp(low, high) + 0.01 * (x - x.clamp(low, high))
