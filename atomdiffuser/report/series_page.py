"""The page of one series: gathers what the template shows; every number is one of the tables'."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from atomdiffuser.config import ReportSettings
from atomdiffuser.io.status import Status
from atomdiffuser.report import figures, images, methods, more_figures
from atomdiffuser.report.closures import loop_closures
from atomdiffuser.report.colours import CHANGE_TICKS_PERCENT, colour_change, css_gradient, scale_position
from atomdiffuser.report.facts import WHOLE, witness_of
from atomdiffuser.report.fits import WITNESSES, kinetics_row
from atomdiffuser.report.formatting import interval, known, number
from atomdiffuser.report.map_pictures import column_facts, column_picture, damage_map_facts, damage_pictures
from atomdiffuser.report.page_data import page_data, sigma_in
from atomdiffuser.report.provenance import conditions_of, provenance_rows, store_rows
from atomdiffuser.report.quality import excluded_rows, flag_lane, flag_rows, quality_strips
from atomdiffuser.report.region_rows import MAX_TABLE_REGIONS, outlines, region_table
from atomdiffuser.report.render import render
from atomdiffuser.report.results import SeriesResults
from atomdiffuser.report.verdict import exposure_text, judge

STATIC_SIDE = 320
STATIC_OPACITY = 0.6
MAX_MEAN_FRAMES = 64
WORST_LOOPS = 5
MIN_CANVAS_SIDE = 400
"""Small frames are drawn on a canvas a whole number of times as large, so that hatching stays fine."""


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
    regions = region_table(results)
    strips = quality_strips(results.trajectory, facts, settings)
    data = page_data(results, settings, series_id, name, pictures)
    data["strips"] = [{k: s[k] for k in ("label", "unit", "values")} for s in strips]
    return render(
        "series.html",
        series_id=series_id,
        name=name,
        facts=facts,
        verdict=judge(facts, settings),
        exposure=exposure_text(facts),
        acquisition_line=methods.acquisition_line(results.series),
        acquisition=methods.acquisition_rows(results.series, conditions_of(results)),
        missing=methods.missing_note(results.series, series_id),
        pictures=pictures,
        gradient=css_gradient(),
        scale_ticks=[
            (float(100 * scale_position(t)), f"{t:+d}".replace("-", "−") if t else "0") for t in CHANGE_TICKS_PERCENT
        ],
        svg=_figures(results),
        strips=strips,
        lane=flag_lane(facts),
        flags=flag_rows(results.trajectory, facts) if "flags" in results.trajectory else None,
        excluded=excluded_rows(results.trajectory),
        loops=_loops(results, settings),
        regions=regions,
        outlines=outlines(results, regions["rows"]),
        kinetics=_kinetics(results.critical),
        weights=data["weights"].get(WHOLE, {}),
        spots=_spot_rows(results),
        exposure_facts=_exposure(results),
        damage_maps=damage_pictures(results.damage_maps, facts, results.series.frame_shape),
        damage_map_text=damage_map_facts(results.damage_maps),
        columns=_columns(results, pictures),
        rejected_pairs=_rejected_pairs(results.pairs),
        drift=_drift_rows(results),
        methods=methods.methods_paragraph(results.series, facts, results.pairs, results),
        citations=methods.CITATIONS,
        versions=methods.versions(),
        settings_rows=methods.settings_rows({kind: table.attrs for kind, table in results.tables.items()}),
        provenance=provenance_rows(results, status, command),
        stores=store_rows(results.folder, page),
        data=data,
        settings=settings,
    )


def _figures(results: SeriesResults) -> dict[str, Markup]:
    facts, trajectory = results.facts, results.trajectory
    spots, exposure = results.table("spots"), results.table("exposure")
    drawn = {
        "decay": figures.decay_figure(results.damage, trajectory, facts),
        "drift": figures.drift_figure(trajectory, facts, sigma_in(trajectory, facts.farthest[1], results)),
        "pairs": figures.pairs_figure(results.pairs, facts),
        "velocity": more_figures.velocity_figure(trajectory),
        "spots": "" if spots is None else more_figures.spots_figure(spots, facts, trajectory),
        "gain": "" if exposure is None else more_figures.gain_figure(exposure, facts),
    }
    return {name: Markup(text) for name, text in drawn.items()}


def _loops(results: SeriesResults, settings: ReportSettings) -> dict[str, Any] | None:
    """Closed loops of three frames: how well they close, and the worst; None when no loop is closed."""
    closures = loop_closures(results.pairs, results.series.frame_shape)
    if closures.empty:
        return None
    values = closures["closure_px"].to_numpy(float)
    return {
        "n": len(values),
        "median": float(np.median(values)),
        "largest": float(values.max()),
        "over": int((values > settings.warn_closure_px).sum()),
        "worst": closures.head(WORST_LOOPS).to_dict("records"),
        "svg": Markup(more_figures.closure_figure(closures, settings.warn_closure_px)),
    }


def _kinetics(critical: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a region and witness, whole field first."""
    regions = sorted(dict.fromkeys(critical["region"]), key=lambda r: r != WHOLE)[:MAX_TABLE_REGIONS]
    found = [(region, witness_of(critical, region, w)) for region in regions for w in WITNESSES]
    return [kinetics_row(witness, region) for region, witness in found if witness.row]


def _spot_rows(results: SeriesResults) -> list[dict[str, Any]]:
    """A row a shell of the whole field's Fourier spots."""
    table = results.table("spot_fluence")
    if table is None:
        return []
    rows = []
    for row in table[table["region"] == WHOLE].sort_values("shell").to_dict("records"):
        ends = [float(row[f"critical_fluence{end}"]) for end in ("", "_lo95", "_hi95")]
        text = "–"
        if known(ends[0]) and ends[0] > 0:
            text = f"> {number(ends[0])}" if row["lower_bound"] else interval(*ends)
        loss = [float(row[f"loss_{end}"]) for end in ("percent", "lo95", "hi95")]
        rows.append({**row, "critical_text": text, "loss_text": interval(*loss)})
    return rows


def _exposure(results: SeriesResults) -> dict[str, Any] | None:
    """What exposure.csv says of the fluence beyond the sums, and of the beam's gain."""
    table = results.table("exposure")
    if table is None:
        return None
    said = table.attrs
    total = {
        c: float(np.nansum(table[c].to_numpy(float))) if np.isfinite(table[c].to_numpy(float)).any() else np.nan
        for c in ("fluence_frame_e_per_A2", "fluence_gap_e_per_A2")
    }
    median = {
        c: float(np.nanmedian(table[c].to_numpy(float))) if np.isfinite(table[c].to_numpy(float)).any() else np.nan
        for c in ("flux_e_per_A2_s", "probe_flux_e_per_A2_s", "fluence_probe_e_per_A2")
    }
    return {
        **total,
        **median,
        "gap_counted": bool(table["gap_counted"].astype(bool).any()),
        "limit": str(said.get("limit") or "unknown"),
        "probe_size_nm": said.get("probe_size_nm"),
        "current_sigma_percent": said.get("current_sigma_percent"),
        "current_sigma_source": str(said.get("current_sigma_source") or ""),
        "gain_text": str(said.get("gain_text") or ""),
        "gain_scatter_percent": said.get("gain_scatter_percent"),
        "dark_level": said.get("dark_level") if isinstance(said.get("dark_level"), dict) else {},
    }


def _columns(results: SeriesResults, pictures: dict[str, Any] | None) -> dict[str, Any] | None:
    """Atomic columns, where they are resolved."""
    table = results.table("columns")
    if table is None or pictures is None:
        return None
    picture = column_picture(table, pictures["reference"], pictures["factor"], pictures["grey"])
    return {"facts": column_facts(table), "picture": picture}


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
        "reference": small_first,
        "first": images.webp(grey.to_uint8(small_first)),
        "last": images.webp(grey.to_uint8(small_last)),
        "width": small_first.shape[1],
        "height": small_first.shape[0],
        "factor": factor,
        "enlarged": max(1, MIN_CANVAS_SIDE // max(small_first.shape)),
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


def _drift_rows(results: SeriesResults) -> dict[str, Any]:
    last = results.trajectory.iloc[results.facts.last_valid] if results.facts.n_frames else {}
    return {name: last.get(name, np.nan) for name in ("rotation_deg", "scale", "shear")}


def _rejected_pairs(pairs: pd.DataFrame) -> list[tuple[str, int]]:
    return Counter(str(r) or "no reason given" for r in pairs.loc[~pairs["valid"], "reason"]).most_common(12)
