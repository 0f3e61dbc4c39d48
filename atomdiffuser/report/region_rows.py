"""Regions of a series page: their outlines on the images, and a row a region for the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser.report.facts import WHOLE, witness_of
from atomdiffuser.report.formatting import interval, known, unit_text
from atomdiffuser.report.results import SeriesResults
from atomdiffuser.report.verdict import critical_cell

MAX_TABLE_REGIONS = 150
MAX_OUTLINE_POINTS = 120
KIND_NAMES = {"whole": "whole field", "grid": "grid", "automatic": "segmented", "session": "session.yaml"}


def region_table(results: SeriesResults) -> dict[str, Any]:
    """A row a region: loss of the witnesses at the last frame, critical fluence, usable window, coverage."""
    facts = results.facts
    described = {r["region"]: r for r in results.damage.attrs.get("regions", [])}
    at_end = results.damage[results.damage["frame"] == facts.last].set_index("region")
    names = list(dict.fromkeys(results.critical["region"])) or list(dict.fromkeys(results.damage["region"]))
    rows = [_row(results, region, described.get(region, {}), at_end) for region in names]
    ranked = sorted(
        rows[1:], key=lambda r: -r["contrast"].loss_percent if known(r["contrast"].loss_percent) else np.inf
    )
    shown = {r["region"] for r in [*rows[:1], *ranked[: MAX_TABLE_REGIONS - 1]]}
    unit = next((r["contrast"].unit for r in rows if r["contrast"].measured), facts.axis_unit)
    kept = [r for r in rows if r["region"] in shown]
    return {
        "rows": kept,
        "left_out": len(rows) - len(kept),
        "unit": unit_text(unit),
        "crystallinity": any(r["crystallinity"].measured for r in kept),
        "usable": any(r["contrast"].usable_last_frame is not None for r in kept),
        "kinds": len({r["kind"] for r in kept}) > 1,
    }


def outlines(results: SeriesResults, regions: list[dict[str, Any]]) -> list[dict[str, str]]:
    """SVG path of each region on the reference grid, in pixels from the frame's corner; the whole field has none."""
    found = []
    for row in regions:
        path = _path(row, results)
        if path and row["region"] != WHOLE:
            found.append({"region": row["region"], "path": path})
    return found


def _row(results: SeriesResults, region: str, described: dict[str, Any], at_end: pd.DataFrame) -> dict[str, Any]:
    contrast, intensity, crystallinity = (
        witness_of(results.critical, region, w) for w in ("contrast", "intensity", "crystallinity")
    )
    end = at_end.loc[region] if region in at_end.index else {}
    usable = contrast.usable_last_frame
    return {
        "region": region,
        "label": "whole field" if region == WHOLE else region,
        "kind": KIND_NAMES.get(str(described.get("kind", "")), str(described.get("kind", ""))),
        "enough": bool(described.get("enough_px", True)),
        "bounds": described.get("bounds_px"),
        "outline": described.get("outline_px"),
        "region_id": described.get("region_id"),
        "contrast": contrast,
        "intensity": intensity,
        "crystallinity": crystallinity,
        "contrast_text": _loss(contrast),
        "intensity_text": _loss(intensity),
        "crystallinity_text": _loss(crystallinity),
        "critical_text": critical_cell(contrast) or "–",
        "usable": np.nan if usable is None else float(usable),
        "usable_text": usable_text(usable, results.facts.first),
        "mechanism": contrast.text("mechanism"),
        "coverage": end.get("coverage", np.nan),
        "n_px": end.get("n_px", np.nan),
    }


def usable_text(last: int | None, first: int) -> str:
    """“0–17”, a single frame, “none”, or a dash when unknown."""
    if last is None:
        return "–"
    if last <= first:
        return "none" if last < first else str(first)
    return f"{first}–{last}"


def _loss(witness: Any) -> str:
    return interval(witness.loss_percent, witness.loss_lo95, witness.loss_hi95)


def _path(row: dict[str, Any], results: SeriesResults) -> str:
    """Outline given by the results, else traced on the labels of the segmentation, else the box of a grid's region."""
    if row["outline"]:
        return _polygon(np.asarray(row["outline"], dtype=float) + 0.5)
    if row["kind"] == KIND_NAMES["automatic"]:
        return _segment(row["region"], results)
    if row["bounds"]:
        y0, x0, y1, x1 = row["bounds"]
        return f"M{x0} {y0}H{x1}V{y1}H{x0}z"
    return ""


def _segment(region: str, results: SeriesResults) -> str:
    """Outline of a segmented region; empty for one that the labels do not tell, such as a band along an edge."""
    maps = results.damage_maps
    labels = maps.get("labels") if maps is not None else None
    if labels is None:
        return ""
    numbers = [int(n) for n, name in (maps.attributes.get("label_names") or {}).items() if name == region]
    mask = np.isin(np.nan_to_num(labels, nan=-1), numbers)
    return _traced(mask, int(maps.attributes.get("map_stride", 1))) if mask.any() else ""


def _traced(mask: np.ndarray, stride: int) -> str:
    """Outlines of a mask of map samples; sample i covers the pixels from i·stride to (i + 1)·stride."""
    import contourpy

    padded = np.pad(mask.astype(float), 1)
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    return "".join(_polygon((line[:, ::-1] - 0.5) * stride) for line in lines if len(line) > 3)


def _polygon(points: np.ndarray) -> str:
    """(n, 2) points (y, x) as a closed path."""
    if len(points) > MAX_OUTLINE_POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, MAX_OUTLINE_POINTS).astype(int))]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points) + "z"
