"""The share of a region whose contrast has fallen below a threshold, with its interval."""

from __future__ import annotations

import math

import numpy as np
import scipy.special

from atomdiffuser.damage.regions import RegionSet
from atomdiffuser.damage.signals import Z95
from atomdiffuser.io.map_store import DecayMaps

TYPICAL_WINDOW_PX = 16.0  # σ of the maps' window where they do not say


def faded_area(maps: DecayMaps, regions: RegionSet, threshold: float) -> dict[str, np.ndarray]:
    """Shares (t, regions) of the mapped area under "area_below_threshold", with ends under "…_lo95" and "…_hi95"."""
    half, name = maps.stride // 2, "area_below_threshold"
    atoms = regions.atoms[half :: maps.stride, half :: maps.stride]
    shape = (maps.n_frames, len(regions.regions))
    found = {f"{name}{end}": np.full(shape, np.nan) for end in ("", "_lo95", "_hi95")}
    for k in range(maps.n_frames):
        contrast, sigma = (
            np.asarray(stored[k])[: atoms.shape[0], : atoms.shape[1]] for stored in (maps.contrast, maps.contrast_sigma)
        )
        share = share_below(contrast, sigma, atoms, regions.membership, threshold, _window_px(maps, k) / maps.stride)
        for end, values in zip(("", "_lo95", "_hi95"), share, strict=True):
            found[f"{name}{end}"][k] = values
    return found


def share_below(
    values: np.ndarray, sigma: np.ndarray, atoms: np.ndarray, membership: np.ndarray, threshold: float, window: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share (regions,) of a map (y, x) below a threshold, and the ends of its 95 % interval.

    A place near the threshold may be on either side: with noise σ it is below with a probability p. Places within a
    window of the map share their noise, whose correlation reaches over 4π window² cells; that of its sign over ln 2
    times as many (arcsine law). So n cells are n / (4π ln 2 window²) independent ones, and the variance of the share
    is the mean of p·(1 − p) over their number. NaN where nothing of a region is mapped.

    Parameters
    ----------
    atoms
        (y, x) number of the atom of each cell, −1 for none; `membership` (regions, atoms) says whose they are.
    window
        σ of the map's window in its own cells.
    """
    known = np.isfinite(values) & (atoms >= 0)
    spread = np.where(np.isfinite(sigma) & (sigma > 0), sigma, 0.0)
    total = lambda weight: membership @ np.bincount(atoms[known], weights=weight[known], minlength=membership.shape[1])
    below = (values < threshold).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(spread > 0, scipy.special.ndtr((threshold - values) / spread), below)
        cells = total(np.ones_like(below))
        share = total(below) / cells
        independent = np.maximum(cells / (4 * math.pi * math.log(2) * window**2), 1.0)
        error = Z95 * np.sqrt(total(p * (1 - p)) / cells / independent)
    return share, np.maximum(share - error, 0.0), np.minimum(share + error, 1.0)


def _window_px(maps: DecayMaps, index: int) -> float:
    """σ of the window of a frame's contrast map, where the maps' attributes know it."""
    try:
        window = float(np.asarray(maps.attributes.get("bandwidth_px", []), dtype=object)[index][1])
    except (IndexError, TypeError, ValueError):
        return TYPICAL_WINDOW_PX
    return window if np.isfinite(window) else TYPICAL_WINDOW_PX
