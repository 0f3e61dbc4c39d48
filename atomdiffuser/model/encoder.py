"""The encoder that both frames share: stride 2, then stride 4."""

from __future__ import annotations

from torch import Tensor, nn

from atomdiffuser.model.config import ModelConfig
from atomdiffuser.model.layers import Stack, scaled_init
from atomdiffuser.model.time_embedding import Conditioning


class Encoder(nn.Module):
    """Features of one frame. It knows the fluence but not the time: what a frame shows does not depend on τ."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conditioning = Conditioning(config.condition, with_time=False)
        self.stem = scaled_init(nn.Conv2d(3, config.fine_width, 5, stride=2, padding=2), 1.0)
        self.fine_blocks = Stack(config.fine_width, config.condition, (1,))
        self.down = scaled_init(nn.Conv2d(config.fine_width, config.coarse_width, 3, stride=2, padding=1), 1.0)
        self.coarse_blocks = Stack(config.coarse_width, config.condition, (1,))

    def fine(self, channels: Tensor, condition: Tensor) -> Tensor:
        """(n, 3, y, x) → (n, fine_width, y/2, x/2)."""
        return self.fine_blocks(self.stem(channels), condition)

    def coarse(self, fine: Tensor, condition: Tensor) -> Tensor:
        """(n, fine_width, y/2, x/2) → (n, coarse_width, y/4, x/4)."""
        return self.coarse_blocks(self.down(fine), condition)

    def forward(self, channels: Tensor, condition: Tensor) -> Tensor:
        return self.fine(channels, condition)
