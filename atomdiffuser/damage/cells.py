"""The course of each cell of a field: the level from which it started, and the curve that it followed.

A cell is a square of a few lattice periods. Its curve is the mean over many shapes (exponential, with a latency,
linear), weighted by how well each follows the cell (Hoeting et al., Statist. Sci. 14, 382, 1999) and by how common it
is near by and in the whole field (empirical Bayes: Efron, Statist. Sci. 29, 285, 2014), so that a cell that was seen
for a few frames only is taken to go on as the others do. All that is common to the cells cancels: a shape that is
a little wrong for all of them does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVEL_PRIOR = 0.4  # 1 σ of the logarithm of a cell's level about the typical one
PRIOR_ROUNDS = 12
STRIP = 0.03  # 1 σ of what a strip of a cell shows, relative to the whole
LOCAL_SHARE, FLAT_SHARE = 0.5, 0.05  # of what is expected of a cell: what its neighbours do, what any might
RATES = np.concatenate([-np.geomspace(1.0, 0.02, 8), [0.0], np.geomspace(0.02, 40.0, 48)])
STARTS = (0.0, 0.1, 0.2, 0.35, 0.5)


@dataclass(frozen=True)
class Courses:
    """Level (cells,) at which each cell started, over the typical one, with the 1 σ of its logarithm; the curve
    (t, cells) that it followed from there, from 1, with its 1 σ.
    """

    level: np.ndarray
    level_sigma: np.ndarray
    curve: np.ndarray
    curve_sigma: np.ndarray


def courses_of_cells(
    found: np.ndarray, expected: np.ndarray, variance: np.ndarray, at: np.ndarray, near: np.ndarray
) -> Courses:
    """Courses of cells from sums (t, cells) of what is found, what the template expects, and the former's variance;
    `near` (cells, cells) tells how near they are to one another."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, spread = found / expected, variance / expected**2
    good = np.isfinite(ratio) & np.isfinite(spread) & (spread > 0) & (expected > 0.1 * np.nanmax(expected, 0))
    with np.errstate(divide="ignore", invalid="ignore"):  # a strip of a cell is not quite like the whole of it
        spread = spread + (STRIP * (1 - expected / np.nanmax(expected, 0)) * ratio) ** 2
    ratio, weight = np.where(good, ratio, 0.0), np.where(good, 1 / np.where(good, spread, 1.0), 0.0)
    # what scatters from frame to frame in the whole field alike tells nothing of a cell
    total = weight.sum(1)
    field = (weight * ratio).sum(1) / np.maximum(total, 1e-300)
    looks = total > 0  # a frame that shows none of the cells says nothing of how the others scatter
    shaken = _scatter(field[looks], 1 / total[looks])
    weight = np.where(good, 1 / (1 / np.maximum(weight, 1e-300) + (shaken * field[:, None]) ** 2), 0.0)
    shapes, prior = _shapes(at)
    gg, gy = shapes**2 @ weight, shapes @ (weight * ratio)  # (shapes, cells)
    power = (weight * ratio**2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        amplitude = np.where(gg > 0, gy / gg, 0.0)
        chi2 = power - amplitude * gy
        possible = amplitude > 0
        log, noise = np.log(np.where(possible, amplitude, 1.0)), 1 / np.maximum(gg * amplitude**2, 1e-12)
    # where no shape follows a cell, its noise is larger than expected (Birge, Phys. Rev. 40, 207, 1932)
    least = np.where(possible, chi2, np.inf).min(0) / np.maximum(good.sum(0) - 2, 1)
    widened = np.where(np.isfinite(least), np.maximum(least, 1.0), 1.0)
    chi2, noise = chi2 / widened, noise * widened
    typical, p = 0.0, np.exp(prior)[:, None] * possible
    flat = np.exp(prior)[:, None] / np.exp(prior).sum()
    for _ in range(PRIOR_ROUNDS):
        off = (log - typical) ** 2 / (LEVEL_PRIOR**2 + noise)
        evidence = np.where(possible, -0.5 * (chi2 + off), -np.inf)
        best = evidence.max(0)
        known = np.isfinite(best) & (power > 0)
        likelihood = np.exp(evidence - np.where(np.isfinite(best), best, 0.0))
        expected_of = _share_known(flat, p, known, near)
        p = likelihood * expected_of
        p /= np.maximum(p.sum(0), 1e-300)
        shrunk = (log / noise + typical / LEVEL_PRIOR**2) / (1 / noise + 1 / LEVEL_PRIOR**2)
        level = (p * shrunk).sum(0)
        typical = float(np.median(level[known])) if known.any() else 0.0
    spread = (p * ((shrunk - level) ** 2 + 1 / (1 / noise + 1 / LEVEL_PRIOR**2))).sum(0)
    p = np.where(known, p, _share_known(flat, p, known, near))
    curve = shapes.T @ p
    return Courses(
        level=np.where(known, np.exp(level - typical), 1.0),
        level_sigma=np.sqrt(np.where(known, spread, LEVEL_PRIOR**2)),
        curve=curve,
        curve_sigma=np.sqrt(np.maximum((shapes.T**2) @ p - curve**2, 0.0)),
    )


def _share_known(flat: np.ndarray, p: np.ndarray, known: np.ndarray, near: np.ndarray) -> np.ndarray:
    """(shapes, cells) what is to be expected of a cell before it is looked at: what cells near by and all cells are."""
    if not known.any():
        return np.broadcast_to(flat, p.shape)
    weight = near * known[:, None]
    local = (p @ weight) / np.maximum(weight.sum(0), 1e-12)
    whole = p[:, known].mean(1, keepdims=True)
    trust = LOCAL_SHARE * np.minimum(weight.sum(0), 1.0)
    mixed = trust * local + (1 - trust - FLAT_SHARE) * whole + FLAT_SHARE * flat
    return mixed / mixed.sum(0)


def _shapes(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Curves (shapes, t) that start from 1, and the logarithm of their prior weights."""
    curves, prior = [], []
    for start in STARTS:
        curves.append(np.exp(-RATES[:, None] * np.maximum(at - start, 0.0)))
        prior.append(np.full(len(RATES), 0.5 if start == 0 else 0.3 / (len(STARTS) - 1)))
    falling = RATES[RATES > 0]
    curves.append(np.maximum(1 - falling[:, None] * at, 0.0))
    prior.append(np.full(len(falling), 0.2))
    return np.concatenate(curves), np.log(np.concatenate(prior))


def _scatter(y: np.ndarray, variance: np.ndarray) -> float:
    """Relative scatter from frame to frame beyond noise."""
    if len(y) < 6 or not (y > 0).all():
        return 0.0
    relative = variance / y**2
    expected = (relative[:-2] + 4 * relative[1:-1] + relative[2:]) / 6
    return float(np.sqrt(max(np.mean(np.diff(np.log(y), 2) ** 2 / 6 - expected), 0.0)))
