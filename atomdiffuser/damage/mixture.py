"""What the template is made of, brought into line with what the frames then show.

A template of frames that have lost p_j of the lattice shows Σ w_j p_j / Σ w_j of it. The p_j are first taken from the
decay maps, which are relative to the reference frame. Its own is exactly 1, but those of all others share what noise in
the reference has done to them. Each frame is compared with the others only, so the reference would meet a template that
is off by all of that, and the others one that is off by a little less: a step from the reference to the next frame
where there is none.

Measured against such a template, frame k shows a_k = p_k · Σ' w_j p_j / Σ' w_j m_j (Σ': all but k; m_j: of the maps),
from which the p_k follow by iteration.
"""

from __future__ import annotations

import numpy as np

ITERATIONS = 30
LATTICE_POWERS = {"raw_l": 1, "l": 1, "ll": 2, "noise_ll": 2, "v_ll": 2, "ll_y": 2, "ll_x": 2}
"""Power with which each sum follows the intact lattice."""
MASS = ("template", "l_template", "l_elsewhere")


def consistent(sums: dict[str, np.ndarray], weights: np.ndarray, intensity: np.ndarray, contrast: np.ndarray):
    """Sums (t, atoms) as had the template been taken for what it is.

    Parameters
    ----------
    sums
        As from `observables.sum_frame`, of the frames in use only.
    weights
        (t,) of the frames in the template.
    intensity, contrast
        (t,) typical values of the maps that the sums were made with.
    """
    field = {name: values.sum(1) for name, values in sums.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        lattice = field["raw_l"] / (field["ll"] - field["noise_ll"])
        mass = field["raw"] / field["template"]
    lattice_factor = _factor(lattice, weights, contrast)[:, None]
    mass_factor = _factor(mass, weights, intensity)[:, None]
    new = dict(sums)
    for name, power in LATTICE_POWERS.items():
        new[name] = sums[name] * lattice_factor**power
    for name in MASS:
        new[name] = sums[name] * mass_factor
    return new


def _factor(seen: np.ndarray, weights: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """(t,) what the others were taken to show over what they do."""
    if len(seen) < 3 or not (np.isfinite(seen).all() and (weights @ seen) > 0):
        return np.ones(len(seen))
    others = lambda values: weights @ values - weights * values
    assumed, shown = others(taken), seen
    for _ in range(ITERATIONS):
        shown = shown * (weights @ taken) / (weights @ shown)
        real = others(shown)
        if not (real > 0).all():
            return np.ones(len(seen))
        shown = seen * real / assumed
    return assumed / others(shown * (weights @ taken) / (weights @ shown))
