"""Specimens as functions of the plane: how much the detector would see at any point, without a pixel grid.

A specimen is a batch of n. Everything periodic or band-limited is a sum of plane waves, everything local a sum of
Gaussians, everything with a border a product of smooth steps, so a drifted frame is rendered by evaluating the same
functions at the transformed points: nothing is ever resampled. On an affine grid of rows and columns each plane wave
splits into a factor of the row and a factor of the column, and the whole sum becomes one matrix product.

    base(q)    = thickness(q) · [ W_c(q) · crystal mean + W_f(q) · film mean + blurred defects ]
    lattice(q) = thickness(q) · [ W_c(q) · crystal structure + W_f(q) · film speckle + defects − blurred defects ]

base is the local mean above the dark level, lattice the structure around it. Their sum peaks at about 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from atomdiffuser.errors import ShapeError
from atomdiffuser.geometry import apply_affine, invert
from atomdiffuser.simulation.crystals import CrystalBatch

DEFECT_REACH = 4.2
"""A column is drawn out to this many standard deviations: 1.5e-4 of its height."""
BLUR_REACH = 3.5
CHUNK_ELEMENTS = 2**24
"""Points times waves evaluated at once when points lie on no affine grid."""


@dataclass(frozen=True)
class Waves:
    """Sums of plane waves Σ a·cos(2π(k·q + φ)), n of them.

    Attributes
    ----------
    vectors
        (n, k, 2) wave vectors along (y, x) [1/px].
    amplitude, phase
        (n, k); phase in turns.
    """

    vectors: Tensor
    amplitude: Tensor
    phase: Tensor

    def rms(self) -> Tensor:
        """(n,) standard deviation over the plane."""
        return (self.amplitude**2).sum(-1).div(2).sqrt()

    def at(self, points: Tensor) -> Tensor:
        """Value at points (n, …, 2); (n, …) in the points' dtype."""
        n, inner = points.shape[0], points.shape[1:-1]
        flat = points.reshape(n, -1, 2).to(self.vectors.dtype)
        total = torch.zeros(n, flat.shape[1], dtype=points.dtype, device=points.device)
        step = max(1, CHUNK_ELEMENTS // max(1, flat.shape[0] * flat.shape[1]))
        for start in range(0, self.vectors.shape[1], step):
            part = slice(start, start + step)
            turns = flat @ self.vectors[:, part].mT + self.phase[:, None, part]
            total += _bmv(_cos_turns(turns, points.dtype), self.amplitude[:, part])
        return total.reshape(n, *inner)

    def on_grid(self, grid: ScanGrid, dtype: torch.dtype) -> Tensor:
        """Value at the pixels of a scan, (n, y, x): a product of row and column factors."""
        linear, shift = grid.specimen_from_frame[:, :2, :2], grid.specimen_from_frame[:, :2, 2]
        per_pixel = self.vectors @ linear  # (n, k, 2): turns per row and per column
        constant = self.phase + _bmv(self.vectors, shift)
        rows, columns = grid.rows(), grid.columns()
        row_turns = rows[:, :, None] * per_pixel[:, None, :, 0]  # (n, y, k)
        if grid.row_offset is not None:
            row_turns = row_turns + (grid.row_offset.to(per_pixel) @ per_pixel.mT)
        column_turns = columns[:, None] * per_pixel[:, None, :, 1] + constant[:, None]  # (n, x, k)
        row_turns, column_turns = (_reduced(t, dtype) for t in (row_turns, column_turns))
        amplitude = self.amplitude.to(dtype)[:, None]
        left = torch.cat([row_turns.cos(), -row_turns.sin()], -1)
        right = torch.cat([amplitude * column_turns.cos(), amplitude * column_turns.sin()], -1)
        return left @ right.mT


@dataclass(frozen=True)
class ScanGrid:
    """The pixels of n frames, and where each of them samples the specimen.

    Attributes
    ----------
    specimen_from_frame
        (n, 3, 3) float64.
    shape
        Rows and columns of a frame.
    row_offset
        (n, y, 2) by how much each scan line sits off its place [px of the frame], or None.
    warp
        (n, y, x, 2) by how much each pixel sits off its place [px of the frame], or None; costs the fast path.
    """

    specimen_from_frame: Tensor
    shape: tuple[int, int]
    row_offset: Tensor | None = None
    warp: Tensor | None = None

    def rows(self) -> Tensor:
        """(n, Y) numbers of the scan lines."""
        return torch.arange(self.shape[0], dtype=torch.float64, device=self.device).expand(len(self), -1)

    def columns(self) -> Tensor:
        """(X,) numbers of the pixels of a line."""
        return torch.arange(self.shape[1], dtype=torch.float64, device=self.device)

    def __len__(self) -> int:
        return self.specimen_from_frame.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the grid is."""
        return self.specimen_from_frame.device

    def points(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Sampled points of the specimen, (n, y, x, 2)."""
        matrix = self.specimen_from_frame[:, None, :2]  # (n, 1, 2, 3)
        by_row = self.rows()[..., None] * matrix[..., 0] + matrix[..., 2]  # (n, y, 2)
        if self.row_offset is not None:
            by_row = by_row + self.row_offset.to(by_row) @ self.specimen_from_frame[:, :2, :2].mT
        by_column = self.columns()[:, None] * matrix[..., 1]  # (n, x, 2)
        points = by_row.to(dtype)[:, :, None] + by_column.to(dtype)[:, None]
        if self.warp is not None:
            points = points + (self.warp.to(by_row) @ self.specimen_from_frame[:, None, :2, :2].mT).to(dtype)
        return points


@dataclass(frozen=True)
class Rendering:
    """What a scan of the specimen sees, (n, y, x) each.

    Attributes
    ----------
    base, lattice
        Local mean above the dark level, and the structure around it.
    amplitude
        Local standard deviation of the crystal's structure; 0 where there is no crystal.
    points
        (n, y, x, 2) where the scan sampled the specimen.
    """

    base: Tensor
    lattice: Tensor
    amplitude: Tensor
    points: Tensor


@dataclass(frozen=True)
class Specimen:
    """n specimens; every tensor float64 with n in front, lengths in pixels of the reference frame.

    Attributes
    ----------
    grains
        Structure of the grains around their mean, one `Waves` a grain (one or two).
    crystal_mean
        (n,) local mean of the crystal.
    boundary
        (n, 4): (ny, nx, offset, width); grain 1 lies where n·q > offset. Unused with one grain.
    facets
        (n, f, 4): the crystal lies where n·q < offset for all of them.
    edges
        (n, e, 4): vacuum lies where n·q > offset for any of them.
    film, film_mean, film_under
        Speckle and mean (n,) of the amorphous material outside the crystal; film_under (n,) is 1 where it also lies
        under the crystal (a support film), 0 where it begins at the crystal's border.
    wedge
        (n, 2) relative change of thickness per pixel, around `centre` (2,).
    defects
        (n, d, 4): (y, x, height, width) Gaussian columns added or, when negative, missing.
    blur
        (n,) width of the local mean that a defect adds to base instead of lattice.
    headroom
        (n,) crystal mean over the depth of the deepest point between the columns: while κ ≤ headroom·μ no signal is
        negative.
    lattice_vectors
        (n, 2, 2) rows: reduced lattice vectors of grain 0 (NaN without a crystal).
    """

    grains: tuple[Waves, ...]
    crystal_mean: Tensor
    boundary: Tensor
    facets: Tensor
    edges: Tensor
    film: Waves
    film_mean: Tensor
    film_under: Tensor
    wedge: Tensor
    centre: Tensor
    defects: Tensor
    blur: Tensor
    headroom: Tensor
    lattice_vectors: Tensor

    def __len__(self) -> int:
        return self.crystal_mean.shape[0]

    def to(self, device: torch.device | str) -> Specimen:
        """The same specimens on a device."""
        return _mapped(self, lambda t: t.to(device))

    def __getitem__(self, index: slice | Tensor) -> Specimen:
        """Some of the specimens."""
        return replace(_mapped(replace(self, centre=self.crystal_mean), lambda t: t[index]), centre=self.centre)

    def base(self, points: Tensor) -> Tensor:
        """Local mean above the dark level at points (n, y, x, 2); (n, y, x), vacuum 0."""
        crystal, _, film, thickness = self._windows(points)
        return self._base(crystal, film, thickness, self._defects_at(points)[1])

    def lattice(self, points: Tensor) -> Tensor:
        """Structure around the local mean at points (n, y, x, 2); (n, y, x)."""
        return self._compose(points, self._waves_at(points), self._defects_at(points)).lattice

    def render(self, grid: ScanGrid, *, dtype: torch.dtype = torch.float32) -> Rendering:
        """What a scan sees: `base` and `lattice` at its points, by the fast way wherever its pixels lie in rows."""
        if len(grid) != len(self):
            raise ShapeError(f"{len(grid)} scans for {len(self)} specimens; give one scan each")
        points = grid.points(dtype)
        if grid.warp is not None:
            exact = grid.points(torch.float64)
            waves = [w.to(dtype) for w in self._waves_at(exact)]
            defects = tuple(d.to(dtype) for d in self._defects_at(exact))
        else:
            waves = [w.on_grid(grid, dtype) for w in (*self.grains, self.film)]
            defects = self._defects_on(grid, dtype)
        return self._compose(points, waves, defects)

    def lattice_amplitude(self, points: Tensor) -> Tensor:
        """Local standard deviation of the crystal's structure at points (n, y, x, 2); 0 where there is no crystal."""
        crystal, grain_1, _, thickness = self._windows(points)
        return self._amplitude(crystal, grain_1, thickness)

    def _amplitude(self, crystal: Tensor, grain_1: Tensor | None, thickness: Tensor) -> Tensor:
        rms = [w.rms().to(crystal.dtype)[:, None, None] for w in self.grains]
        return thickness * crystal * (rms[0] if grain_1 is None else rms[0] + grain_1 * (rms[1] - rms[0]))

    def _compose(self, points: Tensor, waves: list[Tensor], defects: tuple[Tensor, Tensor]) -> Rendering:
        crystal, grain_1, film, thickness = self._windows(points)
        sharp, blurred = defects
        base = self._base(crystal, film, thickness, blurred)
        structure = waves[0] if grain_1 is None else waves[0] + grain_1 * (waves[1] - waves[0])
        lattice = thickness * (crystal * (structure + sharp - blurred) + film * waves[-1])
        return Rendering(base, lattice, self._amplitude(crystal, grain_1, thickness), points)

    def _base(self, crystal: Tensor, film: Tensor, thickness: Tensor, blurred: Tensor) -> Tensor:
        mean, film_mean = (v.to(crystal.dtype)[:, None, None] for v in (self.crystal_mean, self.film_mean))
        return thickness * (crystal * (mean + blurred) + film * film_mean)

    def _waves_at(self, points: Tensor) -> list[Tensor]:
        return [w.at(points) for w in (*self.grains, self.film)]

    def _windows(self, points: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Crystal, second grain, film and thickness at points, each (n, y, x)."""
        crystal = _inside(points, self.facets)
        grain_1 = None if len(self.grains) == 1 else torch.sigmoid(_beyond(points, self.boundary))
        under = self.film_under.to(points.dtype)[:, None, None]
        film = under + (1 - under) * (1 - crystal)
        slope = self.wedge.to(points.dtype)
        offset = (slope * self.centre.to(slope)).sum(-1)
        thickness = (1 + _plane(points, slope, offset)).clamp_min(0.05)
        return crystal, grain_1, film, thickness * _inside(points, self.edges)

    def _defects_at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Defects as they are and as their local mean, at any points."""
        sharp, blurred = points.new_zeros(points.shape[:-1]), points.new_zeros(points.shape[:-1])
        for y, x, height, width in _columns(self.defects.to(points)):
            squared = (points[..., 0] - y) ** 2 + (points[..., 1] - x) ** 2
            blur = self.blur.to(points)[:, None, None]
            sharp = sharp + height * _gaussian(squared, width, DEFECT_REACH)
            blurred = blurred + height * (width / blur) ** 2 * _gaussian(squared, blur, BLUR_REACH)
        return sharp, blurred

    def _defects_on(self, grid: ScanGrid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same on a scan: each defect is drawn into a patch around its place."""
        n, count = self.defects.shape[:2]
        blank = torch.zeros(n, *grid.shape, dtype=dtype, device=grid.device)
        if count == 0:
            return blank, blank
        y, x, height, width = self.defects.unbind(-1)
        blur = self.blur[:, None].expand_as(width)
        wide = height * (width / blur) ** 2
        return (
            _splat(grid, y, x, height, width, DEFECT_REACH, dtype),
            _splat(grid, y, x, wide, blur, BLUR_REACH, dtype),
        )


def crystal_waves(crystal: CrystalBatch, *, most: int | None = None, negligible: float = 1e-5) -> tuple[Waves, Tensor]:
    """Fourier series of a lattice of Gaussian columns without its mean, and the mean (n,).

    F_g = 1/Ω · Σ_c w_c·2πσ_c²·exp(−2π²σ_c²g²)·exp(−2πi g·r_c). Waves below `negligible` of the narrowest column's
    envelope are dropped, and all but the `most` strongest.
    """
    reciprocal = torch.linalg.inv(crystal.cell).mT  # rows b_i with b_i·a_j = δ_ij
    area = torch.linalg.det(crystal.cell).abs()
    reach = math.sqrt(-math.log(negligible) / (2 * math.pi**2)) / crystal.widths.amin(-1)  # (n,) [1/px]
    order = int((reach[:, None] * crystal.cell.norm(dim=-1)).max().ceil())
    h, k = torch.meshgrid(torch.arange(-order, order + 1), torch.arange(0, order + 1), indexing="ij")
    indices = torch.stack([h, k], -1).reshape(-1, 2)
    half = (indices[:, 1] > 0) | (indices[:, 0] > 0)  # the other half is its complex conjugate
    vectors = indices[half].to(crystal.cell) @ reciprocal  # (n, g, 2)
    squared = (vectors**2).sum(-1)
    # The strongest waves by their envelope: the sums over columns below are then done for these only.
    envelope = torch.where(squared <= reach[:, None] ** 2, -squared, -torch.inf)
    kept = int((envelope > -torch.inf).sum(-1).max())
    chosen = envelope.topk(min(kept, most or kept), dim=-1).indices
    vectors = torch.gather(vectors, 1, chosen[..., None].expand(-1, -1, 2))
    squared = torch.gather(squared, 1, chosen)
    variance = crystal.widths[:, None] ** 2  # (n, 1, c)
    mass = crystal.weights[:, None] * 2 * math.pi * variance
    size = mass * torch.exp(-2 * math.pi**2 * variance * squared[..., None])
    turns = -(vectors @ crystal.columns.mT)  # (n, g, c)
    angle = 2 * math.pi * torch.remainder(turns, 1.0)
    real, imaginary = (size * angle.cos()).sum(-1), (size * angle.sin()).sum(-1)
    inside = squared <= reach[:, None] ** 2
    amplitude = torch.where(inside, 2 * torch.hypot(real, imaginary) / area[:, None], 0.0)
    return Waves(vectors, amplitude, torch.atan2(imaginary, real) / (2 * math.pi)), mass[:, 0].sum(-1) / area


def cell_extremes(waves: Waves, cell: Tensor, *, samples: int = 40) -> tuple[Tensor, Tensor]:
    """Lowest and highest value (n,) of a periodic sum over one cell."""
    columns = cell.mT / samples
    across = torch.zeros(len(cell), 3, 3, dtype=cell.dtype, device=cell.device)
    across[:, :2, :2], across[:, 2, 2] = columns, 1
    values = waves.on_grid(ScanGrid(across, (samples, samples)), torch.float32).flatten(1).double()
    return values.amin(-1), values.amax(-1)


def _splat(
    grid: ScanGrid, y: Tensor, x: Tensor, height: Tensor, width: Tensor, reach: float, dtype: torch.dtype
) -> Tensor:
    """Gaussians (n, d) at specimen points, each evaluated in a square of pixels around its place, (n, y, x)."""
    n, count = y.shape
    rows, columns = grid.shape
    frame_from_specimen = invert(grid.specimen_from_frame)
    slack = (
        2 if grid.row_offset is None else 4
    )  # scan lines may sit off their place; beyond `reach` all is cut to 0 anyway
    half = min(
        math.ceil(reach * float((width * _largest_stretch(frame_from_specimen)[:, None]).max())) + slack,
        max(grid.shape),
    )
    place = apply_affine(frame_from_specimen[:, None], torch.stack([y, x], -1))  # (n, d, 2)
    corner = place.round().long() - half
    steps = torch.arange(2 * half + 1, device=grid.device)
    row, column = corner[..., 0, None] + steps, corner[..., 1, None] + steps  # (n, d, s)
    row_seen, column_seen = (row >= 0) & (row < rows), (column >= 0) & (column < columns)
    row, column = row.clamp(0, rows - 1), column.clamp(0, columns - 1)
    matrix = grid.specimen_from_frame[:, None, :2, :2]
    by_row = (row.double() - place[..., 0, None])[..., None] * matrix[..., :, 0].unsqueeze(-2)  # (n, d, s, 2)
    if grid.row_offset is not None:
        shift = torch.gather(
            grid.row_offset.double()[:, None].expand(n, count, -1, 2), 2, row[..., None].expand(-1, -1, -1, 2)
        )
        by_row = by_row + shift @ matrix.mT
    by_column = (column.double() - place[..., 1, None])[..., None] * matrix[..., :, 1].unsqueeze(-2)
    by_row, by_column = by_row.to(dtype), by_column.to(dtype)
    squared = ((by_row[:, :, :, None] + by_column[:, :, None]) ** 2).sum(-1)  # (n, d, s, s)
    value = height.to(dtype)[..., None, None] * _gaussian(squared, width.to(dtype)[..., None, None], reach)
    value = value * (row_seen[..., :, None] & column_seen[..., None, :])
    index = (torch.arange(n, device=grid.device)[:, None, None, None] * rows + row[..., :, None]) * columns + column[
        ..., None, :
    ]
    image = torch.zeros(n * rows * columns, dtype=dtype, device=grid.device)
    return image.index_add_(0, index.reshape(-1), value.reshape(-1)).reshape(n, rows, columns)


def _largest_stretch(affine: Tensor) -> Tensor:
    """Largest singular value (n,) of the 2×2 part."""
    (a, b), (c, d) = (row.unbind(-1) for row in affine[:, :2, :2].unbind(1))
    return (torch.hypot(a + d, b - c) + torch.hypot(a - d, b + c)) / 2


def _gaussian(squared: Tensor, width: Tensor, reach: float) -> Tensor:
    value = torch.exp(squared * (-0.5 / width**2))
    return torch.where(value >= math.exp(-(reach**2) / 2), value, 0.0)


def _columns(defects: Tensor) -> list[tuple[Tensor, ...]]:
    return [tuple(v[:, None, None] for v in defect.unbind(-1)) for defect in defects.unbind(1)]


def _plane(points: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    """normal·q − offset, (n, y, x)."""
    normal = normal[:, None, None]
    return points[..., 0] * normal[..., 0] + points[..., 1] * normal[..., 1] - offset[:, None, None]


def _beyond(points: Tensor, plane: Tensor) -> Tensor:
    """Signed distance beyond a border (n, 4), in its widths."""
    plane = plane.to(points)
    return _plane(points, plane[:, :2] / plane[:, 3:], plane[:, 2] / plane[:, 3])


def _inside(points: Tensor, planes: Tensor) -> Tensor:
    """Product of smooth steps, 1 where points lie inside all borders (n, f, 4)."""
    inside = points.new_ones(()).expand(points.shape[:-1])
    for plane in planes.unbind(1):
        inside = inside * torch.sigmoid(-_beyond(points, plane))
    return inside


def _reduced(turns: Tensor, dtype: torch.dtype) -> Tensor:
    """Angles [rad] of turns, reduced to one turn before precision is dropped."""
    return (turns - turns.round()).to(dtype) * (2 * math.pi)


def _cos_turns(turns: Tensor, dtype: torch.dtype) -> Tensor:
    return _reduced(turns, dtype).cos()


def _bmv(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.to(matrix.dtype)[..., None])[..., 0]


def _mapped(item, change):
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, tuple):
        return tuple(_mapped(i, change) for i in item)
    return replace(item, **{f.name: _mapped(getattr(item, f.name), change) for f in fields(item)})
