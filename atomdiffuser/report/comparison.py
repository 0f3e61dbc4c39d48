"""Differences between the samples of a session, as samples.csv and comparison.csv tell them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from atomdiffuser.io.tables import read_table
from atomdiffuser.report import svg
from atomdiffuser.report.colours import SERIES
from atomdiffuser.report.facts import SIGNIFICANCE
from atomdiffuser.report.formatting import interval, known, number, plural, unit_text
from atomdiffuser.report.session_figures import short_name

MAX_ROWS = 200
MAX_EFFECTS = 24
MAX_CONDITIONS = 3
QUESTIONS = {"pair": "two series", "condition": "condition", "flux": "flux (e⁻/Å² s)"}


@dataclass(frozen=True)
class Comparison:
    """samples.csv and comparison.csv of a session."""

    samples: pd.DataFrame
    answers: pd.DataFrame


def open_comparison(results: Path) -> Comparison | None:
    """The comparison beside a session's summary; None when there is none or it has no rows."""
    files = results / "samples.csv", results / "comparison.csv"
    if not all(f.is_file() for f in files):
        return None
    found = Comparison(*(read_table(f) for f in files))
    return found if len(found.answers) else None


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row a question, the clearest answers first."""
    names = dict(zip(comparison.samples["series"], comparison.samples["name"], strict=True))
    rows = []
    for row in comparison.answers.sort_values("p_corrected").head(MAX_ROWS).to_dict("records"):
        asked = QUESTIONS.get(str(row["question"]), str(row["question"]))
        condition = str(row.get("condition") or "").removeprefix("condition_").replace("_", " ")
        get = lambda name, row=row: [float(row[f"{name}{end}"]) for end in ("", "_lo95", "_hi95")]
        rows.append(
            {
                "question": f"{asked}: {condition}" if condition and row["question"] == "condition" else asked,
                "a": _end(row, "a", names),
                "b": _end(row, "b", names),
                "witness": row["witness"],
                "difference": float(row["difference"]),
                "difference_text": interval(*get("difference")),
                "ratio": float(row["ratio"]),
                "ratio_text": interval(*get("ratio")),
                "effect_size": float(row["effect_size"]),
                "p": float(row["p_corrected"]),
                "significant": known(row["p_corrected"]) and row["p_corrected"] < SIGNIFICANCE,
                "text": str(row["text"]),
            }
        )
    return rows


def conditions_figure(samples: pd.DataFrame, unit: str) -> str:
    """Damage rate of each series by the conditions that differ. Empty without such a condition."""
    rows = samples[(samples["witness"] == "contrast") & (samples["unit"] == unit)]
    rows = rows[np.isfinite(rows["rate_percent_per_1000"].to_numpy(float))]
    named = [c for c in samples if c.startswith("condition_")]
    varied = [c for c in named if rows[c].astype(str).replace({"": np.nan, "nan": np.nan}).nunique() > 1]
    if not varied:
        return ""
    import seaborn as sns  # most of the time of a job that draws without it

    shown = varied[:MAX_CONDITIONS]
    with svg.figure(6.6, 3.4) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
        for axes, column in zip(panels, shown, strict=True):
            levels = sorted(rows[column].astype(str).unique(), key=_level_order)
            place = {level: i for i, level in enumerate(levels)}
            # neighbours side by side, so that intervals do not hide each other
            within = rows.groupby(rows[column].astype(str)).cumcount().to_numpy()
            x = np.array([place[str(v)] for v in rows[column]]) + 0.09 * (within - within.mean())
            half = 1.96 * rows["rate_sigma"].to_numpy(float)
            rate = rows["rate_percent_per_1000"].to_numpy(float)
            axes.errorbar(x, rate, half, fmt="none", ecolor=svg.MUTED, elinewidth=1)
            sns.scatterplot(x=x, y=rate, ax=axes, color=SERIES[0], s=34, linewidth=0, zorder=3)
            axes.set_xticks(range(len(levels)), [short_name(v) for v in levels])
            axes.set_xlim(-0.6, len(levels) - 0.4)
            axes.set_xlabel(column.removeprefix("condition_").replace("_", " "))
        panels[0].set_ylabel(f"contrast lost (% per 1000 {unit_text(unit)})")
        names = ", ".join(c.removeprefix("condition_").replace("_", " ") for c in shown)
        return svg.to_svg(figure, "conditions", f"Damage rate of {plural(len(rows), 'sample')} by {names}")


def effects_figure(answers: pd.DataFrame) -> str:
    """Ratios of critical fluences with their intervals, the clearest first. Empty without any."""
    rows = answers[(answers["witness"] == "contrast") & np.isfinite(answers["ratio"].to_numpy(float))]
    rows = rows[rows["ratio"] > 0].sort_values("p_corrected").head(MAX_EFFECTS)
    if rows.empty:
        return ""
    with svg.figure(6.6, 1.0 + 0.28 * len(rows)) as figure:
        axes = figure.subplots()
        for i, row in enumerate(rows.to_dict("records")):
            clear = known(row["p_corrected"]) and row["p_corrected"] < SIGNIFICANCE
            colour = svg.CONTRAST if clear else svg.MUTED
            lo, hi = (row[f"ratio_{e}95"] if known(row[f"ratio_{e}95"]) else row["ratio"] for e in ("lo", "hi"))
            axes.plot([max(lo, 1e-6), hi], [i, i], color=colour, linewidth=2.2 if clear else 1.2)
            axes.plot(row["ratio"], i, "o", color=colour, markersize=5)
        axes.axvline(1, color=svg.MUTED, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        lowest, highest = axes.get_xlim()
        axes.set_xticks([t for t in _steps(lowest, highest) if lowest <= t <= highest])
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_yticks(range(len(rows)), [_asked(row) for row in rows.to_dict("records")])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("ratio of critical fluences, b over a")
        said = f"from {number(rows['ratio'].min())} to {number(rows['ratio'].max())}"
        return svg.to_svg(figure, "effects", f"Ratios of critical fluences between samples, {said}")


def _steps(lowest: float, highest: float) -> list[float]:
    """Round numbers that share out a logarithmic axis without crowding it."""
    decades = np.log10(highest / lowest)
    if decades < 0.15:
        return MaxNLocator(5).tick_values(lowest, highest).tolist()
    within = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.7 else (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    first, last = int(np.floor(np.log10(lowest))), int(np.ceil(np.log10(highest)))
    return [step * 10.0**power for power in range(first, last + 1) for step in within]


def _asked(row: dict[str, Any]) -> str:
    """The two that a ratio compares, the second over the first."""
    if row["question"] == "flux":
        return f"flux {_end(row, 'b', {})} / {_end(row, 'a', {})}"
    return " / ".join(short_name(str(row[end])) for end in ("b", "a"))


def _end(row: dict[str, Any], end: str, names: dict[str, str]) -> str:
    """One of the two: the name of a series, a condition's level, or the flux, of which the table has the logarithm."""
    if row["question"] == "flux":
        return number(10 ** float(row[end]))
    return names.get(row[end], str(row[end]))


def _level_order(level: str) -> tuple[bool, float, str]:
    """Numbers by size, then words."""
    try:
        return False, float(level), level
    except ValueError:
        return True, 0.0, level
