"""A batch of pairs as the network sees it: electrons over the reference's mean, masks, cut and warped on demand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.errors import ShapeError
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    sample_linear,
    sample_spline,
    spline_prefilter_kernel,
)
from atomdiffuser.model.lattice_template import Edges, LatticeTemplate, lattice_template
from atomdiffuser.model.layers import full_precision
from atomdiffuser.model.pair_statistics import readout_variance

ANSCOMBE = 3 / 8
LEAST_LEVEL_E = 0.02
LARGEST = 30.0  # a pixel brighter than this many means is cut: cosmic rays, hot pixels
RIM_PX = 1.0  # a spline needs one pixel on either side


@dataclass(frozen=True)
class Window:
    """A rectangle of the reference frame; its origin lies on the grid of cells, its size is a whole multiple."""

    y: int
    x: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width [px]."""
        return self.height, self.width


@dataclass(frozen=True)
class PairFrames:
    """n pairs, float32.

    Attributes
    ----------
    reference, coefficients
        (n, y, x) electrons over `level`; the moving frame as coefficients of its cubic spline.
    moving
        (n, y, x) as the reference.
    reference_valid, moving_valid
        (n, y, x) 1 where a pixel holds a finite number, else 0.
    level
        (n,) mean electrons a pixel of the reference frame.
    readout
        (n, 2) variance [electrons²] of a pixel of either frame beyond its shot noise.
    """

    reference: Tensor
    moving: Tensor
    coefficients: Tensor
    reference_valid: Tensor
    moving_valid: Tensor
    level: Tensor
    readout: Tensor

    def __len__(self) -> int:
        return self.reference.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X) of the frames [px]."""
        return self.reference.shape[-2], self.reference.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self.reference.device

    def reference_window(self, window: Window) -> tuple[Tensor, Tensor]:
        """Values and mask (n, height, width); beyond the frame zero."""
        return _cut(self.reference, window), _cut(self.reference_valid, window)

    def moving_window(self, window: Window) -> tuple[Tensor, Tensor]:
        """The moving frame as it is, values and mask."""
        return _cut(self.moving, window), _cut(self.moving_valid, window)

    @torch.no_grad()
    def aligned_window(self, window: Window, moving_from_reference: Tensor) -> tuple[Tensor, Tensor]:
        """The moving frame on the reference grid, values and mask; zero where it saw nothing."""
        with full_precision(self.device):
            place = moving_from_reference.double() @ geometry.translation(
                torch.tensor([window.y, window.x], dtype=torch.float64, device=self.device)
            )
            y, x = affine_coordinates(place, window.shape)
            values = sample_spline(self.coefficients, y, x)
            last = [s - 1 - RIM_PX for s in self.shape]
            seen = (y >= RIM_PX) & (y <= last[0]) & (x >= RIM_PX) & (x <= last[1])
            seen &= sample_linear(self.moving_valid, y, x) > 0.999
        mask = seen.float()
        return values * mask, mask

    @torch.no_grad()
    def lattice_template(self, moving_from_reference: Tensor) -> LatticeTemplate:
        """What both frames, aligned, have in common, on the whole reference frame."""
        whole = Window(0, 0, *self.shape)
        moving, seen = self.aligned_window(whole, moving_from_reference)
        mask = self.reference_valid * seen
        return lattice_template(self.reference * mask, moving * mask, mask, self.level, self.readout)

    @torch.no_grad()
    def overlap(self, moving_from_reference: Tensor) -> Tensor:
        """(n, y, x) bool: valid reference pixels whose place lies in the moving frame, on valid pixels."""
        y, x = affine_coordinates(moving_from_reference.double(), self.shape)
        slack = 1e-3
        seen = (y >= -slack) & (y <= self.shape[0] - 1 + slack) & (x >= -slack) & (x <= self.shape[1] - 1 + slack)
        inner = sample_linear(self.moving_valid, y.clamp(0, self.shape[0] - 1), x.clamp(0, self.shape[1] - 1))
        return seen & (inner > 0.999) & (self.reference_valid > 0)


def cut_template(template: LatticeTemplate, window: Window) -> LatticeTemplate:
    """The template in a window; beyond the frame there is none."""
    edges = template.edges
    if edges is not None:
        edges = Edges(_cut(edges.rim, window), _cut(edges.dark, window))
    return LatticeTemplate(_cut(template.structure, window), _cut(template.passed, window), edges)


@torch.no_grad()
def pair_frames(
    reference: Tensor, moving: Tensor, dark_level: Tensor | float = 0.0, gain_e: Tensor | float = 1.0
) -> PairFrames:
    """Pairs from counts of any real dtype.

    Parameters
    ----------
    reference, moving
        (n, y, x) counts; not-a-number marks pixels without data.
    dark_level, gain_e
        Counts without beam, and electrons per count; numbers or (n,).

    Raises
    ------
    ShapeError
        When the stacks differ in shape or are not (n, y, x).
    """
    if reference.ndim != 3 or reference.shape != moving.shape:
        raise ShapeError(
            f"reference has shape {tuple(reference.shape)} and moving {tuple(moving.shape)}, "
            "expected two equal (n, y, x)"
        )
    with full_precision(reference.device):
        electrons = [_electrons(frames, dark_level, gain_e) for frames in (reference, moving)]
        valid = [torch.isfinite(e).float() for e in electrons]
        electrons = [torch.nan_to_num(e, posinf=0.0, neginf=0.0) for e in electrons]
        level = (electrons[0].sum((1, 2)) / valid[0].sum((1, 2)).clamp_min(1)).clamp_min(LEAST_LEVEL_E)
        values = [
            torch.where(v > 0, (e / level[:, None, None]).clamp(-LARGEST, LARGEST), 1.0)
            for e, v in zip(electrons, valid, strict=True)
        ]
        readout = torch.stack([readout_variance(e, v) for e, v in zip(electrons, valid, strict=True)], 1)
        kernel = _prefilter()
        coefficients = filter_separable(values[1], kernel, kernel)
    return PairFrames(values[0] * valid[0], values[1] * valid[1], coefficients, *valid, level, readout)


def _electrons(frames: Tensor, dark_level: Tensor | float, gain_e: Tensor | float) -> Tensor:
    wide = lambda v: v.to(frames.device).float()[:, None, None] if isinstance(v, Tensor) and v.ndim else float(v)
    return (frames.float() - wide(dark_level)) * wide(gain_e)


def _cut(images: Tensor, window: Window) -> Tensor:
    part = images[:, max(window.y, 0) : window.y + window.height, max(window.x, 0) : window.x + window.width]
    below, right = window.height - part.shape[1], window.width - part.shape[2]
    return F.pad(part, (0, right, 0, below)) if below or right else part


@lru_cache
def _prefilter() -> Tensor:
    return spline_prefilter_kernel()
