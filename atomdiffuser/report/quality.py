"""Frame by frame: how well each one was registered and how good it is, as strips over a common axis of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from atomdiffuser.config import RegisterSettings, ReportSettings
from atomdiffuser.report.facts import SeriesFacts
from atomdiffuser.report.formatting import number
from atomdiffuser.report.payload import column

DENSE = 120
"""From so many frames on, bars touch."""


@dataclass(frozen=True)
class Quantity:
    """A column of trajectory.parquet that has a strip of its own."""

    column: str
    label: str
    unit: str
    meaning: str
    only_if_any: bool = False  # left out while it is 0 everywhere


QUANTITIES = (
    Quantity("closure_px", "closure", "px", "disagreement of the frame's pairs around closed loops"),
    Quantity("displacement_sigma_px", "1 σ of the drift", "px", "root mean square over the frame"),
    Quantity("hop_probability", "hop probability", "", "that the frame is off by a lattice vector", True),
    Quantity("sharpness", "sharpness", "", "1: as sharp as the frames around it"),
    Quantity("line_jitter_px", "line jitter", "px", "of the scan lines along x, noise taken out"),
    Quantity("saturated_fraction", "saturated share", "", "of the frame's pixels", True),
    Quantity("missing_rows_fraction", "missing rows", "", "share of the frame", True),
)
FLAG_MEANING = {
    "blank": "shows nothing",
    "duplicate": "repeats another frame",
    "missing_rows": "rows are missing",
    "saturated": "pixels at the detector's limit",
    "blur": "less sharp along one direction",
    "defocus": "less sharp all over",
    "jump": "far from where the drift led",
}


def quality_strips(trajectory: pd.DataFrame, facts: SeriesFacts, settings: ReportSettings) -> list[dict[str, Any]]:
    """A strip a quantity that these results have: its SVG, its scale, its values for the script."""
    hop_limit = RegisterSettings().hop_probability_limit
    used = trajectory.attrs.get("settings")
    if isinstance(used, dict):
        hop_limit = float(used.get("hop_probability_limit", hop_limit))
    limits = {"closure_px": settings.warn_closure_px, "hop_probability": hop_limit, "sharpness": 1.0}
    strips = []
    for quantity in QUANTITIES:
        if quantity.column not in trajectory:
            continue
        values = trajectory[quantity.column].to_numpy(float)
        finite = values[np.isfinite(values)]
        if finite.size == 0 or (quantity.only_if_any and not finite.any()):
            continue
        limit = limits.get(quantity.column)
        top = float(max(finite.max(), 1.25 * limit if limit is not None else 0.0)) or 1.0
        strips.append(
            {
                "label": quantity.label,
                "unit": quantity.unit,
                "meaning": quantity.meaning,
                "top": top,
                "limit": limit,
                "is_limit": quantity.column != "sharpness",
                "largest": float(finite.max()),
                "svg": _bars(values / top, facts.valid, None if limit is None else limit / top),
                "described": f"{quantity.label} of {len(values)} frames: median {number(np.median(finite))}, "
                f"largest {number(finite.max())} {quantity.unit}".rstrip(),
                "values": column(values),
            }
        )
    return strips


def flag_lane(facts: SeriesFacts) -> Markup:
    """Marks of flagged and excluded frames, on the axis of the strips."""
    flagged = {k for frames in facts.flagged.values() for k in frames}
    marks = []
    for k in range(facts.n_frames):
        if not facts.valid[k]:
            marks.append(f'<rect class="out" x="{k}" y="0" width="1" height="100"/>')
        if k in flagged:
            state = "used" if facts.valid[k] else "excluded"
            marks.append(f'<rect class="flag {state}" x="{k + 0.15:g}" y="25" width="0.7" height="50"/>')
    return _svg(facts.n_frames, "".join(marks))


def flag_rows(trajectory: pd.DataFrame, facts: SeriesFacts) -> list[dict[str, Any]]:
    """A row a flag: which frames, what it means, how many of them are used all the same."""
    reasons = trajectory["flag_reasons"] if "flag_reasons" in trajectory else None
    rows = []
    for flag, frames in facts.flagged.items():
        said = str(reasons.iloc[frames[0]]).split("; ") if reasons is not None and frames[0] < len(reasons) else []
        order = [f.strip() for f in str(trajectory["flags"].iloc[frames[0]]).split(",")]
        example = said[order.index(flag)] if flag in order and order.index(flag) < len(said) else ""
        rows.append(
            {
                "flag": flag.replace("_", " "),
                "meaning": FLAG_MEANING.get(flag, ""),
                "frames": ranges(list(frames)),
                "count": len(frames),
                "used": sum(bool(facts.valid[k]) for k in frames),
                "example": f"frame {frames[0]}: {example}" if example else "",
            }
        )
    return rows


def excluded_rows(trajectory: pd.DataFrame) -> list[dict[str, Any]]:
    """Frames left out, grouped by reason."""
    left_out = trajectory[~trajectory["valid"]]
    groups: dict[str, list[int]] = {}
    for frame, reason in zip(left_out["frame"], left_out["reason"], strict=True):
        groups.setdefault(str(reason) or "no reason given", []).append(int(frame))
    return [{"reason": reason, "frames": ranges(frames), "count": len(frames)} for reason, frames in groups.items()]


def ranges(numbers: list[int]) -> str:
    """Frame numbers as ranges: 7–8, 15–19."""
    groups: list[list[int]] = []
    for n in sorted(numbers):
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups)


def _bars(shares: np.ndarray, valid: np.ndarray, limit: float | None) -> Markup:
    gap = 0.0 if len(shares) > DENSE else 0.12
    out = "".join(
        f'<rect class="out" x="{k}" y="0" width="1" height="100"/>' for k in np.flatnonzero(~np.asarray(valid))
    )
    bars = "".join(
        f"M{k + gap:g} 100V{100 - 100 * min(s, 1):.1f}H{k + 1 - gap:g}V100z"
        for k, s in enumerate(shares)
        if np.isfinite(s)
    )
    line = ""
    if limit is not None:
        y = f"{100 - 100 * limit:.1f}"
        line = f'<line class="limit" x1="0" x2="{len(shares)}" y1="{y}" y2="{y}"/>'
    return _svg(len(shares), f'{out}<path class="bars" d="{bars}"/>{line}')


def _svg(n: int, content: str) -> Markup:
    # nothing of the user's in it: numbers only
    return Markup(f'<svg viewBox="0 0 {max(1, n)} 100" preserveAspectRatio="none" aria-hidden="true">{content}</svg>')
