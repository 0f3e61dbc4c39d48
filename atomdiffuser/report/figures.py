"""Static figures of a series page: what print and readers without JavaScript see."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns

from atomdiffuser.report import svg
from atomdiffuser.report.facts import WHOLE, SeriesFacts
from atomdiffuser.report.formatting import known, number, plural
from atomdiffuser.report.verdict import change_text, critical_clause

AXIS_LABELS = {
    "fluence_e_per_A2": "cumulative fluence (e⁻/Å²)",
    "time_s": "time (s)",
    "frame": "frame number",
}


def decay_figure(damage: pd.DataFrame, facts: SeriesFacts) -> str:
    """Whole-field contrast and intensity against fluence with 95 % bands, and the critical fluence."""
    rows = damage[(damage["region"] == WHOLE) & damage["valid"]]
    texts = [
        t for w in (facts.contrast, facts.intensity) for t in (change_text(w), critical_clause(w)) if w.measured and t
    ]
    described = f"Ratio to the first frame against {AXIS_LABELS[facts.axis]}: {'; '.join(texts) or 'nothing measured'}"
    with svg.figure(6.4, 3.6) as figure:
        axes = figure.subplots()
        x = rows[facts.axis].to_numpy(float)
        for witness, marker, line in (("contrast", "o", "-"), ("intensity", "s", "--")):
            colour = svg.WITNESS_COLOUR[witness]
            lo, hi = (rows[f"{witness}_{end}"].to_numpy(float) for end in ("lo95", "hi95"))
            axes.fill_between(x, lo, hi, color=colour, alpha=0.18, linewidth=0)
            size = 4 if len(x) <= 60 else 0
            axes.plot(
                x, rows[witness], line, color=colour, marker=marker, markersize=size, linewidth=1.4, label=witness
            )
        axes.axhline(1, color=svg.MUTED, linewidth=0.8, linestyle=":")
        critical = facts.contrast
        limit = np.nanmax(x) if len(x) and np.isfinite(x).any() else 1.0
        if known(critical.critical) and not critical.lower_bound and critical.critical <= 1.5 * limit:
            axes.axvline(
                critical.critical, color=svg.CONTRAST, linewidth=1, linestyle="-.", label=critical_clause(critical)
            )
        axes.set(xlabel=AXIS_LABELS[facts.axis], ylabel="ratio to reference frame")
        axes.legend(loc="lower left")
        return svg.to_svg(figure, "decay", described)


def drift_figure(trajectory: pd.DataFrame, facts: SeriesFacts) -> str:
    """Path of the frame's centre, and both components against time."""
    unit = facts.farthest[1]
    used = trajectory[trajectory["valid"]]
    column = "time_s" if np.isfinite(used["time_s"].to_numpy(float)).all() and len(used) else "frame"
    farthest = f"{number(facts.farthest[0])} {unit}"
    described = f"Drift over {plural(len(used), 'frame')}; farthest {farthest} from the reference frame"
    with svg.figure(8.4, 3.2) as figure:
        path, components = figure.subplots(1, 2, width_ratios=(1, 1.6))
        y, x = used[f"drift_y_{unit}"], used[f"drift_x_{unit}"]
        path.plot(x, y, "-", color=svg.INTENSITY, linewidth=1.2)
        path.plot(x[:1], y[:1], "o", color=svg.INK, markersize=5, label="first")
        path.plot(x[-1:], y[-1:], "D", color=svg.CONTRAST, markersize=5, label="last")
        path.set_aspect("equal", adjustable="datalim")
        path.invert_yaxis()
        path.set(xlabel=f"x ({unit})", ylabel=f"y ({unit}, down)", title="path of the centre")
        path.legend()
        for name, values, colour, line in (("y", y, svg.CONTRAST, "-"), ("x", x, svg.INTENSITY, "--")):
            components.plot(used[column], values, line, color=colour, linewidth=1.4, label=name)
        components.set(xlabel=AXIS_LABELS[column], ylabel=f"drift ({unit})", title="components")
        components.legend()
        return svg.to_svg(figure, "drift", described)


def pairs_figure(pairs: pd.DataFrame, facts: SeriesFacts) -> str:
    """Residual of each pair against the trajectory: a row a lag, a column a moving frame."""
    lags = sorted(pairs["lag"].unique())
    matrix = np.full((max(1, len(lags)), max(1, facts.n_frames)), np.nan)
    rows = np.searchsorted(lags, pairs["lag"].to_numpy())
    matrix[rows, pairs["moving"].to_numpy(int)] = pairs["residual_px"].to_numpy(float)
    described = (
        f"Residuals of {plural(facts.n_pairs, 'pair')}; {plural(facts.hops, 'pair')} may be off by a lattice vector, "
        f"{plural(facts.n_invalid_pairs, 'pair')} not used"
    )
    with svg.figure(8.4, 1.2 + 0.22 * len(lags)) as figure:
        axes = figure.subplots()
        axes.grid(False)
        finite = matrix[np.isfinite(matrix)]
        top = max(float(np.percentile(finite, 98)), 1e-6) if finite.size else 1.0
        colours = sns.color_palette("cividis", as_cmap=True)
        image = axes.imshow(matrix, cmap=colours, vmin=0, vmax=top, interpolation="nearest", aspect="auto")
        axes.set(xlabel="moving frame", ylabel="lag (frames)")
        axes.set_yticks(range(len(lags)), [str(lag) for lag in lags])
        figure.colorbar(image, ax=axes, label="residual (px)", extend="max")
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
