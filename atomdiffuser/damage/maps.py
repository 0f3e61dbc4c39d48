"""Maps of rate, critical fluence and onset from the decay maps of a series; their correlation length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
import zarr

from atomdiffuser.damage.signals import PER_1000
from atomdiffuser.io.map_store import DecayMaps

READ_AT_ONCE = 2**23  # values of a map, of all frames
FITTED_AT_ONCE = 2**19  # numbers of one array in fits that are made together: of cells by frames, or by rates
RATES = np.concatenate([-np.geomspace(5.0, 0.02, 30), np.linspace(-0.018, 0.018, 19), np.geomspace(0.02, 30.0, 45)])
SURE = 2.0  # standard deviations above zero from which a rate gives a critical fluence
MIN_FRAMES = 3
ONSET_LEVEL = 0.05


@dataclass(frozen=True)
class DamageMaps:
    """Maps (Y', X') float32, NaN where not identifiable: rate and its σ [% per 1,000 of the fluence's unit], critical
    fluence, and the first frame that has changed.
    """

    rate: np.ndarray
    rate_sigma: np.ndarray
    critical_fluence: np.ndarray
    onset: np.ndarray


def map_damage(
    maps: DecayMaps, valid: np.ndarray, fluence: np.ndarray, reference_frame: int, *, min_span_of_critical: float
) -> DamageMaps:
    """Fit an exponential of free amplitude to the contrast of every cell; `fluence` is (t,).

    The amplitude takes up the noise of the reference frame, which all frames of a decay map share.
    """
    shape = maps.contrast.shape[1:]
    frames = [int(k) for k in np.flatnonzero(valid & np.isfinite(fluence))]
    blank = np.full(shape, np.nan, np.float32)
    if len(frames) < MIN_FRAMES or np.ptp(fluence[frames]) == 0:
        return DamageMaps(blank, blank.copy(), blank.copy(), blank.copy())
    x = fluence[frames]
    found = [np.full(shape, np.nan) for _ in range(3)]
    for rows in _row_blocks(shape, len(frames)):
        value, sigma = (_over_time(array, frames, rows) for array in (maps.contrast, maps.contrast_sigma))
        cells = max(1, FITTED_AT_ONCE // max(len(frames), len(RATES)))
        parts = [slice(at, at + cells) for at in range(0, value.shape[1], cells)]
        fits = [_fit_cells(value[:, p].T.astype(float, "C"), sigma[:, p].T.astype(float, "C"), x, np.array(frames),
                           reference_frame) for p in parts]  # fmt: skip
        for whole, fitted in zip(found, zip(*fits, strict=True), strict=True):
            whole[rows] = np.concatenate(fitted).reshape(-1, shape[1])
    rate, spread, onset = found
    with np.errstate(divide="ignore", invalid="ignore"):
        critical = 1 / rate
        critical = np.where((rate > SURE * spread) & (np.ptp(x) >= min_span_of_critical * critical), critical, np.nan)
    return DamageMaps(*(v.astype(np.float32) for v in (PER_1000 * rate, PER_1000 * spread, critical, onset)))


def _row_blocks(shape: tuple[int, int], n_frames: int) -> list[slice]:
    """Rows of the maps that are read at once: every chunk is a whole map, so few blocks are quick and many lean."""
    rows = max(1, READ_AT_ONCE // (n_frames * shape[1]))
    return [slice(at, min(at + rows, shape[0])) for at in range(0, shape[0], rows)]


def _over_time(array: zarr.Array, frames: list[int], rows: slice) -> np.ndarray:
    """(t, cells) float32 of some rows."""
    values = np.empty((len(frames), rows.stop - rows.start, array.shape[2]), np.float32)
    for image, k in zip(values, frames, strict=True):
        image[:] = array[k, rows]
    return values.reshape(len(frames), -1)


def _fit_cells(
    value: np.ndarray, sigma: np.ndarray, x: np.ndarray, frames: np.ndarray, reference_frame: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rate and its 1 σ per unit of x, and onset, of each row of contrasts (cells, t)."""
    good = np.isfinite(value) & np.isfinite(sigma)
    # The reference frame is exactly 1 by definition and as noisy as the others in truth.
    stated = good & (sigma > 0)
    ordered = np.sort(np.where(stated, sigma, np.inf), axis=1)
    n = stated.sum(1)
    typical = ordered[np.arange(len(n)), n // 2]  # of n, the upper one in the middle; infinite where none is stated
    sigma = np.where(stated, sigma, typical[:, None])
    weight = np.where(good, 1 / sigma**2, 0.0)
    span = np.ptp(x)
    rate, spread = _fit_rates((x - x.min()) / span, np.where(good, value, 0.0), weight)
    enough = good.sum(1) >= MIN_FRAMES
    rate, spread = (np.where(enough, v / span, np.nan) for v in (rate, spread))
    return rate, spread, _onset(value, sigma, good, frames, reference_frame)


def correlation_length_px(values: np.ndarray, stride: int) -> float:
    """Distance at which the autocorrelation of a map falls to 1/e [px]; NaN where the map is too empty or even."""
    known = np.isfinite(values)
    if known.sum() < 64:
        return float("nan")
    filled = np.where(known, values - values[known].mean(), 0.0)
    if not filled.any():
        return float("nan")
    padded = [2 * n for n in values.shape]
    power = lambda image: np.fft.irfft2(np.abs(np.fft.rfft2(image, padded)) ** 2, padded)
    pairs = power(known.astype(float))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(pairs > 0.2 * pairs[0, 0], power(filled) / pairs, np.nan)
    lags = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in padded), indexing="ij"))
    at = np.round(lags).astype(int)
    usable = np.isfinite(correlation) & (at < min(values.shape))
    count = np.bincount(at[usable])
    curve = np.bincount(at[usable], correlation[usable]) / np.maximum(count, 1)
    curve = curve[count > 0] / correlation[0, 0]
    below = np.flatnonzero(curve < np.exp(-1))
    if not len(below):
        return float("nan")
    k = below[0]
    share = (curve[k - 1] - np.exp(-1)) / (curve[k - 1] - curve[k])
    return float((k - 1 + share) * stride)


def edge_against_interior(critical, band_nm: float) -> dict | None:
    """Rates of contrast at the edge and inside, compared; None without both regions in critical_fluence.csv."""
    contrast = critical[critical["witness"] == "contrast"]
    edge = contrast[contrast["region"].str.startswith("edge_0_")]
    interior = contrast[contrast["region"].str.startswith("interior_")]
    if interior.empty:
        interior = contrast[contrast["region"].str.startswith("edge_") & ~contrast["region"].str.startswith("edge_0_")]
    if edge.empty or interior.empty:
        return None
    rates, sigmas = [], []
    for row in (edge.iloc[0], interior.iloc[-1]):
        rates.append(float(row["rate_percent_per_1000"]))
        sigmas.append(float(row["rate_hi95"] - row["rate_lo95"]) / (2 * 1.96))
    z = (rates[0] - rates[1]) / np.hypot(*sigmas) if np.hypot(*sigmas) > 0 else np.nan
    return {
        "edge_region": str(edge.iloc[0]["region"]),
        "interior_region": str(interior.iloc[-1]["region"]),
        "edge_rate": rates[0],
        "interior_rate": rates[1],
        "ratio": rates[0] / rates[1] if rates[1] > 0 else float("nan"),
        "p_value": float(2 * scipy.stats.norm.sf(abs(z))),
        "band_nm": band_nm,
    }


def _fit_rates(u: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rate per unit of u and its 1 σ for each row of y (cells, t), refined between the rates that are tried."""
    g = np.exp(-np.clip(RATES[:, None] * u, -30, 30))
    gg, gy = weight @ (g**2).T, (weight * y) @ g.T
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(gg > 0, np.maximum(gy, 0) ** 2 / gg, 0.0)  # what each rate takes off χ²
    best = gain.argmax(1).clip(1, len(RATES) - 2)
    rows = np.arange(len(y))
    r0, r1, r2 = (RATES[best + k] for k in (-1, 0, 1))
    f0, f1, f2 = (-gain[rows, best + k] for k in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (f1 - f0) / (r1 - r0), (f2 - f1) / (r2 - r1)
        curvature = 2 * (b - a) / (r2 - r0)
        rate = np.clip(0.5 * (r0 + r1) - a / curvature, r0, r2)
        sigma = np.sqrt(2 / curvature)
    fine = np.isfinite(rate) & (curvature > 0)
    return np.where(fine, rate, np.nan), np.where(fine, sigma, np.nan)


def _onset(value, sigma, good, frames: np.ndarray, reference: int) -> np.ndarray:
    """First of two frames in a row that both differ from 1; NaN: none. The level is shared among the frames."""
    later = frames > reference
    z = scipy.stats.norm.isf(ONSET_LEVEL / 2 / max(int(later.sum()), 1)) if later.any() else np.inf
    with np.errstate(invalid="ignore"):
        differs = good & (np.abs(value - 1) > z * sigma) & later
    following = np.concatenate([differs[:, 1:], differs[:, -1:]], 1)
    both = differs & following
    return np.where(both.any(1), frames[both.argmax(1)], np.nan)
