"""What conditions the network besides the frames: fluence, and for the decoders time.

Time is τ, the share of the way from the reference (0) to the moving frame (1), dimensionless: seconds or fluence are
tied to it outside. Fluence is the mean number of electrons a pixel of the reference frame, from about 0.1 to 1000, and
enters as its decimal logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HARMONICS = (1.0, 2.0, 4.0)


class Conditioning(nn.Module):
    """A vector (n, width) from electrons per pixel and, `with_time`, τ."""

    def __init__(self, width: int, *, with_time: bool) -> None:
        super().__init__()
        self.with_time = with_time
        per_number = 1 + 2 * len(HARMONICS)
        self.mlp = nn.Sequential(
            nn.Linear(per_number * (1 + with_time), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, electrons_per_px: Tensor, tau: Tensor | None = None) -> Tensor:
        """Both (n,)."""
        numbers = [_waves(electrons_per_px.float().clamp_min(1e-3).log10() / 3, math.pi / 2)]
        if self.with_time:
            numbers.append(_waves(tau.float(), math.pi / 2))
        return self.mlp(torch.cat(numbers, dim=-1))


def _waves(value: Tensor, turn: float) -> Tensor:
    value = value[:, None]
    phases = [turn * h * value for h in HARMONICS]
    return torch.cat([value, *(p.sin() for p in phases), *(p.cos() for p in phases)], dim=-1)
