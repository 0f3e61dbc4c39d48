"""What the template is made of, brought into line with what the frames then show.

A template of frames that have lost p_j of the lattice shows Σ w_j p_j / Σ w_j of it. The p_j are first taken from the
decay maps, which are relative to the reference frame. Its own is exactly 1, but those of all others share what noise in
the reference has done to them. Each frame is compared with the others only, so the reference would meet a template that
is off by all of that, and the others one that is off by a little less: a step from the reference to the next frame
where there is none.

Measured against such a template, frame k shows a_k = p_k · Σ' w_j m_j / Σ' w_j p_j (Σ': all but k; m_j: the maps').
The p_k are the one eigenvector with positive entries of a matrix whose other eigenvalues are negative, down to minus
the first where one frame outweighs the others. With half steps the iteration settles all the same.
"""

from __future__ import annotations

import numpy as np

from atomdiffuser.damage.observables import LEAST_CONTRAST, LEAST_INTENSITY

ITERATIONS = 30
LATTICE_POWERS = {"raw_l": 1, "l": 1, "ll": 2, "noise_ll": 2, "v_ll": 2, "ll_y": 2, "ll_x": 2}
"""Power with which each sum follows the intact lattice."""
MASS = ("template", "l_template", "l_elsewhere")


def consistent_factors(field: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Factors (t, 1), by name, of sums as had the template been taken for what it is; other sums stay.

    Parameters
    ----------
    field
        (t,) sums of `observables.sum_frame` over all atoms, of the frames in use only.
    weights
        (t,) of the frames in the template.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        energy, mass = field["ll"] - field["noise_ll"], field["template"]
        contrast, intensity = field["ll_contrast"] / energy, field["template_intensity"] / mass
        lattice_factor = _factor(field["raw_l"] / energy, weights, contrast, LEAST_CONTRAST)[:, None]
        mass_factor = _factor(field["raw"] / mass, weights, intensity, LEAST_INTENSITY)[:, None]
    powers = {name: lattice_factor**power for name, power in LATTICE_POWERS.items()}
    return powers | dict.fromkeys(MASS, mass_factor)


def _factor(seen: np.ndarray, weights: np.ndarray, taken: np.ndarray, least: float) -> np.ndarray:
    """(t,) what the others were taken to show, at least `least`, over what they do; 1 where that cannot be told.

    Frames that show nothing of the regions add nothing to the template there.
    """
    known = np.isfinite(seen) & np.isfinite(taken)
    unchanged = np.ones(len(seen))
    if known.sum() < 2:
        return unchanged
    seen, taken, weights = (np.where(known, values, 0.0) for values in (seen, taken, weights))
    others = lambda values: weights @ values - weights * values
    assumed, whole = np.maximum(others(taken), least * others(unchanged)), weights @ taken
    if not (whole > 0 and weights @ seen > 0):
        return unchanged
    shown = seen * whole / (weights @ seen)
    for _ in range(ITERATIONS):
        next_shown = seen * others(shown) / assumed
        if not weights @ next_shown > 0:
            return unchanged
        shown = (shown + next_shown * whole / (weights @ next_shown)) / 2
    real = others(shown)
    return assumed / real if (real > 0).all() else unchanged
