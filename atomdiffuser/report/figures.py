"""Static figures of a series page: what print and readers without JavaScript see."""

from __future__ import annotations

import numpy as np
import pandas as pd

from atomdiffuser.report import svg
from atomdiffuser.report.facts import WHOLE, SeriesFacts
from atomdiffuser.report.formatting import known, number, plural
from atomdiffuser.report.verdict import change_text, critical_clause

AXIS_LABELS = {
    "fluence_e_per_A2": "cumulative fluence (e⁻/Å²)",
    "time_s": "time (s)",
    "frame": "frame number",
}
WITNESS_LINES = (("contrast", "o", "-"), ("intensity", "s", "--"), ("crystallinity", "^", "-."))
MATRIX_FRAMES = 120
"""Up to so many frames pairs are shown as a square of frames; for more, as rows of lags."""


def decay_figure(damage: pd.DataFrame, trajectory: pd.DataFrame, facts: SeriesFacts) -> str:
    """Whole-field witnesses against fluence with 95 % bands, the critical fluence with its interval, and time above."""
    rows = damage[(damage["region"] == WHOLE) & damage["valid"]]
    texts = [t for w in facts.witnesses for t in (change_text(w), critical_clause(w)) if t]
    described = f"Ratio to the first frame against {AXIS_LABELS[facts.axis]}: {'; '.join(texts) or 'nothing measured'}"
    with svg.figure(6.4, 3.8) as figure:
        axes = figure.subplots()
        x = rows[facts.axis].to_numpy(float)
        for witness, marker, line in WITNESS_LINES:
            if witness not in rows or not np.isfinite(rows[witness].to_numpy(float)).any():
                continue
            colour = svg.WITNESS_COLOUR[witness]
            lo, hi = (rows[f"{witness}_{end}"].to_numpy(float) for end in ("lo95", "hi95"))
            axes.fill_between(x, lo, hi, color=colour, alpha=0.16, linewidth=0)
            size = 4 if len(x) <= 60 else 0
            axes.plot(
                x, rows[witness], line, color=colour, marker=marker, markersize=size, linewidth=1.4, label=witness
            )
        axes.axhline(1, color=svg.MUTED, linewidth=0.8, linestyle=":")
        _mark_critical(axes, facts, float(np.nanmax(x)) if np.isfinite(x).any() else 1.0)
        axes.set(xlabel=AXIS_LABELS[facts.axis], ylabel="ratio to reference frame")
        _time_above(axes, trajectory, facts)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
        return svg.to_svg(figure, "decay", described)


def drift_figure(trajectory: pd.DataFrame, facts: SeriesFacts, sigma: np.ndarray) -> str:
    """Path of the frame's centre, and both components against time with ±1.96 σ."""
    unit = facts.farthest[1]
    used = trajectory[trajectory["valid"]]
    column = "time_s" if np.isfinite(used["time_s"].to_numpy(float)).all() and len(used) else "frame"
    farthest = f"{number(facts.farthest[0])} {unit}"
    described = f"Drift over {plural(len(used), 'frame')}; farthest {farthest} from the reference frame"
    with svg.figure(8.4, 3.2) as figure:
        path, components = figure.subplots(1, 2, width_ratios=(1, 1.6))
        y, x = used[f"drift_y_{unit}"], used[f"drift_x_{unit}"]
        path.plot(x, y, "-", color=svg.INK, linewidth=1.2)
        path.plot(x[:1], y[:1], "o", color=svg.INK, markersize=5, label="first")
        path.plot(x[-1:], y[-1:], "D", color=svg.CONTRAST, markersize=5, label="last")
        path.set_aspect("equal", adjustable="datalim")
        path.invert_yaxis()
        path.set(xlabel=f"x ({unit})", ylabel=f"y ({unit}, down)", title="path of the centre")
        path.legend()
        half = 1.96 * sigma[trajectory["valid"].to_numpy(bool)]
        for name, values, colour, line in (("y", y, svg.ALONG_Y, "-"), ("x", x, svg.ALONG_X, "--")):
            components.fill_between(used[column], values - half, values + half, color=colour, alpha=0.2, linewidth=0)
            components.plot(used[column], values, line, color=colour, linewidth=1.4, label=name)
        components.set(xlabel=AXIS_LABELS[column], ylabel=f"drift ({unit})", title="components")
        components.legend()
        return svg.to_svg(figure, "drift", described)


def pairs_figure(pairs: pd.DataFrame, facts: SeriesFacts) -> str:
    """Residual of each pair against the trajectory and its hop probability, as squares of frames or rows of lags."""
    described = (
        f"Residuals of {plural(facts.n_pairs, 'pair')}; {plural(facts.hops, 'pair')} may be off by a lattice vector, "
        f"{plural(facts.n_invalid_pairs, 'pair')} not used"
    )
    square = facts.n_frames <= MATRIX_FRAMES
    lags = sorted(pairs["lag"].unique())
    shape = (facts.n_frames, facts.n_frames) if square else (len(lags), facts.n_frames)
    rows = pairs["reference"].to_numpy(int) if square else np.searchsorted(lags, pairs["lag"].to_numpy())
    with svg.figure(8.4, 3.6 if square else 1.6 + 0.44 * len(lags)) as figure:
        panels = figure.subplots(1, 2) if square else figure.subplots(2, 1, sharex=True)
        for axes, quantity, label, top in (
            (panels[0], "residual_px", "residual (px)", None),
            (panels[1], "hop_probability", "hop probability", 1.0),
        ):
            matrix = np.full((max(1, shape[0]), max(1, shape[1])), np.nan)
            matrix[rows, pairs["moving"].to_numpy(int)] = pairs[quantity].to_numpy(float)
            finite = matrix[np.isfinite(matrix)]
            top = top or (max(float(np.percentile(finite, 98)), 1e-6) if finite.size else 1.0)
            axes.grid(False)
            aspect = "equal" if square else "auto"
            image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=top, interpolation="nearest", aspect=aspect)
            axes.set(xlabel="moving frame", ylabel="reference frame" if square else "lag")
            if not square:
                axes.set_yticks(range(len(lags)), [str(lag) for lag in lags])
            figure.colorbar(image, ax=axes, label=label, extend="max" if quantity == "residual_px" else "neither")
        return svg.to_svg(figure, "pairs", described)


def sparkline(curve: np.ndarray, width: int = 96, height: int = 32, *, low: float = 0.0, high: float = 1.1) -> str:
    """A whole-field contrast curve as a tiny SVG; the same vertical range for every series."""
    points = [(i, v) for i, v in enumerate(curve) if np.isfinite(v)]
    if len(points) < 2:
        return ""
    most = max(1, len(curve) - 1)
    scale = lambda v: height - 2 - (min(max(v, low), high) - low) / (high - low) * (height - 4)
    steps = points if len(points) <= 40 else [points[i] for i in np.linspace(0, len(points) - 1, 40).astype(int)]
    path = " ".join(f"{2 + i / most * (width - 4):.1f},{scale(v):.1f}" for i, v in steps)
    first, last = number(points[0][1]), number(points[-1][1])
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="contrast from {first} to {last}">'
        f'<line x1="2" x2="{width - 2}" y1="{scale(1):.1f}" y2="{scale(1):.1f}" class="spark-one"/>'
        f'<polyline points="{path}" class="spark-line"/></svg>'
    )


def _mark_critical(axes, facts: SeriesFacts, end: float) -> None:
    critical = facts.contrast
    if not known(critical.critical) or critical.lower_bound or critical.critical > 1.5 * end:
        return
    if known(critical.critical_lo95):
        hi = critical.critical_hi95 if known(critical.critical_hi95) else 1.5 * end
        axes.axvspan(critical.critical_lo95, min(hi, 1.5 * end), color=svg.CONTRAST, alpha=0.1, linewidth=0)
    axes.axvline(critical.critical, color=svg.CONTRAST, linewidth=1, linestyle="-.", label=critical_clause(critical))


def _time_above(axes, trajectory: pd.DataFrame, facts: SeriesFacts) -> None:
    """A second axis with the time, where the first one shows the fluence and both grow."""
    if facts.axis != "fluence_e_per_A2":
        return
    fluence, time_s = (trajectory[c].to_numpy(float) for c in ("fluence_e_per_A2", "time_s"))
    good = np.isfinite(fluence) & np.isfinite(time_s)
    if good.sum() < 2 or (np.diff(fluence[good]) <= 0).any() or (np.diff(time_s[good]) <= 0).any():
        return
    f, t = fluence[good], time_s[good]

    def line(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # straight on beyond both ends, so that each way is the other's inverse
        inside = np.interp(x, a, b)
        before, after = (b[1] - b[0]) / (a[1] - a[0]), (b[-1] - b[-2]) / (a[-1] - a[-2])
        return np.where(x < a[0], b[0] + (x - a[0]) * before, np.where(x > a[-1], b[-1] + (x - a[-1]) * after, inside))

    above = axes.secondary_xaxis("top", functions=(lambda x: line(x, f, t), lambda s: line(s, t, f)))
    above.set_xlabel("time (s)")
