"""Resample raw frames onto the reference grid, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.interpolation import (
    affine_coordinates,
    inside_frame,
    sample_linear,
    sample_nearest,
    sample_spline,
    spline_coefficients,
)

Extent = Literal["reference", "intersection", "union"]
Interpolation = Literal["nearest", "linear", "cubic"]
CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Grid:
    """Pixels of aligned frames: their shape, and where their first pixel lies on the reference frame (y, x) [px].

    `is_fallback` where the reference frame's grid stands for an intersection that is empty.
    """

    shape: tuple[int, int]
    origin_px: tuple[int, int]
    is_fallback: bool = False


def choose_grid(frame_from_reference: np.ndarray, shape: tuple[int, int], extent: Extent) -> Grid:
    """The grid that covers the reference frame, what all frames saw, or what any frame saw.

    `frame_from_reference` (t, 3, 3) holds valid frames only. An empty intersection falls back to the reference frame.
    """
    if extent == "reference":
        return Grid(shape, (0, 0))
    back = geometry.invert(torch.as_tensor(frame_from_reference))
    corners = CORNERS * torch.tensor([n - 1 for n in shape], dtype=torch.float64)
    places = geometry.apply_affine(back[:, None], corners).numpy()  # (t, 4, 2) on the reference grid
    if extent == "union":
        low, high = np.floor(places.min((0, 1))).astype(int), np.ceil(places.max((0, 1))).astype(int)
    else:
        low = np.ceil(np.sort(places, axis=1)[:, 1].max(0)).astype(int)  # the inner of the two corners of a side
        high = np.floor(np.sort(places, axis=1)[:, 2].min(0)).astype(int)
    size = high - low + 1
    if (size < 1).any():
        return Grid(shape, (0, 0), is_fallback=True)
    return Grid((int(size[0]), int(size[1])), (int(low[0]), int(low[1])))


def align_frame(
    frame: np.ndarray,
    frame_from_reference: np.ndarray,
    grid: Grid,
    interpolation: Interpolation,
    line_offset_px: np.ndarray | None = None,
) -> np.ndarray:
    """One raw frame (Y, X) on the grid: float32 counts, NaN where the frame did not look.

    `line_offset_px` (Y,) says how far each scan line of the frame lies off along x; it is taken out in the same
    resampling.
    """
    image = torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32))[None]
    to_reference = geometry.translation(torch.tensor([grid.origin_px], dtype=torch.float64))
    y, x = affine_coordinates(torch.as_tensor(frame_from_reference)[None] @ to_reference, grid.shape)
    if line_offset_px is not None:
        x = x + _at_rows(line_offset_px, y)
    inside = inside_frame(y, x, frame.shape)
    dead = ~torch.isfinite(image)
    if bool(dead.any()):  # as zeros they would pass for counts, as they are they would spread through the spline
        touched = sample_nearest if interpolation == "nearest" else sample_linear
        inside &= touched(dead.float(), y, x) <= 1e-3
        image = torch.where(dead, image[~dead].mean() if bool((~dead).any()) else 0.0, image)
    return torch.where(inside, _sample(image, y, x, interpolation), torch.nan)[0].numpy()


def _at_rows(values: np.ndarray, y: Tensor) -> Tensor:
    """Values (Y,) of whole rows at positions `y` between them, linearly."""
    row = y.clamp(0, len(values) - 1)
    first = row.floor().long().clamp_max(max(len(values) - 2, 0))
    table = torch.as_tensor(values, dtype=torch.float32)
    return torch.lerp(table[first], table[(first + 1).clamp_max(len(values) - 1)], row - first)


def _sample(image: Tensor, y: Tensor, x: Tensor, interpolation: Interpolation) -> Tensor:
    if interpolation == "linear":
        return sample_linear(image, y, x)
    if interpolation == "nearest":
        return sample_nearest(image, y, x)
    padded = torch.nn.functional.pad(image[:, None], (4, 4, 4, 4), mode="reflect")[
        :, 0
    ]  # the spline reaches past the edge
    return sample_spline(spline_coefficients(padded), y + 4, x + 4)
