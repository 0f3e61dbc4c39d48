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
FRAMES_AT_ONCE = 32
NOISE_IS_IN = ("n", "raw", "template", "l", "l_template", "raw_l", "ll", "noise_ll", "v_ll")


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
        (t, atoms) of `observables.OF_REGIONS`, weighed.
    member
        (atoms,) bool.
    frames
        Those to use.
    sigma
        (frames,) 1 σ that shot and readout noise explain.
    completion
        Factors (frames,) of "lattice" and "signal_ratio" from what is seen of the region to the whole of it.
    """
    parts, seen_px = (np.empty((len(frames), int(member.sum())), np.float32) for _ in range(2))
    for at in range(0, len(frames), FRAMES_AT_ONCE):
        some = slice(at, at + FRAMES_AT_ONCE)
        own = {name: sums[name][np.ix_(frames[some], member)].astype(float, copy=False) for name in NOISE_IS_IN}
        parts[some] = _noise_of_blocks(own, witness, *(completion[w][some, None] for w in ("lattice", "signal_ratio")))
        seen_px[some] = own["n"]
    freedom = _take_own_course(parts, seen_px)
    if freedom < 1:
        return BlockNoise(np.zeros_like(parts), sigma, 1.0)
    seen = float(np.nanmean(np.einsum("tb,tb->t", parts, parts, dtype=float) / sigma**2))
    dispersion = (freedom * seen + PRIOR_FREEDOM) / (freedom + PRIOR_FREEDOM)
    dispersion = float(np.clip(dispersion, *DISPERSION_LIMITS))
    if seen > 0:
        parts *= np.sqrt(dispersion / seen)
    return BlockNoise(parts, sigma * np.sqrt(dispersion), dispersion)


def _noise_of_blocks(
    own: dict[str, np.ndarray], witness: str, to_lattice: np.ndarray, to_mass: np.ndarray
) -> np.ndarray:
    """(frames, blocks): what each block adds to the witness beyond its share, from its sums."""
    whole = {name: values.sum(1, keepdims=True) for name, values in own.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = lattice_fit(whole)
        kappa = np.nan_to_num(fit["slope"])
        lattice = to_lattice * (own["raw_l"] - kappa * (own["ll"] - own["noise_ll"])) / fit["energy"]
        if witness == "lattice":
            return np.nan_to_num(lattice)
        expected = whole["template"] - whole["l_template"]
        signal = (whole["raw"] - kappa * whole["l"]) / expected
        mass = to_mass * (own["raw"] - kappa * own["l"] - signal * (own["template"] - own["l_template"])) / expected
        if witness == "signal_ratio":
            return np.nan_to_num(mass)
        return np.nan_to_num((lattice - to_lattice * kappa / (to_mass * signal) * mass) / (to_mass * signal))


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


def _take_own_course(parts: np.ndarray, seen_px: np.ndarray) -> float:
    """Take the smooth course of each block from its parts, scale them for what that takes of the noise, and return
    their degrees of freedom.

    Both arrays are (frames, blocks) and are changed.
    """
    n, blocks = parts.shape
    degree = min(2, (n - 1) // 4)
    seen_px /= np.maximum(seen_px.sum(1, keepdims=True), 1)
    seen = (seen_px > 0.2 * seen_px.max(0).clip(1e-12)).mean()
    u = np.linspace(-1, 1, n)
    basis = np.stack([u**d for d in range(degree + 1)], 1).astype(parts.dtype)
    left = n - degree - 1
    if left < 1:
        return 0.0
    course = np.linalg.pinv(basis) @ parts  # (degree + 1, blocks)
    for k in range(n):
        parts[k] -= basis[k] @ course
    parts *= np.sqrt(n / left)
    return float(left * blocks * seen)
