"""Large frames in windows: where they lie, which part of each counts, and how their answers are blended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser.model.config import MULTIPLE
from atomdiffuser.model.frames import Window

WINDOW_PX = 768
OVERLAP_PX = 192


@dataclass(frozen=True)
class Tile:
    """A window and its core (y0, y1, x0, x1) in the frame; the cores cover the frame once."""

    window: Window
    core: tuple[int, int, int, int]


def plan_tiles(shape: tuple[int, int], window_px: int = WINDOW_PX, overlap_px: int = OVERLAP_PX) -> list[Tile]:
    """Windows over a frame; one, when it fits.

    Sizes and overlaps are rounded up to whole multiples of the decoder's coarsest cell.
    """
    size, overlap = _round_up(window_px), _round_up(overlap_px)
    spans = [_spans(s, max(size, 2 * overlap), overlap) for s in shape]
    return [
        Tile(Window(y, x, height, width), (y0, y1, x0, x1))
        for y, height, y0, y1 in spans[0]
        for x, width, x0, x1 in spans[1]
    ]


def blending_weight(tile: Tile, shape: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """(y, x) weight of a window's cells: falls to nothing towards edges that other windows continue."""
    w = tile.window
    rows = _ramp(w.y, w.height, shape[0], stride, device)
    columns = _ramp(w.x, w.width, shape[1], stride, device)
    return rows[:, None] * columns[None, :]


def _spans(extent: int, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Start, length and core of the windows along one axis."""
    padded = _round_up(extent)
    if padded <= size:
        return [(0, padded, 0, padded)]
    step = size - overlap
    count = -(-(padded - overlap) // step)
    half = overlap // 2 // 8 * 8
    spans = []
    for k in range(count):
        start = k * step
        first = 0 if k == 0 else start + half
        last = padded if k == count - 1 else start + step + half
        spans.append((start, size, first, last))
    return spans


def _ramp(start: int, length: int, extent: int, stride: int, device: torch.device) -> Tensor:
    position = torch.arange(length // stride, device=device) + 0.5
    weight = torch.ones_like(position)
    reach = OVERLAP_PX / stride
    if start > 0:
        weight = torch.minimum(weight, position / reach)
    if start + length < extent:
        weight = torch.minimum(weight, (length / stride - position) / reach)
    return weight.clamp_min(1e-3) ** 2


def _round_up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE
