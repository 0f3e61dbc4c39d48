"""Fitted curves as the page draws and lists them: every curve that was tried, its weight, and the chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser.report.facts import Witness
from atomdiffuser.report.formatting import interval, known
from atomdiffuser.report.verdict import critical_cell

WITNESSES = ("contrast", "intensity", "crystallinity")
CURVE_POINTS = 48
MIN_WEIGHT = 0.005
"""Curves of less Akaike weight are summed up as “others”."""


def curve_shape(row: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Height of a fitted curve of kinetics.csv at fluences `x`, up to its amplitude.

    Raises ValueError for a curve that this version does not know.
    """
    name, _, offset = str(row["model"]).partition("+")
    scale = float(row["scale"])
    exponent, latency = (float(row[c]) if known(row.get(c)) else d for c, d in (("exponent", 1.0), ("latency", 0.0)))
    kept = float(row["offset"]) if offset and known(row.get("offset")) else 0.0
    x = np.asarray(x, dtype=float)
    with np.errstate(over="ignore", invalid="ignore"):
        if name in ("constant", "none"):
            return np.ones_like(x)
        if name == "exponential":
            g = np.exp(-x / scale)
        elif name == "linear":
            g = np.maximum(1 - x / scale, 0)
        elif name == "latency":
            g = np.exp(-np.maximum(x - latency, 0) / scale)
        elif name in ("stretched", "avrami"):
            g = np.exp(-(np.maximum(x / scale, 0) ** exponent))
        else:
            raise ValueError(f"unknown curve {name!r}")
    return (1 - kept) * g + kept


def fitted_curve(
    damage: pd.DataFrame, row: Mapping[str, Any], witness: str, axis: str, end: float
) -> dict[str, Any] | None:
    """The chosen curve for drawing over the ratios to the reference frame; None where it cannot be drawn.

    Fits are made to ratios to the mean of the frames, which carry no noise of the reference frame, so their amplitude
    is another: it is fitted here once more, the shape is kept.
    """
    sigma_name = f"{witness}_sigma"
    if witness not in damage or sigma_name not in damage:
        return None
    x, y, sigma = (damage[c].to_numpy(float) for c in (axis, witness, sigma_name))
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(sigma) & (sigma > 0)
    try:
        own = curve_shape(row, x[good])
    except ValueError:
        return None
    weight = 1 / sigma[good] ** 2
    norm = float((weight * own * own).sum())
    if not good.any() or not np.isfinite(norm) or norm <= 0:
        return None
    amplitude = float((weight * own * y[good]).sum() / norm)
    start = float(min(0.0, x[good].min())) if x[good].min() <= 0.25 * end else float(x[good].min())
    grid = np.linspace(start, end, CURVE_POINTS)
    return {"from": start, "to": end, "amplitude": amplitude, "y": amplitude * curve_shape(row, grid)}


def exponential_row(witness: Witness) -> dict[str, Any]:
    """The curve of an older result, which had exponentials only, as a row of kinetics.csv."""
    return {"model": "exponential", "scale": witness.critical}


def weights(kinetics: pd.DataFrame, region: str, witness: str) -> list[dict[str, Any]]:
    """The curves tried for one region and witness, heaviest first, the negligible ones left out."""
    rows = kinetics[(kinetics["region"] == region) & (kinetics["witness"] == witness)]
    found = []
    for row in rows.sort_values("weight", ascending=False).to_dict("records"):
        if known(row["weight"]) and (row["weight"] >= MIN_WEIGHT or row["chosen"]):
            found.append(
                {
                    "model": str(row["model"]).replace("+", " + "),
                    "weight": float(row["weight"]),
                    "chosen": bool(row["chosen"]),
                }
            )
    return found


def kinetics_row(witness: Witness, region: str) -> dict[str, Any]:
    """One row of critical_fluence.csv as the page lists it."""
    row = witness.row
    half = [witness.number(f"half_fluence{end}") for end in ("", "_lo95", "_hi95")]
    rate = [witness.number(c) for c in ("rate_percent_per_1000", "rate_lo95", "rate_hi95")]
    gain = float(row["aicc_constant"]) - float(row["aicc"]) if known(row.get("aicc_constant")) else np.nan
    return {
        "region": region,
        "witness": witness,
        "critical_text": critical_cell(witness) or "–",
        "half": half[0],
        "half_text": interval(*half),
        "rate": rate[0],
        "rate_text": interval(*rate),
        "weight": witness.number("weight"),
        "p": witness.number("p_corrected") if known(witness.number("p_corrected")) else witness.p_value,
        "aicc_gain": gain,
        "onset_text": "none" if witness.onset_frame < 0 else str(witness.onset_frame),
    }
