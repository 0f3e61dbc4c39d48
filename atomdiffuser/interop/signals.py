"""HyperSpy in and out: a Signal2D is a series, drift and maps become signals with axes and units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from atomdiffuser.alignment import Extent, Interpolation, align_frame, choose_grid
from atomdiffuser.errors import NotATimeSeries, ShapeError
from atomdiffuser.interop.frames import as_frame_series
from atomdiffuser.io._mapped_metadata import acquisition_fields, stage_tilt_deg
from atomdiffuser.io._raw_signal import Axis, RawSignal, clean_unit
from atomdiffuser.io.readers import apply_overrides, classify, series_of
from atomdiffuser.io.store import time_step
from atomdiffuser.series import Acquisition, FrameSeries

if TYPE_CHECKING:
    from hyperspy.api import signals

    from atomdiffuser.estimation.api import SeriesEstimate

MAPS = ("intensity", "contrast")
DRIFT_COLUMNS = ("drift_y_px", "drift_x_px", "rotation_deg", "scale", "shear", "displacement_sigma_px")


def series_from_signal(signal: signals.Signal2D, **overrides: Any) -> FrameSeries:
    """A HyperSpy `Signal2D` as a series; lazy signals stay lazy.

    Parameters
    ----------
    signal
        One navigation axis (time or frames) and two signal axes. Pixel size and frame time come from its axes, beam
        current, dwell time and voltage from its `metadata.Acquisition_instrument.TEM`.
    overrides
        As in `read_series`, such as `probe_current_pA=30`.

    Raises
    ------
    NotATimeSeries
        When the signal is a single image, a spectrum image, a tilt series, …

    Examples
    --------
    >>> import hyperspy.api as hs, numpy as np
    >>> signal = hs.signals.Signal2D(np.ones((4, 32, 40)))
    >>> for axis, scale in zip(signal.axes_manager.signal_axes, (0.02, 0.02)):
    ...     axis.scale, axis.units = scale, "nm"
    >>> series = series_from_signal(signal, frame_time_s=2.0)
    >>> series.acquisition.pixel_size_nm, series.times_s.tolist()
    ((0.02, 0.02), [0.0, 2.0, 4.0, 6.0])
    """
    axes = [*signal.axes_manager.navigation_axes[::-1], *signal.axes_manager.signal_axes[::-1]]
    metadata = signal.metadata.as_dictionary()
    title = str(metadata.get("General", {}).get("title") or "signal")
    raw = RawSignal(
        title=title,
        data=signal.data,
        axes=tuple(
            Axis(_text(a.name), clean_unit(a.units), float(a.scale), float(a.offset)) if a.is_uniform else _uneven(a)
            for a in axes
        ),
        fields=acquisition_fields(metadata),
        starts_s=None if axes[0].is_uniform else np.asarray(axes[0].axis, dtype=float),
        tilts_deg=stage_tilt_deg(metadata),
        original_metadata=signal.original_metadata.as_dictionary(),
    )
    kind, reason = classify(raw, trust_user=bool(overrides.get("time_series")))
    if kind != "time series":
        raise NotATimeSeries(f"the signal {title!r} is {reason}, not a time series")
    return apply_overrides(series_of(raw, title), overrides, source="argument")


def signal_from_series(series: FrameSeries) -> signals.Signal2D:
    """The frames of a series as a `Signal2D` (lazy where they are), with axes, units and what is known of the beam.

    Examples
    --------
    >>> from atomdiffuser import simulate_series
    >>> simulated = simulate_series("Si", n_frames=3, shape=(48, 64), frame_time_s=2.0, pixel_size_nm=0.03)
    >>> signal_from_series(simulated.series)
    <Signal2D, title: Si, dimensions: (3|64, 48)>
    """
    return _signal2d(series.frames, series, title=series.name)


def trajectory_signal(estimate: SeriesEstimate, series: Any = None) -> signals.BaseSignal:
    """Drift of each frame as a `Signal1D` (t | 6): drift y and x [px], rotation [°], scale, shear, 1 σ [px].

    Parameters
    ----------
    estimate
        What `estimate_series` found.
    series
        The frames it was found from, in any form that `as_frame_series` takes: gives time axis and drift of the frame's
        centre. Without it the drift is that of the first pixel.

    Notes
    -----
    The columns' names are in `metadata.AtomDiffuser.columns`; invalid frames are NaN.
    """
    import hyperspy.api as hs
    import torch

    from atomdiffuser import geometry

    known = None if series is None else as_frame_series(series)
    affines = torch.as_tensor(np.asarray(estimate.frame_from_reference))
    shift = geometry.drift_at_centre(affines, (1, 1) if known is None else known.frame_shape).numpy()
    turned = [v.numpy() for v in geometry.rotation_scale_shear(affines)]
    values = np.stack([*shift.T, *turned, np.asarray(estimate.displacement_sigma_px)], axis=1)
    signal = hs.signals.Signal1D(values)
    _describe_time(signal.axes_manager[0], known)
    signal.axes_manager[-1].name = "quantity"
    _describe(signal, known, "drift of each frame", columns=list(DRIFT_COLUMNS), reference=estimate.reference_frame)
    return signal


def map_signal(
    estimate: SeriesEstimate, which: Literal["intensity", "contrast"] = "contrast", series: Any = None
) -> signals.Signal2D:
    """One kind of decay map of every frame as a `Signal2D` (t | X, Y), NaN where nothing was measured.

    `series` (in any form that `as_frame_series` takes) gives the axes their scale and unit.
    """
    if which not in MAPS:
        raise ValueError(f"which is {which!r}, expected {' or '.join(map(repr, MAPS))}")
    known = None if series is None else as_frame_series(series)
    maps = np.asarray(getattr(estimate, which))
    if known is not None and maps.shape[1:] != known.frame_shape:
        raise ShapeError(f"the maps are {maps.shape[1:]}, the frames {known.frame_shape}; they are of another series")
    return _signal2d(maps, known, title=f"{which} against frame {estimate.reference_frame}")


def align_signal(
    frames: Any,
    estimate: SeriesEstimate | np.ndarray,
    *,
    interpolation: Interpolation = "linear",
    extent: Extent = "reference",
) -> signals.Signal2D:
    """The drift-corrected series as a `Signal2D` float32, resampled once; axes and metadata are kept.

    Parameters
    ----------
    frames
        A `Signal2D`, whose metadata the result keeps, or any other form that `as_frame_series` takes.
    estimate
        What `estimate_series` found, or its `frame_from_reference` (t, 3, 3).
    interpolation, extent
        As in the settings of the align stage. Pixels that a frame did not see, and frames that could not be registered,
        are NaN.
    """
    series = as_frame_series(frames)
    affines = np.asarray(getattr(estimate, "frame_from_reference", estimate), dtype=float)
    if affines.shape != (series.n_frames, 3, 3):
        raise ShapeError(f"affines of shape {affines.shape} for {series.n_frames} frames, expected (t, 3, 3)")
    valid = np.isfinite(affines).all((1, 2))
    grid = choose_grid(affines[valid], series.frame_shape, extent)
    stack = np.full((series.n_frames, *grid.shape), np.nan, np.float32)
    for k in np.flatnonzero(valid):
        stack[k] = align_frame(series.frame(int(k)), affines[k], grid, interpolation, None)
    aligned = _signal2d(stack, series, title=f"{series.name} (aligned)", origin_px=grid.origin_px)
    if hasattr(frames, "axes_manager"):
        own = aligned.metadata.as_dictionary()["AtomDiffuser"]
        aligned.metadata.add_dictionary(frames.metadata.as_dictionary())
        aligned.metadata.General.title = f"{series.name} (aligned)"
        aligned.metadata.add_dictionary({"AtomDiffuser": own})
        aligned.original_metadata.add_dictionary(frames.original_metadata.as_dictionary())
        for ours, theirs in zip(aligned.axes_manager._axes, frames.axes_manager._axes, strict=True):
            ours.name = theirs.name
    return aligned


def _signal2d(
    data: Any, series: FrameSeries | None, *, title: str, origin_px: Sequence[int] = (0, 0)
) -> signals.Signal2D:
    import hyperspy.api as hs

    signal = hs.signals.Signal2D(data)
    if hasattr(data, "dask"):
        signal = signal.as_lazy()
    time, y, x = signal.axes_manager._axes
    _describe_time(time, series)
    pixel = None if series is None else series.acquisition.pixel_size_nm
    for axis, name, side in ((y, "y", 0), (x, "x", 1)):
        axis.name, axis.units = name, "px" if pixel is None else "nm"
        axis.scale = 1.0 if pixel is None else pixel[side]
        axis.offset = origin_px[side] * axis.scale
    _describe(signal, series, title)
    return signal


def _describe_time(axis: Any, series: FrameSeries | None) -> None:
    axis.name = "time"
    step = None if series is None else time_step(series.times_s, series.acquisition.frame_time_s)
    if step is not None:
        axis.scale, axis.units = step, "s"


def _describe(signal: Any, series: FrameSeries | None, title: str, **more: Any) -> None:
    from atomdiffuser._version import __version__

    signal.metadata.General.title = title
    signal.metadata.add_dictionary({"AtomDiffuser": {"version": __version__, **more}})
    if series is None:
        return
    known: Acquisition = series.acquisition
    microscope = {
        "acquisition_mode": "STEM",
        "beam_energy": known.beam_energy_kV,  # kV
        "beam_current": None if known.probe_current_pA is None else known.probe_current_pA / 1000,  # nA
        "dwell_time": known.dwell_s,  # s
        "microscope": known.instrument,
    }
    stated = {k: v for k, v in microscope.items() if v is not None}
    signal.metadata.add_dictionary({"Acquisition_instrument": {"TEM": stated}})
    if series.times_s is not None:
        signal.metadata.add_dictionary({"AtomDiffuser": {"times_s": series.times_s.tolist()}})
    if series.original_metadata and not signal.original_metadata.as_dictionary():
        signal.original_metadata.add_dictionary(dict(series.original_metadata))


def _uneven(axis: Any) -> Axis:
    """An axis that lists its values: they are the times of the frames, whose mean step stands for the scale."""
    values = np.asarray(axis.axis, dtype=float)
    return Axis(_text(axis.name), clean_unit(axis.units), float(np.ptp(values) / max(len(values) - 1, 1)), values[0])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
