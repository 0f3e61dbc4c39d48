"""Kinetics of every region and witness: the tables critical_fluence.csv and kinetics.csv."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from atomdiffuser.config import DamageSettings
from atomdiffuser.damage.analysis import WITNESSES, Measurement
from atomdiffuser.damage.curves import MODELS, N_PARAMETERS
from atomdiffuser.damage.gain import Gain, estimate_gain
from atomdiffuser.damage.signals import SignalKinetics, describe_signal
from atomdiffuser.damage.uncertainty import BlockNoise, block_noise, registration_noise, replicates
from atomdiffuser.damage.verdicts import (
    SIGNIFICANCE,
    detection_limit_percent,
    holm,
    may_be_nothing,
    mechanism,
    nothing_to_say,
    usable_text,
    verdict,
)

SEED = 20250612


@dataclass(frozen=True)
class Fits:
    """The two tables, and the beam's fluctuation that was told apart."""

    critical_fluence: pd.DataFrame
    kinetics: pd.DataFrame
    gain: Gain


@dataclass(frozen=True)
class Scales:
    """Lengths that errors depend on [px]: matched filter, lattice period, and 1 σ of each frame's place (t,)."""

    filter_px: float
    period_px: float | None
    displacement_sigma_px: np.ndarray


def fit_regions(
    measured: Measurement,
    x: np.ndarray,
    unit: str,
    settings: DamageSettings,
    scales: Scales,
    *,
    fluence_systematic_percent: float = math.nan,
) -> Fits:
    """Fit every region and witness.

    Parameters
    ----------
    x
        (t, regions) cumulative fluence of each region, or time, or frame number.
    unit
        Of x: e_per_A2, s or frame.
    fluence_systematic_percent
        1 σ of the calibration of the current, for the table; it scales all fluences alike and enters no interval.
    """
    whole = measured.values["signal_ratio"][:, 0], measured.values["signal_ratio_sigma"][:, 0]
    seen = measured.accepted[:, 0]
    gain = estimate_gain(x[:, 0], *(np.where(seen, v, np.nan) for v in whole))
    random = np.random.default_rng(SEED)
    critical, kinetics = [], []
    sizes = measured.regions.sizes_px()
    for r, region in enumerate(measured.regions.regions):
        described = _describe_region(measured, r, x[:, r], gain, scales, settings, random)
        p = holm([described[w].p_value for w in WITNESSES])
        n_px = int(sizes[r])
        nothing = nothing_to_say(n_px, settings.min_region_px, _share_of_signal(measured, r))
        enough = not nothing
        changed = {
            w: bool(enough and q < SIGNIFICANCE and not may_be_nothing(described[w]))
            for w, q in zip(WITNESSES, p, strict=True)
        }
        pretended = 2 * gain.ambiguity_percent(x[:, r])
        name = mechanism(described, changed, pretended) if enough else "unclear"
        for witness, p_corrected in zip(WITNESSES, p, strict=True):
            found = described[witness]
            row = {"region": region.name, "region_id": region.region_id, "witness": witness}
            rest = {
                "p_corrected": p_corrected,
                "changed": changed[witness],
                "onset_frame": found.onset_frame if changed[witness] else -1,
                "usable_tolerance_percent": settings.tolerance_percent,
                "fluence_systematic_percent": fluence_systematic_percent if unit == "e_per_A2" else math.nan,
                "gain_ambiguity_percent": 0.0 if witness == "crystallinity" else pretended / 2,
                "n_px": n_px,
                "mechanism": name,
                "verdict": nothing or verdict(witness, found, changed[witness], unit),
            }
            critical.append(row | _critical_row(found, unit) | rest)
            kinetics += [row | curve for curve in _curve_rows(found, unit)]
    return Fits(pd.DataFrame(critical), pd.DataFrame(kinetics, columns=[*row, *CURVE_COLUMNS]), gain)


def _share_of_signal(measured: Measurement, r: int) -> float:
    """Signal of a region in the reference frame, over the whole field's; NaN when unknown."""
    own, whole = measured.values["signal"][measured.reference_frame, [r, 0]]
    return float(own / whole) if whole > 0 else math.nan


def _describe_region(measured, r, x, gain, scales, settings, random) -> dict[str, SignalKinetics]:
    """All witnesses of one region."""
    intensity = _describe(measured, r, "intensity", x, gain, scales, settings, random)
    # Where mass is seen to stay, lattice over signal tells the contrast without the beam's fluctuation.
    steady = gain.scatter > 0 and not intensity.p_value < SIGNIFICANCE
    order = _describe(measured, r, "crystallinity", x, gain, scales, settings, random)
    contrast = order if steady else _describe(measured, r, "contrast", x, gain, scales, settings, random)
    return {"intensity": intensity, "contrast": contrast, "crystallinity": order}


def _describe(measured, r, witness, x, gain, scales, settings, random) -> SignalKinetics:
    name = WITNESSES[witness]
    y, sigma = measured.values[name][:, r], measured.values[f"{name}_sigma"][:, r]
    good = measured.accepted[:, r] & np.isfinite(x) & np.isfinite(y) & np.isfinite(sigma) & (sigma > 0)
    frames = np.flatnonzero(good)
    member = measured.regions.membership[r]
    if len(frames) == 0:
        noise, common, lasting = BlockNoise(np.zeros((0, 0)), sigma[frames], 1.0), np.zeros(0), np.zeros(0)
    else:
        completion = {w: factor[frames, r] for w, factor in measured.completion.items()}
        noise = block_noise(measured.sums, member, frames, name, sigma[frames], completion)
        common = np.full(len(frames), gain.scatter if witness != "crystallinity" else 0.0)
        if witness != "intensity":
            moved = registration_noise(scales.displacement_sigma_px[frames], scales.filter_px, scales.period_px)
            common = np.hypot(common, moved)
        parts = {"intensity": ("signal_ratio",), "contrast": ("lattice",), "crystallinity": ("lattice", "signal_ratio")}
        lasting = np.sqrt(sum(measured.completion_sigma[w][frames, r] ** 2 for w in parts[witness]))
    total = np.hypot(noise.sigma, common * np.abs(y[frames]))
    return describe_signal(
        x[frames], y[frames], total, frames, measured.reference_frame,
        lambda curve: replicates(curve, noise, common, lasting, settings.bootstrap, random),
        min_span_of_critical=settings.min_span_of_critical, tolerance_percent=settings.tolerance_percent,
    )  # fmt: skip


def _critical_row(found: SignalKinetics, unit: str) -> dict:
    chosen = MODELS.index(found.model) if found.model in MODELS else None
    at = lambda values, m: float(values[m]) if m is not None else math.nan
    row = {
        "model": found.model,
        "weight": at(found.weight, chosen),
        "unit": unit,
        "critical_fluence": found.critical.value,
        "critical_fluence_lo95": found.critical.lo95,
        "critical_fluence_hi95": found.critical.hi95,
        "lower_bound": found.lower_bound,
    }
    for name, estimate in (("half_fluence", found.half), ("rate", found.rate), ("loss", found.loss)):
        value = {"rate": "rate_percent_per_1000", "loss": "loss_percent"}.get(name, name)
        row |= {value: estimate.value, f"{name}_lo95": estimate.lo95, f"{name}_hi95": estimate.hi95}
    return row | {
        "aicc": at(found.aicc, chosen),
        "aicc_constant": at(found.aicc, 0 if chosen is not None else None),
        "p_value": found.p_value,
        "p_misfit": found.p_misfit,
        "detection_limit_percent": detection_limit_percent(found),
        "onset_frame": found.onset_frame,
        "usable_last_frame": found.usable[1],
        "usable_text": usable_text(found.usable),
        "span": found.span,
        "n_frames": found.n_frames,
    }


CURVE_COLUMNS = (
    "model", "n_parameters", "aicc", "weight", "chosen", "chi2_per_dof", "amplitude", "scale", "exponent", "latency",
    "offset", "critical_fluence", "half_fluence", "unit",
)  # fmt: skip


def _curve_rows(found: SignalKinetics, unit: str) -> list[dict]:
    if found.fits is None:
        return []
    fits, rows = found.fits, []
    for m, name in enumerate(MODELS):
        if not np.isfinite(fits.chi2[m, 0]):
            continue
        parameters = int(N_PARAMETERS[m])
        critical, kind = float(fits.critical_of_shape[m, 0]), name.split("+")[0]
        latency = float(fits.latency[m, 0]) * critical if kind == "latency" else math.nan
        rows.append(
            {
                "model": name,
                "n_parameters": parameters,
                "aicc": found.aicc[m],
                "weight": found.weight[m],
                "chosen": name == found.model,
                "chi2_per_dof": fits.chi2[m, 0] / (found.n_frames - parameters)
                if found.n_frames > parameters
                else math.nan,
                "amplitude": fits.amplitude[m, 0],
                "scale": _scale(kind, critical, latency),
                "exponent": fits.exponent[m, 0] if kind in ("stretched", "avrami") else math.nan,
                "latency": latency,
                "offset": fits.offset[m, 0],
                "critical_fluence": fits.critical[m, 0],
                "half_fluence": fits.half[m, 0],
                "unit": unit,
            }
        )
    return rows


def _scale(kind: str, critical: float, latency: float) -> float:
    """The curve's own constant F0 from where its shape stands at 1/e."""
    if kind == "constant":
        return math.nan
    return critical / (1 - math.exp(-1)) if kind == "linear" else critical - latency if kind == "latency" else critical
