"""Building blocks: conditioned residual blocks that work the same on a frame and on any tile of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BRANCH_GAIN = 0.3  # what a fresh block adds to its input, so that deep stacks start near the identity


class Block(nn.Module):
    """Residual block: norm over channels, scale and shift from the condition (FiLM), two 3×3 convolutions.

    The norm is taken over the channels of each pixel alone: statistics over an image would make a tile's answer depend
    on where it was cut.

    References
    ----------
    Perez et al. 2018, FiLM, arXiv:1709.07871; Zhang & Sennrich 2019, RMS norm, arXiv:1910.07467.
    """

    def __init__(self, width: int, condition: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.film = nn.Linear(condition, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        for layer, gain in ((self.first, 1.0), (self.second, BRANCH_GAIN)):
            scaled_init(layer, gain)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(n, width, y, x) with a condition (n, c)."""
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        h = channel_norm(x) * (1 + scale) + shift
        for step in (self.first, F.gelu, self.second):
            h = step(h)  # without gradients what went in is free again
        return x + h


class Stack(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width: int, condition: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, condition, dilation=d) for d in dilations)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """One block after the other, each with the same condition."""
        for block in self.blocks:
            x = block(x, condition)
        return x


def channel_norm(x: Tensor) -> Tensor:
    """Divide each pixel's channels by their root mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True, dtype=torch.float32) + 1e-4).to(x.dtype)


def scaled_init(layer: nn.Conv2d, gain: float) -> nn.Conv2d:
    """Weights that keep the variance of a unit input times gain²; no bias."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain * (1.6 / fan_in) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No bf16 and no TF32 inside: for geometry, counts and their statistics."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
        else:
            switches = torch.backends.cuda.matmul, torch.backends.cudnn
            before = [switch.allow_tf32 for switch in switches]
            for switch in switches:
                switch.allow_tf32 = False
            try:
                yield
            finally:
                for switch, value in zip(switches, before, strict=True):
                    switch.allow_tf32 = value
