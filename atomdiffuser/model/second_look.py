"""A second look at the intensity map: how far the net's blend is to be trusted, cell by cell.

A U-Net that is trained on damage of all sizes learns late that mostly nothing varies: its blend keeps noise that wider
windows average out. What decides is how much more windows of different widths differ than noise explains. From that,
and from the standard error of one twice as wide as the widest and how many of them the blend is away from it, a small
network chooses anew between the blend and all windows, and says what that does to σ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atomdiffuser.model.layers import scaled_init
from atomdiffuser.model.pair_statistics import ROUGHNESS_CELLS, ROUGHNESS_CHANNELS, WINDOW_CELLS, Evidence, log_doubt

HIDDEN = 64
TRUST_AT_FIRST = 3.0  # log odds of the blend against a window, before training
INPUTS = ROUGHNESS_CHANNELS + len(ROUGHNESS_CELLS) + 2
CHOICES = len(WINDOW_CELLS) + 2


class SecondLook(nn.Module):
    """Weights of the windows and of the blend, and a change of log σ."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(a, b, 1) for a, b in ((INPUTS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CHOICES + 1))]
        for layer, gain in zip(layers, (1.0, 1.0, 0.1), strict=True):
            scaled_init(layer, gain)
        with torch.no_grad():
            layers[-1].bias[CHOICES - 1] = TRUST_AT_FIRST
        self.net = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

    def forward(self, blend: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Log intensity and the change of log σ, from the blend's log intensity, each (n, y, x)."""
        return self.choose(*self.question(blend, evidence))

    @staticmethod
    def question(blend: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """What it decides by (n, INPUTS, y, x), and what it decides between (n, CHOICES, y, x)."""
        sigma = evidence.beyond_sigma
        away = (blend - evidence.beyond) / sigma
        by = [evidence.roughness, log_doubt(sigma.square())[:, None], (away.sign() * away.abs().log1p())[:, None]]
        return torch.cat(by, 1), torch.cat([evidence.log_intensity, torch.stack([evidence.beyond, blend], 1)], 1)

    def choose(self, by: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
        """The answer to a `question`."""
        found = self.net(by).float()
        return (found[:, :CHOICES].softmax(1) * between).sum(1), found[:, CHOICES]
