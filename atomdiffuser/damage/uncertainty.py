"""How noise reaches the curves of a region: a wild bootstrap over spatial blocks, with what the blocks cannot show.

A region's signal in a frame is a sum over its blocks. What a block adds beyond its share, less the smooth course of its
own (where damage is uneven a block decays at its own pace, which is no noise), is noise of that block in that frame:
shot noise, scan errors, moving atoms, whatever the pixels of a block share. Its signs are drawn at random (wild
bootstrap: Davidson & Flachaire, J. Econometrics 146, 162, 2008), block by block and frame by frame.

All blocks of a region have in common what moves or scales the whole frame: the beam's fluctuation, a wrong shift (a
lattice displaced by d shows 1 − (q·d)²/2 of its amplitude). They are drawn frame by frame and added. What is wrong with
the weights of a region's parts, or with what is assumed of those out of view, stays from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atomdiffuser.damage.observables import lattice_fit

PRIOR_FREEDOM = 20  # of the shot noise that is expected, when the dispersion is estimated from few blocks
DISPERSION_LIMITS = (0.25, 100.0)


@dataclass(frozen=True)
class BlockNoise:
    """Noise of one region's signal: `parts` (frames, blocks) add up to it; `sigma` (frames,) is its 1 σ.

    `dispersion` is the variance that the blocks show over what shot and readout noise explain.
    """

    parts: np.ndarray
    sigma: np.ndarray
    dispersion: float


def block_noise(
    sums: dict[str, np.ndarray],
    member: np.ndarray,
    frames: np.ndarray,
    witness: str,
    sigma: np.ndarray,
    completion: dict[str, np.ndarray],
) -> BlockNoise:
    """Noise of one region and witness ("signal_ratio", "lattice" or "order").

    Parameters
    ----------
    sums
        (t, atoms) as from `balance.balance`.
    member
        (atoms,) bool.
    frames
        Those to use.
    sigma
        (frames,) 1 σ that shot and readout noise explain.
    completion
        Factors (frames,) of "lattice" and "signal_ratio" from what is seen of the region to the whole of it.
    """
    own = {name: values[frames][:, member] for name, values in sums.items()}
    whole = {name: values.sum(1, keepdims=True) for name, values in own.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        fit, to_lattice, to_mass = lattice_fit(whole), *(completion[w][:, None] for w in ("lattice", "signal_ratio"))
        kappa = np.nan_to_num(fit["slope"])
        lattice = to_lattice * (own["raw_l"] - kappa * (own["ll"] - own["noise_ll"])) / fit["energy"]
        expected = whole["template"] - whole["l_template"]
        signal = (whole["raw"] - kappa * whole["l"]) / expected
        mass = to_mass * (own["raw"] - kappa * own["l"] - signal * (own["template"] - own["l_template"])) / expected
        order = (lattice - to_lattice * kappa / (to_mass * signal) * mass) / (to_mass * signal)
    parts = np.nan_to_num({"signal_ratio": mass, "lattice": lattice, "order": order}[witness])
    parts, freedom = _without_own_course(parts, whole["n"][:, 0], own["n"])
    if freedom < 1:
        return BlockNoise(np.zeros_like(parts), sigma, 1.0)
    seen = float(np.nanmean((parts**2).sum(1) / sigma**2))
    dispersion = (freedom * seen + PRIOR_FREEDOM) / (freedom + PRIOR_FREEDOM)
    dispersion = float(np.clip(dispersion, *DISPERSION_LIMITS))
    return BlockNoise(
        parts * np.sqrt(dispersion / seen) if seen > 0 else parts, sigma * np.sqrt(dispersion), dispersion
    )


def replicates(
    curve: np.ndarray,
    noise: BlockNoise,
    common: np.ndarray,
    lasting: np.ndarray,
    count: int,
    random: np.random.Generator,
) -> np.ndarray:
    """(count, frames) signals as they might have been measured about a curve (frames,).

    `common` and `lasting` are relative 1 σ (frames,): the former of errors that are drawn anew in every frame, the
    latter of one that a region keeps.
    """
    frames, blocks = noise.parts.shape
    drawn = np.empty((count, frames))
    for k in range(frames):
        signs = random.integers(0, 2, (count, blocks), dtype=np.int8)
        drawn[:, k] = (2.0 * signs - 1.0) @ noise.parts[k]
    if blocks < 4 or not noise.parts.any():  # too few to draw signs from
        drawn = random.normal(0.0, 1.0, (count, frames)) * noise.sigma
    shared = common * random.normal(0.0, 1.0, (count, frames)) + lasting * random.normal(0.0, 1.0, (count, 1))
    return curve + drawn + curve * shared


def registration_noise(displacement_sigma_px: np.ndarray, filter_px: float, period_px: float | None) -> np.ndarray:
    """(t,) relative scatter of a lattice amplitude through wrong shifts, for the finest structure that is seen."""
    wave = min(1.0 / filter_px, 4 * np.pi / period_px if period_px else np.inf)
    return np.minimum(0.25 * (wave * np.nan_to_num(displacement_sigma_px)) ** 2, 1.0)


def _without_own_course(parts: np.ndarray, total: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, float]:
    """Parts less the smooth course of each block, scaled for what that takes of the noise; their degrees of freedom."""
    n, blocks = parts.shape
    degree = min(2, (n - 1) // 4)
    share = own / np.maximum(total, 1)[:, None]
    seen = share > 0.2 * share.max(0, keepdims=True).clip(1e-12)
    u = np.linspace(-1, 1, n)
    basis = np.stack([u**d for d in range(degree + 1)], 1)
    projector = basis @ np.linalg.pinv(basis)
    left = n - degree - 1
    if left < 1:
        return parts, 0.0
    return (parts - projector @ parts) * np.sqrt(n / left), float(left * blocks * seen.mean())
