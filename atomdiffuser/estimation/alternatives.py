"""Which of several registrations of one pair is right: the odds between lattice-equivalent fits.

On a lattice a pair has several good fits, a lattice vector apart. They differ where the specimen is not periodic. Let
r be the residual of a fit in units of its own noise (a candidate that meets a darker, so quieter, or more decayed
part of the moving frame must gain nothing by that). For two fits a and b the statistic Δ = Σ (r_b² − r_a²) has
expectation ±Σ d² (d = r_b − r_a without its noise) and standard deviation s = 2·√(dᵀ V d), V the correlation of the
filtered noise. A test between two Gaussians at ±m with deviation s has log odds 2mΔ/s²; with m² estimated by Δ² − s²
(1 + log k) nothing is read into a difference that noise explains, among k candidates.

Residuals are freed of their local mean first: decay that the smooth fields cannot follow (a receding edge) must not
decide where the lattice lies. What misfit remains beyond noise widens s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atomdiffuser.estimation.joint_fit import PairFit
from atomdiffuser.estimation.spectrum import ImageScales, lattice_noise_energy
from atomdiffuser.interpolation import filter_separable, gaussian_kernel, smooth


def log_odds(fits: PairFit, count: int, scales: ImageScales) -> Tensor:
    """How much likelier each of `count` fits of a pair is than the first of them.

    Parameters
    ----------
    fits
        Fits of n·count candidates, the candidates of one pair next to each other.
    count
        Candidates per pair.
    scales
        Of the images; the matched filter correlates the noise of neighbouring pixels.

    Returns
    -------
    (n, count) log odds: 0 for the first, −inf for candidates that share nothing with it.
    """
    group = lambda t: t.unflatten(0, (-1, count))
    seen = (fits.weight > 0).float()
    local_mean = smooth(fits.residual * seen, scales.base_px) / smooth(seen, scales.base_px).clamp_min(1e-3)
    residual, weight = group((fits.residual - local_mean) * fits.weight.sqrt()), group(fits.weight)
    common = ((weight > 0) & (weight[:, :1] > 0)).float()  # each is judged against the first on the pixels both see
    excess = (common * (residual**2 - residual[:, :1] ** 2)).sum((-2, -1)).double()
    kernel = gaussian_kernel(scales.filter_px)
    difference = (common * (residual - residual[:, :1])).flatten(0, 1)
    spread = 4 * filter_separable(difference, kernel, kernel).unflatten(0, (-1, count)).square().sum((-2, -1)).double()
    noise = lattice_noise_energy(scales) * common.sum((-2, -1)).double()
    scatter = (common * residual[:, :1] ** 2).sum((-2, -1)).double() / noise.clamp_min(1e-30)
    spread = spread * scatter.clamp_min(1.0)
    expected = (excess**2 - (1 + math.log(count)) * spread).clamp_min(0).sqrt()
    odds = -2 * expected * excess / spread.clamp_min(1e-30)
    odds[:, 0] = 0.0
    return torch.where(common.sum((-2, -1)) > 0, odds, -torch.inf)


def hop_probability(log_odds: Tensor, chosen: Tensor) -> Tensor:
    """Probability (n,) that another candidate than `chosen` (n,) is the right one, from log odds (n, count)."""
    posterior = torch.softmax(log_odds, dim=1)
    rows = torch.arange(len(chosen), device=chosen.device)
    return 1 - posterior[rows, chosen]
