"""The page of one series: gathers what the template shows; every number is one of the tables'."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from atomdiffuser.config import ReportSettings
from atomdiffuser.io.status import Status
from atomdiffuser.report import figures, images, methods
from atomdiffuser.report.colours import (
    CHANGE_LIMIT_PERCENT,
    CHANGE_POWER,
    CHANGE_TICKS_PERCENT,
    change_lut,
    colour_change,
    css_gradient,
    scale_position,
)
from atomdiffuser.report.facts import WHOLE, SeriesFacts, Witness, suspected_hops, witness_of
from atomdiffuser.report.formatting import integer, interval, known, number, unit_text
from atomdiffuser.report.payload import chosen_states, column, map_states
from atomdiffuser.report.render import render
from atomdiffuser.report.results import AFFINE_COLUMNS, SeriesResults
from atomdiffuser.report.verdict import critical_text, exposure_text, judge

ESTIMATION_LABELS = {
    "matched_filter_px": "matched filter, σ (px)",
    "base_px": "width of the local mean (px)",
    "lattice_period_px": "lattice period (px)",
    "noise_readout_counts2": "readout noise (counts²)",
    "noise_per_count": "noise variance per count",
}
MAX_TABLE_REGIONS = 150
MAX_CURVE_POINTS = 20_000
STATIC_SIDE = 320
STATIC_OPACITY = 0.6
MAX_MEAN_FRAMES = 64


def series_page(
    results: SeriesResults,
    settings: ReportSettings,
    *,
    series_id: str,
    name: str,
    status: Status,
    page: Path,
    command: str | None = None,
) -> str:
    """The series page as HTML text.

    Parameters
    ----------
    status
        What is known of the series' processing, for the provenance section.
    page
        Where the page will stand; links to the stores are relative to it.
    command
        The command line that made the page, if known.
    """
    facts = results.facts
    pictures = _pictures(results, settings) if facts.n_valid else None
    return render(
        "series.html",
        series_id=series_id,
        name=name,
        facts=facts,
        verdict=judge(facts, settings),
        exposure=exposure_text(facts),
        acquisition_line=methods.acquisition_line(results.series),
        acquisition=methods.acquisition_rows(results.series, _conditions(results)),
        missing=methods.missing_note(results.series, series_id),
        pictures=pictures,
        gradient=css_gradient(),
        scale_ticks=[
            (float(100 * scale_position(t)), f"{t:+d}".replace("-", "−") if t else "0") for t in CHANGE_TICKS_PERCENT
        ],
        svg={
            "decay": Markup(figures.decay_figure(results.damage, facts)),
            "drift": Markup(figures.drift_figure(results.trajectory, facts)),
            "pairs": Markup(figures.pairs_figure(results.pairs, facts)),
        },
        strip=_quality_strip(results, settings),
        excluded=_excluded(results.trajectory),
        regions=_region_rows(results),
        kinetics=_kinetics_rows(results.critical),
        rejected_pairs=_rejected_pairs(results.pairs),
        drift=_drift_rows(results),
        methods=methods.methods_paragraph(results.series, facts, results.pairs),
        citations=methods.CITATIONS,
        versions=methods.versions(),
        settings_rows=methods.settings_rows({kind: table.attrs for kind, table in results.tables.items()}),
        provenance=_provenance(results, status, command),
        stores=_stores(results.folder, page),
        payload=_payload(results, settings, series_id, name, pictures),
        settings=settings,
    )


def _pictures(results: SeriesResults, settings: ReportSettings) -> dict[str, Any]:
    series, facts = results.series, results.facts
    first = images.aligned_frame(series, facts.first, results.frame_from_reference(facts.first))
    last = images.aligned_frame(series, facts.last, results.frame_from_reference(facts.last))
    small_first, factor = images.shrink(first, settings.image_px)
    small_last, _ = images.shrink(last, settings.image_px)
    grey = images.Grey.of(small_first)
    frames = _frames_for_mean(facts.valid)
    affines = {k: results.frame_from_reference(k) for k in frames}
    raw, aligned, origin = images.raw_and_aligned_mean(series, affines, settings.image_px)
    mean_grey = images.Grey.of(aligned)
    height, width = series.frame_shape
    bar = images.scale_bar(width, series.acquisition.pixel_size_nm)
    return {
        "first": images.webp(grey.to_uint8(small_first)),
        "last": images.webp(grey.to_uint8(small_last)),
        "width": small_first.shape[1],
        "height": small_first.shape[0],
        "factor": factor,
        "grey": grey,
        "bar": bar,
        "mean_bar": images.scale_bar(raw.shape[1], series.acquisition.pixel_size_nm),
        "maps": {w: _static_map(results, w, small_first, factor, grey) for w in ("contrast", "intensity")},
        "raw_mean": images.webp(mean_grey.to_uint8(raw)),
        "aligned_mean": images.webp(mean_grey.to_uint8(aligned)),
        "mean_frames": len(frames),
        "mean_size": raw.shape,
        "mean_origin": origin,
        "mean_is_crop": raw.shape != (height, width),
    }


def _static_map(results: SeriesResults, witness: str, picture: np.ndarray, factor: int, grey: images.Grey) -> str:
    """The last frame's map over the reference image, for print and readers without JavaScript."""
    image, further = images.shrink(picture, STATIC_SIDE)
    full = results.maps.at_full_resolution(witness, results.facts.last, results.series.frame_shape)
    change = 100 * (images.block_nanmean(full, factor * further) - 1)
    background = np.repeat(grey.to_uint8(image)[..., None], 3, axis=2).astype(float)
    seen = np.isfinite(change)[..., None]
    y, x = np.mgrid[: change.shape[0], : change.shape[1]]
    hatch = ((x + y) % 10 < 2)[..., None] & ~seen
    mixed = np.where(seen, (1 - STATIC_OPACITY) * background + STATIC_OPACITY * colour_change(change), background)
    return images.webp(np.where(hatch, 255, mixed).astype(np.uint8))


def _frames_for_mean(valid: np.ndarray) -> list[int]:
    frames = np.flatnonzero(valid)
    picks = np.unique(np.rint(np.linspace(0, len(frames) - 1, min(len(frames), MAX_MEAN_FRAMES))).astype(int))
    return [int(frames[i]) for i in picks]


def _region_rows(results: SeriesResults) -> dict[str, Any]:
    """A row a region: loss of both witnesses at the last frame, critical fluence, coverage."""
    facts = results.facts
    bounds = {r["region"]: r.get("bounds_px") for r in results.damage.attrs.get("regions", [])}
    at_end = results.damage[results.damage["frame"] == facts.last].set_index("region")
    names = list(dict.fromkeys(results.critical["region"])) or list(dict.fromkeys(results.damage["region"]))
    rows = []
    for region in names:
        contrast, intensity = (witness_of(results.critical, region, w) for w in ("contrast", "intensity"))
        end = at_end.loc[region] if region in at_end.index else {}
        rows.append(
            {
                "region": region,
                "bounds": bounds.get(region),
                "contrast": contrast,
                "intensity": intensity,
                "contrast_text": interval(contrast.loss_percent, contrast.loss_lo95, contrast.loss_hi95),
                "intensity_text": interval(intensity.loss_percent, intensity.loss_lo95, intensity.loss_hi95),
                "critical_text": critical_text(contrast),
                "coverage": end.get("coverage", np.nan),
                "n_px": end.get("n_px", np.nan),
            }
        )
    ranked = sorted(
        rows[1:], key=lambda r: -r["contrast"].loss_percent if known(r["contrast"].loss_percent) else np.inf
    )
    shown = {r["region"] for r in [*rows[:1], *ranked[: MAX_TABLE_REGIONS - 1]]}
    unit = next((r["contrast"].unit for r in rows if r["contrast"].measured), facts.axis_unit)
    return {
        "rows": [r for r in rows if r["region"] in shown],
        "left_out": len(rows) - len(shown),
        "unit": unit_text(unit),
    }


def _kinetics_rows(critical: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    regions = list(dict.fromkeys(critical["region"]))[:MAX_TABLE_REGIONS]
    for row in critical[critical["region"].isin(regions)].to_dict("records"):
        witness = witness_of(pd.DataFrame([row]), row["region"], row["witness"])
        gain = row["aicc_constant"] - row["aicc"]
        rows.append({**row, "witness_facts": witness, "critical_text": critical_text(witness), "aicc_gain": gain})
    return sorted(rows, key=lambda r: r["region"] != WHOLE)


def _drift_rows(results: SeriesResults) -> dict[str, Any]:
    last = results.trajectory.iloc[results.facts.last_valid] if results.facts.n_frames else {}
    return {name: last.get(name, np.nan) for name in ("rotation_deg", "scale", "shear")}


def _excluded(trajectory: pd.DataFrame) -> list[dict[str, Any]]:
    """Frames left out, grouped by reason."""
    left_out = trajectory[~trajectory["valid"]]
    groups: dict[str, list[int]] = {}
    for frame, reason in zip(left_out["frame"], left_out["reason"], strict=True):
        groups.setdefault(str(reason) or "no reason given", []).append(int(frame))
    return [{"reason": reason, "frames": ranges(frames), "count": len(frames)} for reason, frames in groups.items()]


def _rejected_pairs(pairs: pd.DataFrame) -> list[tuple[str, int]]:
    return Counter(str(r) or "no reason given" for r in pairs.loc[~pairs["valid"], "reason"]).most_common(12)


def ranges(numbers: list[int]) -> str:
    """Frame numbers as ranges: 7–8, 15–19."""
    groups: list[list[int]] = []
    for n in sorted(numbers):
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups)


def _quality_strip(results: SeriesResults, settings: ReportSettings) -> dict[str, Any]:
    """Bars of closure and σ for each frame, scaled to a common top."""
    table = results.trajectory
    values = {c: table[c].to_numpy(float) for c in ("closure_px", "displacement_sigma_px")}
    finite = np.concatenate([v[np.isfinite(v)] for v in values.values()] + [[settings.warn_closure_px * 1.2]])
    top = float(finite.max()) or 1.0
    cells = []
    for i, row in enumerate(table.itertuples()):
        state = "used" if row.valid else f"excluded: {row.reason or 'no reason given'}"
        cells.append(
            {
                "frame": int(row.frame),
                "valid": bool(row.valid),
                "closure": values["closure_px"][i] / top if known(values["closure_px"][i]) else 0.0,
                "sigma": values["displacement_sigma_px"][i] / top if known(values["displacement_sigma_px"][i]) else 0.0,
                "title": f"frame {integer(row.frame)}, {state}; closure {number(row.closure_px)} px, "
                f"σ {number(row.displacement_sigma_px)} px",
            }
        )
    return {
        "cells": cells,
        "top": top,
        "warn": settings.warn_closure_px / top,
        "hops": int(suspected_hops(results.pairs).sum()),
    }


def _provenance(results: SeriesResults, status: Status, command: str | None) -> list[tuple[str, str]]:
    """Where the numbers come from, as label and text."""
    rows = [("series", status.series), ("raw file", status.source)]
    rows.append(("content hash", status.fingerprint or str(results.attributes.get("fingerprint", ""))))
    for key, value in results.attributes.items():
        if key == "sources" and isinstance(value, list) and value and not status.source:
            rows.append(("raw files", f"{value[0]} and {integer(len(value) - 1)} more" if len(value) > 1 else value[0]))
        if isinstance(value, str | int | float) and key not in ("kind", "name", "version", "series", "fingerprint"):
            rows.append((key.replace("_", " "), str(value)))
    estimation = results.damage.attrs.get("estimation")
    if isinstance(estimation, dict):
        for key, value in estimation.items():
            if key != "torch":  # among the versions
                rows.append(
                    (
                        ESTIMATION_LABELS.get(key, key.replace("_", " ")),
                        number(value, 4) if known(value) else str(value),
                    )
                )
    weights = results.tables["pairs"].attrs.get("weights") or results.maps.attributes.get("weights")
    rows += [
        ("settings hash", status.config_hash),
        ("network weights", str(weights) if weights else "none: statistical estimation only"),
        ("reference frame", integer(results.facts.reference_frame)),
        ("command", command or ""),
    ]
    seen: set[tuple[str, str]] = set()
    return [r for r in rows if r[1] and not (r in seen or seen.add(r))]


def _conditions(results: SeriesResults) -> dict[str, Any]:
    """What session.yaml says of the specimen: temperature, coating and the like."""
    overrides = results.attributes.get("overrides")
    conditions = overrides.get("conditions") if isinstance(overrides, dict) else None
    return conditions if isinstance(conditions, dict) else {}


def _stores(folder: Path, page: Path) -> list[dict[str, str]]:
    """Links to the result files beside the page, and the lines that open the stores."""
    relative = lambda name: os.path.relpath(folder / name, page.parent).replace(os.sep, "/")
    rows = []
    for stem, what in (("aligned", "drift-corrected series"), ("frames", "frames as recorded")):
        if (folder / f"{stem}.ome.zarr").exists():
            zspy = f"{stem}.zspy" if (folder / f"{stem}.zspy").exists() else f"{stem}.ome.zarr"
            rows.append(
                {
                    "href": relative(f"{stem}.ome.zarr"),
                    "what": what,
                    "hyperspy": f'hs.load("{relative(zspy)}", lazy=True)',
                    "napari": f"napari --plugin napari-ome-zarr {relative(f'{stem}.ome.zarr')}",
                }
            )
    if (folder / "decay.zarr").exists():
        lines = {"hyperspy": "", "napari": f"napari --plugin napari-ome-zarr {relative('decay.zarr/contrast')}"}
        rows.append({"href": relative("decay.zarr"), "what": "decay maps with σ and coverage", **lines})
    for file in ("damage.csv", "damage.parquet", "critical_fluence.csv", "trajectory.parquet", "pairs.parquet"):
        if (folder / file).exists():
            rows.append({"href": relative(file), "what": "table", "hyperspy": "", "napari": ""})
    return rows


def _payload(
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
        picture = {"factor": pictures["factor"], "low": grey.low, "high": grey.high, "dark": dark}
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
            "closure": column(trajectory["closure_px"]),
        },
        "drift": {
            "unit": drift_unit,
            "y": column(trajectory[f"drift_y_{drift_unit}"]),
            "x": column(trajectory[f"drift_x_{drift_unit}"]),
            "sigma": column(_sigma_in(trajectory, drift_unit, results)),
        },
        "damage": _curves(results),
        "critical": _critical_payload(results),
        "maps": map_states(results.maps, states) if states else None,
        "picture": picture,
        "lut": change_lut(256).ravel(),
        "limit": CHANGE_LIMIT_PERCENT,
        "power": CHANGE_POWER,
        "pairs": {
            "reference": pairs["reference"].tolist(),
            "moving": pairs["moving"].tolist(),
            "lag": pairs["lag"].tolist(),
            "residual_px": column(pairs["residual_px"]),
            "hop_probability": column(pairs["hop_probability"]),
            "score": column(pairs["score"]),
            "valid": pairs["valid"].tolist(),
            "reason": pairs["reason"].tolist() if len(pairs) <= 4000 else None,
        },
    }


def _sigma_in(trajectory: pd.DataFrame, unit: str, results: SeriesResults) -> np.ndarray:
    sigma = trajectory["displacement_sigma_px"].to_numpy(float)
    pixel = results.series.acquisition.pixel_size_nm
    return sigma * float(np.mean(pixel)) if unit == "nm" and pixel else sigma


def _curves(results: SeriesResults) -> list[dict[str, Any]]:
    """Curves of the regions for the interactive chart, whole field first; thinned when there are very many."""
    damage = results.damage
    bounds = {r["region"]: r.get("bounds_px") for r in damage.attrs.get("regions", [])}
    regions = list(dict.fromkeys(damage["region"]))
    regions = [r for r in regions if r == WHOLE] + [r for r in regions if r != WHOLE][: MAX_TABLE_REGIONS - 1]
    groups = dict(tuple(damage[damage["region"].isin(regions)].groupby("region", sort=False)))
    longest = max((len(g) for g in groups.values()), default=0)
    step = max(1, -(-longest * max(1, len(regions) - 1) // MAX_CURVE_POINTS))
    curves = []
    for region in regions:
        rows = groups[region].sort_values("frame")
        if region != WHOLE and step > 1:
            rows = rows.iloc[::step]
        keep = rows["valid"].to_numpy(bool)
        curve: dict[str, Any] = {
            "region": region,
            "bounds": bounds.get(region),
            "frame": rows["frame"].to_numpy()[keep],
        }
        for witness in ("contrast", "intensity"):
            for suffix in ("", "_lo95", "_hi95"):
                curve[witness + suffix] = column(rows[witness + suffix].to_numpy(float)[keep])
        curves.append(curve)
    return curves


def _critical_payload(results: SeriesResults) -> list[dict[str, Any]]:
    critical, damage, facts = results.critical, results.damage, results.facts
    rows = []
    regions = list(dict.fromkeys(critical["region"]))[:MAX_TABLE_REGIONS]
    for region in regions:
        for witness in ("contrast", "intensity"):
            found = witness_of(critical, region, witness)
            if known(found.critical):
                rows.append(
                    {
                        "region": region, "witness": witness, "model": found.model, "value": found.critical,
                        "lo": found.critical_lo95, "hi": found.critical_hi95, "bound": found.lower_bound,
                        "amplitude": _amplitude(found, damage, facts),
                        "text": critical_text(found) + ("" if found.lower_bound else f" {unit_text(found.unit)}"),
                    }
                )  # fmt: skip
    return rows


def _amplitude(found: Witness, damage: pd.DataFrame, facts: SeriesFacts) -> float:
    """Height of the fitted exponential at x = 0, by weighted least squares for the critical value given."""
    rows = damage[(damage["region"] == found.row["region"]) & damage["valid"]]
    x, y, sigma = (rows[c].to_numpy(float) for c in (facts.axis, found.witness, f"{found.witness}_sigma"))
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(sigma) & (sigma > 0)
    curve = np.exp(-x[good] / found.critical) / sigma[good]
    norm = float((curve * curve).sum())
    return float((curve * y[good] / sigma[good]).sum() / norm) if norm > 0 else 1.0
