"""Drift during a frame against drift between frames, and scan-line jitter, against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from faulty_frames import CPU, simulated

from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.quality.line_jitter import measure_jitter
from atomdiffuser.quality.scan_drift import line_time_s, measure_scan_drift
from atomdiffuser.series import Acquisition, FrameSeries

SHAPE = (128, 160)
PIXEL = (0.02, 0.02)


def drift_of(simulated_series, noise_px: float = 0.0, rng=None):
    """Velocities from the true affines, with the shift and linear errors of a displacement σ of `noise_px` if asked."""
    affines = simulated_series.frame_from_reference.copy()
    centre = np.array([(n - 1) / 2 for n in SHAPE])
    if noise_px:
        each = noise_px / np.sqrt(6) / np.sqrt(2)  # half of the variance is the reference frame's
        linear = rng.normal(0, each, (len(affines), 2, 2)) / (np.array(SHAPE) / np.sqrt(12))
        shift = rng.normal(0, each, (len(affines), 2)) - linear @ centre
        affines[:, :2, :2] += linear - linear[0]
        affines[:, :2, 2] += shift - shift[0]
    shift = affines[:, :2, :2] @ centre + affines[:, :2, 2] - centre
    sigma = np.full(len(affines), noise_px)
    sigma[0] = 0.0
    return measure_scan_drift(affines, shift, sigma, simulated_series.series, 0)


def test_shear_and_scale_are_the_drift_during_the_scan() -> None:
    """The simulated drift goes on while the lines are scanned, 90 % of the frame time; a turn is no drift.

    Velocities differ by up to 0.25 nm/s from frame to frame; leaving out the shear would miss that.
    """
    series = simulated(within_frame_drift=True, random_walk_px=4.0, frame_time_s=0.5, rotation_deg_per_frame=0.02)
    found = drift_of(series)
    inner = slice(1, -1)  # at the ends the two are differences of other frames
    assert np.abs(found.within - found.between)[inner].max() < 0.02
    assert np.ptp(found.between[inner], axis=0).max() > 0.2
    still = drift_of(simulated(within_frame_drift=False, random_walk_px=4.0, frame_time_s=0.5))
    assert np.abs(still.within - still.within[0]).max() < 0.02  # nothing moved during the scans


def test_sigma_of_both_velocities_is_the_scatter(rng) -> None:
    """Errors drawn with equal information on all six numbers."""
    series = simulated(within_frame_drift=True, frame_time_s=0.5)
    exact = drift_of(series)
    noisy = [drift_of(series, 0.05, rng) for _ in range(300)]
    for name in ("between", "within"):
        error = np.array([getattr(n, name) - getattr(exact, name) for n in noisy])[:, 2:-2]
        scatter, sigma = error.std(), np.median([getattr(n, f"{name}_sigma")[2:-2] for n in noisy])
        # the reference frame's velocity carries its own error into those within frames
        assert 0.75 < scatter / sigma < 1.15, (name, scatter, sigma)


def test_what_is_unknown_stays_unknown() -> None:
    series, nothing = simulated(), Acquisition()
    affines = series.frame_from_reference
    shift, sigma = affines[:, :2, 2], np.zeros(len(affines))
    times = series.series.times_s
    without = FrameSeries(series.series.frames, times, nothing)
    assert np.isnan(measure_scan_drift(affines, shift, sigma, without, 0).between).all()
    no_time = FrameSeries(series.series.frames, None, Acquisition(pixel_size_nm=PIXEL))
    assert np.isnan(measure_scan_drift(affines, shift, sigma, no_time, 0).between).all()
    no_line = FrameSeries(series.series.frames, times, Acquisition(pixel_size_nm=PIXEL))
    found = measure_scan_drift(affines, shift, sigma, no_line, 0)
    assert np.isfinite(found.between).all() and np.isnan(found.within).all() and np.isnan(found.within_sigma).all()
    gap = shift.copy()
    gap[3] = np.nan
    found = measure_scan_drift(affines, gap, sigma, series.series, 0)
    assert np.isnan(found.between[3]).all() and np.isfinite(found.between[[2, 4]]).all()


def test_time_of_a_line() -> None:
    frames = np.zeros((2, 100, 50), np.uint8)
    line = lambda **known: line_time_s(FrameSeries(frames, None, Acquisition(**known)))
    assert line(dwell_s=2e-6) == pytest.approx(1e-4) and line(frame_time_s=1.0) == pytest.approx(0.01)
    assert line(dwell_s=2e-6, frame_time_s=1.0) == pytest.approx(1e-4) and line() is None


@pytest.mark.parametrize(("jitter_px", "tolerance"), [(0.0, 0.07), (0.2, 0.03), (0.5, 0.05)])
def test_line_jitter_is_measured_without_the_noise(jitter_px, tolerance) -> None:
    """At 50 e⁻/px a line's offset is known to 0.2 px, so without correction all would read at least that."""
    series = simulated(scan_jitter_px=jitter_px, n_frames=6, electrons_per_px=50.0)
    source = FrameSource(series.series, CPU, gain_e=1.0)
    found = measure_jitter(source, series.frame_from_reference, list(range(6)))
    jitter = np.array([found[k].jitter for k in range(6)])
    assert np.sqrt(np.mean(jitter**2)) == pytest.approx(jitter_px, abs=tolerance)
    assert np.median(found[2].sigma[np.isfinite(found[2].sigma)]) > 0.15
    sigma = np.array([found[k].jitter_sigma for k in range(6)])
    assert (np.abs(jitter - jitter_px) < 4 * sigma).all() and (sigma < 0.2).all()


def test_offsets_of_single_lines_are_found_with_their_sign() -> None:
    """Lines 40 to 42 of frame 2 lie 1 px further right; the others stay."""
    series = simulated(electrons_per_px=200.0, damage="none", n_frames=4)
    frames = np.asarray(series.series.frames).copy()
    frames[2, 40:43] = np.roll(frames[2, 40:43], 1, axis=1)
    source = FrameSource(FrameSeries(frames), CPU, gain_e=1.0)
    found = measure_jitter(source, series.frame_from_reference, [0, 1, 2, 3])[2]
    assert np.median(found.offset[40:43]) == pytest.approx(1.0, abs=0.15)
    others = np.r_[found.offset[10:40], found.offset[43:110]]
    assert np.abs(np.median(others)) < 0.1 and others.std() < 0.2


def test_vacuum_has_no_jitter_but_nan() -> None:
    noise = torch.poisson(torch.full((3, *SHAPE), 4.0), generator=torch.Generator().manual_seed(1)).numpy()
    source = FrameSource(FrameSeries(noise.astype(np.uint16)), CPU, gain_e=1.0)
    found = measure_jitter(source, np.tile(np.eye(3), (3, 1, 1)), [0, 1, 2])
    assert all(np.isnan(found[k].jitter) and not found[k].correction().any() for k in range(3))
    assert measure_jitter(source, np.tile(np.eye(3), (3, 1, 1)), [1]) == {}
