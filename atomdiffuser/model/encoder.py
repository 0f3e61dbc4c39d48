"""The encoder that both frames share: band-pass features at stride 2 in units of their own noise.

Laplacians of Gaussians from 1.6 to 22 px, each on a grid that suits it. They are matched filters for columns, unit
cells and particle outlines, and nothing in them is learned: what the drift is read from costs no gradient, so training
spends its time on the reading.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser.model.config import STEM_STRIDE
from atomdiffuser.model.frames import ANSCOMBE
from atomdiffuser.model.layers import full_precision
from atomdiffuser.model.pair_statistics import band_passes

FILTERS_BY_BIN = {2: (0.8, 1.4), 4: (1.4,), 8: (1.4,), 16: (1.4,)}
"""Widths of the filters [binned px] on grids that are binned so many times."""
BANDS = sum(len(widths) for widths in FILTERS_BY_BIN.values())
ERODED = 2  # binned pixels next to missing data whose filters would see the gap


class Encoder(nn.Module):
    """(n, BANDS, y/2, x/2) from values over the mean; noise alone has a standard deviation of about 1."""

    def __init__(self) -> None:
        super().__init__()
        for bin_px, widths in FILTERS_BY_BIN.items():
            self.register_buffer(f"filters_{bin_px}", band_passes(widths), persistent=False)

    @torch.no_grad()
    def forward(self, values: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """Values and mask (n, y, x), sides multiples of 16; `level` (n,) electrons that a value of 1 stands for."""
        with full_precision(values.device):
            electrons = level[:, None, None]
            root = 2 * (((values * electrons).clamp_min(0) + ANSCOMBE).sqrt() - (electrons + ANSCOMBE).sqrt())
            image, seen = (root * mask)[:, None], mask[:, None]
            bands = []
            for bin_px in FILTERS_BY_BIN:
                weight = getattr(self, f"filters_{bin_px}")
                reach = weight.shape[-1] // 2
                binned = bin_px * F.avg_pool2d(image, bin_px)  # keeps the noise at 1
                found = F.conv2d(F.pad(binned, (reach,) * 4, mode="replicate"), weight)
                missing = F.max_pool2d(1 - F.avg_pool2d(seen, bin_px), 2 * ERODED + 1, stride=1, padding=ERODED)
                found = found * (1 - missing).clamp_min(0)
                if bin_px > STEM_STRIDE:
                    found = F.interpolate(
                        found, scale_factor=bin_px // STEM_STRIDE, mode="bilinear", align_corners=False
                    )
                bands.append(found)
            return torch.cat(bands, 1)
