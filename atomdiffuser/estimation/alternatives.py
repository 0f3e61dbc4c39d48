"""Which of several registrations of one pair is right: the odds between lattice-equivalent fits.

On a lattice a pair has several good fits, a lattice vector apart. They differ where the specimen is not periodic. Let
r be the residual of a fit in units of its own noise (a candidate that meets a darker, so quieter, or more decayed
part of the moving frame must gain nothing by that). For two fits a and b the statistic Δ = Σ (r_b² − r_a²) has
expectation ±Σ d² (d = r_b − r_a without its noise) and standard deviation s = 2·√(dᵀ V d), V the correlation of the
filtered noise. A test between two Gaussians at ±m with deviation s has log odds 2mΔ/s²; with m² estimated by Δ² − s²
(1 + 2 log k) nothing is read into a difference that noise explains, the largest of k.

Residuals are freed of their local mean first: decay that the smooth fields cannot follow (a receding edge) must not
decide where the lattice lies. What misfit remains beyond noise widens s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atomdiffuser.estimation.cells import CellGrid
from atomdiffuser.estimation.spectrum import ImageScales, lattice_noise_energy
from atomdiffuser.interpolation import smooth


def log_odds(residual: Tensor, weight: Tensor, grid: CellGrid, scales: ImageScales, *, among: int) -> Tensor:
    """How much likelier each of several fits of a pair is than the first of them.

    Parameters
    ----------
    residual, weight
        (n, k, Y', X') misfit and inverse variance of each of the k fits.
    grid
        Where they are.
    scales
        Of the images; the matched filter correlates the noise of neighbouring cells.
    among
        Candidates that there were to begin with.

    Returns
    -------
    (n, k) log odds: 0 for the first, −inf for candidates that share nothing with it.
    """
    seen = (weight > 0).float()
    width = scales.base_px * grid.share**0.5
    blur = lambda images: smooth(images.flatten(0, 1), width).reshape(images.shape)
    residual = (residual - blur(residual * seen) / blur(seen).clamp_min(1e-3)) * weight.sqrt()
    common = seen * seen[:, :1]  # each is judged against the first on the cells both see
    first, square = residual[:, :1], residual**2
    total = lambda images: images.sum((-2, -1)).double()
    excess = total(common * (square - square[:, :1]))
    difference = common * (residual - first)
    spread = 4 * total(difference * grid.noise(scales.filter_px).correlate(difference)).clamp_min(0)
    scatter = total(common * square[:, :1]) / (lattice_noise_energy(scales) * total(common)).clamp_min(1e-30)
    spread = spread * scatter.clamp_min(1.0)
    gain = (excess**2 - (1 + 2 * math.log(among)) * spread).clamp_min(0).sqrt()
    odds = -2 * gain * excess / spread.clamp_min(1e-30)
    odds[:, 0] = 0.0
    return torch.where(total(common) > 0, odds, -torch.inf)


def hop_probability(log_odds: Tensor, chosen: Tensor) -> Tensor:
    """Probability (n,) that another candidate than `chosen` (n,) is the right one, from log odds (n, count)."""
    posterior = torch.softmax(log_odds, dim=1)
    rows = torch.arange(len(chosen), device=chosen.device)
    return 1 - posterior[rows, chosen]
