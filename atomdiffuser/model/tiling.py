"""Large frames in windows: where they lie, which part of each counts, and how their answers are blended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from atomdiffuser.model.config import CELL_STRIDE, MULTIPLE
from atomdiffuser.model.frames import Window

WINDOW_PX = 2048
OVERLAP_PX = 384  # three widths of the blend's widest local regression on either side of a seam


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


def blending_weight(tile: Tile, stride: int, device: torch.device) -> Tensor:
    """(y, x) weight of a window's cells: falls to nothing towards edges that other windows continue."""
    w, (y0, y1, x0, x1) = tile.window, tile.core
    rows = _ramp(w.height, y0 - w.y, w.y + w.height - y1, stride, device)
    columns = _ramp(w.width, x0 - w.x, w.x + w.width - x1, stride, device)
    return rows[:, None] * columns[None, :]


def _spans(extent: int, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Start, length and core of the windows along one axis; the last ends where one window for all would end."""
    padded = _round_up(extent)
    if padded <= size:
        return [(0, padded, 0, padded)]
    count = -(-(padded - overlap) // (size - overlap))
    starts = [(padded - size) * k // (count - 1) // MULTIPLE * MULTIPLE for k in range(count)]
    seams = [(start + size + following) // 2 // CELL_STRIDE * CELL_STRIDE for start, following in pairwise(starts)]
    return [
        (start, size, first, last) for start, first, last in zip(starts, [0, *seams], [*seams, padded], strict=True)
    ]


def _ramp(length: int, before: int, after: int, stride: int, device: torch.device) -> Tensor:
    """1 in the core; `before` and `after` are the pixels between a window's ends and its core."""
    position = torch.arange(length // stride, device=device) + 0.5
    weight = torch.ones_like(position)
    if before:
        weight = torch.minimum(weight, position * stride / (2 * before))
    if after:
        weight = torch.minimum(weight, (length / stride - position) * stride / (2 * after))
    return weight.square()


def _round_up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE
