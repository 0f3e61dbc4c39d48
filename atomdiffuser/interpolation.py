"""Separable filters and cubic B-spline sampling of batches of frames (n, Y, X), on any device.

A cubic B-spline is interpolated exactly at the pixels and to fourth order in between (Unser, IEEE Signal Process. Mag.
16(6), 1999), so that a smoothed frame can be sampled anywhere without the amplitude error of local cubic kernels.
Sampling uses four bilinear look-ups per point (Sigg & Hadwiger, GPU Gems 2, ch. 20).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.compiled import array, compiled_here, in_parts

SPLINE_POLE = math.sqrt(3) - 2
SPLINE_REACH = 14  # |pole|**14 < 1e-8
SPLINES_A_SIGMA = 1.7  # of a wide blur
BAND_COLUMNS = 64  # of a banded matrix, beside its reach, that are multiplied at once
NEGLIGIBLE = 1e-6  # of a banded matrix' largest number
ROUNDING = 1e-7  # the same, below which single precision does not see it
STRIP_PX = 2**17
"""Positions that a processor looks up at once: what is made on the way takes little memory, and stays in its cache."""


def gaussian_kernel(sigma_px: float, *, derivative: bool = False) -> Tensor:
    """Sampled Gaussian of unit sum, or its derivative (response to a unit ramp is 1); 1-D, odd length, float64."""
    if sigma_px == 0:
        return torch.tensor([0.5, 0.0, -0.5]).double() if derivative else torch.ones(1).double()
    reach = max(1, math.ceil(4 * sigma_px))
    x = torch.arange(-reach, reach + 1, dtype=torch.float64)
    g = torch.exp(-0.5 * (x / sigma_px) ** 2)
    g /= g.sum()
    if derivative:
        g = -x * g
        g /= -(x * g).sum()
        return g
    return g


def spline_prefilter_kernel() -> Tensor:
    """Turns samples into cubic B-spline coefficients: √3·pole^|k|, 1-D, odd length, float64."""
    k = torch.arange(-SPLINE_REACH, SPLINE_REACH + 1).abs().double()
    return math.sqrt(3) * SPLINE_POLE**k


def chain_kernels(a: Tensor, b: Tensor) -> Tensor:
    """The kernel that does `a`, then `b`."""
    return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]


@dataclass(frozen=True)
class BandedMatrix:
    """A matrix (l, k) that is next to nothing further than `reach` columns from the line between its corners."""

    whole: Tensor
    reach: int

    @staticmethod
    def of(whole: Tensor) -> BandedMatrix:
        """Its band as it is seen in the matrix."""
        rows, columns = whole.shape
        row, column = torch.nonzero(whole.abs() > NEGLIGIBLE * whole.abs().max(), as_tuple=True)
        return BandedMatrix(whole, int((column - row * columns // rows).abs().max()))

    def band(self) -> Tensor:
        """Of a square one (l, l): columns i − reach to i + reach of row i, (l, 2·reach + 1), zero beyond the edges."""
        size = len(self.whole)
        padded = F.pad(self.whole, (self.reach, self.reach))
        return torch.stack([padded[i, i : i + 2 * self.reach + 1] for i in range(size)])

    @cached_property
    def extent(self) -> np.ndarray:
        """(l, 2) first column of each row that rounding leaves anything of, and one past the last."""
        known = self.whole.abs() > ROUNDING * self.whole.abs().max()
        column = torch.arange(self.whole.shape[1], device=known.device)
        last = torch.where(known, column + 1, 0).amax(1)
        first = torch.where(known, column, self.whole.shape[1]).amin(1)
        return torch.stack([torch.minimum(first, last), last], 1).cpu().numpy()

    @cached_property
    def turned(self) -> BandedMatrix:
        """Its transpose."""
        return BandedMatrix.of(self.whole.T.contiguous())

    def __matmul__(self, images: Tensor) -> Tensor:
        """The product with images (…, k, m), without what lies outside the band."""
        rows, columns = self.whole.shape
        if columns <= 2 * (BAND_COLUMNS + self.reach) or images.is_cuda:  # a GPU is quicker with all of it
            return self.whole.to(images.dtype) @ images
        matrix, step = self.whole.to(images.dtype), max(1, BAND_COLUMNS * rows // columns)
        parts = []
        for row in range(0, rows, step):
            first, last = (k * columns // rows for k in (row, row + step))
            band = slice(max(first - self.reach, 0), last + self.reach + 1)
            parts.append(matrix[row : row + step, band] @ images[..., band, :])
        return torch.cat(parts, -2)


def filter_separable(images: Tensor, kernel_y: Tensor, kernel_x: Tensor) -> Tensor:
    """Convolve (n, Y, X) along y and x with 1-D kernels; edges are mirrored."""
    return _convolve(_convolve(images, kernel_y, -2), kernel_x, -1)


def spline_coefficients(images: Tensor) -> Tensor:
    """Coefficients of the cubic B-splines through images (n, Y, X), for `sample_spline`."""
    prefilter = spline_prefilter_kernel()
    return filter_separable(images, prefilter, prefilter)


def smooth(images: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of (n, Y, X) with mirrored edges; wide blurs are described by splines on a coarser grid."""
    pairs = [_coarse_blur(n, float(sigma_px), str(images.device)) for n in images.shape[-2:]]
    if any(pair is None for pair in pairs):
        kernel = gaussian_kernel(sigma_px)
        return filter_separable(images, kernel, kernel)
    if _compiled(images):
        return _smooth_compiled(images, *pairs)
    for step in (0, 1):  # to coefficients along y and x, then from these
        for pair in pairs:
            images = (pair[step] @ images).mT
    return images.contiguous()


def _smooth_compiled(images: Tensor, y: tuple[BandedMatrix, ...], x: tuple[BandedMatrix, ...]) -> Tensor:
    from atomdiffuser.interpolation_kernels import from_knots, to_knots

    given, out = array(images), torch.empty_like(images, memory_format=torch.contiguous_format)
    down, back_down, along, back_along = ((array(m.whole), m.extent) for m in (*y, x[0], x[1].turned))
    knots = np.empty((len(given), len(down[0]), given.shape[2]), np.float32)
    collect = lambda first, last: to_knots(first, last, given, *down, *along, *back_along, knots)
    spread = lambda first, last: from_knots(first, last, knots, *back_down, out.numpy())
    in_parts(collect, len(down[0]), images.numel())
    in_parts(spread, given.shape[1], images.numel())
    return out


@lru_cache(maxsize=64)
def _coarse_blur(size: int, sigma_px: float, device: str) -> tuple[BandedMatrix, BandedMatrix] | None:
    """What makes the coefficients (k, size) of splines, and the splines (size, k): their product is the blur along an
    axis to a few parts in 10 000; None where that saves nothing.
    """
    knots = math.ceil((size - 1) * SPLINES_A_SIGMA / sigma_px) + 3 if sigma_px > 0 else size
    if knots > size / 3:
        return None
    position = torch.arange(size, dtype=torch.float64)
    knot = torch.arange(-1, knots - 1, dtype=torch.float64) * ((size - 1) / (knots - 3))
    distance = ((position[:, None] - knot) * ((knots - 3) / (size - 1))).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    splines = torch.where(distance < 1, near, (2 - distance).clamp_min(0) ** 3 / 6)
    blur = _convolve(torch.eye(size, dtype=torch.float64)[None], gaussian_kernel(sigma_px), -2)[0]
    fitted = torch.linalg.solve(splines.T @ splines, splines.T @ blur)
    return BandedMatrix.of(fitted.float().to(device)), BandedMatrix.of(splines.float().to(device))


def near(mask: Tensor, reach_px: int) -> Tensor:
    """Pixels of (n, Y, X) that have one of the mask within so many rows and columns, bool."""
    size = 2 * reach_px + 1
    along_y = F.max_pool2d(mask.float()[:, None], (size, 1), 1, (reach_px, 0))
    return F.max_pool2d(along_y, (1, size), 1, (0, reach_px))[:, 0] > 0


def affine_coordinates(b_from_a: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where affines (n, 3, 3) put the pixels of a frame: y and x, each (n, Y, X) float32 [px]."""
    rows, columns = (torch.arange(n, dtype=b_from_a.dtype, device=b_from_a.device) for n in shape)
    return affine_coordinates_at(b_from_a, rows, columns)


def affine_coordinates_at(b_from_a: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Where affines (n, 3, 3) put the points of a grid at `rows` (Y,) and `columns` (X,): y and x, each (n, Y, X)
    float32 [px].
    """

    def coordinate(row: int) -> Tensor:
        a = b_from_a[:, row, :, None, None]  # (n, 3, 1, 1)
        return (a[:, 0] * rows[:, None] + a[:, 2]).float() + (a[:, 1] * columns[None, :]).float()

    return coordinate(0), coordinate(1)


def inside_frame(y: Tensor, x: Tensor, shape: tuple[int, int], margin_px: float = 0.0) -> Tensor:
    """Which positions lie in a frame of `shape`, at least `margin_px` from its outermost pixel centres; bool."""
    height, width = shape
    return (y >= margin_px) & (y <= height - 1 - margin_px) & (x >= margin_px) & (x <= width - 1 - margin_px)


def sample_spline(coefficients: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample cubic B-splines. See `sample_spline_grid` for the cells of a grid that affines move.

    Parameters
    ----------
    coefficients
        (n, Y, X), from the prefilter.
    y, x
        (n, Y', X') positions [px].

    Returns
    -------
    (n, Y', X') values; coefficients outside the frame count as zero, so keep two pixels away from the edge.
    """
    if y.shape != x.shape:
        raise ValueError(f"y has shape {tuple(y.shape)} and x {tuple(x.shape)}, expected the same")
    if not _compiled(coefficients, y, x):
        return _in_strips(_spline_values, coefficients, y, x)
    from atomdiffuser.interpolation_kernels import sample_points

    values = torch.empty_like(y, memory_format=torch.contiguous_format)
    given = (array(coefficients.expand(len(y), -1, -1)), array(y.flatten(1)), array(x.flatten(1)))
    found = values.flatten(1).numpy()
    in_parts(lambda first, last: sample_points(first, last, *given, found), found.shape[1], found.size)
    return values


def sample_spline_grid(
    coefficients: Tensor, b_from_a: Tensor, rows: Tensor, columns: Tensor, of: np.ndarray | None = None
) -> Tensor:
    """Sample cubic B-splines where affines put the points of a grid.

    Parameters
    ----------
    coefficients
        (m, Y, X).
    b_from_a
        (n, 3, 3).
    rows, columns
        (Y',), (X',) positions [px].
    of
        (n,) int64: which image each affine belongs to; by default the first to the first, and so on.

    Returns
    -------
    (n, Y', X') values, as from `sample_spline`.
    """
    if of is None and len(b_from_a) != len(coefficients):
        raise ValueError(f"{len(b_from_a)} affines and {len(coefficients)} images; say which image each belongs to")
    if of is None:
        of = np.arange(len(b_from_a))
    if not _compiled(coefficients, b_from_a):
        return sample_spline(coefficients[torch.from_numpy(of)], *affine_coordinates_at(b_from_a, rows, columns))
    from atomdiffuser.interpolation_kernels import sample_grid

    values = torch.empty(len(b_from_a), len(rows), len(columns), dtype=torch.float32)
    given = (array(coefficients), of, *(array(t, torch.float64) for t in (b_from_a, rows, columns)), values.numpy())
    in_parts(lambda first, last: sample_grid(first, last, *given), len(rows), values.numel())
    return values


def _compiled(images: Tensor, *places: Tensor) -> bool:
    """Whether compiled loops do for these: (n, Y, X) in single precision on a processor, no gradients asked for."""
    if images.dim() != 3 or images.dtype != torch.float32 or not compiled_here(images.device):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in (images, *places)))


def _in_strips(look_up: Callable, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """`look_up(images, y, x)`, some rows of the positions (n, Y', X') after the other."""
    rows = max(1, STRIP_PX // max(y.shape[0] * y.shape[-1], 1))
    if y.is_cuda or rows >= y.shape[-2]:
        return look_up(images, y, x)
    values = images.new_empty(y.shape)
    for at in range(0, y.shape[-2], rows):
        values[:, at : at + rows] = look_up(images, y[:, at : at + rows], x[:, at : at + rows])
    return values


def _spline_values(coefficients: Tensor, y: Tensor, x: Tensor) -> Tensor:
    position = torch.stack((x, y))  # (2, n, Y', X')
    first, second, right = _pair_lookups(position)
    scale = torch.tensor([2 / max(n - 1, 1) for n in coefficients.shape[:-3:-1]], dtype=y.dtype, device=y.device)
    for place in (first, second):
        place.mul_(scale[:, None, None, None]).sub_(1)
    grid = torch.empty(*y.shape, 2, dtype=y.dtype, device=y.device)
    grid[..., 0], grid[..., 1] = first[0], first[1]
    upper = _look_up(coefficients, grid)
    grid[..., 0] = second[0]
    upper.lerp_(_look_up(coefficients, grid), right[0])
    grid[..., 1] = second[1]
    other = _look_up(coefficients, grid)
    grid[..., 0] = first[0]
    return upper.lerp_(_look_up(coefficients, grid).lerp_(other, right[0]), right[1])


def sample_linear(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values of (n, Y, X) at (n, Y', X') positions; zero outside."""
    return _in_strips(_bilinear, images, y, x)


def sample_nearest(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Value of the nearest pixel of (n, Y, X) at (n, Y', X') positions, unchanged; zero outside."""
    height, width = images.shape[-2:]
    rows, columns = y.round().long(), x.round().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
    return torch.where(inside, images.flatten(1).gather(1, flat).reshape(y.shape), 0.0)


def _pair_lookups(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The four cubic weights of one axis as two linear look-ups: their positions and the share of the second."""
    floor = position.floor()
    t = position - floor
    t2 = t * t
    t3 = t2 * t
    right = t.add(t2).mul_(0.5).add_(t3, alpha=-1 / 3).add_(1 / 6)
    first = t3.mul(0.5).sub_(t2).add_(2 / 3).div_(1 - right).add_(floor).sub_(1)
    second = t3.div(right).div_(6).add_(floor).add_(1)
    return first, second, right


def _bilinear(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return _look_up(images, _look_up_grid(images.shape[-2:], y, x))


def _look_up(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)[:, 0]


def _look_up_grid(shape: tuple[int, int], y: Tensor, x: Tensor) -> Tensor:
    grid = torch.empty(*y.shape, 2, dtype=y.dtype, device=y.device)  # (n, Y', X', 2)
    grid[..., 0], grid[..., 1] = _normalised(x, shape[1]), _normalised(y, shape[0])
    return grid


def _normalised(position: Tensor, size: int) -> Tensor:
    """Pixels as `grid_sample` counts them, −1 to 1 between the centres of the first and the last."""
    return position.mul(2 / max(size - 1, 1)).sub_(1)


def _convolve(images: Tensor, kernel: Tensor, axis: int) -> Tensor:
    if len(kernel) == 1:
        return images * float(kernel)
    if _compiled(images):
        return _convolve_compiled(images, kernel, axis)
    reach, size = len(kernel) // 2, images.shape[axis]
    padded = _mirrored(images, reach, axis)
    taps = kernel.flip(0)
    if images.is_cuda:
        weight = taps.to(images)[None, None]
        return F.conv2d(padded[:, None], weight[..., None] if axis == -2 else weight[:, :, None])[:, 0]
    out = padded.narrow(axis, 0, size) * float(
        taps[0]
    )  # one pass a tap: much faster here than a one-channel convolution
    for k, tap in enumerate(taps.tolist()[1:], start=1):
        out.add_(padded.narrow(axis, k, size), alpha=tap)
    return out


def _convolve_compiled(images: Tensor, kernel: Tensor, axis: int) -> Tensor:
    from atomdiffuser.interpolation_kernels import convolve_columns, convolve_rows

    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    given = array(images), array(kernel.flip(0)), out.numpy()
    along = convolve_rows if axis == -2 else convolve_columns
    in_parts(lambda first, last: along(first, last, *given), images.shape[-2], images.numel())
    return out


def _mirrored(images: Tensor, reach: int, axis: int) -> Tensor:
    """Images continued by `reach` pixels on both sides, folded back at the outer edges of the outermost pixels."""
    size = images.shape[axis]
    if reach <= size:
        before, after = images.narrow(axis, 0, reach).flip(axis), images.narrow(axis, size - reach, reach).flip(axis)
        return torch.cat([before, images, after], dim=axis)
    index = torch.arange(-reach, size + reach, device=images.device).remainder(2 * size)
    return images.index_select(axis, torch.where(index >= size, 2 * size - 1 - index, index))
