"""Acquisition table with the source of each value, methods paragraph and citations."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser._version import __version__
from atomdiffuser.report.facts import SeriesFacts
from atomdiffuser.report.formatting import duration, integer, known, number, plural
from atomdiffuser.report.results import SeriesResults
from atomdiffuser.series import FrameSeries

UNKNOWN_SOURCE = "unknown"
MISSING_LINES = {
    "probe_current_pA": ("beam current", "probe_current_pA: 30    # your value, in pA"),
    "dwell_s": ("dwell time", "dwell_s: 8.0e-6         # your value, in seconds per pixel"),
    "pixel_size_nm": ("pixel size", "pixel_size_nm: 0.02     # your value, in nm per pixel"),
}
"""What a field is called, and the line of session.yaml that states it."""

CITATIONS = (
    "AtomDiffuser, the degradation model of drift and spatially varying decay: arXiv:2508.10359 (2025).",
    "RosettaSciIO: the HyperSpy developers, github.com/hyperspy/rosettasciio; HyperSpy: F. de la Peña et al., "
    "doi:10.5281/zenodo.592838.",
    "OME-Zarr: J. Moore et al., Histochem. Cell Biol. 160, 223 (2023), doi:10.1007/s00418-023-02209-1.",
    "Snakemake: F. Mölder et al., F1000Research 10, 33 (2021), doi:10.12688/f1000research.29032.2.",
    "Akaike weights: K. P. Burnham, D. R. Anderson, Sociol. Methods Res. 33, 261 (2004), doi:10.1177/0049124104268644.",
    "Fluence, flux and dose: R. F. Egerton, Ultramicroscopy 127, 100 (2013), doi:10.1016/j.ultramic.2012.07.006.",
    "Colour map vik: F. Crameri, doi:10.5281/zenodo.1243862.",
)
"""Numbered from 1 in the methods paragraph."""


@dataclass(frozen=True)
class Row:
    """One line of the acquisition table: label, value as text, and where the value comes from."""

    label: str
    value: str
    source: str
    needed: bool = False
    """Whether it is unknown and results would say more with it."""


def acquisition_rows(series: FrameSeries, conditions: Mapping[str, Any]) -> list[Row]:
    """Every acquisition value a damage report must contain, the unknown ones included, and the user's conditions."""
    a = series.acquisition
    height, width = series.frame_shape

    def row(label: str, field: str, text: str | None) -> Row:
        if text is None:
            return Row(label, "unknown", UNKNOWN_SOURCE, needed=field in MISSING_LINES)
        return Row(label, text, str(a.sources.get(field, "not recorded")))

    def with_unit(value: float | None, unit: str, factor: float = 1.0) -> str | None:
        return None if value is None else f"{number(value * factor, 4)} {unit}"

    pixel = None
    if a.pixel_size_nm is not None:
        pixel = " × ".join(number(p, 4) for p in a.pixel_size_nm) + " nm (y × x)"
        if np.isclose(*a.pixel_size_nm):
            pixel = f"{number(a.pixel_size_nm[0], 4)} nm"
    rows = [
        row("beam energy", "beam_energy_kV", with_unit(a.beam_energy_kV, "kV")),
        row("probe current", "probe_current_pA", with_unit(a.probe_current_pA, "pA")),
        row("dwell time", "dwell_s", with_unit(a.dwell_s, "µs", 1e6)),
        row("pixel size", "pixel_size_nm", pixel),
        Row("frame size", f"{width} × {height} px (x × y)", "file"),
        Row("frames", integer(series.n_frames), "file"),
        row("frame time", "frame_time_s", with_unit(a.frame_time_s, "s")),
        row("detector", "detector", a.detector),
        row("instrument", "instrument", a.instrument),
        row("scan rotation", "scan_rotation_deg", with_unit(a.scan_rotation_deg, "°")),
        row("acquired", "acquired_at", a.acquired_at),
        row("dark level", "dark_level", with_unit(a.dark_level, "counts")),
        row("gain", "gain_e", with_unit(a.gain_e, "e⁻ per count")),
    ]
    rows += [Row(str(key).replace("_", " "), str(value), "session.yaml") for key, value in conditions.items()]
    per_frame = a.fluence_per_frame_e_per_A2
    if per_frame is None:
        missing = ", ".join(MISSING_LINES[m][0] for m in a.missing_for_fluence())
        rows.append(Row("fluence per frame", "unknown", f"needs {missing}"))
        return rows
    rows.append(Row("fluence per frame", f"{number(per_frame)} e⁻/Å²", "computed: current × dwell ÷ pixel area"))
    rows.append(
        Row("fluence, all frames", f"{number(per_frame * series.n_frames)} e⁻/Å²", "computed: recorded scans only")
    )
    if a.frame_time_s:
        rows.append(Row("mean flux", f"{number(per_frame / a.frame_time_s)} e⁻/Å²/s", "computed: fluence ÷ frame time"))
    return rows


def missing_note(series: FrameSeries, series_id: str) -> tuple[str, str] | None:
    """What keeps fluence from being computed, and the lines for session.yaml; None when nothing does."""
    missing = series.acquisition.missing_for_fluence()
    if not missing:
        return None
    names = " and ".join(MISSING_LINES[m][0] for m in missing)
    lines = "".join(f"\n    {MISSING_LINES[m][1]}" for m in missing)
    return names, f"series:\n  {series_id}:{lines}"


def acquisition_line(series: FrameSeries) -> str:
    """The one line under a page's title."""
    a = series.acquisition
    height, width = series.frame_shape
    parts = [a.detector, f"{number(a.beam_energy_kV)} kV" if a.beam_energy_kV else None]
    parts += [f"{number(a.probe_current_pA)} pA" if a.probe_current_pA else "beam current unknown"]
    parts += [f"{number(a.dwell_s * 1e6)} µs dwell" if a.dwell_s else None]
    frames = f"{plural(series.n_frames, 'frame')} of {width} × {height} px"
    parts += [frames + (f" at {number(a.pixel_size_nm[1] * 1000)} pm" if a.pixel_size_nm else ", pixel size unknown")]
    parts += [f"{number(a.frame_time_s)} s each" if a.frame_time_s else None]
    parts += [a.acquired_at.replace("T", " ").replace("+00:00", " UTC") if a.acquired_at else None]
    return " · ".join(p for p in parts if p)


def methods_paragraph(series: FrameSeries, facts: SeriesFacts, pairs: pd.DataFrame, results: SeriesResults) -> str:
    """Text for a paper's methods section, with this series' numbers; [n] are the CITATIONS."""
    a = series.acquisition
    conditions = [
        f"{number(a.beam_energy_kV)} kV" if a.beam_energy_kV else "",
        f"probe current {number(a.probe_current_pA)} pA" if a.probe_current_pA else "",
        f"dwell time {number(a.dwell_s * 1e6)} µs" if a.dwell_s else "",
        f"pixel size {number(a.pixel_size_nm[1] * 1000)} pm" if a.pixel_size_nm else "",
        f"total duration {duration(facts.duration_s)}" if known(facts.duration_s) else "",
    ]
    height, width = series.frame_shape
    text = [
        f"Drift and beam damage of the STEM time series ({plural(series.n_frames, 'frame')} of {width} × {height} px"
        + "".join(f"; {c}" for c in conditions if c)
        + f") were separated with AtomDiffuser {__version__} [1].",
        "Raw files were read with RosettaSciIO [2], stored as OME-Zarr [3] and processed in a Snakemake workflow [4].",
        *_drift_text(facts, pairs),
        "Decay maps give local mean signal (intensity) and lattice amplitude (contrast) as ratios to the reference "
        f"frame (number {facts.reference_frame}), by {_maps_text(results)}; region statistics "
        "were taken on the raw pixels, with regions moved onto each frame.",
        *_kinetics_text(facts, results),
        _fluence_text(series, facts, results),
    ]
    return " ".join(text)


def _maps_text(results: SeriesResults) -> str:
    weights = results.maps.attributes.get("weights")
    plain = "local regression corrected for the noise of the reference"
    return (
        f"a trained network (weights {weights}) that weighs local regressions of several widths" if weights else plain
    )


def _drift_text(facts: SeriesFacts, pairs: pd.DataFrame) -> list[str]:
    if pairs.empty:
        return []
    lags = ", ".join(str(lag) for lag in sorted(pairs["lag"].unique()))
    text = (
        f"Pairs of frames at lags {lags} were registered by a full affine fitted jointly with smooth fields of "
        "intensity and contrast, reconciled into one trajectory, and every frame was refined against the mean of "
        f"the others; {integer(facts.n_excluded)} of {plural(facts.n_frames, 'frame')} and "
        f"{integer(facts.n_invalid_pairs)} of {plural(facts.n_pairs, 'pair')} were left out."
    )
    if facts.ambiguous is not None:
        said = f"{plural(facts.n_ambiguous, 'frame')} remained" if facts.n_ambiguous else "no frame remained"
        text += f" Alternatives a lattice vector apart were weighed by likelihood; {said} ambiguous."
    return [text]


def _kinetics_text(facts: SeriesFacts, results: SeriesResults) -> list[str]:
    abscissa = {"e_per_A2": "cumulative fluence", "s": "time", "frame": "frame number"}[facts.axis_unit]
    kinetics = results.table("kinetics")
    if kinetics is None:
        return [
            f"Loss against {abscissa} was fitted per region by an exponential and compared with no change (AICc, F "
            "test). The 95 % intervals of the ratios hold the shot and readout noise of both frames, those of the "
            "critical value come from the profile of χ², widened by scatter beyond that noise; a critical value that "
            "the series does not reach is given as a lower bound."
        ]
    curves = list(dict.fromkeys(str(m).partition("+")[0] for m in kinetics["model"]))
    has_offset = kinetics["model"].astype(str).str.contains("+", regex=False).any()
    offset = ", with and without an offset," if has_offset else ""
    return [
        f"Loss against {abscissa} was fitted per region by {', '.join(curves)} curves{offset} and the curves weighed "
        "by AICc [5]; critical values (fall to 1/e) and their 95 % intervals are averaged over the curves by weight, "
        "and a critical value that the series does not reach is given as a lower bound. P-values of change against "
        "none are corrected for the number of witnesses (Holm)."
    ]


def _fluence_text(series: FrameSeries, facts: SeriesFacts, results: SeriesResults) -> str:
    per_frame = series.acquisition.fluence_per_frame_e_per_A2
    if per_frame is None:
        return "The fluence is unknown, so results are given against time or frame number."
    exposure = results.table("exposure")
    counted = exposure is not None and bool(exposure["gap_counted"].astype(bool).any())
    text = (
        f"Fluence [6] is probe current × dwell time ÷ pixel area, {number(per_frame)} e⁻/Å² per frame; exposure "
        f"between frames and during flyback is {'counted' if counted else 'not counted'}."
    )
    systematic = facts.contrast.number("fluence_systematic_percent")
    if known(systematic):
        text += (
            f" All fluences share the calibration of the probe current, uncertain by {number(systematic, 2)} % (1 σ), "
            "which is in no interval."
        )
    return text


def versions() -> list[tuple[str, str]]:
    """Installed versions of what produced a page."""
    found: list[tuple[str, str]] = [("atomdiffuser", __version__)]
    for package in ("hyperspy", "rosettasciio", "zarr", "torch", "numpy", "scipy", "snakemake"):
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def settings_rows(tables: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(stage, setting, value) of every setting that the tables say they were made with."""
    rows = []
    for stage, attributes in tables.items():
        settings = attributes.get("settings")
        if isinstance(settings, dict):
            rows += [
                (stage, str(key), ", ".join(map(str, v)) if isinstance(v, list) else str(v))
                for key, v in settings.items()
            ]
    return rows
