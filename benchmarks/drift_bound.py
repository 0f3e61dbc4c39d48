"""Drift against the Cramér–Rao bound: pairs, series, lattice hops, and time beside OpenCV's ECC in the same run.

The bound is `simulation.drift_bound`: two frames of an unknown specimen, smooth decay between them unknown too, no rim
left out. An estimator exactly at it has error/bound of median 0.94 and 95th percentile 1.45 (six degrees of freedom).
Errors are root mean square displacements over the frame.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import scipy.stats
import torch

from atomdiffuser import estimate_pairs, geometry
from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.drift import DriftEstimate, estimate_drift
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.evaluation.peers import ECC_FILTER_PX, from_xy
from atomdiffuser.series import FrameSeries
from atomdiffuser.simulation.drift_bound import pair_bound, pair_bound_px
from atomdiffuser.simulation.series import SimulatedSeries, simulate_series

SHAPE = (256, 256)
SPECIMENS = ("SrTiO3", "Si", "LLZO[100]", "nanoparticle")
COLUMNS = ["part", "case", "n", "what", "value", "limit", "reached"]
DAMAGED = dict(
    damage="holes", witness="both", fluence_per_frame=1000.0, critical_fluence=5000.0 / np.log(1 / 0.4), vacancies=0.04
)  # the mean property falls to 0.4 at frame 5: a damage of 0.6
ECC_SETTINGS = ((50, 1e-3), (100, 1e-4), (200, 1e-6), (500, 1e-8))  # steps, tolerance: OpenCV's own … those of `peers`
MOST_THREADS = 2


def run(pairs: int = 15, series: int = 3, hops: int = 25, timed: int = 64, first_seed: int = 0) -> pd.DataFrame:
    """Every number and its limit, a row each.

    `pairs` and `series` are counted per specimen, `hops` per drift; a cell of pairs pools the specimens. A count of 0
    leaves a part out.
    """
    rows: list[dict] = []
    seeds = lambda n: range(first_seed, first_seed + n)
    parts = [
        (time_rows, timed),
        (ecc_rows, seeds(12 if timed else 0)),
        (pair_rows, seeds(pairs)),
        (series_rows, seeds(series)),
        (hop_rows, seeds(hops)),
    ]
    for part in (make(size) for make, size in parts if size):
        for row in part:
            rows.append(row)
            print("  ".join(str(v) for v in row.values()), flush=True)
    return pd.DataFrame(rows, columns=COLUMNS)


def pair_rows(seeds: Sequence[int]) -> Iterator[dict]:
    """Neighbours and pairs five frames apart, damage to 0.6."""
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for specimen in SPECIMENS:
        for seed in seeds:
            simulated = _simulate(specimen, 6, seed, drift_px_per_frame=1.5, rotation_deg_per_frame=0.05, **DAMAGED)
            for electrons in (5, 20, 200):
                counts = _detected(simulated, electrons, seed)
                for lag in (1, 5):
                    found = estimate_pairs(counts[0], counts[lag], predict=False, maps=False)
                    true = simulated.frame_from_reference[lag]
                    error = _error_px(found.moving_from_reference, true)[0]
                    bound = pair_bound_px(
                        simulated.expected[0] * electrons, simulated.expected[lag] * electrons, true,
                        simulated.contrast[lag],
                    )  # fmt: skip
                    doubt = error > 1 and found.hop_probability[0] > RegisterSettings.hop_probability_limit
                    cells.setdefault((electrons, lag), []).append((error / bound, np.nan if doubt else error))
    for (electrons, lag), values in cells.items():
        ratio, error = np.array(values).T
        case = f"{electrons} e/px, {lag} frame{'s' * (lag > 1)} apart"
        limit = 1.25 if electrons < 20 else 1.05
        yield _row("pairs", case, len(ratio), "median error/bound", np.nanmedian(ratio), limit)
        if electrons >= 20:
            yield _row("pairs", case, len(ratio), "95th percentile", np.nanpercentile(ratio, 95), 1.7)
        yield _row("pairs", case, len(ratio), "worst error, not flagged [px]", np.nanmax(error), 1)
        yield _row("pairs", case, len(ratio), "over 1 px, not flagged", np.sum(error > 1), 0)
        yield _row("pairs", case, len(ratio), "flagged ambiguous or invalid", np.isnan(error).sum(), np.nan)


def series_rows(seeds: Sequence[int]) -> Iterator[dict]:
    """Twelve frames, 2 px a frame, contrast falling to 0.3: each frame against frame 0."""
    for electrons in (5, 20, 60):
        ratio, inside, hopped = [], [], 0
        for specimen in SPECIMENS[:2]:
            for seed in seeds:
                simulated = _simulate(
                    specimen, 12, seed, drift_px_per_frame=2.0, rotation_deg_per_frame=0.02, vacancies=0.04,
                    damage="uniform", witness="contrast", fluence_per_frame=1000.0,
                    critical_fluence=11000 / np.log(1 / 0.3),
                )  # fmt: skip
                drift = _drift(_detected(simulated, electrons, seed))
                error = _error_px(drift.trajectory.frame_from_reference, simulated.frame_from_reference)
                for k in range(1, 12):
                    bound = pair_bound(
                        simulated.expected[0] * electrons, simulated.expected[k] * electrons,
                        simulated.frame_from_reference[k], simulated.contrast[k],
                    )  # fmt: skip
                    ratio.append(error[k] / float(geometry.displacement_sigma_px(torch.as_tensor(bound), SHAPE)))
                    inside.append(_inside_region(drift, simulated, k))
                hopped += int((error > 1).any() and not drift.ambiguous_frames.any())
        case, n = f"{electrons} e/px", len(ratio)
        yield _row("series", case, n, "median error/bound", np.nanmedian(ratio), 1.05 if electrons < 20 else 1.0)
        yield _row("series", case, n, "95th percentile", np.nanpercentile(ratio, 95), 1.6)
        yield _row("series", case, n, "series over 1 px, not flagged", hopped, 0)
        yield _row("series", case, n, "in the 95 % region of six numbers [%]", 100 * np.nanmean(inside), (92, 97))


def hop_rows(seeds: Sequence[int]) -> Iterator[dict]:
    """Six frames that drift by up to 0.9 of a lattice period a frame; a few vacancies are all that is aperiodic."""
    hopped, flagged, n = 0, 0, 0
    for share in (0.3, 0.5, 0.7, 0.9):
        for seed in seeds:
            simulated = _simulate(
                "SrTiO3", 6, seed, shape=(192, 192), drift_px_per_frame=share * 0.3905 / 0.02, random_walk_px=0.5,
                vacancies=0.02, damage="uniform", witness="contrast", critical_fluence=20000.0,
                fluence_per_frame=1000.0,
            )  # fmt: skip
            drift = _drift(_detected(simulated, 20, seed))
            error = _error_px(drift.trajectory.frame_from_reference, simulated.frame_from_reference, (192, 192))
            unknown = drift.ambiguous_frames | ~drift.trajectory.connected
            hopped += int(((error > 1) & ~unknown).any())
            flagged += int(unknown.any())
            n += 1
    yield _row("hops", "drift to 0.9 periods a frame", n, "series with a hop, not flagged", hopped, 0)
    yield _row("hops", "drift to 0.9 periods a frame", n, "series with a flagged frame", flagged, np.nan)


def time_rows(n_pairs: int) -> Iterator[dict]:
    """Neighbours, drift only, beside OpenCV ECC (affine) from the identity, as many threads each: the fastest turns."""
    import cv2

    threads = min(MOST_THREADS, torch.get_num_threads())
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    for side in (256, 512):
        simulated = [
            _simulate(
                "SrTiO3", 2, k, shape=(side, side), drift_px_per_frame=1.5, rotation_deg_per_frame=0.05, **DAMAGED
            )
            for k in range(2)
        ]
        stacks = [_detected(simulated[k % 2], 20, k) for k in range(n_pairs)]
        first, second = (np.stack([s[k] for s in stacks]) for k in (0, 1))
        seconds: dict[str, list[float]] = {}
        for turn in range(5):
            for name, method in _timed_methods(cv2):
                started = time.perf_counter()
                method(first, second)
                if turn:  # the first one warms up
                    seconds.setdefault(name, []).append((time.perf_counter() - started) / n_pairs)
        ours = min(seconds.pop("ours"))
        for name, values in seconds.items():
            yield _row("time", f"{side}², {threads} threads, {name}: {1e3 * min(values):.1f} ms", n_pairs, "ours/ECC",
                       ours / min(values), 2.0)  # fmt: skip


def ecc_rows(seeds: Sequence[int]) -> Iterator[dict]:
    """How far ECC's errors between neighbours are above those of its finest tolerance: the worst of the cases."""
    import cv2

    errors: dict[tuple[float, ...], list[np.ndarray]] = {}
    for specimen, damage, electrons in itertools.product(SPECIMENS[:2], ({}, DAMAGED), (20, 200)):
        found = []
        for seed in seeds:
            simulated = _simulate(specimen, 2, seed, drift_px_per_frame=1.5, rotation_deg_per_frame=0.05, **damage)
            pair = _detected(simulated, electrons, seed)
            affines = [_ecc(cv2, *pair, setting) for setting in ECC_SETTINGS]
            found.append([_error_px(affine, simulated.frame_from_reference[1])[0] for affine in affines])
        for setting, values in zip(ECC_SETTINGS, np.transpose(found), strict=True):
            errors.setdefault(setting, []).append(np.median(values))
    finest = np.array(errors[ECC_SETTINGS[-1]])
    for iterations, tolerance in ECC_SETTINGS:
        worst = float((np.array(errors[iterations, tolerance]) / finest).max())
        case = f"ECC {iterations} × {tolerance:g}, neighbours"
        yield _row("time", case, len(seeds), "median error over that of the finest", worst, np.nan)


def _timed_methods(cv2):
    yield "ours", lambda a, b: estimate_pairs(a, b, predict=False, maps=False)
    for iterations, tolerance in ECC_SETTINGS:

        def ecc(a, b, setting=(iterations, tolerance)):
            for first, second in zip(a, b, strict=True):
                _ecc(cv2, first, second, setting)

        yield f"ECC {iterations} × {tolerance:g}", ecc


def _ecc(cv2, reference: np.ndarray, moving: np.ndarray, setting: tuple[int, float]) -> np.ndarray:
    """moving_from_reference (3, 3) by OpenCV, from the identity."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, *setting)
    warp = np.eye(2, 3, dtype=np.float32)
    cv2.findTransformECC(reference, moving, warp, cv2.MOTION_AFFINE, criteria, None, ECC_FILTER_PX)
    return from_xy(np.vstack([warp, [0, 0, 1]]))


def _simulate(specimen: str, n_frames: int, seed: int, **options) -> SimulatedSeries:
    """A series of one electron at the brightest point; counts are drawn from its expectation."""
    default = dict(shape=SHAPE, electrons_per_px=1.0, random_walk_px=0.3, dtype="float32")
    return simulate_series(specimen, n_frames=n_frames, seed=seed, **{**default, **options})


def _detected(simulated: SimulatedSeries, electrons: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, int(electrons)])
    return rng.poisson(simulated.expected * electrons).astype(np.float32)


def _drift(frames: np.ndarray) -> DriftEstimate:
    return estimate_drift(FrameSource(FrameSeries(frames), torch.device("cpu"), gain_e=1.0), RegisterSettings())


def _error_px(found, true, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    found, true = (torch.as_tensor(np.asarray(a)) for a in (found, true))
    return np.atleast_1d(geometry.displacement_rms_px(found, true, shape).numpy())


def _inside_region(drift: DriftEstimate, simulated: SimulatedSeries, k: int) -> float:
    """1 where the true six numbers of a frame lie in their 95 % region, 0 outside, NaN where there is none."""
    covariance = drift.frame_covariance[k].numpy()
    if not np.isfinite(covariance).all():
        return np.nan
    difference = (drift.trajectory.frame_from_reference[k].numpy() - simulated.frame_from_reference[k])[:2].reshape(6)
    return float(difference @ np.linalg.solve(covariance, difference) < scipy.stats.chi2.ppf(0.95, 6))


def _row(part: str, case: str, n: int, what: str, value: float, limit) -> dict:
    low, high = limit if isinstance(limit, tuple) else (-np.inf, limit)
    reached = bool(np.isnan(high) or low <= value <= high)
    shown = f"{low:g}–{high:g}" if low > -np.inf else "" if np.isnan(high) else f"{high:g}"
    return dict(zip(COLUMNS, (part, case, n, what, round(float(value), 3), shown, reached), strict=True))
