"""Which of several registrations of one pair is right: the odds between lattice-equivalent fits.

On a lattice a pair has several good fits, a lattice vector apart. They differ where the specimen is not periodic. Let
r be the residual of a fit in units of its own noise (a candidate that meets a darker, so quieter, or more decayed
part of the moving frame must gain nothing by that). For two fits a and b the statistic Δ = Σ (r_b² − r_a²) has
expectation ±Σ d² (d = r_b − r_a without its noise) and standard deviation s = 2·√(dᵀ V d), V the correlation of the
filtered noise. A test between two Gaussians at ±m with deviation s has log odds 2mΔ/s²; with m² estimated by Δ² − c·s²,
c the largest of k squared normal numbers to be expected, nothing is read into a difference that noise explains.

Residuals are freed of their local mean first: decay that the smooth fields cannot follow (a receding edge) must not
decide where the lattice lies. What misfit remains beyond noise widens s. A hole that the
fields cannot follow would speak against the fit that sees it: two fits are compared on the part of the reference frame
that both see, and on the part of the moving frame that both look at, and what the two do not agree on does not count.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.compiled import array, compiled_here
from atomdiffuser.estimation.cells import CellGrid
from atomdiffuser.estimation.spectrum import ImageScales, lattice_noise_energy
from atomdiffuser.interpolation import smooth

LEAST_SHARE = 1e-3  # of the cells around, that a local mean is taken from


def log_odds(
    residual: Tensor, weight: Tensor, drift_px: Tensor, grid: CellGrid, scales: ImageScales, *, among: int
) -> Tensor:
    """How much likelier each of several fits of a pair is than the first of them.

    Parameters
    ----------
    residual, weight
        (n, k, Y', X') misfit and inverse variance of each of the k fits.
    drift_px
        (n, k, 2) of the frame's centre.
    grid
        Where the cells are.
    scales
        Of the images; the matched filter correlates the noise of neighbouring cells.
    among
        Candidates that there were to begin with.

    Returns
    -------
    (n, k) log odds: 0 for the first, −inf for candidates that share nothing with it.
    """
    away = drift_px - drift_px[:, :1]
    sums = _by_loops if compiled_here(residual.device) else _by_tensors
    found = sums(residual, weight, away, grid, scales).cpu().numpy()
    in_reference, in_moving = (_odds(found[way], lattice_noise_energy(scales), among) for way in range(2))
    odds = np.where(np.abs(in_reference) < np.abs(in_moving), in_reference, in_moving)
    odds = np.where(np.sign(in_reference) == np.sign(in_moving), odds, 0.0)
    odds[:, 0] = 0.0
    return torch.from_numpy(odds).to(residual.device)


def _odds(sums: np.ndarray, energy: float, among: int) -> np.ndarray:
    """From what `_by_tensors` gives for one of its two ways."""
    own_square, square, own_cells, cells, spread = sums
    with np.errstate(all="ignore"):  # a fit that went astray has no odds
        excess = own_square - square - energy * (own_cells - cells)
        spread = 4 * np.maximum(spread, 0) * np.maximum(square / np.maximum(energy * cells, 1e-30), 1.0)
        gain = np.sqrt(np.maximum(excess**2 - largest_square(among) * spread, 0))
        odds = -2 * gain * excess / np.maximum(spread, 1e-30)
    return np.where((cells > 0) & (own_cells > 0), odds, -np.inf)


def _by_tensors(residual: Tensor, weight: Tensor, away: Tensor, grid: CellGrid, scales: ImageScales) -> Tensor:
    """Sums (2, 5, n, k) over the cells that count for a fit and for the first: squares of both, how many they are, and
    dᵀ V d; once on what both see, once on what both look at.
    """
    seen, noise = (weight > 0).float(), grid.noise(scales.filter_px)
    blur = lambda images: _blurred(images, grid, scales)
    residual = (residual - blur(residual * seen) / blur(seen).clamp_min(LEAST_SHARE)) * weight.sqrt()
    total = lambda images: images.sum((-2, -1)).double()

    def compare(own: Tensor, first: Tensor) -> Tensor:
        """On the cells that count for each, and for the first."""
        difference = own * residual - first * residual[:, :1]
        square, cells = (total(image).expand(residual.shape[:2]) for image in (first * residual[:, :1] ** 2, first))
        spread = total(difference * noise.correlate(difference))
        return torch.stack([total(own * residual**2), square, total(own), cells, spread])

    both = seen * seen[:, :1]
    in_moving = compare(seen * _looked_at(grid, away), seen[:, :1] * _looked_at(grid, -away))
    return torch.stack([compare(both, both), in_moving])


def _by_loops(residual: Tensor, weight: Tensor, away: Tensor, grid: CellGrid, scales: ImageScales) -> Tensor:
    """The same, on a processor."""
    from atomdiffuser.estimation import odds_kernels

    own, inverse = array(residual), array(weight)
    masked, seen = (torch.empty(residual.shape) for _ in range(2))
    every = odds_kernels.seen_part(own, inverse, masked.numpy(), seen.numpy())
    share = np.empty(0, np.float32) if every else array(_blurred(seen, grid, scales))
    mean = array(_blurred(masked, grid, scales))
    odds_kernels.free_of_mean(own, inverse, mean, share, np.float32(LEAST_SHARE), masked.numpy())
    sums = np.zeros((2, 5, *residual.shape[:2]))
    places = (array(t, torch.float64) for t in (grid.rows, grid.columns, away))
    odds_kernels.compare(masked.numpy(), inverse, *places, *grid.noise(scales.filter_px).bands, sums)
    return torch.from_numpy(sums)


def _blurred(images: Tensor, grid: CellGrid, scales: ImageScales) -> Tensor:
    """Local means of images (n, k, Y', X')."""
    return smooth(images.flatten(0, 1), scales.base_px * grid.share**0.5).reshape(images.shape)


@lru_cache
def largest_square(count: int) -> float:
    """Expectation of the largest of `count` squared normal numbers."""
    x = torch.linspace(0, 12, 4001, dtype=torch.float64)
    return float(torch.trapezoid(2 * x * (1 - torch.erf(x / 2**0.5) ** count), x))


def _looked_at(grid: CellGrid, away_px: Tensor) -> Tensor:
    """(n, k, Y', X') 1 where a cell, `away_px` (n, k, 2) from where it is, is in the reference frame too."""
    along = lambda positions, shift: (
        (positions + shift[..., None] >= positions[0] - 1) & (positions + shift[..., None] <= positions[-1] + 1)
    ).float()
    return along(grid.rows, away_px[..., 0])[..., :, None] * along(grid.columns, away_px[..., 1])[..., None, :]


def hop_probability(log_odds: Tensor, chosen: Tensor) -> Tensor:
    """Probability (n,) that another candidate than `chosen` (n,) is the right one, from log odds (n, count)."""
    posterior = torch.softmax(log_odds, dim=1)
    rows = torch.arange(len(chosen), device=chosen.device)
    return 1 - posterior[rows, chosen]
