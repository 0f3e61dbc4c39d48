"""The encoder that both frames share: features at stride 2."""

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

    def forward(self, channels: Tensor, condition: Tensor) -> Tensor:
        """(n, 3, y, x) → (n, fine_width, y/2, x/2)."""
        return self.fine_blocks(self.stem(channels), condition)
