"""The beam's fluctuation: what all regions share from frame to frame and no smooth damage explains.

Signal and lattice amplitude both carry the gain of a frame. What is left of the whole field's signal about its own
smooth curve is the gain's fast part. Its slow part cannot be told from uniform loss of mass with one detector; by how
much that may pretend a loss is reported. Lattice over signal is free of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats

from atomdiffuser.damage.curves import N_PARAMETERS, akaike_weights, fit_curves

MIN_FRAMES = 5


@dataclass(frozen=True)
class Gain:
    """Per frame (t,): `factor` about the smooth curve and its `sigma`; NaN where a frame was not used.

    `scatter` is the 1 σ of the beam beyond noise, relative; 0 where noise explains all.
    """

    factor: np.ndarray
    sigma: np.ndarray
    scatter: float

    def ambiguity_percent(self, x: np.ndarray) -> float:
        """1 σ of the loss at the last frame that a random beam of this scatter may pretend [%]."""
        x = np.asarray(x, float)[np.isfinite(self.factor)]
        spread = ((x - x.mean()) ** 2).sum() if len(x) > 1 else 0.0
        return float(100 * self.scatter * np.ptp(x) / np.sqrt(spread)) if spread > 0 else 0.0


def estimate_gain(x: np.ndarray, signal: np.ndarray, sigma: np.ndarray) -> Gain:
    """Gain from the whole field's signal (t,) against fluence (t,); not finite where a frame was not used."""
    good = np.isfinite(x) & np.isfinite(signal) & np.isfinite(sigma) & (sigma > 0) & (signal > 0)
    factor, spread = np.full(len(x), np.nan), np.full(len(x), np.nan)
    factor[good], spread[good] = 1.0, 0.0
    n = int(good.sum())
    if n < MIN_FRAMES or np.ptp(x[good]) == 0:
        return Gain(factor, spread, 0.0)
    x, y = x[good], signal[good] / signal[good].mean()
    noise = sigma[good] / signal[good].mean()
    second = np.diff(np.log(y), 2)  # of independent factors: 6 times their variance; of a smooth curve: next to nothing
    scatter = np.sqrt(max((second**2).mean() / 6 - (noise**2).mean(), 0.0))
    for _ in range(3):
        total = np.hypot(noise, scatter)
        fits = fit_curves(x, y[None], total)
        aicc, weight = akaike_weights(fits.chi2, n)
        used = weight[:, 0] > 1e-6
        curve = np.tensordot(weight[used, 0], fits.at(x)[used, 0], 1)
        freedom = max(n - float(N_PARAMETERS[int(np.argmin(aicc[:, 0]))]), 1.0)
        residual = y / curve - 1
        scatter = np.sqrt(max((residual**2).sum() / freedom - (noise**2).mean(), 0.0))
    # A variance estimated from few frames is above the noise's half of the time: only what noise cannot explain counts.
    chance = scipy.stats.chi2.sf(((residual / noise) ** 2).sum(), freedom)
    factor[good], spread[good] = y / curve, noise
    return Gain(factor, spread, float(scatter) if chance < 0.05 else 0.0)
