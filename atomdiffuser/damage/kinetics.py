"""Decay curves against fluence or time: exponential fit, critical fluence with its interval, lower bounds.

The curve is S·exp(−r·x), r signed: a signal may also grow. The interval of r is where the profile of χ² rises by the F
quantile; σ is widened where the scatter exceeds it (Birge, Phys. Rev. 40, 207, 1932), for example by a fluctuating
beam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special

CONFIDENCE = 0.95
MIN_FRAMES = 3


@dataclass(frozen=True)
class KineticsFit:
    """One decay curve.

    Attributes
    ----------
    model
        "exponential", "constant" (AICc prefers no change) or "none" (too few points).
    rate, rate_lo95, rate_hi95
        r per unit of x; negative for growth.
    critical_fluence, critical_fluence_lo95, critical_fluence_hi95
        1/r and its interval in units of x (inf where unbounded). With `lower_bound` the first two are the one-sided
        95 % lower bound.
    lower_bound
        The series does not fix the critical fluence.
    aicc, aicc_constant, p_value
        Of the exponential, of the constant, and of the F test between them.
    """

    model: str
    rate: float
    rate_lo95: float
    rate_hi95: float
    critical_fluence: float
    critical_fluence_lo95: float
    critical_fluence_hi95: float
    lower_bound: bool
    aicc: float
    aicc_constant: float
    p_value: float
    span: float
    n_frames: int


def fit_exponential(
    x: np.ndarray, y: np.ndarray, sigma: np.ndarray, *, min_span_of_critical: float = 0.3
) -> KineticsFit:
    """Fit a decay curve.

    Parameters
    ----------
    x
        (n,) fluence or time.
    y, sigma
        (n,) signal and its 1 σ; points that are not finite are left out.
    min_span_of_critical
        Share of the fitted critical fluence that x must span for a number rather than a bound.
    """
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(sigma) & (sigma > 0)
    x, y, sigma = (np.asarray(v, float)[good] for v in (x, y, sigma))
    n = len(x)
    span = float(np.ptp(x)) if n else 0.0
    if n < MIN_FRAMES or span == 0:
        nan = math.nan
        return KineticsFit("none", nan, nan, nan, 0.0, 0.0, math.inf, True, nan, nan, nan, span, n)
    u = (x - x[0]) / span
    cost = lambda r: _cost(r, u, y, sigma)
    rate = _best_rate(cost)
    best, flat = cost(rate), cost(0.0)
    freedom = n - 2
    scatter = max(1.0, best / freedom)
    p_value = float(scipy.special.fdtrc(1, freedom, max((flat - best) / scatter, 0.0)))
    two_sided = scatter * scipy.special.stdtrit(freedom, (1 + CONFIDENCE) / 2) ** 2
    one_sided = scatter * scipy.special.stdtrit(freedom, CONFIDENCE) ** 2
    low, high = _crossing(cost, rate, best + two_sided, -1), _crossing(cost, rate, best + two_sided, +1)
    correct = n > 3  # with three points the correction is infinite for either; plain AIC is left
    aicc, aicc_constant = _aic(best / scatter, 2, n, correct), _aic(flat / scatter, 1, n, correct)
    critical = lambda r: span / r if r > 0 else math.inf
    fixed = low > 0 and span >= min_span_of_critical * critical(rate)
    bound = critical(_crossing(cost, rate, best + one_sided, +1))
    return KineticsFit(
        model="exponential" if aicc < aicc_constant else "constant",
        rate=rate / span,
        rate_lo95=low / span,
        rate_hi95=high / span,
        critical_fluence=critical(rate) if fixed else bound,
        critical_fluence_lo95=critical(high) if fixed else bound,
        critical_fluence_hi95=critical(low) if fixed else math.inf,
        lower_bound=not fixed,
        aicc=aicc,
        aicc_constant=aicc_constant,
        p_value=p_value,
        span=span,
        n_frames=n,
    )


def onset_frame(ratio: np.ndarray, sigma: np.ndarray, frames: np.ndarray, level: float = 0.05) -> int:
    """First frame whose ratio differs from 1, or −1.

    Holm's correction over the frames (Scand. J. Stat. 6, 65, 1979) keeps the chance of any false one at `level`.
    """
    good = np.isfinite(ratio) & np.isfinite(sigma) & (sigma > 0)
    if not good.any():
        return -1
    p = 2 * scipy.special.ndtr(-np.abs(ratio[good] - 1) / sigma[good])
    order = np.argsort(p)
    passed = p[order] <= level / (len(p) - np.arange(len(p)))
    rejected = order[: int(np.argmin(passed)) if not passed.all() else len(p)]
    return int(frames[good][rejected].min()) if len(rejected) else -1


def _cost(rate: float, u: np.ndarray, y: np.ndarray, sigma: np.ndarray) -> float:
    """χ² with the amplitude at its best value."""
    curve = np.exp(np.clip(-rate * u, -60, 60)) / sigma
    amplitude = (curve * y / sigma).sum() / (curve * curve).sum()
    return float(((y / sigma - amplitude * curve) ** 2).sum())


def _best_rate(cost) -> float:
    grid = np.concatenate([-np.geomspace(20, 1e-3, 40), [0.0], np.geomspace(1e-3, 50, 60)])
    k = int(np.argmin([cost(r) for r in grid]))
    low, high = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
    return float(scipy.optimize.minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).x)


def _crossing(cost, start: float, level: float, direction: int) -> float:
    """Where the profile rises through `level` on one side of the best rate; ±inf where it never does."""
    step = 1e-4
    inner = start
    while step < 1e4:
        outer = start + direction * step
        if cost(outer) > level:
            return float(scipy.optimize.brentq(lambda r: cost(r) - level, *sorted((inner, outer)), xtol=1e-12))
        inner, step = outer, step * 1.5
    return direction * math.inf


def _aic(chi2: float, k: int, n: int, correct: bool) -> float:
    return chi2 + 2 * k + (2 * k * (k + 1) / (n - k - 1) if correct else 0.0)
