"""The page and the table of a session: all series side by side, those that failed or were skipped with the reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from atomdiffuser._version import __version__
from atomdiffuser.config import ReportSettings
from atomdiffuser.report import figures, images
from atomdiffuser.report.comparison import Comparison, comparison_rows, conditions_figure, effects_figure
from atomdiffuser.report.facts import WHOLE, SeriesFacts, gather_facts
from atomdiffuser.report.formatting import integer, interval, known, number, unit_text
from atomdiffuser.report.region_rows import usable_text
from atomdiffuser.report.render import render
from atomdiffuser.report.results import read_tables
from atomdiffuser.report.session_figures import Curve, curves_figure, forest_figure
from atomdiffuser.report.verdict import Verdict, critical_cell, judge, over_closure, over_loss
from atomdiffuser.series import FrameSeries

THUMBNAIL_PX = 72
MECHANISM_WORDS = {"none": "", "unclear": "", "both": "mass and lattice", "gain": "signal grew"}
STATES = {"good": "sound", "look": "need a look", "bad": "not usable as is", "failed": "failed", "skipped": "skipped"}
COLUMNS: dict[str, tuple[str, str]] = {
    "series": ("slug of the series", ""),
    "name": ("name of the series", ""),
    "state": ("ok, failed or skipped", ""),
    "verdict": ("the report's verdict in words", ""),
    "flags": ("what needs a look", ""),
    "reason": ("why it failed or was skipped", ""),
    "source": ("raw file or folder, relative to the session", ""),
    "n_frames": ("frames in the series", "frames"),
    "n_excluded": ("frames left out", "frames"),
    "n_flagged": ("frames used although their quality was flagged", "frames"),
    "n_ambiguous": ("used frames that may be off by a lattice vector; NaN when these results do not say", "frames"),
    "fluence_e_per_A2": ("cumulative fluence at the last frame whose change was measured; NaN when unknown", "e⁻/Å²"),
    "duration_s": ("first frame used to the last whose change was measured", "s"),
    "contrast_loss_percent": ("loss of whole-field contrast at the last frame", "%"),
    "contrast_loss_lo95": ("lower end of its 95 % interval", "%"),
    "contrast_loss_hi95": ("upper end of its 95 % interval", "%"),
    "intensity_loss_percent": ("loss of whole-field mean intensity at the last frame", "%"),
    "intensity_loss_lo95": ("lower end of its 95 % interval", "%"),
    "intensity_loss_hi95": ("upper end of its 95 % interval", "%"),
    "crystallinity_loss_percent": ("loss of contrast over intensity, free of the beam's fluctuation", "%"),
    "mechanism": ("what contrast and intensity say together", ""),
    "usable_last_frame": ("last frame within the tolerated loss of contrast; NaN when these results do not say", ""),
    "critical_fluence": ("where whole-field contrast falls to 1/e; the 95 % lower bound when lower_bound", "see unit"),
    "critical_fluence_lo95": ("lower end of its 95 % interval", "see unit"),
    "critical_fluence_hi95": ("upper end of its 95 % interval; inf when unbounded", "see unit"),
    "lower_bound": ("whether the series ended too early for more than a lower bound", ""),
    "unit": ("unit of the critical fluence: e_per_A2, s or frame", ""),
    "drift_rate": ("net displacement over time between the first and the last frame used", "see drift_rate_unit"),
    "drift_rate_unit": ("unit of drift_rate", ""),
    "closure_px": ("largest closure error of a used frame", "px"),
    "suspected_hops": ("pairs that may be off by a lattice vector", "pairs"),
}
"""Columns of summary.csv: description and unit."""


@dataclass(frozen=True)
class SessionRow:
    """One series of the session; `facts` and `verdict` are None when it failed or was skipped."""

    series_id: str
    name: str
    source: str
    state: str  # ok, failed, skipped
    stage: str = ""
    reason: str = ""
    facts: SeriesFacts | None = None
    verdict: Verdict | None = None
    curve: Curve | None = None
    thumbnail: str = ""
    page: Path | None = field(default=None)

    @property
    def group(self) -> str:
        """What the page filters by: a verdict's level, failed or skipped."""
        return self.verdict.level if self.verdict else self.state


def analysed_row(
    folder: Path, series: FrameSeries, settings: ReportSettings, *, series_id: str, name: str, source: str
) -> SessionRow:
    """The row of a series whose results are complete."""
    tables = read_tables(folder)
    facts = gather_facts(tables["pairs"], tables["trajectory"], tables["damage"], tables["critical_fluence"])
    damage = tables["damage"]
    whole = damage[(damage["region"] == WHOLE) & damage["valid"]].sort_values("frame")
    curve = Curve(
        name, facts.axis_unit, whole[facts.axis].to_numpy(float), whole["contrast"].to_numpy(float), facts.contrast
    )
    frame, _ = images.shrink(series.frame(max(0, facts.first)).astype(np.float32), THUMBNAIL_PX)
    thumbnail = images.webp(images.Grey.of(frame).to_uint8(frame), quality=images.THUMBNAIL_QUALITY)
    verdict = judge(facts, settings)
    page = folder / "report.html"
    return SessionRow(
        series_id, name, source, "ok", "", "", facts, verdict, curve, thumbnail, page if page.is_file() else None
    )


def session_table(rows: Sequence[SessionRow]) -> pd.DataFrame:
    """summary.csv: a row a series; values as in the series' own tables."""
    return pd.DataFrame([_table_row(row) for row in rows], columns=list(COLUMNS))


def session_page(
    rows: Sequence[SessionRow],
    settings: ReportSettings,
    *,
    page: Path,
    table: Path,
    comparison: Comparison | None = None,
) -> str:
    """The session page as HTML text; links are relative to `page`."""
    curves = [row.curve for row in rows if row.curve is not None]
    units = [u for u in ("e_per_A2", "s", "frame") if any(c.unit == u for c in curves)]
    unit = units[0] if units else "e_per_A2"
    counts = {group: sum(row.group == group for row in rows) for group in STATES}
    return render(
        "session.html",
        rows=[_shown(row, page, settings, unit) for row in rows],
        counts={g: n for g, n in counts.items() if n},
        states=STATES,
        sentence=_sentence(rows, counts),
        forest=Markup(forest_figure(curves, unit)),
        curves=Markup(curves_figure(curves, unit)),
        other_units=[c.name for c in curves if c.unit != unit],
        unit=unit_text(unit),
        comparison=comparison_rows(comparison) if comparison else None,
        conditions=Markup(conditions_figure(comparison.samples, unit)) if comparison else "",
        sizes=Markup(effects_figure(comparison.answers)) if comparison else "",
        table_href=os.path.relpath(table, page.parent).replace(os.sep, "/"),
        settings=settings,
        version=__version__,
    )


def _sentence(rows: Sequence[SessionRow], counts: dict[str, int]) -> str:
    said = [f"{integer(n)} {STATES[group]}" for group, n in counts.items() if n]
    total = "1 file or series" if len(rows) == 1 else f"{integer(len(rows))} series"
    return f"{total}: {', '.join(said)}." if said else "No series were found in this session."


def _shown(row: SessionRow, page: Path, settings: ReportSettings, unit: str) -> dict[str, Any]:
    """One row as the template shows it; the head of the column gives `unit`."""
    shown: dict[str, Any] = {
        "row": row,
        "href": os.path.relpath(row.page, page.parent).replace(os.sep, "/") if row.page else "",
        "spark": "",
    }
    if row.facts is None or row.curve is None:
        return shown
    contrast, intensity = row.facts.contrast, row.facts.intensity
    own_unit = "" if contrast.unit == unit else f" {unit_text(contrast.unit)}"
    text = critical_cell(contrast)
    return shown | {
        "spark": Markup(figures.sparkline(row.curve.contrast)),
        "contrast": interval(contrast.loss_percent, contrast.loss_lo95, contrast.loss_hi95),
        "intensity": interval(intensity.loss_percent, intensity.loss_lo95, intensity.loss_hi95),
        "critical": f"{text}{own_unit}" if text else "–",
        "used": f"{integer(row.facts.n_valid)} of {integer(row.facts.n_frames)}",
        "mechanism": MECHANISM_WORDS.get(row.facts.mechanism, row.facts.mechanism),
        "usable": usable_text(contrast.usable_last_frame, row.facts.first),
        "usable_value": np.nan if contrast.usable_last_frame is None else float(contrast.usable_last_frame),
        "frames_over": 100 * row.facts.n_excluded > settings.warn_excluded_percent * row.facts.n_frames,
        "frames_why": f"more than {number(settings.warn_excluded_percent)} % left out",
        "contrast_over": over_loss(contrast, settings),
        "intensity_over": over_loss(intensity, settings),
        "closure_over": over_closure(row.facts, settings),
        "loss_why": f"{number(settings.warn_loss_percent)} % or more",
        "closure_why": f"above {number(settings.warn_closure_px)} px",
        "exposure_known": known(row.facts.fluence_e_per_A2),
    }


def _table_row(row: SessionRow) -> dict[str, Any]:
    nan = float("nan")
    values: dict[str, Any] = dict.fromkeys(COLUMNS, nan)
    values |= {"series": row.series_id, "name": row.name, "state": row.state, "source": row.source}
    values |= {"verdict": "", "flags": "", "reason": ": ".join(p for p in (row.stage, row.reason) if p)}
    values |= {"unit": "", "drift_rate_unit": "", "lower_bound": False, "mechanism": ""}
    if row.facts is None or row.verdict is None:
        return values
    f = row.facts
    return values | {
        "verdict": row.verdict.word,
        "flags": "; ".join(flag.label for flag in row.verdict.flags),
        "n_frames": float(f.n_frames),
        "n_excluded": float(f.n_excluded),
        "n_flagged": float(f.n_flagged_used),
        "n_ambiguous": np.nan if f.ambiguous is None else float(f.n_ambiguous),
        "crystallinity_loss_percent": f.crystallinity.loss_percent,
        "mechanism": f.mechanism,
        "usable_last_frame": np.nan if f.contrast.usable_last_frame is None else float(f.contrast.usable_last_frame),
        "fluence_e_per_A2": f.fluence_e_per_A2,
        "duration_s": f.duration_s,
        "contrast_loss_percent": f.contrast.loss_percent,
        "contrast_loss_lo95": f.contrast.loss_lo95,
        "contrast_loss_hi95": f.contrast.loss_hi95,
        "intensity_loss_percent": f.intensity.loss_percent,
        "intensity_loss_lo95": f.intensity.loss_lo95,
        "intensity_loss_hi95": f.intensity.loss_hi95,
        "critical_fluence": f.contrast.critical,
        "critical_fluence_lo95": f.contrast.critical_lo95,
        "critical_fluence_hi95": f.contrast.critical_hi95,
        "lower_bound": f.contrast.lower_bound,
        "unit": f.contrast.unit if f.contrast.measured else "",
        "drift_rate": f.drift_rate,
        "drift_rate_unit": f.drift_rate_unit,
        "closure_px": f.closure_px,
        "suspected_hops": float(f.hops),
    }
