"""The published network and its baseline, built again from their description, to be measured beside ours.

The published method encodes both frames with one encoder, adds time as a small network's output at the bottleneck, and
decodes a single map in (0, 1) that multiplies everything, and a rigid pose of three numbers. Its baseline looks at
blocks of the two frames and gives one number a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser import geometry
from atomdiffuser.model.frames import pair_frames

LARGEST_TURN_DEG = 5.0
LARGEST_SHIFT_SHARE = 38 / 256  # of a frame's side


@dataclass(frozen=True)
class RigidPrediction:
    """One map (n, Y, X) in (0, 1) and moving_from_reference (n, 3, 3)."""

    intensity: Tensor
    moving_from_reference: Tensor


class PublishedNetwork(nn.Module):
    """Shared encoder, time at the bottleneck, sigmoid map, rigid pose."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.encoder = nn.ModuleList(_down(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True))
        bottom = widths[-1]
        self.time = nn.Sequential(nn.Linear(1, bottom), nn.ReLU(), nn.Linear(bottom, bottom))
        self.merge = nn.Sequential(nn.Conv2d(2 * bottom, bottom, 3, padding=1), nn.ReLU())
        ways = list(zip(reversed(widths), [*reversed(widths[:-1]), width], strict=True))
        self.decoder = nn.ModuleList(_up(a, b) for a, b in ways)
        self.leave = nn.Conv2d(width, 1, 3, padding=1)
        self.pose = nn.Sequential(nn.Linear(bottom, bottom), nn.ReLU(), nn.Linear(bottom, 3))

    def forward(
        self, reference: Tensor, moving: Tensor, *, dark_level: Tensor | float = 0.0, gain_e: Tensor | float = 1.0,
        tau: Tensor | float = 1.0,
    ) -> RigidPrediction:  # fmt: skip
        """Pairs (n, y, x) of counts."""
        frames = pair_frames(reference, moving, dark_level, gain_e)
        shape = frames.shape
        tau = torch.as_tensor(tau, dtype=torch.float32, device=frames.device).expand(len(frames))
        first, second = (self._encode(_padded(v[:, None], 16)) for v in (frames.reference, frames.moving))
        x = self.merge(torch.cat([first, second], 1)) + self.time(tau[:, None])[..., None, None]
        pose = torch.tanh(self.pose(x.mean((2, 3))).float())
        for layer in self.decoder:
            x = layer(x)
        intensity = torch.sigmoid(self.leave(x).float() + 3.0)[:, 0, : shape[0], : shape[1]]
        return RigidPrediction(intensity, rigid_affine(pose, shape))

    def _encode(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = layer(x)
        return x


class BlockNetwork(nn.Module):
    """One number for every block of the two frames, by a small convolutional network; no drift."""

    def __init__(self, block_px: int = 32, width: int = 32) -> None:
        super().__init__()
        self.block_px = block_px
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1),
        )  # fmt: skip

    def forward(
        self, reference: Tensor, moving: Tensor, *, dark_level: Tensor | float = 0.0, gain_e: Tensor | float = 1.0,
        tau: Tensor | float = 1.0,
    ) -> RigidPrediction:  # fmt: skip
        """Pairs (n, y, x) of counts; `tau` is not used."""
        frames = pair_frames(reference, moving, dark_level, gain_e)
        size, shape = self.block_px, frames.shape
        both = _padded(torch.stack([frames.reference, frames.moving], 1), size)
        rows, columns = both.shape[-2] // size, both.shape[-1] // size
        blocks = both.unflatten(2, (rows, size)).unflatten(4, (columns, size)).permute(0, 2, 4, 1, 3, 5)
        values = torch.sigmoid(self.layers(blocks.reshape(-1, 2, size, size)).float() + 3.0)
        coarse = values.reshape(len(frames), 1, rows, columns)
        intensity = F.interpolate(coarse, scale_factor=size, mode="nearest")[:, 0, : shape[0], : shape[1]]
        return RigidPrediction(intensity, geometry.identity(len(frames), device=frames.device))


def rigid_affine(pose: Tensor, shape: tuple[int, int]) -> Tensor:
    """(n, 3, 3) from three numbers in −1…1: rotation about the frame's centre, shift along y and x."""
    turn = pose[:, 0].double() * math.radians(LARGEST_TURN_DEG)
    shift = pose[:, 1:].double() * LARGEST_SHIFT_SHARE * max(shape)
    c, s = turn.cos(), turn.sin()
    linear = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64, device=pose.device)
    moved = centre + shift - linear @ centre
    top = torch.cat([linear, moved[..., None]], -1)
    bottom = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=pose.device).expand(len(pose), 1, 3)
    return torch.cat([top, bottom], 1)


def _down(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU(),
                         nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU())  # fmt: skip


def _up(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(before, after, 2, stride=2), nn.GroupNorm(4, after), nn.ReLU(),
                         nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU())  # fmt: skip


def _padded(images: Tensor, multiple: int) -> Tensor:
    return F.pad(images, (0, -images.shape[-1] % multiple, 0, -images.shape[-2] % multiple), value=1.0)
