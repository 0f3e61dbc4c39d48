"""Which of several registrations of one pair is right: the odds between lattice-equivalent fits.

On a lattice a pair has several good fits, a lattice vector apart. They differ where the specimen is not periodic. For two
fits a and b with residuals r_a, r_b and weights w, the statistic Δ = Σ w (r_b² − r_a²) has expectation ±Σ w d²
(d = r_b − r_a without its noise) and standard deviation s = 2·√(dᵀ w V w d), V the covariance of the filtered noise. A test
between two Gaussians at ±m with deviation s has log odds 2mΔ/s²; with m estimated by |Δ| this gives 2Δ²/s².
"""

from __future__ import annotations

import torch
from torch import Tensor

from atomdiffuser.estimation.joint_fit import PairFit
from atomdiffuser.interpolation import filter_separable, gaussian_kernel


def log_odds_against(fits: PairFit, count: int, filter_px: float) -> Tensor:
    """How much worse each of `count` fits of a pair is than the best of them.

    Parameters
    ----------
    fits
        Fits of n·count candidates, the candidates of one pair next to each other.
    count
        Candidates per pair.
    filter_px
        σ of the matched filter, which correlates the noise of neighbouring pixels.

    Returns
    -------
    (n, count) log odds of the candidate against the best one: 0 for the best, negative for the others.
    """
    group = lambda t: t.unflatten(0, (-1, count))
    residual, weight = group(fits.residual), group(fits.weight)
    common = torch.where((weight > 0).all(1), weight.amin(1), 0.0)  # judged on the pixels that all candidates see
    cost = (common[:, None] * residual**2).sum((-2, -1)).double()
    cost = torch.where(group(fits.overlap) > 0, cost, torch.inf)
    best = cost.argmin(1)
    rows = torch.arange(len(best), device=best.device)
    difference = residual - residual[rows, best][:, None]
    kernel = gaussian_kernel(filter_px)
    pushed = filter_separable((common[:, None] * difference).flatten(0, 1), kernel, kernel).unflatten(0, (-1, count))
    variance = 1 / common.clamp_min(1e-30)
    spread = 4 * (torch.where((common > 0)[:, None], variance[:, None], 0.0) * pushed**2).sum((-2, -1)).double()
    excess = cost - cost[rows, best][:, None]
    odds = -2 * excess**2 / spread.clamp_min(1e-30)
    odds[rows, best] = 0.0
    return torch.where(torch.isfinite(excess), odds, -torch.inf)


def hop_probability(log_odds: Tensor, chosen: Tensor) -> Tensor:
    """Probability (n,) that another candidate than `chosen` (n,) is the right one, from log odds (n, count)."""
    posterior = torch.softmax(log_odds, dim=1)
    rows = torch.arange(len(chosen), device=chosen.device)
    return 1 - posterior[rows, chosen]
