"""Crystals seen along a zone axis: two lattice vectors and the atomic columns of one cell.

A column's weight goes with Z^1.7 times its atoms per length, as in annular dark field (Pennycook 1989,
doi:10.1016/0304-3991(89)90173-3, gives Z² softened by screening); light atoms that this makes invisible (Li, and O in
LLZO) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.errors import SettingsError
from atomdiffuser.simulation.randomness import Draws

ATOMIC_NUMBER = {"C": 6, "O": 8, "Si": 14, "Ti": 22, "Sr": 38, "Zr": 40, "La": 57, "Au": 79}
Z_EXPONENT = 1.7
COLUMN_WIDTH_NM = 0.045
"""Standard deviation of a column's image: probe of about 0.08 nm FWHM, source size and thermal motion together."""

FACE_CENTRES = ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
BODY_CENTRES = ((0, 0, 0), (0.5, 0.5, 0.5))
GARNET_16A = ((0, 0, 0), (0.5, 0, 0.5), (0, 0.5, 0.5), (0.5, 0.5, 0),
              (0.75, 0.25, 0.25), (0.75, 0.75, 0.75), (0.25, 0.25, 0.75), (0.25, 0.75, 0.25))  # fmt: skip
GARNET_24C = ((0.125, 0, 0.25), (0.375, 0, 0.75), (0.25, 0.125, 0), (0.75, 0.375, 0),
              (0, 0.25, 0.125), (0, 0.75, 0.375), (0.875, 0, 0.75), (0.625, 0, 0.25),
              (0.75, 0.875, 0), (0.25, 0.625, 0), (0, 0.75, 0.875), (0, 0.25, 0.625))  # fmt: skip


@dataclass(frozen=True)
class Crystal:
    """One crystal along one zone axis.

    Attributes
    ----------
    cell_nm
        (2, 2) rows: the two shortest lattice vectors of the projection, (y, x) [nm].
    columns_nm, weights
        (c, 2) positions (y, x) [nm] and (c,) relative heights of the columns of one cell.
    width_nm
        Standard deviation of a column [nm].
    """

    name: str
    cell_nm: np.ndarray
    columns_nm: np.ndarray
    weights: np.ndarray
    width_nm: float = COLUMN_WIDTH_NM
    background: float = 0.35  # of the brightest column, under everything: diffuse scattering between the columns


@dataclass(frozen=True)
class _Cubic:
    """Lattice constant, lattice points and atoms of a cubic crystal, and the axes that lie along −y and x."""

    lattice_nm: float
    centring: tuple
    atoms: tuple[tuple[str, tuple], ...]
    up: tuple[int, int, int]
    right: tuple[int, int, int]


_CUBIC = {
    # Abramov et al. 1995, doi:10.1107/S0108768195003752
    "SrTiO3": _Cubic(0.3905, ((0, 0, 0),), (("Sr", ((0, 0, 0),)), ("Ti", ((0.5, 0.5, 0.5),)),
                     ("O", ((0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)))), (1, 0, 0), (0, 1, 0)),
    # CODATA 2018 lattice parameter of silicon
    "Si": _Cubic(0.54310, FACE_CENTRES, (("Si", ((0, 0, 0), (0.25, 0.25, 0.25))),), (0, 0, 1), (1, -1, 0)),
    # Awaka et al. 2011, doi:10.1246/cl.2011.60; Ia-3d, Zr on 16a, La on 24c
    "LLZO[100]": _Cubic(1.29827, BODY_CENTRES, (("Zr", GARNET_16A), ("La", GARNET_24C)), (0, 1, 0), (0, 0, 1)),
    "LLZO[111]": _Cubic(1.29827, BODY_CENTRES, (("Zr", GARNET_16A), ("La", GARNET_24C)), (1, -1, 0), (1, 1, -2)),
    # Maeland & Flanagan 1964, doi:10.1139/p64-213
    "Au[110]": _Cubic(0.40786, FACE_CENTRES, (("Au", ((0, 0, 0),)),), (0, 0, 1), (1, -1, 0)),
}  # fmt: skip
_WIDTHS_NM = {"Si": 0.036, "graphene": 0.040}

CRYSTALS = (*_CUBIC, "graphene")
"""Names that `named_crystal` knows."""


@cache
def named_crystal(name: str) -> Crystal:
    """A crystal with literature lattice constants, along the zone axis its name gives ([001] SrTiO3, [110] Si)."""
    if name == "graphene":
        a = 0.2461  # Trucano & Chen 1975, doi:10.1038/258136a0
        cell = a * np.array([[0.0, 1.0], [np.sqrt(3) / 2, 0.5]])
        columns = np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]]) @ cell
        return Crystal(name, cell, columns, np.ones(2), _WIDTHS_NM[name], background=0.15)
    if name not in _CUBIC:
        raise SettingsError(f"crystal {name!r} is not known; known are {', '.join(CRYSTALS)}")
    crystal = _CUBIC[name]
    cell, columns, weights = _project(crystal)
    return Crystal(name, cell, columns, weights / weights.max(), _WIDTHS_NM.get(name, COLUMN_WIDTH_NM))


@dataclass(frozen=True)
class CrystalBatch:
    """Crystals in pixels, n of them, motifs padded with columns of weight zero.

    Attributes
    ----------
    cell
        (n, 2, 2) rows: reduced lattice vectors (y, x) [px].
    columns, weights, widths
        (n, c, 2) positions [px], (n, c) peak heights, (n, c) standard deviations [px].
    background
        (n,) level under everything, in units of the brightest column.
    """

    cell: Tensor
    columns: Tensor
    weights: Tensor
    widths: Tensor
    background: Tensor

    def turned(self, angle: Tensor, shift: Tensor) -> CrystalBatch:
        """The crystals turned by `angle` (n,) [rad], y towards x, and moved by `shift` (n, 2) [px]."""
        turn = rotation(angle)
        columns = self.columns @ turn.mT + shift[:, None]
        return CrystalBatch(self.cell @ turn.mT, columns, self.weights, self.widths, self.background)


def rotation(angle: Tensor) -> Tensor:
    """(n, 2, 2) matrices that turn (y, x) points by `angle` [rad], y towards x, as geometry counts it."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def crystals_in_pixels(names: list[str], pixel_size_nm: Tensor, blur_nm: Tensor | float = 0.0) -> CrystalBatch:
    """Named crystals on scan steps `pixel_size_nm` (n, 2); columns take the blur in quadrature."""
    crystals = [named_crystal(name) for name in names]
    most = max(len(c.weights) for c in crystals)
    columns = torch.stack([torch.tensor(np.pad(c.columns_nm, ((0, most - len(c.weights)), (0, 0)))) for c in crystals])
    weights = torch.stack([torch.tensor(np.pad(c.weights, (0, most - len(c.weights)))) for c in crystals])
    width_nm = torch.tensor([c.width_nm for c in crystals], dtype=torch.float64)
    width_nm = (width_nm**2 + torch.as_tensor(blur_nm, dtype=torch.float64) ** 2).sqrt()
    cell = torch.stack([torch.tensor(c.cell_nm) for c in crystals]) / pixel_size_nm[:, None]
    widths = (width_nm / pixel_size_nm.prod(-1).sqrt())[:, None].expand(-1, most)
    background = torch.tensor([c.background for c in crystals], dtype=torch.float64)
    return CrystalBatch(cell, columns / pixel_size_nm[:, None], weights, widths, background)


def random_crystals(
    draws: Draws,
    *,
    period_px: tuple[float, float],
    relative_width: tuple[float, float],
    background: tuple[float, float],
) -> CrystalBatch:
    """One of the five Bravais lattices per sample, with one to four random columns in its cell.

    Vectors are the reduced pair: |a| ≤ |b| and 0 ≤ a·b ≤ |a|²/2.
    """
    n = draws.n
    kind = draws.integers("bravais", 5)  # oblique, rectangular, centred rectangular, square, hexagonal
    a = draws.log_uniform("period", *period_px)
    ratio = draws.uniform("axial ratio", 1.0, 1.8)
    right, sixty = (
        torch.full((n,), torch.pi / 2, dtype=torch.float64),
        torch.full((n,), torch.pi / 3, dtype=torch.float64),
    )
    one = torch.ones(n, dtype=torch.float64)
    b = a * torch.stack([ratio, ratio, one, one, one])[kind, torch.arange(n)]
    skew = torch.acos(draws.uniform("skew", 0.08, 0.92) * a / (2 * b))  # b stays the shortest way to its row
    angle = torch.stack([skew, right, skew, right, sixty])[kind, torch.arange(n)]
    zero = torch.zeros_like(a)
    cell = torch.stack([torch.stack([zero, a], -1), torch.stack([b * angle.sin(), b * angle.cos()], -1)], -2)
    columns = draws.uniform("motif", 0.0, 1.0, 4, 2) @ cell
    weights = draws.log_uniform("weights", 0.15, 1.0, 4)
    weights = torch.where(torch.arange(4) <= draws.integers("columns", 4)[:, None], weights, 0.0)
    widths = a[:, None] * draws.uniform("width", *relative_width, 1) * draws.uniform("widths", 0.9, 1.1, 4)
    weights = weights / weights.amax(-1, keepdim=True)
    return CrystalBatch(cell, columns, weights, widths.clamp_min(0.9), draws.uniform("background", *background))


def _project(crystal: _Cubic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell (2, 2), columns (c, 2) and weights (c,) of a cubic crystal along the axis across `up` and `right`."""
    frame = np.stack(
        [-np.array(crystal.up) / np.linalg.norm(crystal.up), np.array(crystal.right) / np.linalg.norm(crystal.right)]
    )
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    lattice = ((steps + np.array(crystal.centring)).reshape(-1, 3) @ frame.T) * crystal.lattice_nm
    cell = _shortest_pair(lattice)
    columns, weights = [], []
    for element, positions in crystal.atoms:
        for position in positions:
            columns.append(np.array(position) @ frame.T * crystal.lattice_nm)
            weights.append(ATOMIC_NUMBER[element] ** Z_EXPONENT)
    columns, weights = _merged(np.array(columns), np.array(weights), cell)
    # A projection can repeat more finely than the lattice it comes from.
    finer = [d for d in columns - columns[0] if _repeats(columns, weights, cell, d)]
    if len(finer) > 1:
        steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 2, indexing="ij"), -1).reshape(-1, 2) @ cell
        cell = _shortest_pair((np.array(finer)[:, None] + steps).reshape(-1, 2))
        columns, weights = _merged(columns, weights / len(finer), cell)
    return cell, columns, weights


def _shortest_pair(lattice: np.ndarray) -> np.ndarray:
    """The two shortest independent vectors, 60° to 90° apart."""
    lattice = lattice[np.argsort(np.round(np.linalg.norm(lattice, axis=1), 9), kind="stable")]
    lattice = lattice[np.linalg.norm(lattice, axis=1) > 1e-6]
    first = lattice[0]
    across = np.abs(first[0] * lattice[:, 1] - first[1] * lattice[:, 0])
    second = lattice[np.argmax(across > 1e-6 * first @ first)]
    return np.stack([first, second if first @ second >= 0 else -second])


def _merged(columns: np.ndarray, weights: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns that coincide modulo the cell become one."""
    keys = np.round(columns @ np.linalg.inv(cell) * 1e4).astype(int) % 10000
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    return (unique / 1e4) @ cell, np.bincount(inverse.ravel(), weights)


def _repeats(columns: np.ndarray, weights: np.ndarray, cell: np.ndarray, shift: np.ndarray) -> bool:
    for column, weight in zip(columns, weights, strict=True):
        offset = (columns - column - shift) @ np.linalg.inv(cell)
        distance = np.linalg.norm((offset - np.round(offset)) @ cell, axis=1)
        if not np.any((distance < 1e-3) & np.isclose(weights, weight)):
            return False
    return True
