"""Tables ↔ Parquet or CSV, with what each column means, its unit and the table's provenance.

Parquet carries the metadata under the schema key `atomdiffuser`; a CSV has it in a JSON file beside it, `<name>.json`.
Identical input gives bit-identical files: no time stamps, no host names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomdiffuser._version import __version__
from atomdiffuser.errors import StoreError
from atomdiffuser.io.remote import Place, RemotePath, local_copies, location
from atomdiffuser.io.replacing import replacing_file
from atomdiffuser.io.store import to_json

SCHEMA_KEY = b"atomdiffuser"

_AFFINE = {
    "a_yy": ("y of the image of a unit step along y", "px/px"),
    "a_yx": ("y of the image of a unit step along x", "px/px"),
    "a_y": ("y of the image of the origin", "px"),
    "a_xy": ("x of the image of a unit step along y", "px/px"),
    "a_xx": ("x of the image of a unit step along x", "px/px"),
    "a_x": ("x of the image of the origin", "px"),
}
_SIGMA = {
    "displacement_sigma_px": ("1 σ of the displacement, root mean square over the frame", "px"),
    "valid": ("whether the row can be used", ""),
    "reason": ("why it cannot, or in what it is ambiguous; else empty", ""),
}
_REGION = {"region": ("name of the region", ""), "region_id": ("number of the region", "")}

_QUALITY = {
    "flags": ("what is wrong with the frame, words with commas between; empty when nothing is", ""),
    "flag_reasons": ("a sentence for each flag, semicolons between", ""),
    "sharpness": ("amplitude that the frame's transfer leaves, over that of the frames around; NaN unknown", ""),
    "sharpness_sigma": ("1 σ of sharpness", ""),
    "blur_px": ("σ of the Gaussian that would blur the frames around as much, along the worse direction", "px"),
    "saturated_fraction": ("share of the pixels at the detector's limit", ""),
    "missing_rows_fraction": ("share of the rows without contents of their own", ""),
}
_WITHIN = {
    "velocity_y_nm_per_s": ("drift velocity along y between frames; NaN unknown", "nm/s"),
    "velocity_x_nm_per_s": ("drift velocity along x between frames; NaN unknown", "nm/s"),
    "velocity_sigma_nm_per_s": ("1 σ of each component of the velocity between frames", "nm/s"),
    "scan_velocity_y_nm_per_s": ("drift velocity along y during the frame, from its scale; NaN unknown", "nm/s"),
    "scan_velocity_x_nm_per_s": ("drift velocity along x during the frame, from its shear; NaN unknown", "nm/s"),
    "scan_velocity_sigma_nm_per_s": ("1 σ of each component of the velocity during the frame", "nm/s"),
    "line_jitter_px": ("RMS offset of the scan lines along x, noise and slow part taken out; NaN unknown", "px"),
    "line_jitter_sigma_px": ("1 σ of line_jitter_px", "px"),
}
_SHELL = {
    "shell": ("number of the shell, the widest spacing first", ""),
    "d_nm": ("spacing of its planes; NaN when the pixel size is unknown", "nm"),
    "d_px": ("spacing of its planes", "px"),
    "n_spots": ("Fourier spots in the shell", ""),
}
_CRITICAL = {
    "critical_fluence": ("where the signal falls to 1/e; the 95 % lower bound when lower_bound", "see unit"),
    "critical_fluence_lo95": ("lower end of its 95 % interval", "see unit"),
    "critical_fluence_hi95": ("upper end of its 95 % interval; inf when unbounded", "see unit"),
    "lower_bound": ("whether the series ended too early for more than a lower bound", ""),
}
_LOSS = {
    "loss_percent": ("loss at the last frame", "%"),
    "loss_lo95": ("lower end of the 95 % interval of the loss", "%"),
    "loss_hi95": ("upper end of the 95 % interval of the loss", "%"),
}


def _ratio(name: str, description: str) -> dict[str, tuple[str, str]]:
    return {
        name: (description, ""),
        f"{name}_lo95": (f"lower end of the 95 % interval of {name}", ""),
        f"{name}_hi95": (f"upper end of the 95 % interval of {name}", ""),
        f"{name}_sigma": (f"1 σ of {name}", ""),
    }


def _interval(name: str, description: str, unit: str) -> dict[str, tuple[str, str]]:
    return {
        name: (description, unit),
        f"{name}_lo95": (f"lower end of the 95 % interval of {name}", unit),
        f"{name}_hi95": (f"upper end of the 95 % interval of {name}", unit),
    }


COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    "pairs": {
        "reference": ("number of the reference frame", ""),
        "moving": ("number of the moving frame", ""),
        "lag": ("frames from reference to moving", "frames"),
        "dt_s": ("time from reference to moving", "s"),
        "fluence_e_per_A2": ("fluence between the two frames; NaN when unknown", "e⁻/Å²"),
        **_AFFINE,
        "score": ("correlation of the two aligned, band-passed frames, −1…1", ""),
        "hop_probability": ("probability that the registration is off by a lattice vector", ""),
        "ambiguous": ("whether the two frames cannot tell this drift from one a lattice vector away", ""),
        "residual_px": ("distance from the trajectory, root mean square over the frame", "px"),
        **_SIGMA,
    },
    "trajectory": {
        "frame": ("number of the frame", ""),
        "time_s": ("start of the frame after the start of the first", "s"),
        "fluence_e_per_A2": ("cumulative fluence when the frame was finished; NaN when unknown", "e⁻/Å²"),
        **_AFFINE,
        "drift_y_nm": ("drift of the frame's centre along y; NaN when the pixel size is unknown", "nm"),
        "drift_x_nm": ("drift of the frame's centre along x; NaN when the pixel size is unknown", "nm"),
        "drift_y_px": ("drift of the frame's centre along y", "px"),
        "drift_x_px": ("drift of the frame's centre along x", "px"),
        "rotation_deg": ("rotation against the reference frame", "°"),
        "scale": ("linear magnification against the reference frame", ""),
        "shear": ("shear against the reference frame", ""),
        "closure_px": ("disagreement of the frame's pairs around closed loops", "px"),
        "hop_probability": ("probability that the frame is off by a lattice vector against the reference frame", ""),
        "ambiguous": ("whether that probability is above the limit in the settings", ""),
        **_SIGMA,
        **_QUALITY,
        **_WITHIN,
    },
    "damage": {
        **_REGION,
        "frame": ("number of the frame", ""),
        "time_s": ("start of the frame after the start of the first", "s"),
        "fluence_e_per_A2": ("cumulative fluence of what the frame shows of the region; NaN when unknown", "e⁻/Å²"),
        **_ratio("intensity", "mean signal above dark level, as a ratio to the reference frame"),
        **_ratio("contrast", "lattice amplitude, as a ratio to the reference frame"),
        **_ratio("crystallinity", "contrast over intensity, free of the beam's fluctuation"),
        "signal": ("mean signal above the dark level", "counts"),
        "signal_ratio": ("signal as a multiple of the aligned mean's on the same pixels", ""),
        "signal_ratio_sigma": ("1 σ of signal_ratio", ""),
        "lattice": ("lattice amplitude as a multiple of the intact lattice's", ""),
        "lattice_sigma": ("1 σ of lattice", ""),
        "order": ("lattice over signal_ratio", ""),
        "order_sigma": ("1 σ of order", ""),
        **_interval(
            "area_below_threshold", "share of the region whose contrast map is below the threshold in the settings", ""
        ),
        **_interval("n_columns", "atomic columns that keep a third of their first brightness; NaN when unresolved", ""),
        **_interval("column_intensity", "mean signal above the dark level around them", "counts"),
        **_interval(
            "column_msd_px2",
            "their mean square displacement against the first third of the frames, without noise",
            "px²",
        ),
        "n_px": ("pixels of the frame inside the region", "px"),
        "coverage": ("share of the region inside the frame, 0…1", ""),
        "valid": ("whether the row can be used", ""),
    },
    "kinetics": {
        **_REGION,
        "witness": ("what was fitted: intensity, contrast or crystallinity", ""),
        "model": ("kind of curve", ""),
        "n_parameters": ("parameters of the curve", ""),
        "aicc": ("corrected Akaike information criterion", ""),
        "weight": ("Akaike weight among all curves, prior included", ""),
        "chosen": ("whether it has the least AICc", ""),
        "chi2_per_dof": ("χ² over degrees of freedom", ""),
        "amplitude": ("signal before any fluence", ""),
        "scale": ("the curve's own constant F0; negative for growth", "see unit"),
        "exponent": ("b of stretched and avrami", ""),
        "latency": ("fluence before anything happens", "see unit"),
        "offset": ("share of the amplitude that stays", ""),
        "critical_fluence": ("where the curve falls to 1/e; inf: never", "see unit"),
        "half_fluence": ("where the curve falls to 1/2; inf: never", "see unit"),
        "unit": ("unit of the fluence columns of this row: e_per_A2, s or frame", ""),
    },
    "critical_fluence": {
        **_REGION,
        "witness": ("what was fitted: intensity, contrast or crystallinity", ""),
        "model": ("curve of least AICc", ""),
        "weight": ("its Akaike weight", ""),
        "unit": ("unit of the fluence columns of this row: e_per_A2, s or frame", ""),
        **_CRITICAL,
        "half_fluence": ("where the signal falls to 1/2", "see unit"),
        "half_fluence_lo95": ("lower end of its 95 % interval", "see unit"),
        "half_fluence_hi95": ("upper end of its 95 % interval; inf when unbounded", "see unit"),
        "rate_percent_per_1000": ("rate of an exponential; negative for growth", "% per 1,000 of unit"),
        "rate_lo95": ("lower end of its 95 % interval", "% per 1,000 of unit"),
        "rate_hi95": ("upper end of its 95 % interval", "% per 1,000 of unit"),
        "aicc": ("corrected Akaike information criterion of the model", ""),
        "aicc_constant": ("the same for no change at all", ""),
        "p_value": ("of change against none", ""),
        "p_corrected": ("the same, for all witnesses of the region together (Holm)", ""),
        "changed": ("whether p_corrected is below 0.05", ""),
        "p_misfit": ("probability of the scatter about the chosen curve", ""),
        **_LOSS,
        "detection_limit_percent": ("largest change that the interval of the loss allows", "%"),
        "onset_frame": ("first frame with a change beyond noise; −1: none", ""),
        "usable_last_frame": ("last of the frames that have changed less than the tolerance; −1: none", ""),
        "usable_tolerance_percent": ("that tolerance", "%"),
        "usable_text": ("the same in words", ""),
        "fluence_systematic_percent": ("1 σ of the beam current's calibration, in no interval", "%"),
        "gain_ambiguity_percent": ("1 σ of the loss that a fluctuating beam may pretend", "%"),
        "span": ("range that was fitted", "see unit"),
        "n_frames": ("frames that were fitted", "frames"),
        "n_px": ("pixels of the region on the reference grid", "px"),
        "mechanism": ("none, amorphisation, mass loss, both, gain or unclear", ""),
        "verdict": ("the row in words", ""),
    },
    "spots": {
        **_REGION,
        **_SHELL,
        "frame": ("number of the frame", ""),
        "fluence_e_per_A2": ("cumulative fluence of what the frame shows of the region; NaN when unknown", "e⁻/Å²"),
        "amplitude": ("of the shell, as a multiple of the intact lattice's", ""),
        "amplitude_sigma": ("1 σ of amplitude", ""),
        "ratio": ("amplitude as a ratio to the reference frame", ""),
        "ratio_lo95": ("lower end of the 95 % interval of ratio", ""),
        "ratio_hi95": ("upper end of the 95 % interval of ratio", ""),
        "valid": ("whether the row can be used", ""),
    },
    "spot_fluence": {
        **_REGION,
        **_SHELL,
        "model": ("exponential, constant (AICc prefers no change) or none (too few frames)", ""),
        "unit": ("unit of the fluence columns of this row: e_per_A2, s or frame", ""),
        **_CRITICAL,
        **_LOSS,
        "p_value": ("of change against none", ""),
        "p_corrected": ("the same, for all shells of the region together (Holm)", ""),
    },
    "columns": {
        "column": ("number of the atomic column", ""),
        "region": ("smallest region that holds it", ""),
        "y_px": ("place on the reference frame", "px"),
        "x_px": ("place on the reference frame", "px"),
        "y_nm": ("place on the reference frame; NaN when the pixel size is unknown", "nm"),
        "x_nm": ("place on the reference frame; NaN when the pixel size is unknown", "nm"),
        "intensity": ("mean signal above the dark level around it", "counts"),
        "amplitude_first": ("brightness in the first third of the frames, over the aligned mean's", ""),
        "amplitude_last": ("brightness in the last third of the frames, over the aligned mean's", ""),
        "msd_px2": ("mean square displacement beyond drift and noise; may be negative", "px²"),
        "msd_sigma_px2": ("1 σ of msd_px2", "px²"),
        "msd_nm2": ("msd_px2 in nm²; NaN when the pixel size is unknown", "nm²"),
        "displacement_y_px": ("from the first to the last third of the frames", "px"),
        "displacement_x_px": ("from the first to the last third of the frames", "px"),
        "state": ("kept, lost, hopped or unseen", ""),
        "n_frames": ("frames that showed it", "frames"),
    },
    "exposure": {
        "frame": ("number of the frame", ""),
        "time_s": ("start of the frame after the start of the first", "s"),
        "fluence_frame_e_per_A2": ("of this scan, step-limited; NaN when unknown", "e⁻/Å²"),
        "fluence_gap_e_per_A2": ("flyback and wait since the frame before, had the beam stayed on", "e⁻/Å²"),
        "gap_counted": ("whether the gap is part of the cumulative fluence", ""),
        "fluence_e_per_A2": ("cumulative fluence when the frame was finished", "e⁻/Å²"),
        "fluence_probe_e_per_A2": ("of this scan within the probe's own area; NaN without a probe size", "e⁻/Å²"),
        "flux_e_per_A2_s": ("mean over the field while it is scanned", "e⁻/Å²/s"),
        "probe_flux_e_per_A2_s": ("within the probe; NaN without a probe size", "e⁻/Å²/s"),
        "gain": ("factor common to all regions, about the smooth curve of the whole field's signal", ""),
        "gain_sigma": ("1 σ of gain", ""),
    },
    "samples": {
        "series": ("slug of the series", ""),
        "name": ("name of the series", ""),
        "witness": ("intensity, contrast or crystallinity, of the whole field", ""),
        "unit": ("unit of the fluence columns of this row: e_per_A2, s or frame", ""),
        **_CRITICAL,
        "rate_percent_per_1000": ("rate of an exponential; negative for growth", "% per 1,000 of unit"),
        "rate_sigma": ("1 σ of the rate", "% per 1,000 of unit"),
        "loss_percent": ("loss at the last frame", "%"),
        "flux_e_per_A2_s": ("mean over the field while it is scanned", "e⁻/Å²/s"),
        "beam_energy_kV": ("acceleration voltage", "kV"),
        "n_regions": ("regions of the grid with a rate", ""),
        "region_spread_percent": ("spread of the rate over the grid beyond noise, of the mean rate", "%"),
        "mechanism": ("none, amorphisation, mass loss, both, gain or unclear", ""),
    },
    "comparison": {
        "witness": ("intensity, contrast or crystallinity", ""),
        "question": ("pair, condition or flux", ""),
        "condition": ("name of the condition, or flux", ""),
        "a": ("series or level that is compared", ""),
        "b": ("series or level that it is compared with", ""),
        "n_a": ("series in a", ""),
        "n_b": ("series in b", ""),
        "rate_a": ("mean rate in a", "% per 1,000 of unit"),
        "rate_b": ("mean rate in b", "% per 1,000 of unit"),
        "difference": ("rate in b less that in a; for a number, per unit of the condition", "% per 1,000 of unit"),
        "difference_lo95": ("lower end of its 95 % interval", "% per 1,000 of unit"),
        "difference_hi95": ("upper end of its 95 % interval", "% per 1,000 of unit"),
        "ratio": ("critical fluence of b over that of a", ""),
        "ratio_lo95": ("lower end of its 95 % interval", ""),
        "ratio_hi95": ("upper end of its 95 % interval", ""),
        "effect_size": ("difference over the standard deviation between samples, noise included", ""),
        "p_value": ("that there is no difference", ""),
        "p_corrected": ("the same, for all rows of the witness together (Holm)", ""),
        "between_sample_sigma": ("1 σ between samples beyond noise", "% per 1,000 of unit"),
        "method": ("how it was compared", ""),
        "text": ("the row in words", ""),
    },
}
"""Meaning and unit of every column, by kind of table."""

FREE_KINDS = ("summary", "benchmark")
"""Kinds whose columns are described where they are written: pass `columns={name: (description, unit)}`."""

_TYPES = {"i": "integer", "u": "integer", "f": "float", "b": "boolean"}
_COMPUTED = ("=", "+", "-", "@", "\t", "\r", "'")
"""How text begins that a spreadsheet takes for a formula, and the apostrophe itself, so that it comes back."""
_READ_AS = {"integer": np.int64, "float": np.float64}

STAGE_OF_KIND = {
    **dict.fromkeys(("pairs", "trajectory"), "register"),
    **dict.fromkeys(
        ("damage", "kinetics", "critical_fluence", "spots", "spot_fluence", "columns", "exposure"), "damage"
    ),
    **dict.fromkeys(("samples", "comparison"), "summary"),
}


def write_table(
    frame: pd.DataFrame,
    path: str | Path,
    kind: str,
    *,
    columns: dict[str, tuple[str, str]] | None = None,
    **metadata: Any,
) -> None:
    """Write a table as Parquet or CSV, by the suffix of `path`.

    Parameters
    ----------
    frame
        One row per entry; the index is not stored.
    kind
        `pairs`, `trajectory`, `damage`, `critical_fluence`, or one of FREE_KINDS.
    columns
        Description and unit of columns that COLUMNS does not know.
    metadata
        Settings, provenance and the like, as plain values; `kind`, `version` and `columns` are added.

    Raises
    ------
    StoreError
        For a column that nothing describes, an unknown kind or suffix.
    """
    path = Path(path)
    if kind not in COLUMNS and kind not in FREE_KINDS:
        kinds = ", ".join([*COLUMNS, *FREE_KINDS])
        raise StoreError(f"{path}: unknown kind of table {kind!r}; expected one of {kinds}")
    known = {**COLUMNS.get(kind, {}), **(columns or {})}
    if undescribed := [str(c) for c in frame.columns if c not in known]:
        raise StoreError(f"{path}: columns {undescribed} of a {kind!r} table have no description in io/tables.py")
    described = {
        str(c): {"description": known[c][0], "unit": known[c][1], "type": _TYPES.get(frame[c].dtype.kind, "text")}
        for c in frame.columns
    }
    header = to_json({**metadata, "kind": kind, "version": __version__, "columns": described}, longest=None)
    # file names in it need not be valid Unicode: their stray bytes become JSON escapes
    text = (json.dumps(header, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
    if path.suffix == ".parquet":
        with replacing_file(path) as temporary:
            _write_parquet(frame, temporary, text)
    elif path.suffix == ".csv":
        with replacing_file(_sidecar(path)) as temporary:
            temporary.write_bytes(text)
        with replacing_file(path) as temporary:
            plain_text(frame).to_csv(temporary, index=False, na_rep="nan", lineterminator="\n", encoding="utf-8")
    else:
        raise StoreError(f"{path}: tables are .parquet or .csv, not {path.suffix!r}")


def plain_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as CSV may hold it: text that a spreadsheet would compute has an apostrophe before it.

    Names of files and regions are whatever someone called them, `=HYPERLINK(…)` included. `read_table` takes the
    apostrophe away again.
    """
    plain = frame.copy()
    for name in (str(c) for c in frame.columns if frame[c].dtype.kind not in _TYPES):
        plain[name] = [f"'{v}" if isinstance(v, str) and v.startswith(_COMPUTED) else v for v in frame[name]]
    return plain


def write_table_twice(
    frame: pd.DataFrame,
    path: str | Path,
    kind: str,
    *,
    columns: dict[str, tuple[str, str]] | None = None,
    **metadata: Any,
) -> None:
    """Write a table as Parquet and as CSV with its JSON, under the name of `path` whatever its suffix.

    Parquet keeps types and is quick to read; CSV opens everywhere. Parameters and errors are those of `write_table`.
    """
    for suffix in (".parquet", ".csv"):
        write_table(frame, Path(path).with_suffix(suffix), kind, columns=columns, **metadata)


def read_table(path: str | Place) -> pd.DataFrame:
    """Read a table; its metadata are in `.attrs`.

    Raises StoreError when the file is missing or unreadable, naming the stage to run.
    """
    path = location(path)
    stage = next((s for k, s in STAGE_OF_KIND.items() if path.stem == k), None)
    remedy = f"run the {stage} stage" if stage else "run the workflow"
    if not path.is_file():
        raise StoreError(f"{path}: no such table; {remedy} first")
    if isinstance(path, RemotePath):
        beside = [path.with_name(f"{path.stem}.json")] if path.suffix != ".parquet" else []
        path = local_copies([path, *(p for p in beside if p.is_file())])[0]
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        return _read_csv(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not a readable table ({error}); {remedy} again") from error


def _write_parquet(frame: pd.DataFrame, path: Path, header: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = frame.reset_index(drop=True).copy()
    plain.attrs = {}  # pandas would store them a second time
    table = pa.Table.from_pandas(plain, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), SCHEMA_KEY: header})
    pq.write_table(table, path, compression="zstd")


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    frame = table.to_pandas()
    frame.attrs = _shared(json.loads((table.schema.metadata or {}).get(SCHEMA_KEY, b"{}")))
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        raise ValueError(f"its description {sidecar.name} is missing")
    attributes = json.loads(sidecar.read_text(encoding="utf-8"))
    types = {name: column["type"] for name, column in attributes["columns"].items()}
    # everything as text first: numbers come back exactly, and a region called "NA" stays a name
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name, kind in types.items():
        if kind == "boolean":
            frame[name] = frame[name] == "True"
        elif kind == "text":
            frame[name] = frame[name].str.removeprefix("'")
        else:
            frame[name] = frame[name].to_numpy(dtype=str).astype(_READ_AS[kind])
    frame.attrs = _shared(attributes)
    return frame


class _SharedDict(dict):
    """Metadata that every row and column taken from a table shares: pandas would copy them deeply each time, which took
    most of the time of a report.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedDict:
        return self


class _SharedList(list):
    """The same for a list of metadata."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedList:
        return self


def _shared(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes whose values are passed on as they are when pandas copies them; at the top it makes a new dict."""
    kinds = {dict: _SharedDict, list: _SharedList}
    return {name: kinds.get(type(value), lambda v: v)(value) for name, value in attributes.items()}


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")
