"""Errors of maps and affines against simulated truth, each with the mask on which it is asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.simulation.pairs import PairBatch

SIGMAS_95 = 1.959964
INTENSITY_SHARE, CONTRAST_SHARE = 0.1, 0.3
"""Shares of the frame's brightest mean, and of its strongest lattice, above which the maps are judged."""
EVERY_PX = 5  # of the pixels that fix the brightest: the quantile of torch takes 16 million numbers at most
LEAST_PX = 400
"""Fewer pixels than these are no map to judge."""


@dataclass(frozen=True)
class Answer:
    """What a method says about n pairs; None where it says nothing, NaN where it says so.

    Attributes
    ----------
    moving_from_reference
        (n, 3, 3).
    intensity, contrast, intensity_sigma, contrast_sigma
        (n, y, x).
    """

    moving_from_reference: Tensor | None
    intensity: Tensor | None
    contrast: Tensor | None
    intensity_sigma: Tensor | None = None
    contrast_sigma: Tensor | None = None


def judged_masks(pairs: PairBatch) -> dict[str, Tensor]:
    """(n, y, x) bool for each map: overlap, and something of that kind to see in the reference."""
    overlap = pairs.overlap()
    masks = {}
    for name, signal, share in (
        ("intensity", pairs.base, INTENSITY_SHARE),
        ("contrast", pairs.lattice_amplitude, CONTRAST_SHARE),
    ):
        top = torch.quantile(signal.flatten(1)[:, ::EVERY_PX], 0.95, dim=1)[:, None, None]
        masks[name] = overlap & (signal > share * top) & (top > 0)
    return masks


def map_errors(value: Tensor, truth: Tensor, mask: Tensor, sigma: Tensor | None = None) -> dict[str, Tensor]:
    """Per pair (n,): `rmse`, `mae`, `bias`, `missing` (share of judged pixels without a value), `coverage95` with a σ.

    Pairs with too few judged pixels give NaN.
    """
    known = mask & torch.isfinite(value)
    count = known.sum((1, 2)).double()
    enough = mask.sum((1, 2)) >= LEAST_PX
    error = torch.where(known, value.double() - truth.double(), 0.0)
    mean = lambda x: torch.where(enough & (count > 0), x.sum((1, 2)) / count.clamp_min(1), torch.nan)
    out = {"rmse": mean(error.square()).sqrt(), "mae": mean(error.abs()), "bias": mean(error)}
    out["missing"] = torch.where(enough, 1 - count / mask.sum((1, 2)).clamp_min(1), torch.nan)
    if sigma is not None:
        out["coverage95"] = mean((known & (error.abs() <= SIGMAS_95 * sigma)).double())
    return out


def pair_errors(answer: Answer, pairs: PairBatch) -> dict[str, Tensor]:
    """All errors of an answer, (n,) each: `drift_px` and the map errors as `intensity_rmse`, `contrast_bias`, …"""
    masks = judged_masks(pairs)
    out: dict[str, Tensor] = {}
    if answer.moving_from_reference is not None:
        found = answer.moving_from_reference.to(pairs.moving_from_reference)
        out["drift_px"] = geometry.displacement_rms_px(found, pairs.moving_from_reference, pairs.reference.shape[-2:])
    for name in ("intensity", "contrast"):
        value, sigma = getattr(answer, name), getattr(answer, f"{name}_sigma")
        if value is not None:
            for key, error in map_errors(value, getattr(pairs, name), masks[name], sigma).items():
                out[f"{name}_{key}"] = error
    return out


def summary(errors: dict[str, Tensor]) -> dict[str, float]:
    """Over pairs: root mean square of RMSEs, means of the rest, median and 95th percentile of the drift error."""
    out: dict[str, float] = {}
    for key, values in errors.items():
        values = values[torch.isfinite(values)].double()
        if not len(values):
            continue
        if key == "drift_px":
            out["drift_px_median"] = float(values.median())
            out["drift_px_p95"] = float(values.quantile(0.95))
        elif key.endswith("rmse"):
            out[key] = float(values.square().mean().sqrt())
            out[f"{key}_median"] = float(values.median())
        else:
            out[key] = float(values.mean())
    return out
