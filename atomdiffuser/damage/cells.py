"""What a region would show were it seen whole and intact: weights of its parts, and the part that left the view.

The template that frames are compared with is the mean of those that looked, and these are not the same everywhere: near
the border, where only the first frames looked, it shows less damage, and where damage is strong, more. A region's
signal must not depend on that. So the field is divided into cells of a few lattice periods, whose course over the
frames tells the level from which each started: then all cells count by their area (contrast) or by the mass that they
had (intensity), and what has drifted out of view is taken to have followed its own cell's curve.

A cell's curve is the mean over many shapes, weighted by how well each follows the cell (exponential, with a latency,
linear; Hoeting et al., Statist. Sci. 14, 382, 1999). All that is common to the cells cancels, so a shape that is a
little wrong for all of them does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atomdiffuser.damage.regions import RegionSet

CELL_BLOCKS = 2  # side of a cell in blocks
LEVEL_PRIOR = 0.4  # 1 σ of the logarithm of a cell's level about the typical one
PRIOR_ROUNDS = 12
LOCAL_SHARE, FLAT_SHARE, NEAR_CELLS = 0.5, 0.05, 1.5  # of what is expected of a cell: its neighbours', anybody's; reach
WITHIN_CELL = 0.06  # 1 σ of a cell's level that is never known better, for damage that varies within it
DENSITY_LIMITS = (0.25, 4.0)  # of a cell's weight, over the typical cell's, for the same area
RATES = np.concatenate([-np.geomspace(1.0, 0.02, 8), [0.0], np.geomspace(0.02, 40.0, 48)])
WITNESSES = ("lattice", "signal_ratio")
STARTS = (0.0, 0.1, 0.2, 0.35, 0.5)


@dataclass(frozen=True)
class Balanced:
    """Sums (t, atoms) in which every atom counts as it must, and by witness ("lattice", "signal_ratio") factors
    (t, regions) that complete what a frame shows of a region to the whole of it.

    `sigma` is the relative 1 σ that weights and completion leave in a region's course; it does not change its sign from
    one frame to the next.
    """

    sums: dict[str, np.ndarray]
    completion: dict[str, np.ndarray]
    sigma: dict[str, np.ndarray]


def balance(sums: dict[str, np.ndarray], regions: RegionSet, block_px: int) -> Balanced:
    """Weigh atoms by where their cells started.

    Parameters
    ----------
    sums
        As from `observables.sum_frame`, (t, atoms); NaN where a frame was not used.
    regions
        Whose atoms have been cut into blocks of `block_px`.
    """
    used = np.isfinite(sums["n"]).all(1)
    if used.sum() < 3:
        whole = np.ones((len(used), len(regions.regions)))
        return Balanced(sums, *({name: fill * whole for name in WITNESSES} for fill in (1.0, 0.0)))
    seen = {name: values[used] for name, values in sums.items()}
    cells, near = _cells(regions, CELL_BLOCKS * block_px)
    at = (np.flatnonzero(used) - np.flatnonzero(used)[0] + 1.0) / len(used)  # the first frame has been exposed once

    energy = seen["ll"] - seen["noise_ll"]
    found = {"lattice": _levels(seen["raw_l"] @ cells, energy @ cells, seen["v_ll"] @ cells, at, near)}
    level = cells @ found["lattice"].level  # of each atom
    area = seen["crystal"].max(0)
    density = (energy @ cells).sum(0) / np.maximum((seen["crystal"] @ cells).sum(0), 1)
    typical = np.median(density[density > 0]) if (density > 0).any() else 1.0
    # κ = Σ q·raw_l / Σ q·s·energy: with q = 1/(s·density) each pixel of the crystal counts alike
    share = 1 / (level * np.clip(cells @ density / typical, *DENSITY_LIMITS))
    new = dict(sums)
    new["raw_l"] = sums["raw_l"] * share
    new["ll"], new["noise_ll"] = sums["ll"] * share * level, sums["noise_ll"] * share * level
    new["v_ll"], new["l"] = sums["v_ll"] * share**2, sums["l"] * level
    looks = {"lattice": (seen["crystal"], area)}

    fit = lambda name: seen[name] @ cells
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.nan_to_num(fit("raw_l") / (energy @ cells))
    matter = (seen["raw"] @ cells) - np.where(np.abs(kappa) < 3, kappa, 0.0) * (seen["l"] @ cells)
    found["signal_ratio"] = _levels(
        matter, (seen["template"] - seen["l_template"]) @ cells, seen["variance"] @ cells, at, near
    )
    level = cells @ found["signal_ratio"].level
    new["template"], new["l_template"] = sums["template"] * level, sums["l_template"] * level
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nan_to_num((seen["template"] * level).sum(0) / seen["n"].sum(0))
    looks["signal_ratio"] = seen["n"] * mean, seen["n"].max(0) * mean
    full = {name: _completed(found[name], cells, *looks[name], regions, used) for name in WITNESSES}
    return Balanced(new, *({name: full[name][i] for name in WITNESSES} for i in (0, 1)))


def _cells(regions: RegionSet, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """(atoms, cells) 0 or 1: which cell the middle of an atom lies in; (cells, cells) nearness of cells, 0 for itself."""
    inside = regions.atoms >= 0
    label = regions.atoms[inside]
    count = np.bincount(label)
    middle = [np.bincount(label, at) / count // size_px for at in np.nonzero(inside)]
    place, number = np.unique(np.stack(middle), axis=1, return_inverse=True)
    apart = ((place[:, :, None] - place[:, None]) ** 2).sum(0)
    near = np.where(apart > 0, np.exp(-0.5 * apart / NEAR_CELLS**2), 0.0)
    return np.eye(place.shape[1])[number.ravel()], near


@dataclass(frozen=True)
class _Courses:
    """Level (cells,) at which each cell started, over the typical one, with the 1 σ of its logarithm; the curve
    (t, cells) that it followed from there, from 1, with its 1 σ.
    """

    level: np.ndarray
    level_sigma: np.ndarray
    curve: np.ndarray
    curve_sigma: np.ndarray


def _levels(
    found: np.ndarray, expected: np.ndarray, variance: np.ndarray, at: np.ndarray, near: np.ndarray
) -> _Courses:
    """Courses of cells from sums (t, cells) of what is found, what the template expects, and the former's variance;
    `near` (cells, cells) tells how near they are to one another."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, spread = found / expected, variance / expected**2
    good = np.isfinite(ratio) & np.isfinite(spread) & (spread > 0) & (expected > 0.1 * np.nanmax(expected, 0))
    ratio, weight = np.where(good, ratio, 0.0), np.where(good, 1 / np.where(good, spread, 1.0), 0.0)
    # what scatters from frame to frame in the whole field alike tells nothing of a cell
    total = weight.sum(1)
    field = (weight * ratio).sum(1) / np.maximum(total, 1e-300)
    shaken = _scatter(field, 1 / np.maximum(total, 1e-300))
    weight = np.where(good, 1 / (1 / np.maximum(weight, 1e-300) + (shaken * field[:, None]) ** 2), 0.0)
    shapes, prior = _shapes(at)
    gg, gy = shapes**2 @ weight, shapes @ (weight * ratio)  # (shapes, cells)
    power = (weight * ratio**2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        amplitude = np.where(gg > 0, gy / gg, 0.0)
        chi2 = power - amplitude * gy
        possible = amplitude > 0
        log, noise = np.log(np.where(possible, amplitude, 1.0)), 1 / np.maximum(gg * amplitude**2, 1e-12)
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
    return _Courses(
        level=np.where(known, np.exp(level - typical), 1.0),
        level_sigma=np.hypot(np.sqrt(np.where(known, spread, LEVEL_PRIOR**2)), WITHIN_CELL),
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


def _completed(found: _Courses, cells, seen, whole, regions: RegionSet, used) -> tuple[np.ndarray, np.ndarray]:
    """(t, regions) mean course over all of a region over its mean over what is seen, and the relative 1 σ that is left.

    Levels that are off weigh cells wrongly, which matters as far as their courses differ; what is out of view is known
    as well as its cell's curve is.
    """
    member = regions.membership.astype(float)
    parts = lambda weight: np.einsum("ra,ta,ac->trc", member, weight, cells, optimize=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        full, here = (w / w.sum(-1, keepdims=True) for w in (parts(whole[None]), parts(seen)))
        curve = found.curve[:, None]  # (t, 1, cells)
        everywhere, visible = (full * curve).sum(-1), (here * curve).sum(-1)
        mean = everywhere[..., None]
        weighed = ((full * (curve / mean - 1) * found.level_sigma) ** 2).sum(-1)
        hidden = (((full - here) / mean * found.curve_sigma[:, None]) ** 2).sum(-1)
        factor, sigma = everywhere / visible, np.sqrt(weighed + hidden)
    filled = lambda values, blank: np.where(np.isfinite(values), values, blank)
    factors, sigmas = np.ones((len(used), len(member))), np.zeros((len(used), len(member)))
    factors[used], sigmas[used] = filled(factor, 1.0), np.minimum(filled(sigma, 0.0), 0.5)
    return factors, sigmas
