"""Regions of the reference frame that damage is reported for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from atomdiffuser.errors import ShapeError

Kind = Literal["whole", "grid", "automatic", "session"]
SMALLEST_BLOCK_PX = 12
MOST_BLOCKS = 1024
BITS = 62  # regions that one key can hold


@dataclass(frozen=True)
class Region:
    """One region: its name, number, and the bounds [y0, x0, y1, x1) that enclose it [px, reference frame].

    `outline_px` is a polygon of (y, x) points where the region was given as one.
    """

    name: str
    region_id: int
    bounds_px: tuple[int, int, int, int]
    kind: Kind = "session"
    outline_px: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True)
class RegionMask:
    """A region as pixels, before it joins others: (Y, X) bool on the reference grid."""

    name: str
    mask: np.ndarray
    kind: Kind = "session"
    outline_px: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True)
class RegionSet:
    """Regions made of atoms, the pieces that their borders cut the frame into.

    Attributes
    ----------
    atoms
        (Y, X) int64, number of the atom that a pixel belongs to, −1 outside all regions.
    regions
        The regions, in the order of reports.
    membership
        (regions, atoms) bool.
    """

    atoms: np.ndarray
    regions: tuple[Region, ...]
    membership: np.ndarray

    def sizes_px(self) -> np.ndarray:
        """(regions,) pixels of each region on the reference grid."""
        inside = self.atoms[self.atoms >= 0]
        return self.membership @ np.bincount(inside, minlength=self.membership.shape[1])

    def mask(self, region: int) -> np.ndarray:
        """(Y, X) bool: the pixels of one region."""
        return np.append(self.membership[region], False)[self.atoms]

    def with_blocks(self, size_px: int) -> RegionSet:
        """The same regions, their atoms cut further by a grid of square blocks.

        Blocks are what noise is judged by: pixels within one may share it, those of different blocks must not, so a
        block is at least a lattice period wide.
        """
        height, width = self.atoms.shape
        size = max(int(size_px), math.ceil(math.sqrt(height * width / MOST_BLOCKS)))
        rows, columns = (np.arange(n) // size for n in (height, width))
        block = rows[:, None] * (int(columns.max()) + 1) + columns[None, :]
        inside = self.atoms >= 0
        blocks = int(block[-1, -1]) + 1
        pairs, number = _numbered(self.atoms[inside] * blocks + block[inside])
        atoms = np.full_like(self.atoms, -1)
        atoms[inside] = number
        return replace(self, atoms=atoms, membership=self.membership[:, pairs // blocks])


def grid_regions(shape: tuple[int, int], grid: tuple[int, int]) -> RegionSet:
    """The whole field (`whole`) and a grid of rows × columns (`grid_<row>_<column>`, counted from 0)."""
    return join_regions(shape, grid_masks(shape, grid))


def grid_masks(shape: tuple[int, int], grid: tuple[int, int]) -> list[RegionMask]:
    """Masks of the whole field and of a grid."""
    row_edges, column_edges = (np.linspace(0, n, k + 1).round().astype(int) for n, k in zip(shape, grid, strict=True))
    found = [RegionMask("whole", np.ones(shape, bool), "whole")]
    for r in range(grid[0]):
        for c in range(grid[1]):
            mask = np.zeros(shape, bool)
            mask[row_edges[r] : row_edges[r + 1], column_edges[c] : column_edges[c + 1]] = True
            found.append(RegionMask(f"grid_{r}_{c}", mask, "grid"))
    return found


def join_regions(shape: tuple[int, int], masks: Sequence[RegionMask]) -> RegionSet:
    """One set from masks that may overlap; numbers follow their order.

    Raises ShapeError for a mask of another shape, or two regions of one name.
    """
    names = [m.name for m in masks]
    for m in masks:
        if m.mask.shape != tuple(shape):
            raise ShapeError(f"region {m.name!r} has shape {m.mask.shape}, expected the frame's {tuple(shape)}")
        if names.count(m.name) > 1:
            raise ShapeError(f"there are two regions called {m.name!r}; give them different names")
    # Pixels that belong to the same regions share an atom; the first region is the highest bit.
    atoms = np.zeros(shape, np.int64)
    for at in range(0, len(masks), BITS):
        key = np.zeros(shape, np.int64)
        for bit, m in enumerate(masks[at : at + BITS]):
            key |= m.mask.astype(np.int64) << (BITS - 1 - bit)
        key = _numbered(key)[1]
        atoms = _numbered(atoms * (key.max() + 1) + key)[1]
    atoms = atoms.max() - atoms  # descending: those of the first regions come first, pixels outside all come last
    first = np.unique(atoms, return_index=True)[1]
    membership = np.array([m.mask.ravel()[first] for m in masks]).reshape(len(masks), len(first))
    if not membership[:, -1].any():
        atoms = np.where(atoms == len(first) - 1, -1, atoms)
        membership = membership[:, :-1]
    regions = tuple(Region(m.name, i, _bounds(m.mask), m.kind, m.outline_px) for i, m in enumerate(masks))
    return RegionSet(atoms, regions, membership)


def block_size_px(period_px: float | None, shape: tuple[int, int]) -> int:
    """Side of the blocks that noise is judged by: at least a lattice period, and no more blocks than tell something."""
    fewest = math.ceil(math.sqrt(shape[0] * shape[1] / MOST_BLOCKS))
    return max(SMALLEST_BLOCK_PX, math.ceil(period_px or 0.0), fewest)


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in ascending order, and which of them each value is, in the shape of the values."""
    number, distinct = pd.factorize(values.ravel(), sort=True)  # by a table, where np.unique sorts all values
    return distinct, number.reshape(values.shape)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    if not mask.any():
        return 0, 0, 0, 0
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
