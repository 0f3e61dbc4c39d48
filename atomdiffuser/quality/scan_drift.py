"""Drift while a frame is scanned, read from the shear and scale of its affine, beside the drift between frames.

The lines of a frame are scanned one after the other. A sample that drifts at v [px/s] lies v·t_line further at each
line: the frame shows it sheared by v_x·t_line along x and stretched by v_y·t_line along y. The affine from the
reference frame has the difference of both frames' velocities, so the reference frame's own, which nothing shows, is
taken from the drift between frames. A turn or a change of magnification moves both columns of the affine alike and
drops out:

    v_y = v_y,reference + (a_yy − a_xx) / t_line,      v_x = v_x,reference + (a_xy + a_yx) / t_line

Where the two velocities disagree by much more than their σ, the sample was deformed or the scan was, or the drift was
not steady.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atomdiffuser.series import FrameSeries

SHIFT_SHARE = 1 / 6  # of the displacement's variance that one component of the shift has: six numbers share it equally
LINEAR_GAIN = np.sqrt(2.0)  # σ of a linear number, in displacement σ over the side: √(1/6) · √12


@dataclass(frozen=True)
class ScanDrift:
    """Velocities of t frames [nm/s], (y, x) each, and the 1 σ of each component; NaN where unknown.

    Attributes
    ----------
    between, between_sigma
        (t, 2), (t,) from the frames before and after.
    within, within_sigma
        (t, 2), (t,) from the frame's own affine.
    """

    between: np.ndarray
    between_sigma: np.ndarray
    within: np.ndarray
    within_sigma: np.ndarray


def measure_scan_drift(
    affines: np.ndarray, drift_px: np.ndarray, sigma_px: np.ndarray, series: FrameSeries, origin: int
) -> ScanDrift:
    """Compare drift within and between frames.

    Parameters
    ----------
    affines
        (t, 3, 3) frame_from_reference, NaN where a frame has no place.
    drift_px, sigma_px
        (t, 2) drift of the centre and (t,) displacement σ against the reference frame, RMS over the frame [px].
    origin
        Number of the reference frame.
    """
    t = len(affines)
    pixel = series.acquisition.pixel_size_nm
    known = np.flatnonzero(np.isfinite(drift_px).all(axis=1))
    nothing = np.full((t, 2), np.nan), np.full(t, np.nan)
    if pixel is None or series.times_s is None or len(known) < 2:
        return ScanDrift(*nothing, nothing[0].copy(), nothing[1].copy())
    own = _own_sigma(sigma_px, known)
    between, between_sigma = nothing[0].copy(), nothing[1].copy()
    times, place = series.times_s[known], drift_px[known] * pixel
    between[known] = np.gradient(place, times, axis=0)
    first, last = np.maximum(np.arange(len(known)) - 1, 0), np.minimum(np.arange(len(known)) + 1, len(known) - 1)
    spread = np.hypot(own[known[first]], own[known[last]]) * np.sqrt(SHIFT_SHARE) * max(pixel)
    between_sigma[known] = spread / (times[last] - times[first])
    within, within_sigma = _within(affines, sigma_px, series, between[origin])
    return ScanDrift(between, between_sigma, within, within_sigma)


def line_time_s(series: FrameSeries) -> float | None:
    """Time from one scan line to the next [s].

    Dwell time times pixels where the dwell time is known (flyback is not counted, so velocities come out too large by
    its share); else the frame time over the rows; None when neither is known.
    """
    acquisition, (rows, columns) = series.acquisition, series.frame_shape
    if acquisition.dwell_s is not None:
        return acquisition.dwell_s * columns
    return None if acquisition.frame_time_s is None else acquisition.frame_time_s / rows


def _within(
    affines: np.ndarray, sigma_px: np.ndarray, series: FrameSeries, of_reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    line, (rows, columns) = line_time_s(series), series.frame_shape
    if line is None:
        return np.full((len(affines), 2), np.nan), np.full(len(affines), np.nan)
    pixel = np.array(series.acquisition.pixel_size_nm)
    stretch, shear = affines[:, 0, 0] - affines[:, 1, 1], affines[:, 1, 0] + affines[:, 0, 1]
    within = of_reference + np.stack([stretch, shear], axis=1) * pixel / line
    sigma = LINEAR_GAIN * sigma_px * np.hypot(1 / rows, 1 / columns) * max(pixel) / line
    return within, np.where(np.isfinite(within[:, 0]), sigma, np.nan)


def _own_sigma(sigma_px: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Each frame's own error from those against the reference frame, whose variances are v_0 + v_k.

    v_0 is taken as half of the smallest, which makes the others a little too large rather than too small.
    """
    variance = sigma_px**2
    others = variance[known][variance[known] > 0]
    reference = others.min() / 2 if len(others) else 0.0
    return np.sqrt(np.maximum(variance - reference, reference))
