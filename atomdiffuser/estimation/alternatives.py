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

from atomdiffuser.estimation.fit_frames import FitGrid
from atomdiffuser.estimation.joint_fit import NearbyFits
from atomdiffuser.estimation.spectrum import ImageScales, lattice_noise_energy
from atomdiffuser.interpolation import filter_separable, gaussian_kernel, smooth


def log_odds(fits: NearbyFits, grid: FitGrid, scales: ImageScales) -> Tensor:
    """How much likelier each of the fits of a pair is than the first of them.

    Parameters
    ----------
    fits
        Of `count` candidates for each of n pairs.
    grid, scales
        Of the samples, and of the images.

    Returns
    -------
    (n, count) log odds: 0 for the first, −inf for candidates that share nothing with it.
    """
    count = fits.weight.shape[1]
    group = lambda t: t.unflatten(0, (-1, count))
    misfit, weights = fits.residual.flatten(0, 1), fits.weight.flatten(0, 1)
    seen = (weights > 0).float()
    base = scales.base_px / grid.stride
    width = max(scales.filter_px, float(grid.stride)) / grid.stride  # of the matched filter
    more = max(width**2 - grid.filter_width**2, 0.0) ** 0.5
    matched = smooth(misfit * seen, more) if more > 0.3 else misfit * seen
    local_mean = smooth(matched, base) / smooth(seen, base).clamp_min(1e-3)
    residual, weight = group((matched - local_mean) * weights.sqrt()), group(weights)
    common = ((weight > 0) & (weight[:, :1] > 0)).float()  # each is judged against the first on the pixels both see
    excess = (common * (residual**2 - residual[:, :1] ** 2)).sum((-2, -1)).double()
    kernel = gaussian_kernel(width)
    difference = (common * (residual - residual[:, :1])).flatten(0, 1)
    spread = 4 * filter_separable(difference, kernel, kernel).unflatten(0, (-1, count)).square().sum((-2, -1)).double()
    noise = lattice_noise_energy(ImageScales(width, base, None)) * common.sum((-2, -1)).double()
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
