"""Static figures of what some series have: loops, drift within frames, Fourier spots, the beam's gain."""

from __future__ import annotations

import numpy as np
import pandas as pd

from atomdiffuser.report import svg
from atomdiffuser.report.colours import SERIES
from atomdiffuser.report.facts import WHOLE, SeriesFacts
from atomdiffuser.report.figures import AXIS_LABELS
from atomdiffuser.report.formatting import known, number, plural

MAX_SHELLS = 6
SHELL_STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"), ("P", "--"))


def closure_figure(closures: pd.DataFrame, limit_px: float) -> str:
    """How many loops of three frames close how well. Empty without any."""
    if closures.empty:
        return ""
    values = closures["closure_px"].to_numpy(float)
    described = f"Closures of {plural(len(values), 'loop')}: median {number(np.median(values))} px, largest "
    with svg.figure(4.2, 3.0) as figure:
        axes = figure.subplots()
        low = max(float(values.min()), 1e-4)
        high = max(float(values.max()), 1.5 * limit_px, 10 * low)
        bins = np.geomspace(low, high, 25)
        shown = np.clip(values, low, None)
        axes.hist(shown, bins=bins, color=svg.INTENSITY, edgecolor=svg.PAPER)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter("")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.axvline(limit_px, color=svg.WARN, linewidth=1.2, linestyle="--", label=f"threshold {number(limit_px)} px")
        axes.set(xlabel="closure of a loop of three frames (px)", ylabel="loops")
        axes.legend(loc="upper right")
        return svg.to_svg(figure, "closures", described + f"{number(values.max())} px")


def velocity_figure(trajectory: pd.DataFrame) -> str:
    """Drift velocity between frames beside the one that the distortion within frames tells. Empty when unknown."""
    columns = [f"{p}velocity_{a}_nm_per_s" for p in ("", "scan_") for a in "yx"]
    if any(c not in trajectory for c in columns):
        return ""
    used = trajectory[trajectory["valid"]]
    if len(used) < 2 or not np.isfinite(used[columns[:2]].to_numpy(float)).any():
        return ""
    column = "time_s" if np.isfinite(used["time_s"].to_numpy(float)).all() else "frame"
    x = used[column].to_numpy(float)
    with svg.figure(8.4, 2.8) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, along, colour in ((panels[0], "y", svg.ALONG_Y), (panels[1], "x", svg.ALONG_X)):
            for prefix, line, label in (("", "-", "between frames"), ("scan_", ":", "within the frame's scan")):
                value = used[f"{prefix}velocity_{along}_nm_per_s"].to_numpy(float) * 60
                half = 1.96 * 60 * used[f"{prefix}velocity_sigma_nm_per_s"].to_numpy(float)
                axes.fill_between(x, value - half, value + half, color=colour, alpha=0.13, linewidth=0)
                axes.plot(x, value, line, color=colour, linewidth=1.4, label=label)
            axes.axhline(0, color=svg.MUTED, linewidth=0.8)
            axes.set(xlabel=AXIS_LABELS[column], title=f"along {along}")
            axes.legend(loc="best")
        panels[0].set_ylabel("velocity (nm/min)")
        return svg.to_svg(figure, "velocity", "Drift velocity along y and x, between frames and within the scan")


def spots_figure(spots: pd.DataFrame, facts: SeriesFacts, trajectory: pd.DataFrame) -> str:
    """Fading of the whole field's Fourier spots, a curve a shell, with 95 % bands. Empty without any."""
    rows = spots[(spots["region"] == WHOLE) & spots["valid"].astype(bool)]
    shells = sorted(rows["shell"].unique())[:MAX_SHELLS]
    if not shells:
        return ""
    ends, names = [], []
    with svg.figure(6.4, 3.6) as figure:
        axes = figure.subplots()
        for i, shell in enumerate(shells):
            curve = rows[rows["shell"] == shell].sort_values("frame")
            x = _abscissa(curve, facts, trajectory)
            colour = SERIES[i]
            marker, line = SHELL_STYLES[i]
            label = shell_name(curve.iloc[0])
            lo, hi = curve["ratio_lo95"].to_numpy(float), curve["ratio_hi95"].to_numpy(float)
            axes.fill_between(x, lo, hi, color=colour, alpha=0.12, linewidth=0)
            size = 3.5 if len(x) <= 60 else 0
            axes.plot(x, curve["ratio"], line, color=colour, marker=marker, markersize=size, linewidth=1.3, label=label)
            names.append(label)
            ends.append(f"{label} {number(curve['ratio'].iloc[-1])}")
        axes.axhline(1, color=svg.MUTED, linewidth=0.8, linestyle=":")
        axes.set(xlabel=AXIS_LABELS[facts.axis], ylabel="spot amplitude, ratio to reference frame")
        axes.legend(loc="best")
        return svg.to_svg(figure, "spots", f"Amplitude of Fourier spots at the last frame: {', '.join(ends)}")


def gain_figure(exposure: pd.DataFrame, facts: SeriesFacts) -> str:
    """The factor common to all regions in each frame: beam current and detector. Empty when not measured."""
    if "gain" not in exposure or not np.isfinite(exposure["gain"].to_numpy(float)).any():
        return ""
    x = exposure[facts.axis].to_numpy(float) if facts.axis in exposure else exposure["frame"].to_numpy(float)
    gain, half = exposure["gain"].to_numpy(float), 1.96 * exposure["gain_sigma"].to_numpy(float)
    with svg.figure(6.4, 2.4) as figure:
        axes = figure.subplots()
        axes.fill_between(x, 100 * (gain - half - 1), 100 * (gain + half - 1), color=svg.INK, alpha=0.14, linewidth=0)
        axes.plot(x, 100 * (gain - 1), "-", color=svg.INK, linewidth=1.2)
        axes.axhline(0, color=svg.MUTED, linewidth=0.8, linestyle=":")
        axes.set(xlabel=AXIS_LABELS[facts.axis], ylabel="common gain (%)")
        spread = number(100 * float(np.nanstd(gain)), 2)
        return svg.to_svg(figure, "gain", f"Common gain of each frame, scattering by {spread} %")


def shell_name(row: pd.Series) -> str:
    """“0.276 nm”, or the spacing in pixels while the pixel size is unknown."""
    return f"{number(row['d_nm'])} nm" if known(row["d_nm"]) else f"{number(row['d_px'])} px"


def _abscissa(curve: pd.DataFrame, facts: SeriesFacts, trajectory: pd.DataFrame) -> np.ndarray:
    frames = curve["frame"].to_numpy(int)
    if facts.axis == "frame":
        return frames
    return trajectory.set_index("frame")[facts.axis].reindex(frames).to_numpy(float)
