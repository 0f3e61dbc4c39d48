"""Regions of the reference frame that damage is reported for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """One region: its name, number, and the bounds [y0, x0, y1, x1) that enclose it [px, reference frame]."""

    name: str
    region_id: int
    bounds_px: tuple[int, int, int, int]


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


def grid_regions(shape: tuple[int, int], grid: tuple[int, int]) -> RegionSet:
    """The whole field (`whole`) and a grid of rows × columns (`grid_<row>_<column>`, counted from 0)."""
    rows, columns = grid
    row_edges, column_edges = (np.linspace(0, n, k + 1).round().astype(int) for n, k in zip(shape, grid, strict=True))
    row_of = np.repeat(np.arange(rows), np.diff(row_edges))
    column_of = np.repeat(np.arange(columns), np.diff(column_edges))
    atoms = row_of[:, None] * columns + column_of[None, :]
    regions = [Region("whole", 0, (0, 0, *shape))]
    for r in range(rows):
        for c in range(columns):
            bounds = (int(row_edges[r]), int(column_edges[c]), int(row_edges[r + 1]), int(column_edges[c + 1]))
            regions.append(Region(f"grid_{r}_{c}", len(regions), bounds))
    membership = np.vstack([np.ones(rows * columns, bool), np.eye(rows * columns, dtype=bool)])
    return RegionSet(atoms, tuple(regions), membership)
