"""Data of a series page for its script: frames, drift, curves with their fits, maps, pairs, frame quality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser.config import ReportSettings
from atomdiffuser.report import figures
from atomdiffuser.report.colours import CHANGE_LIMIT_PERCENT, CHANGE_POWER, change_lut
from atomdiffuser.report.facts import WHOLE, witness_of
from atomdiffuser.report.fits import WITNESSES, exponential_row, fitted_curve, weights
from atomdiffuser.report.formatting import known, unit_text
from atomdiffuser.report.payload import chosen_states, column, map_states
from atomdiffuser.report.results import AFFINE_COLUMNS, SeriesResults
from atomdiffuser.report.verdict import critical_text

MAX_CURVE_REGIONS = 150
MAX_CURVE_POINTS = 20_000
MAX_WEIGHT_REGIONS = 60
MAX_REASONS = 4000


def page_data(
    results: SeriesResults, settings: ReportSettings, series_id: str, name: str, pictures: dict[str, Any] | None
) -> dict[str, Any]:
    """What the script draws; see templates/series.js for how each part is used."""
    facts, trajectory, pairs = results.facts, results.trajectory, results.pairs
    drift_unit = facts.farthest[1]
    states = chosen_states(facts.valid, facts.first, facts.last_valid, settings.max_states)
    picture = None
    if pictures:
        grey = pictures["grey"]
        dark = results.series.acquisition.dark_level or 0.0
        size = {k: pictures[k] for k in ("factor", "width")}
        picture = {**size, "low": grey.low, "high": grey.high, "dark": dark}
    return {
        "id": series_id,
        "name": name,
        "axis": {"unit": facts.axis_unit, "label": figures.AXIS_LABELS[facts.axis]},
        "first": facts.first,
        "last": facts.last,
        "reference": facts.reference_frame,
        "frames": {
            "x": column(trajectory[facts.axis]),
            "time": column(trajectory["time_s"]),
            "valid": facts.valid.tolist(),
            "affine": [
                column(r) if v else None
                for r, v in zip(trajectory[AFFINE_COLUMNS].to_numpy(float), facts.valid, strict=True)
            ],
        },
        "drift": {
            "unit": drift_unit,
            "y": column(trajectory[f"drift_y_{drift_unit}"]),
            "x": column(trajectory[f"drift_x_{drift_unit}"]),
            "sigma": column(sigma_in(trajectory, drift_unit, results)),
        },
        "damage": _curves(results),
        "critical": _critical(results),
        "weights": _weights(results),
        "maps": map_states(results.maps, states, settings.warn_sigma_percent) if states else None,
        "picture": picture,
        "lut": change_lut(256).ravel(),
        "limit": CHANGE_LIMIT_PERCENT,
        "power": CHANGE_POWER,
        "pairs": {
            **{c: pairs[c].tolist() for c in ("reference", "moving", "lag", "valid")},
            **{c: column(pairs[c]) for c in ("residual_px", "hop_probability", "score")},
            "reason": pairs["reason"].tolist() if len(pairs) <= MAX_REASONS else None,
        },
    }


def sigma_in(trajectory: pd.DataFrame, unit: str, results: SeriesResults) -> np.ndarray:
    """1 σ of the displacement of each frame, in the unit that drift is given in."""
    sigma = trajectory["displacement_sigma_px"].to_numpy(float)
    pixel = results.series.acquisition.pixel_size_nm
    return sigma * float(np.mean(pixel)) if unit == "nm" and pixel else sigma


def _curves(results: SeriesResults) -> list[dict[str, Any]]:
    """Curves of the regions for the interactive chart, whole field first; thinned when there are very many."""
    damage = results.damage
    regions = list(dict.fromkeys(damage["region"]))
    regions = [r for r in regions if r == WHOLE] + [r for r in regions if r != WHOLE][: MAX_CURVE_REGIONS - 1]
    groups = dict(tuple(damage[damage["region"].isin(regions)].groupby("region", sort=False)))
    longest = max((len(g) for g in groups.values()), default=0)
    step = max(1, -(-longest * max(1, len(regions) - 1) // MAX_CURVE_POINTS))
    curves = []
    for region in regions:
        rows = groups[region].sort_values("frame")
        if region != WHOLE and step > 1:
            rows = rows.iloc[::step]
        keep = rows["valid"].to_numpy(bool)
        # a region's own fluence: only the frames that looked at it count
        own = column(rows[results.facts.axis].to_numpy(float)[keep])
        curve: dict[str, Any] = {"region": region, "frame": rows["frame"].to_numpy()[keep], "x": own}
        for witness in (w for w in WITNESSES if w in rows):
            for suffix in ("", "_lo95", "_hi95"):
                curve[witness + suffix] = column(rows[witness + suffix].to_numpy(float)[keep])
        curves.append(curve)
    return curves


def _critical(results: SeriesResults) -> list[dict[str, Any]]:
    """A row a region and witness: the critical fluence and the curve that was fitted."""
    critical, facts, kinetics = results.critical, results.facts, results.table("kinetics")
    rows = []
    for region in list(dict.fromkeys(critical["region"]))[:MAX_CURVE_REGIONS]:
        damage = results.damage[(results.damage["region"] == region) & results.damage["valid"]]
        x = damage[facts.axis].to_numpy(float)
        end = float(np.nanmax(x)) if np.isfinite(x).any() else np.nan
        for witness in WITNESSES:
            found = witness_of(critical, region, witness)
            if not found.measured:
                continue
            reached = known(found.critical) and not found.lower_bound
            to = max(end, found.critical * 1.04) if reached and found.critical <= 1.6 * end else end
            curve = _chosen(kinetics, region, witness, found)
            rows.append(
                {
                    "region": region, "witness": witness, "model": found.model, "bound": found.lower_bound,
                    "value": found.critical, "lo": found.critical_lo95, "hi": found.critical_hi95,
                    "fit": fitted_curve(damage, curve, witness, facts.axis, to) if curve and known(to) else None,
                    "text": critical_text(found) + ("" if found.lower_bound else f" {unit_text(found.unit)}")
                    if critical_text(found) else "",
                }
            )  # fmt: skip
    return rows


def _chosen(kinetics: pd.DataFrame | None, region: str, witness: str, found: Any) -> dict[str, Any] | None:
    """The curve to draw: the chosen one, or in results of an older version the exponential of the critical fluence."""
    if kinetics is None:
        reached = known(found.critical) and not found.lower_bound and found.model == "exponential"
        return exponential_row(found) if reached else None
    rows = kinetics[(kinetics["region"] == region) & (kinetics["witness"] == witness) & kinetics["chosen"].astype(bool)]
    return None if rows.empty else rows.iloc[0].to_dict()


def _weights(results: SeriesResults) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Weights of the curves tried, by region and witness; empty in results of an older version."""
    kinetics = results.table("kinetics")
    if kinetics is None:
        return {}
    regions = list(dict.fromkeys(kinetics["region"]))[:MAX_WEIGHT_REGIONS]
    return {
        region: {w: found for w in WITNESSES if (found := weights(kinetics, region, w))}
        for region in regions
    }  # fmt: skip
