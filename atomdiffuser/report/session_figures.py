"""Comparison figures of a session: critical fluences with their intervals, and all decay curves on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atomdiffuser.report import svg
from atomdiffuser.report.colours import SERIES
from atomdiffuser.report.facts import Witness
from atomdiffuser.report.figures import AXIS_LABELS
from atomdiffuser.report.formatting import known, number, plural, unit_text

MAX_CURVE_POINTS = 60
MAX_LABEL = 34
MAX_LEGEND = 8


@dataclass(frozen=True)
class Curve:
    """Whole-field contrast of one series."""

    name: str
    unit: str
    x: np.ndarray
    contrast: np.ndarray
    critical: Witness


def forest_figure(curves: Sequence[Curve], unit: str) -> str:
    """Critical fluence of every series with its 95 % interval; lower bounds as arrows. Empty without any."""
    rows = [c for c in curves if c.critical.unit == unit and known(c.critical.critical) and c.critical.critical > 0]
    if not rows:
        return ""
    rows = sorted(rows, key=lambda c: c.critical.critical)
    bounds = sum(c.critical.lower_bound for c in rows)
    described = (
        f"Where contrast falls to 1/e in {plural(len(rows), 'series').replace('seriess', 'series')}: from "
        f"{number(rows[0].critical.critical)} to {number(rows[-1].critical.critical)} {unit_text(unit)}; "
        f"{bounds} are lower bounds. All values are in the table."
    )
    with svg.figure(6.6, 0.9 + 0.27 * len(rows)) as figure:
        axes = figure.subplots()
        for i, curve in enumerate(rows):
            w = curve.critical
            if w.lower_bound:
                axes.annotate(
                    "", xy=(w.critical * 1.6, i), xytext=(w.critical, i),
                    arrowprops={"arrowstyle": "->", "color": svg.MUTED, "linewidth": 1.2},
                )  # fmt: skip
                axes.plot(w.critical, i, "|", color=svg.MUTED, markersize=9, markeredgewidth=1.6)
                continue
            lo = w.critical_lo95 if known(w.critical_lo95) else w.critical
            hi = w.critical_hi95 if known(w.critical_hi95) else w.critical * 1.6
            axes.plot([lo, hi], [i, i], color=svg.CONTRAST, linewidth=1.6, solid_capstyle="butt")
            axes.plot(w.critical, i, "o", color=svg.CONTRAST, markersize=5)
        axes.set_xscale("log")
        ends = [v for c in rows for v in (c.critical.critical, c.critical.critical_lo95, c.critical.critical_hi95)]
        ends = [float(v) for v in ends if known(v) and v > 0]
        axes.set_xlim(min(ends) / 1.6, max(ends) * 2.2)
        axes.set_yticks(range(len(rows)), [short_name(c.name) for c in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"contrast falls to 1/e at ({unit_text(unit)}); | → 95 % lower bound")
        return svg.to_svg(figure, "forest", described)


def curves_figure(curves: Sequence[Curve], unit: str) -> str:
    """Whole-field contrast of every series against the same axis; the fastest ones named. Empty without any."""
    rows = [c for c in curves if c.unit == unit and np.isfinite(c.contrast).sum() > 1]
    if not rows:
        return ""
    rows = sorted(rows, key=lambda c: float(c.contrast[np.isfinite(c.contrast)][-1]))
    column = {"e_per_A2": "fluence_e_per_A2", "s": "time_s", "frame": "frame"}[unit]
    described = f"Contrast of {len(rows)} series against {AXIS_LABELS[column]}; all end values are in the table."
    styles = ("-", "--", "-.", ":")
    with svg.figure(6.6, 3.9) as figure:
        axes = figure.subplots()
        for i, curve in reversed(list(enumerate(rows))):
            keep = np.flatnonzero(np.isfinite(curve.contrast) & np.isfinite(curve.x))
            if len(keep) > MAX_CURVE_POINTS:
                keep = keep[np.unique(np.linspace(0, len(keep) - 1, MAX_CURVE_POINTS).astype(int))]
            named = i < MAX_LEGEND
            axes.plot(
                curve.x[keep], curve.contrast[keep], styles[i % len(styles)] if named else "-",
                color=SERIES[i % len(SERIES)] if named else svg.MUTED, alpha=1.0 if named else 0.45,
                linewidth=1.5 if named else 0.8, label=short_name(curve.name) if named else None,
            )  # fmt: skip
        axes.axhline(1, color=svg.MUTED, linewidth=0.8, linestyle=":")
        axes.set(xlabel=AXIS_LABELS[column], ylabel="contrast, ratio to reference frame")
        if unit != "frame" and _spans_decades(rows):
            axes.set_xscale("log")
        handles, labels = axes.get_legend_handles_labels()
        title = (
            "most loss first" if len(rows) <= MAX_LEGEND else f"most loss first; {len(rows) - MAX_LEGEND} more in grey"
        )
        legend = axes.legend(handles[::-1], labels[::-1], title=title, loc="best", fontsize=8)
        legend.get_title().set_fontsize(8)
        return svg.to_svg(figure, "curves", described)


def _spans_decades(rows: Sequence[Curve]) -> bool:
    """Whether the series end so far apart that a linear axis would squeeze most of them."""
    ends = [float(np.nanmax(c.x)) for c in rows]
    return min(ends) > 0 and max(ends) / min(ends) > 30


def short_name(name: str) -> str:
    """A name that fits beside an axis; a dollar sign in it does not start a formula."""
    text = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"
    return text.replace("$", r"\$")
