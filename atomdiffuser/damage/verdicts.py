"""What the numbers of a region mean, in words: whether it changed, by what mechanism, which frames can be summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from atomdiffuser.damage.signals import SignalKinetics

SIGNIFICANCE = 0.05
EMPTY_SHARE = 0.25  # of the field's mean signal: below this there is no specimen
MOSTLY = 0.75  # share of the loss from which one mechanism is named alone
UNIT_TEXT = {"e_per_A2": "e⁻/Å²", "s": "s", "frame": "frames"}
FALLING_LATTICE = "amorphisation"


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction for several tests (Scand. J. Stat. 6, 65, 1979); NaN stays NaN and counts as no test."""
    p = np.asarray(p_values, float)
    corrected = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * (len(order) - np.arange(len(order)))), 1.0)
    return corrected


def mechanism(found: Mapping[str, SignalKinetics], changed: Mapping[str, bool], ambiguity_percent: float) -> str:
    """What happened to a region: none, amorphisation, mass loss, both, gain or unclear.

    Mass is told by the intensity, order by the crystallinity (contrast over intensity), which loss of mass leaves as it
    is: thinner material shows less of both. A change of intensity within `ambiguity_percent` may be the beam's.
    """
    mass, order = (_log_loss(found[w]) for w in ("intensity", "crystallinity"))
    mass_changed = changed["intensity"] and abs(found["intensity"].loss.value) > ambiguity_percent
    if not mass_changed and not changed["crystallinity"]:
        return "unclear" if changed["contrast"] else "none"
    mass, order = (value if real else 0.0 for value, real in ((mass, mass_changed), (order, changed["crystallinity"])))
    share = abs(order) / (abs(mass) + abs(order))
    if share > MOSTLY:
        return FALLING_LATTICE if order > 0 else "unclear"
    if share < 1 - MOSTLY:
        return "mass loss" if mass > 0 else "gain"
    return "both" if min(mass, order) > 0 else "gain" if mass < 0 and order < 0 else "unclear"


def usable_text(usable: tuple[int, int]) -> str:
    """“sum frames 0–17”; empty when there are none."""
    first, last = usable
    if last < 0:
        return ""
    return f"sum frames {first}–{last}" if last > first else f"use frame {first} alone"


def may_be_nothing(kinetics: SignalKinetics) -> bool:
    """Whether the interval of the loss holds zero: then no test makes a change of it."""
    return kinetics.loss.lo95 <= 0 <= kinetics.loss.hi95


def detection_limit_percent(kinetics: SignalKinetics) -> float:
    """Largest change, in either direction, that the interval of the loss still allows [%]."""
    ends = [abs(e) for e in (kinetics.loss.lo95, kinetics.loss.hi95) if math.isfinite(e)]
    return max(ends) if ends else math.nan


def nothing_to_say(n_px: int, enough_px: int, share_of_signal: float) -> str:
    """Why nothing is claimed of a region; empty when something can be."""
    if n_px < enough_px:
        return f"too few pixels: {n_px} of at least {enough_px}"
    if share_of_signal < EMPTY_SHARE:
        return f"no specimen: {_number(100 * share_of_signal)} % of the field's mean signal"
    return ""


def verdict(witness: str, kinetics: SignalKinetics, changed: bool, unit: str) -> str:
    """One sentence about one witness of one region."""
    if kinetics.fits is None:
        return f"{witness}: {'not measurable' if kinetics.n_frames == 0 else f'too few frames ({kinetics.n_frames})'}"
    name = UNIT_TEXT.get(unit, unit)
    if not changed:
        limit = detection_limit_percent(kinetics)
        above = f"no change above {_number(limit)} %" if math.isfinite(limit) else "no change seen"
        return f"{witness}: {above}"
    lost = kinetics.loss.value
    lo, hi = sorted((abs(kinetics.loss.lo95), abs(kinetics.loss.hi95)))
    text = f"{witness} {'lost' if lost >= 0 else 'gained'} {_number(abs(lost))} % (95 % CI {_number(lo)}–{_number(hi)})"
    if kinetics.lower_bound:
        text += f"; 1/e not reached: beyond {_number(kinetics.critical.value)} {name} (95 %)" if lost > 0 else ""
    else:
        c = kinetics.critical
        text += f"; falls to 1/e at {_number(c.value)} ({_number(c.lo95)}–{_number(c.hi95)}) {name}"
    if kinetics.p_misfit < 0.01:
        text += f"; no curve follows it (p = {kinetics.p_misfit:.1g})"
    return text


def _log_loss(kinetics: SignalKinetics) -> float:
    """−ln of what is left, so that losses of mass and of order add up to that of contrast."""
    left = 1 - kinetics.loss.value / 100
    return -math.log(max(left, 1e-3)) if math.isfinite(left) else 0.0


def _number(value: float) -> str:
    """Three digits, without an exponent below 1e5."""
    if not math.isfinite(value):
        return "∞"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.2e}" if abs(value) >= 1e5 else f"{round(value, digits):,.{min(digits, 2)}f}"
