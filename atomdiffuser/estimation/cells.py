"""Reference frames as the fit sees them: values and slopes of their splines at the centres of cells of pixels.

A matched-filtered frame holds next to nothing beyond a quarter of the sampling frequency. Every second pixel along
both axes then says as much about the drift as all of them do; `ImageScales.stride` is 1 where that is not so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import make_interp_spline
from torch import Tensor

from atomdiffuser.compiled import array, compiled_here, in_parts
from atomdiffuser.estimation.clean_slopes import SlopeNoise, clean_slopes
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import PreparedFrames, noise_of, spline_blur_kernel
from atomdiffuser.estimation.separable_bases import FrameBasis
from atomdiffuser.interpolation import BandedMatrix, chain_kernels

SPLINE_VALUE = {1: (1 / 6, 4 / 6, 1 / 6), 2: (1 / 48, 23 / 48, 23 / 48, 1 / 48)}  # at a pixel, between two of them
SPLINE_SLOPE = {1: (-1 / 2, 0.0, 1 / 2), 2: (-1 / 8, -5 / 8, 5 / 8, 1 / 8)}
MEAN = {1: (0.0, 1.0), 2: (0.0, 0.5, 0.5)}
LEAST_LEFT = 0.02  # of a frame that decays, where its slopes are still asked
OF_FRAMES = ("slopes", "clean_slopes", "noise_left", "structure", "noise_share")


@dataclass(frozen=True, eq=False)
class CellGrid:
    """Where the cells are.

    Attributes
    ----------
    shape
        Of the whole frames.
    stride
        Pixels along each axis that a cell stood for before the grid was thinned.
    share
        Of the frame's pixels that stands for the others.
    rows, columns
        (Y',), (X',) float64 positions of the centres in the frame [px].
    """

    shape: tuple[int, int]
    stride: int
    share: float
    rows: Tensor
    columns: Tensor

    @lru_cache(maxsize=64)  # noqa: B019 - grids are few and kept
    def basis(self, nodes: int) -> FrameBasis:
        """Smooth functions at the cells."""
        return FrameBasis(self.rows, self.columns, self.shape, nodes)

    @lru_cache(maxsize=64)  # noqa: B019
    def smooth(self, nodes: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Cubic splines through `nodes` knots from edge to edge and their slopes [1/px], at the rows (Y', G) and the
        columns (X', G).
        """

        def along(size: int, position: Tensor) -> tuple[Tensor, Tensor]:
            spline = make_interp_spline(np.linspace(0, size - 1, nodes), np.eye(nodes), k=min(3, nodes - 1))
            value, slope = (
                torch.from_numpy(s(position.cpu())).to(position.device) for s in (spline, spline.derivative())
            )
            return value, slope

        return along(self.shape[0], self.rows), along(self.shape[1], self.columns)

    @lru_cache(maxsize=64)  # noqa: B019
    def noise(self, filter_px: float) -> FilteredNoise:
        """White noise at the cells, after a matched filter of σ `filter_px`."""
        return FilteredNoise.of(filter_px, self)


@dataclass(frozen=True)
class ReferenceCells:
    """n reference frames at the centres of cells, the frames' rim left out.

    Attributes
    ----------
    slopes
        (n, 2, Y', X') of the matched-filtered frame along y and x [counts/px].
    clean_slopes
        (n, 2, Y', X') the same, freed of noise (see `clean_slopes`).
    noise_left
        (n, 2) shares of the noise's energy: in products of clean and given slopes, and in what clean slopes have in
        common with noise of their own kind.
    structure
        (n, 2, Y', X') base and lattice as in `PreparedFrames`.
    noise_share
        (n, 1, 1) or (n, Y', X'), inf where some pixel of the cell is unknown.
    """

    grid: CellGrid
    slopes: Tensor
    clean_slopes: Tensor
    noise_left: Tensor
    structure: Tensor
    noise_share: Tensor

    def __len__(self) -> int:
        return len(self.slopes)

    @property
    def base(self) -> Tensor:
        """(n, Y', X') local mean."""
        return self.structure[:, 0]

    @property
    def lattice(self) -> Tensor:
        """(n, Y', X') matched-filtered frame less the local mean."""
        return self.structure[:, 1]

    def select(self, index: Tensor | slice) -> ReferenceCells:
        """Frames at `index`, repeated as listed."""
        return replace(self, **{f: getattr(self, f)[index] for f in OF_FRAMES})

    def ascent(self, contrast: Tensor, filter_px: float) -> Tensor:
        """σ²·∇κ·∇F(x), (n, Y', X'): what a matched filter of σ `filter_px` makes of contrast that varies between nodes
        (n, G, G).
        """
        (rows, rows_slope), (columns, columns_slope) = self.grid.smooth(contrast.shape[-1])
        along_y, along_x = (
            (a @ contrast @ b.mT).to(self.slopes) for a, b in ((rows_slope, columns), (rows, columns_slope))
        )
        return filter_px**2 * (along_y * self.clean_slopes[:, 0] + along_x * self.clean_slopes[:, 1])

    def decayed(self, fields: Tensor, filter_px: float) -> ReferenceCells:
        """The frames as decay and then a matched filter of σ `filter_px` leave them, the decay's `fields` (n, 2, G, G)
        of μ and κ taken as smooth between their nodes.

        As in a moving frame, the slopes fade with the lattice; the noise becomes what a fit of such frames has from it.
        """
        (rows, _), (columns, _) = self.grid.smooth(fields.shape[-1])
        decay = (rows @ fields.clamp_min(LEAST_LEFT) @ columns.mT).clamp_min(LEAST_LEFT).float()
        contrast = decay[:, 1:]
        lattice = self.lattice * decay[:, 1] + self.ascent(fields[:, 1], filter_px)
        return replace(
            self,
            slopes=self.slopes * contrast,
            clean_slopes=self.clean_slopes * contrast,
            structure=torch.stack([self.base * decay[:, 0], lattice], dim=1),
            noise_share=self.noise_share * decay[:, 1] ** 2 / decay[:, 0],
        )

    def thinned(self) -> ReferenceCells:
        """A fourth of the cells: of four rows the first and the last, and so of the columns.

        Their unequal distances see every phase of a lattice, whose period may be a multiple of the stride.
        """
        grid, rows, columns = _thinned(self.grid)
        thin = lambda image: image.index_select(-2, rows).index_select(-1, columns)
        share = self.noise_share if self.noise_share.shape[-2:] == (1, 1) else thin(self.noise_share)
        images = {f: thin(getattr(self, f)) for f in ("slopes", "clean_slopes", "structure")}
        return replace(self, grid=grid, noise_share=share, **images)


def reference_cells(
    frames: PreparedFrames, noise: NoiseModel, filter_px: float, stride: int, margin_px: float
) -> ReferenceCells:
    """Cells of `stride` px (1 or 2) that lie `margin_px` or more within the outermost pixels of frames which a matched
    filter of σ `filter_px` was applied to.
    """
    firsts = tuple(max(1, min(math.ceil(margin_px), (size - 4) // 2)) for size in frames.shape)
    grid = _grid(frames.shape, stride, firsts, str(frames.base.device))
    counts = len(grid.rows), len(grid.columns)
    look = _by_loops if compiled_here(frames.base.device) else _by_tensors
    slopes, structure = look(frames, firsts, counts, stride)
    share = frames.noise_share
    if share.shape[-2:] == frames.shape:
        cut = share[:, firsts[0] : firsts[0] + stride * counts[0], firsts[1] : firsts[1] + stride * counts[1]]
        share = F.max_pool2d(cut[:, None], stride)[:, 0]
    known = torch.where(torch.isfinite(share), share, 0.0)
    variance = (known * noise_of(structure[:, 0], noise)).mean((1, 2)) / (known > 0).float().mean((1, 2)).clamp_min(
        1e-6
    )
    seen = torch.isfinite(share)[:, None].float()
    clean, left = clean_slopes(slopes * seen, variance, grid.noise(filter_px).power)
    return ReferenceCells(grid, slopes, clean, left, structure, share)


def _by_tensors(
    frames: PreparedFrames, firsts: Sequence[int], counts: Sequence[int], stride: int
) -> tuple[Tensor, Tensor]:
    """Slopes and structure (n, 2, Y', X') of so many cells along either axis, that begin at the pixels `firsts`."""
    value, slope, mean = SPLINE_VALUE[stride], SPLINE_SLOPE[stride], MEAN[stride]
    along = lambda image, taps, axis: _every(image, taps, axis, firsts[axis] - 1, counts[axis], stride)
    value_y, slope_y = (along(frames.coefficients, taps, -2) for taps in (value, slope))
    filtered, base = along(value_y, value, -1), along(along(frames.base, mean, -2), mean, -1)
    slopes = torch.stack([along(slope_y, value, -1), along(value_y, slope, -1)], dim=1)
    return slopes, torch.stack([base, filtered - base], dim=1)


def _by_loops(
    frames: PreparedFrames, firsts: Sequence[int], counts: Sequence[int], stride: int
) -> tuple[Tensor, Tensor]:
    """The same, on a processor."""
    from atomdiffuser.estimation.cell_kernels import values_and_slopes

    given, (top, left) = (array(frames.coefficients), array(frames.base)), (first - 1 for first in firsts)
    taps = [np.array(kind[stride], np.float32) for kind in (SPLINE_VALUE, SPLINE_SLOPE, MEAN)]
    slopes, structure = (np.empty((len(frames), 2, *counts), np.float32) for _ in range(2))
    look = lambda first, last: values_and_slopes(first, last, *given, top, left, stride, *taps, slopes, structure)
    in_parts(look, counts[0], slopes.size)
    return torch.from_numpy(slopes), torch.from_numpy(structure)


@lru_cache(maxsize=16)
def _grid(shape: tuple[int, int], stride: int, firsts: tuple[int, ...], device: str) -> CellGrid:
    """Cells that keep `firsts` pixels away from all edges."""
    offset = (stride - 1) / 2
    rows, columns = (
        first + offset + stride * torch.arange(int((n - 1 - 2 * first - offset) // stride) + 1, dtype=torch.float64)
        for n, first in zip(shape, firsts, strict=True)
    )
    return CellGrid(shape, stride, 1 / stride**2, rows.to(device), columns.to(device))


@lru_cache(maxsize=16)
def _thinned(grid: CellGrid) -> tuple[CellGrid, Tensor, Tensor]:
    """The grid with the first and last of every four rows and columns, and which these are."""
    rows, columns = (
        torch.nonzero(torch.arange(len(p), device=p.device) % 4 % 3 == 0)[:, 0] for p in (grid.rows, grid.columns)
    )
    return replace(grid, share=grid.share / 4, rows=grid.rows[rows], columns=grid.columns[columns]), rows, columns


@dataclass(frozen=True)
class FilteredNoise:
    """White noise of variance 1 a pixel after the matched filter, as the cells see it.

    Attributes
    ----------
    covariance_y, covariance_x
        Of the cells along either axis, (Y', Y') and (X', X'); the product of both counts.
    energy, slope_energy
        Variance of a value and of a slope.
    slope_and_value
        Variance of Σ slope·value per cell, slope and value of two independent frames.
    power
        Its spectrum.
    """

    covariance_y: BandedMatrix
    covariance_x: BandedMatrix
    energy: float
    slope_energy: float
    slope_and_value: float
    power: SlopeNoise

    @classmethod
    def of(cls, filter_px: float, grid: CellGrid) -> FilteredNoise:
        """Through a matched filter of σ `filter_px`."""
        blur = spline_blur_kernel(filter_px)
        value, slope = (
            _self_correlation(chain_kernels(blur, torch.tensor(kernel[grid.stride], dtype=torch.float64)))
            for kernel in (SPLINE_VALUE, SPLINE_SLOPE)
        )
        value_y, slope_y = (_between(grid.rows, kernel) for kernel in (value, slope))
        value_x, slope_x = (_between(grid.columns, kernel) for kernel in (value, slope))
        mean = lambda product: float(product.sum()) / len(product)
        mixed = (mean(slope_y * value_y) * mean(value_x**2) + mean(slope_x * value_x) * mean(value_y**2)) / 2
        at_value, at_slope = (float(k[len(k) // 2]) for k in (value, slope))
        counts = len(grid.rows), len(grid.columns)
        power = SlopeNoise.of(counts, grid.stride, value, slope).to(grid.rows.device)
        covariances = (BandedMatrix.of(along.float()) for along in (value_y, value_x))
        return cls(*covariances, at_value**2, at_slope * at_value, mixed, power)

    @cached_property
    def bands(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns i − r to i + r of the covariances' rows: along y (Y', 2r + 1), along x (2r + 1, X')."""
        return self.covariance_y.band().numpy(), np.ascontiguousarray(self.covariance_x.band().numpy().T)

    def correlate(self, images: Tensor) -> Tensor:
        """V·images (…, Y', X'): what correlated noise makes of them."""
        if not compiled_here(images.device):
            return (self.covariance_x @ (self.covariance_y @ images).mT).mT
        from atomdiffuser.interpolation_kernels import banded_product

        out = torch.empty_like(images, memory_format=torch.contiguous_format)
        banded_product(array(images.flatten(0, -3)), *self.bands, out.flatten(0, -3).numpy())
        return out


def _self_correlation(kernel: Tensor) -> Tensor:
    return chain_kernels(kernel, kernel.flip(0))


def _between(positions: Tensor, correlation: Tensor) -> Tensor:
    """The correlation at the distance of each two of the positions (k,), (k, k)."""
    reach = len(correlation) // 2
    lag = (positions[:, None] - positions).round().long() + reach
    known = (lag >= 0) & (lag <= 2 * reach)
    return torch.where(known, correlation.to(positions.device)[lag.clamp(0, 2 * reach)], 0.0)


def _every(image: Tensor, taps: tuple[float, ...], axis: int, start: int, count: int, stride: int) -> Tensor:
    """Correlation of (n, Y, X) with `taps` along one axis, at `count` places `stride` apart, the first at `start`."""
    index: list[slice] = [slice(None)] * 3
    total = None
    for k, tap in enumerate(taps):
        if tap == 0:
            continue
        index[axis] = slice(start + k, start + k + stride * (count - 1) + 1, stride)
        part = image[tuple(index)]
        total = part * tap if total is None else total.add_(part, alpha=tap)
    return total
