"""What every raw format is brought to before it becomes a series: data, axes, calibration, and is it a time series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

PIXEL_SIZE_RTOL = 1e-3
Kind = Literal["time series", "single image", "other"]

_LENGTHS_NM = {
    "m": 1e9, "meter": 1e9, "meters": 1e9, "cm": 1e7, "mm": 1e6, "µm": 1e3, "um": 1e3, "micron": 1e3, "microns": 1e3,
    "micrometer": 1e3, "nm": 1.0, "nanometer": 1.0, "Å": 0.1, "A": 0.1, "angstrom": 0.1, "pm": 1e-3, "picometer": 1e-3,
}  # fmt: skip
_TIMES_S = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3, "µs": 1e-6,
    "us": 1e-6, "microsecond": 1e-6, "ns": 1e-9, "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hour": 3600.0,
}  # fmt: skip
_ANGLES = {"deg", "degree", "degrees", "°", "rad", "mrad", "radian"}
_ENERGIES = {"ev", "kev", "mev"}
_COUNTS = {"", "px", "pixel", "pixels", "frame", "frames", "image", "images", "slice", "slices", "#", "none", "index"}
_TIME_NAMES = {"time", "t", "frame", "frames", "stack"}
_STACK_NAMES = {*_TIME_NAMES, "z", "depth", "number"}
_Y_NAMES, _X_NAMES = {"y", "height"}, {"x", "width"}
TILT_SERIES_DEG = 0.5
"""Stage tilt that no time series drifts by."""


@dataclass(frozen=True)
class Axis:
    """One axis of a signal as the file states it."""

    name: str
    unit: str
    scale: float
    offset: float = 0.0


@dataclass(frozen=True)
class RawSignal:
    """One data set of a raw file.

    Attributes
    ----------
    data
        Lazy array.
    fields
        What the file states of `Acquisition`'s fields.
    starts_s
        (t,) start of each frame on any clock, known to `starts_resolution_s` [s]; None when not recorded.
    tilts_deg
        Stage tilt of each frame, or of all.
    obstacle
        Why the file's own format says that this is no time series.
    is_decoded
        Whether `data` are those of the file, rather than a mark that it holds something else too.
    """

    title: str
    data: Any
    axes: tuple[Axis, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    starts_s: np.ndarray | None = None
    starts_resolution_s: float = 1.0
    tilts_deg: tuple[float, ...] = ()
    obstacle: str = ""
    is_decoded: bool = True
    original_metadata: Mapping[str, Any] = field(default_factory=dict)


def length_nm(unit: str) -> float | None:
    """Nanometres of one such unit, None when it is no length."""
    return _LENGTHS_NM.get(unit) or (_LENGTHS_NM.get(unit.lower()) if len(unit) > 2 else None)


def time_s(unit: str) -> float | None:
    """Seconds of one such unit, None when it is no time."""
    return _TIMES_S.get(unit) or _TIMES_S.get(unit.lower())


def clean_unit(unit: Any) -> str:
    """A unit as files spell it (`[n_m]`, Greek mu, bytes, undefined) in one spelling."""
    if isinstance(unit, bytes):
        unit = unit.decode("utf-8", "replace")
    if not isinstance(unit, str) or unit in ("<undefined>", "None", "none"):
        return ""
    text = unit.strip().strip("\0").strip("[]").replace("_", "").replace("μ", "µ").replace("\u212b", "Å").strip()
    return text


def positive(value: Any, factor: float = 1.0) -> float | None:
    """A number above zero in the wanted unit; zero, negative, text and NaN mean unknown."""
    try:
        number = float(value) * factor
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def number(value: Any, factor: float = 1.0) -> float | None:
    """A finite number in the wanted unit, or None."""
    try:
        result = float(value) * factor
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def dig(tree: Any, *keys: str) -> Any:
    """A value deep in a metadata tree, None where the path ends early."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def in_order(signal: RawSignal) -> RawSignal:
    """The signal with its stack axis first and y before x, for formats that leave the order to the writer."""
    if len(signal.axes) != 3:
        return signal
    names = [a.name.lower() for a in signal.axes]
    units = [a.unit for a in signal.axes]
    stack = 0
    for candidates in (
        [i for i in range(3) if time_s(units[i])],
        [i for i in range(3) if names[i] in _TIME_NAMES],
        [i for i in range(3) if names[i] in _STACK_NAMES],
        [i for i in range(3) if units.count(units[i]) == 1 and len(set(units)) == 2],
    ):
        if len(candidates) == 1:
            stack = candidates[0]
            break
    rows, columns = (i for i in range(3) if i != stack)
    if names[rows] in _X_NAMES and names[columns] in _Y_NAMES:
        rows, columns = columns, rows
    order = (stack, rows, columns)
    return replace(signal, data=signal.data.transpose(order), axes=tuple(signal.axes[i] for i in order))


def classify(signal: RawSignal, *, trust_user: bool = False) -> tuple[Kind, str]:
    """Whether a signal is a time series, and the reason when it is not.

    `trust_user` takes any stack of images for one, whatever its stack axis is said to be.
    """
    shape, dtype = signal.data.shape, signal.data.dtype
    if dtype.names or (len(shape) == 3 and shape[2] in (3, 4) and signal.axes[2].name in ("rgb", "S", "sample")):
        return "other", "a colour picture"
    if dtype.kind == "c":
        return "other", "complex data (such as a Fourier transform)"
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return "other", f"data of type {dtype}"
    if math.prod(shape) == 0:
        return "other", f"empty data of shape {tuple(shape)}"
    if len(shape) < 2:
        return "other", "1-D data (a spectrum or line profile)"
    if any(a.unit.lower() in _ENERGIES for a in signal.axes):
        return "other", "a spectrum image (it has an energy axis)" if len(shape) > 2 else "spectra"
    if len(shape) > 3:
        return "other", f"{len(shape)}-D data (such as 4D-STEM or a spectrum image)"
    image_axes = signal.axes[-2:]
    if any(not (length_nm(a.unit) or a.unit.lower() in _COUNTS) for a in image_axes) and not trust_user:
        return (
            "other",
            f"the image axes are in {image_axes[0].unit or 'px'} and {image_axes[1].unit or 'px'}, not in real space",
        )
    if len(shape) == 2 or shape[0] == 1:
        return "single image", "a single image"
    if trust_user:
        return "time series", ""
    if signal.obstacle:
        return "other", signal.obstacle
    if reason := tilt_reason(signal.tilts_deg):
        return "other", reason
    unit = signal.axes[0].unit
    if time_s(unit) or unit.lower() in _COUNTS:
        return "time series", ""
    if unit.lower() in _ANGLES:
        return "other", f"a tilt series (its stack axis is in {unit})"
    if length_nm(unit):
        return "other", f"a stack along a length, such as a focal series (its stack axis is in {unit})"
    return "other", f"a stack along an axis in {unit}, not in time"


def tilt_reason(tilts_deg: Sequence[float]) -> str:
    """Why frames taken at these stage tilts are no time series; empty when they may be one."""
    if len(tilts_deg) < 2 or max(tilts_deg) - min(tilts_deg) <= TILT_SERIES_DEG:
        return ""
    return f"a tilt series (the stage tilts from {min(tilts_deg):.1f}° to {max(tilts_deg):.1f}°)"


def same_pixel_size(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    """Whether two images were taken at one magnification, as far as their files say."""
    if one is None or other is None:
        return one is other
    return all(math.isclose(a, b, rel_tol=PIXEL_SIZE_RTOL) for a, b in zip(one, other, strict=True))


def pixel_size_nm(signal: RawSignal) -> tuple[float, float] | None:
    """Step along (y, x) [nm]; None when either axis has no plausible calibration."""
    sizes = [positive(a.scale, length_nm(a.unit) or math.nan) for a in signal.axes[-2:]]
    if any(s is None or s >= 1e6 for s in sizes):
        return None
    return sizes[0], sizes[1]  # type: ignore[return-value]


def frame_times(
    n_frames: int, step_s: float | None, starts_s: np.ndarray | None = None, resolution_s: float = 1.0
) -> np.ndarray | None:
    """(t,) start of each frame after the first [s], from a nominal step and recorded starts; None when unknown.

    Recorded starts win where they disagree with the nominal step by more than their own resolution: a nominal frame
    time is one scan, and what passes between scans can be 30 times longer. Where they agree the nominal step is finer.
    Frames that share a start (clocks of whole seconds) are spread over the resolution.
    """
    nominal = None if step_s is None else step_s * np.arange(n_frames)
    if starts_s is None or len(starts_s) != n_frames or not np.all(np.isfinite(starts_s)):
        return nominal
    starts = np.asarray(starts_s, dtype=float) - starts_s[0]
    if n_frames < 2 or np.any(np.diff(starts) < 0) or starts[-1] <= 0:
        return nominal
    if nominal is not None and np.ptp(starts - nominal) <= resolution_s * (1 + 1e-9):
        return nominal
    if np.all(np.diff(starts) > 0):
        return starts
    if nominal is None and starts[-1] < 10 * resolution_s:
        return None  # too coarse a clock to say anything
    _, counts = np.unique(starts, return_counts=True)
    within = np.concatenate([np.arange(c) / c for c in counts])
    return starts + within * resolution_s
