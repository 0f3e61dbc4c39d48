"""Drift and decay of pairs and of series held in memory: the estimation part of the public interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from atomdiffuser import geometry
from atomdiffuser.config import DecaySettings, RegisterSettings
from atomdiffuser.errors import SettingsError, ShapeError
from atomdiffuser.estimation.alike import alike
from atomdiffuser.estimation.decay import decay_estimator
from atomdiffuser.estimation.device_faults import in_smaller_parts, with_processor_in_reserve
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.frame_source import FrameSource, choose_device, shares
from atomdiffuser.estimation.local_regression import full_resolution
from atomdiffuser.estimation.predict import Predictor
from atomdiffuser.estimation.register import FitOptions, PairRegistration, register_unknown
from atomdiffuser.estimation.side_by_side import side_by_side
from atomdiffuser.series import FrameSeries

MAP_STRIDE = DecaySettings.map_stride
MAPS = ("intensity", "contrast", "intensity_sigma", "contrast_sigma")


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
    ambiguous
        (n,) bool: valid, but the two frames cannot tell the drift from one a lattice vector away (the hop probability
        is above `RegisterSettings.hop_probability_limit`).
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
    ambiguous: np.ndarray
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
    predict: bool = True,
    refine: bool = True,
    maps: bool = True,
    max_drift_px: float | None = None,
    weights: str = DecaySettings.weights,
) -> PairEstimates:
    """Drift and decay between frames: predicted by the network, the drift refined by the statistical fit.

    Parameters
    ----------
    reference, moving
        (Y, X) one pair or (n, Y, X) pairs, counts. Pairs that show the same structure share what is measured of it.
    dark_level
        Counts without beam.
    gain_e
        Electrons per count; None estimates the noise from the frames.
    time
        (n, 2), or (2,) for one pair: time or fluence of the reference and of the moving frame; gives the states of
        `PairEstimates.at` their place.
    device
        "auto", "cpu" or "cuda". Where a GPU fails, the processor does the work, with a warning.
    predict
        False leaves the network out: the drift starts from correlation alone, the maps come from local regression.
    refine
        False takes the drift as the network predicts it.
    maps
        False gives drift only.
    max_drift_px
        Longest drift considered by the fit; a third of the shorter side by default.
    weights
        The network's: a name of shipped ones, or the path of a file.

    Raises
    ------
    SettingsError
        When there is neither to be predicted nor refined.
    ShapeError
        When the two stacks differ in shape, or the times do not fit to them.

    Returns
    -------
    PairEstimates
        Affines with covariance, maps on the reference grid, and which pairs succeeded.

    Examples
    --------
    >>> from atomdiffuser import estimate_pairs, simulate_series
    >>> truth = simulate_series("SrTiO3", n_frames=2, shape=(96, 112), electrons_per_px=200, seed=3)
    >>> frames = truth.series.frames
    >>> pair = estimate_pairs(frames[0], frames[1], predict=False)
    >>> bool(pair.valid[0]), pair.moving_from_reference.shape, pair.contrast.shape
    (True, (1, 3, 3), (1, 96, 112))
    >>> halfway = pair.at(0.5)
    >>> halfway.contrast.shape
    (1, 1, 96, 112)
    """
    reference, moving = (np.asarray(a)[None] if np.ndim(a) == 2 else np.asarray(a) for a in (reference, moving))
    if reference.shape != moving.shape or reference.ndim != 3:
        raise ShapeError(
            f"reference has shape {reference.shape} and moving {moving.shape}, expected two equal (n, y, x)"
        )
    if not (predict or refine):
        raise SettingsError("predict and refine are both False; one of them has to find the drift")
    n = len(reference)
    times = None if time is None else np.asarray(time, dtype=float).reshape(-1, 2)
    if times is not None and len(times) != n:
        given = np.asarray(time).shape
        raise ShapeError(f"time has shape {given}, expected ({n}, 2): reference and moving of each pair")
    groups = alike(reference, moving)

    def on(here: torch.device) -> PairEstimates:
        results = _empty(n, reference.shape[1:], maps, times)
        threads, size = shares(reference.shape[1:], here) if here.type == "cpu" else (1, n)

        def kinds() -> Iterator[_Kind]:
            for group in groups:
                source = FrameSource(
                    FrameSeries(_Interleaved(reference, moving, group)), here, dark_level=dark_level, gain_e=gain_e
                )
                options = FitOptions(
                    noise=source.noise,
                    scales=source.scales,
                    max_shift_px=max_drift_px or RegisterSettings.max_drift_fraction * min(source.shape),
                )
                predictor = Predictor.of(source, weights) if predict else None
                yield _Kind(group, source, options, predictor, refine, maps, results)

        if threads == 1 or n <= size:
            for kind in kinds():
                in_smaller_parts(partial(kind.estimate, kind.source), kind.sound(), kind.source.batch)
            return results

        def work(item: tuple[_Kind, list[int]]) -> None:
            kind, part = item
            kind.estimate(kind.source.apart(), part)

        # A kind is measured here while batches of the one before are worked on.
        list(side_by_side(work, ((kind, part) for kind in kinds() for part in kind.parts(size)), threads))
        return results

    return with_processor_in_reserve(choose_device(device), on)


@dataclass(frozen=True)
class _Kind:
    """Pairs that show the same structure, at `group` among all; they stand in their source as reference, moving,
    reference, moving …, and what is found is written into the results of all.
    """

    group: np.ndarray
    source: FrameSource
    options: FitOptions
    predictor: Predictor | None
    refine: bool
    maps: bool
    results: PairEstimates

    def sound(self) -> list[int]:
        """Places of the pairs whose frames both show something; why the others do not is said in the results."""
        blank = [self.source.unusable.get(2 * k) or self.source.unusable.get(2 * k + 1) for k in range(len(self.group))]
        for place, reason in zip(self.group, blank, strict=True):
            self.results.reason[place] = reason or ""
        return [k for k, reason in enumerate(blank) if not reason]

    def parts(self, size: int) -> Iterator[list[int]]:
        """Their places, `size` at a time."""
        sound = self.sound()
        return (sound[at : at + size] for at in range(0, len(sound), size))

    def estimate(self, source: FrameSource, index: Sequence[int]) -> None:
        """Estimate the pairs at some places."""
        results = self.results
        pairs = [(2 * k, 2 * k + 1) for k in index]
        found = _register(source, pairs, self.options, self.predictor, self.refine)
        ok, hops, affine, covariance, sigma_px = (
            values.cpu().numpy()
            for values in (
                found.valid, found.hop_probability, found.moving_from_reference, found.affine_covariance(),
                found.displacement_sigma_px,
            )
        )  # fmt: skip
        for m, k in enumerate(self.group[index]):
            results.reason[k] = found.reason[m]
            results.valid[k] = ok[m]
            results.hop_probability[k] = hops[m]
            doubt = results.hop_probability[k] > RegisterSettings.hop_probability_limit
            results.ambiguous[k] = ok[m] and doubt
            if ok[m]:
                results.moving_from_reference[k] = affine[m]
                results.affine_covariance[k] = covariance[m]
                results.displacement_sigma_px[k] = sigma_px[m]
        kept = np.flatnonzero(ok).tolist()
        if self.maps and kept:
            drift = found.moving_from_reference[kept]
            for name, values in _maps(source, [pairs[m] for m in kept], drift, self.predictor).items():
                getattr(results, name)[self.group[[index[m] for m in kept]]] = values.cpu().numpy()


def estimate_series(
    frames: Any,
    *,
    times: np.ndarray | None = None,
    dark_level: float = 0.0,
    gain_e: float | None = 1.0,
    device: str = "auto",
    predict: bool = True,
    settings: RegisterSettings | None = None,
    weights: str = DecaySettings.weights,
) -> SeriesEstimate:
    """Drift and decay of every frame of a series against its first usable frame.

    Parameters
    ----------
    frames
        (t, Y, X) counts, a HyperSpy `Signal2D`, or a `FrameSeries` such as `read_series` returns.
    times
        (t,) start of each frame [s], for arrays; carried into the table of pairs.
    dark_level
        Counts without beam.
    gain_e
        Electrons per count; None estimates the noise from the frames. A dark level or gain that a `FrameSeries` knows
        is taken where neither is given here.
    device
        "auto", "cpu" or "cuda". Where a GPU fails, the processor does the work, with a warning.
    predict
        False leaves the network out.
    settings
        Of the register stage; they win over `predict` and `weights` where the drift is concerned.
    weights
        The network's: a name of shipped ones, or the path of a file.

    Returns
    -------
    SeriesEstimate
        Affines (t, 3, 3) with 1 σ, maps (t, Y, X), and the pairs that were fitted.

    Raises
    ------
    ShapeError
        When the frames are no stack, or the times do not fit to them.
    SettingsError
        When times are given for a signal or series that has its own.

    Examples
    --------
    >>> from atomdiffuser import estimate_series, simulate_series
    >>> truth = simulate_series("SrTiO3", n_frames=3, shape=(96, 112), electrons_per_px=200, seed=3)
    >>> found = estimate_series(truth.series, predict=False)
    >>> found.valid.all(), found.frame_from_reference.shape, found.intensity.shape
    (np.True_, (3, 3, 3), (3, 96, 112))
    """
    from atomdiffuser.interop.frames import as_frame_series

    series = as_frame_series(frames, times=times)
    known = series.acquisition
    if dark_level == 0.0 and known.dark_level is not None:
        dark_level = known.dark_level
    if gain_e == 1.0 and known.gain_e is not None:
        gain_e = known.gain_e
    start: Literal["network", "correlation"] = "network" if predict else "correlation"
    chosen = settings or RegisterSettings(start=start, weights=weights)

    def on(here: torch.device) -> SeriesEstimate:
        source = FrameSource(series, here, dark_level=dark_level, gain_e=gain_e)
        return _estimate_series(source, series, chosen, _decay_settings(predict, weights))

    return with_processor_in_reserve(choose_device(device), on)


def _estimate_series(
    source: FrameSource, series: FrameSeries, settings: RegisterSettings, decay: DecaySettings
) -> SeriesEstimate:
    """What `estimate_series` gives, of the frames of a source."""
    from atomdiffuser.estimation.drift_tables import pairs_table

    drift = estimate_drift(source, settings)
    t, shape = series.n_frames, series.frame_shape
    intensity, contrast = (np.full((t, *shape), np.nan, np.float32) for _ in range(2))
    origin = drift.reference_frame
    estimate_maps = decay_estimator(source, decay)
    for k in np.flatnonzero(drift.trajectory.connected):
        if k == origin:
            intensity[k] = contrast[k] = 1.0
            continue
        maps = estimate_maps([(origin, int(k))], drift.trajectory.frame_from_reference[k][None])
        intensity[k] = full_resolution(maps.intensity, MAP_STRIDE, shape)[0].cpu().numpy()
        contrast[k] = full_resolution(maps.contrast, MAP_STRIDE, shape)[0].cpu().numpy()
    valid = np.array([not r for r in drift.frame_reason])
    return SeriesEstimate(
        drift.trajectory.frame_from_reference.numpy(),
        drift.trajectory.displacement_sigma_px,
        intensity,
        contrast,
        valid,
        drift.frame_reason,
        pairs_table(drift, series),
        origin,
    )


def _register(
    source: FrameSource, pairs: list[tuple[int, int]], options: FitOptions, predictor: Predictor | None, refine: bool
) -> PairRegistration:
    if predictor is not None and not refine:
        return predictor.register(pairs)
    reference, moving = (source.prepared(side) for side in zip(*pairs, strict=True))
    starts = None if predictor is None else predictor.starts(pairs, options)
    return register_unknown(reference, moving, options, starts=starts)


def _maps(
    source: FrameSource, pairs: list[tuple[int, int]], drift: torch.Tensor, predictor: Predictor | None
) -> dict[str, torch.Tensor]:
    """The four maps of aligned pairs at full resolution, (n, Y, X) each."""
    if predictor is not None:
        found = predictor.predict(pairs, drift)
        return {name: getattr(found, name) for name in MAPS}
    decay = decay_estimator(source, _decay_settings(False))(pairs, drift)
    return {name: full_resolution(getattr(decay, name), MAP_STRIDE, source.shape) for name in MAPS}


def _decay_settings(predict: bool, weights: str = DecaySettings.weights) -> DecaySettings:
    return DecaySettings(map_stride=MAP_STRIDE, method="network" if predict else "regression", weights=weights)


class _Interleaved:
    """Pairs of two stacks seen as one series: reference, moving, reference, …"""

    def __init__(self, reference: np.ndarray, moving: np.ndarray, pairs: np.ndarray):
        self.stacks, self.pairs = (reference, moving), pairs
        self.shape = (2 * len(pairs), *reference.shape[1:])

    def __getitem__(self, index: int) -> np.ndarray:
        return self.stacks[index % 2][self.pairs[index // 2]]


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
        np.zeros(n, bool),
        time,
    )
