"""Drift and decay of pairs and of series held in memory: the estimation part of the public interface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from atomdiffuser import geometry
from atomdiffuser.config import DecaySettings, RegisterSettings
from atomdiffuser.errors import ShapeError
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.frame_source import FrameSource, choose_device
from atomdiffuser.estimation.local_regression import estimate_decay_maps, full_resolution
from atomdiffuser.estimation.register import FitOptions, register_unknown
from atomdiffuser.series import FrameSeries

MAP_STRIDE = DecaySettings.map_stride


@dataclass(frozen=True)
class PairStates:
    """States between the two frames of each pair: affines (m, n, 3, 3) and maps (m, n, Y, X) at m values of τ.

    They are interpolated, not measured. `time` (m, n) is what τ stands for, in the unit that the pairs' times were
    given in; None when they were not.
    """

    tau: np.ndarray
    time: np.ndarray | None
    moving_from_reference: np.ndarray
    intensity: np.ndarray | None
    contrast: np.ndarray | None


@dataclass(frozen=True)
class PairEstimates:
    """Drift and decay of n pairs.

    Attributes
    ----------
    moving_from_reference
        (n, 3, 3) float64, acts on (y, x, 1) [px]; NaN for invalid pairs.
    affine_covariance
        (n, 6, 6) of its six numbers, row by row.
    displacement_sigma_px
        (n,) 1 σ, RMS over the frame [px].
    intensity, contrast, intensity_sigma, contrast_sigma
        (n, Y, X) float32 on the reference grid, NaN outside the overlap; None with maps=False.
    hop_probability
        (n,) that a lattice-equivalent drift is the right one.
    valid, reason
        Which pairs succeeded, and why the others did not.
    time
        (n, 2) time or fluence of the reference and of the moving frame, as given; None when not.
    """

    moving_from_reference: np.ndarray
    affine_covariance: np.ndarray
    displacement_sigma_px: np.ndarray
    intensity: np.ndarray | None
    contrast: np.ndarray | None
    intensity_sigma: np.ndarray | None
    contrast_sigma: np.ndarray | None
    hop_probability: np.ndarray
    valid: np.ndarray
    reason: list[str]
    time: np.ndarray | None = None

    def at(self, tau: float | np.ndarray) -> PairStates:
        """States at τ in [0, 1]: the geodesic exp(τ·log A), and maps raised to the power τ (exponential kinetics).

        τ = 0 is exactly the identity and exactly 1; two steps compose. A map value below zero (noise) counts as zero.
        """
        tau = np.atleast_1d(np.asarray(tau, dtype=float))
        if ((tau < 0) | (tau > 1)).any():
            raise ValueError(f"tau is {tau}, expected values from 0 to 1")
        affines = torch.as_tensor(self.moving_from_reference)
        motion = geometry.geodesic(affines[None], torch.as_tensor(tau)[:, None].expand(-1, len(affines))).numpy()
        motion[tau == 0] = np.where(self.valid[:, None, None], np.eye(3), np.nan)
        exponent = tau[:, None, None, None].astype(np.float32)

        def power(values: np.ndarray | None) -> np.ndarray | None:
            if values is None:
                return None
            return np.where(np.isnan(values), np.float32(np.nan), np.clip(values, 0, None)[None] ** exponent)

        time = None if self.time is None else self.time[:, 0] + tau[:, None] * (self.time[:, 1] - self.time[:, 0])
        return PairStates(tau, time, motion, power(self.intensity), power(self.contrast))


@dataclass(frozen=True)
class SeriesEstimate:
    """Drift and decay of a series of t frames.

    Attributes
    ----------
    frame_from_reference
        (t, 3, 3); NaN for invalid frames.
    displacement_sigma_px
        (t,) 1 σ against the reference frame [px].
    intensity, contrast
        (t, Y, X) float32 on the reference grid, NaN outside.
    valid, reason
        Which frames have a place in the trajectory, and why the others have none.
    pairs
        A row a pair, columns as in pairs.parquet.
    reference_frame
        Number of the frame whose affine is the identity and whose maps are 1.
    """

    frame_from_reference: np.ndarray
    displacement_sigma_px: np.ndarray
    intensity: np.ndarray
    contrast: np.ndarray
    valid: np.ndarray
    reason: list[str]
    pairs: pd.DataFrame
    reference_frame: int


def estimate_pairs(
    reference: np.ndarray,
    moving: np.ndarray,
    *,
    dark_level: float = 0.0,
    gain_e: float | None = 1.0,
    time: np.ndarray | None = None,
    device: str = "auto",
    maps: bool = True,
    max_drift_px: float | None = None,
) -> PairEstimates:
    """Drift and decay between frames.

    Parameters
    ----------
    reference, moving
        (Y, X) one pair or (n, Y, X) pairs, counts.
    dark_level
        Counts without beam.
    gain_e
        Electrons per count; None estimates the noise from the frames.
    time
        (n, 2), or (2,) for one pair: time or fluence of the reference and of the moving frame; gives the states of
        `PairEstimates.at` their place.
    device
        "auto", "cpu" or "cuda".
    maps
        False gives drift only.
    max_drift_px
        Longest drift considered; a third of the shorter side by default.

    Raises
    ------
    ShapeError
        When the two stacks differ in shape, or the times do not fit to them.
    """
    reference, moving = (np.asarray(a)[None] if np.ndim(a) == 2 else np.asarray(a) for a in (reference, moving))
    if reference.shape != moving.shape or reference.ndim != 3:
        raise ShapeError(
            f"reference has shape {reference.shape} and moving {moving.shape}, expected two equal (n, y, x)"
        )
    n, shape = len(reference), reference.shape[1:]
    source = FrameSource(
        FrameSeries(_Interleaved(reference, moving)), choose_device(device), dark_level=dark_level, gain_e=gain_e
    )
    options = FitOptions.of(source, max_shift_px=max_drift_px or RegisterSettings.max_drift_fraction * min(shape))
    times = None if time is None else np.asarray(time, dtype=float).reshape(-1, 2)
    if times is not None and len(times) != n:
        raise ShapeError(f"time has shape {np.shape(time)}, expected ({n}, 2): reference and moving of each pair")
    results = _empty(n, shape, maps, times)
    for k in range(n):
        blank = source.unusable.get(2 * k) or source.unusable.get(2 * k + 1)
        if blank:
            results.reason[k] = blank
    good = [k for k in range(n) if not results.reason[k]]
    batch = source.batch
    for at in range(0, len(good), batch):
        index = good[at : at + batch]
        first, second = [2 * k for k in index], [2 * k + 1 for k in index]
        found = register_unknown(source.fit_pairs_of(list(zip(first, second, strict=True))), options)
        ok = found.valid.cpu().numpy()
        decay = (
            estimate_decay_maps(
                source.prepared(first),
                source.prepared(second),
                found.moving_from_reference,
                noise=source.noise,
                scales=source.scales,
                stride=MAP_STRIDE,
            )
            if maps
            else None
        )
        covariance = found.affine_covariance().cpu().numpy()
        for m, k in enumerate(index):
            results.reason[k] = found.reason[m]
            results.valid[k] = ok[m]
            results.hop_probability[k] = float(found.hop_probability[m])
            if ok[m]:
                results.moving_from_reference[k] = found.moving_from_reference[m].cpu().numpy()
                results.affine_covariance[k] = covariance[m]
                results.displacement_sigma_px[k] = float(found.displacement_sigma_px[m])
                for name in ("intensity", "contrast", "intensity_sigma", "contrast_sigma") if decay else ():
                    getattr(results, name)[k] = (
                        full_resolution(getattr(decay, name)[m : m + 1], MAP_STRIDE, shape)[0].cpu().numpy()
                    )
    return results


def estimate_series(
    frames: np.ndarray,
    *,
    times: np.ndarray | None = None,
    dark_level: float = 0.0,
    gain_e: float | None = 1.0,
    device: str = "auto",
    settings: RegisterSettings | None = None,
) -> SeriesEstimate:
    """Drift and decay of every frame of a series (t, Y, X) against its first usable frame.

    `times` (t,) in seconds are carried into the table of pairs.
    """
    from atomdiffuser.estimation.drift_tables import pairs_table

    series = FrameSeries(frames, times_s=times)
    source = FrameSource(series, choose_device(device), dark_level=dark_level, gain_e=gain_e)
    drift = estimate_drift(source, settings or RegisterSettings())
    t, shape = series.n_frames, series.frame_shape
    intensity, contrast = (np.full((t, *shape), np.nan, np.float32) for _ in range(2))
    origin = drift.reference_frame
    for k in np.flatnonzero(drift.trajectory.connected):
        if k == origin:
            intensity[k] = contrast[k] = 1.0
            continue
        maps = estimate_decay_maps(
            source.prepared([origin]),
            source.prepared([int(k)]),
            drift.trajectory.frame_from_reference[k][None],
            noise=source.noise,
            scales=source.scales,
            stride=MAP_STRIDE,
        )
        intensity[k] = full_resolution(maps.intensity, MAP_STRIDE, shape)[0].cpu().numpy()
        contrast[k] = full_resolution(maps.contrast, MAP_STRIDE, shape)[0].cpu().numpy()
    return SeriesEstimate(
        drift.trajectory.frame_from_reference.numpy(),
        drift.trajectory.displacement_sigma_px,
        intensity,
        contrast,
        drift.frame_valid,
        drift.frame_reason,
        pairs_table(drift, series),
        origin,
    )


class _Interleaved:
    """Two stacks seen as one series: reference 0, moving 0, reference 1, …"""

    def __init__(self, reference: np.ndarray, moving: np.ndarray):
        self.stacks = reference, moving
        self.shape = (2 * len(reference), *reference.shape[1:])

    def __getitem__(self, index: int) -> np.ndarray:
        return self.stacks[index % 2][index // 2]


def _empty(n: int, shape: tuple[int, ...], maps: bool, time: np.ndarray | None) -> PairEstimates:
    image = lambda: np.full((n, *shape), np.nan, np.float32) if maps else None
    return PairEstimates(
        np.full((n, 3, 3), np.nan),
        np.full((n, 6, 6), np.nan),
        np.full(n, np.nan),
        image(),
        image(),
        image(),
        image(),
        np.full(n, np.nan),
        np.zeros(n, bool),
        [""] * n,
        time,
    )
