"""From frames, trajectory and maps to the two tables of damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.special
import torch

from atomdiffuser.config import DamageSettings, DecaySettings
from atomdiffuser.damage.kinetics import fit_exponential, onset_frame
from atomdiffuser.damage.observables import measure_frame
from atomdiffuser.damage.regions import RegionSet
from atomdiffuser.damage.template import make_template
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.local_regression import estimate_decay_maps, full_resolution
from atomdiffuser.estimation.template import sum_template, view

WITNESSES = {"intensity": "signal_ratio", "contrast": "lattice"}
Z95 = float(scipy.special.ndtri(0.975))


def measure_damage(
    source: FrameSource,
    frame_from_reference: np.ndarray,
    valid: np.ndarray,
    reference_frame: int,
    regions: RegionSet,
    settings: DamageSettings,
    progress: Callable[[int, int], None] | None = None,
    contrast_map: Callable[[int], np.ndarray] | None = None,
) -> pd.DataFrame:
    """Observables of every region and frame, and their ratios to the reference frame (columns as in damage.parquet).

    Parameters
    ----------
    frame_from_reference, valid
        (t, 3, 3) and (t,): the trajectory.
    reference_frame
        Frame whose ratios are 1.
    contrast_map
        Gives the contrast map (Y, X) of a frame on the reference grid; by default maps are estimated here.
    """
    affines = torch.as_tensor(frame_from_reference)
    usable = [int(k) for k in np.flatnonzero(valid)]
    done, total = 0, 2 * len(usable)

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    given = contrast_map or (lambda k: _estimated_contrast(source, affines, reference_frame, k))
    contrast = lambda k: _filled(given(k), source)
    mixture = sum(view(source, affines[k]) * contrast(k) for k in usable)
    total_frames = sum_template(source, affines, usable, advance)
    template = make_template(total_frames, mixture, source.prepared([reference_frame]).base, source.scales)
    sizes = regions.sizes_px()
    blank = np.full((len(valid), len(regions.regions)), np.nan)
    values = {
        n: blank.copy() for n in ("signal", "signal_ratio", "signal_ratio_sigma", "lattice", "lattice_sigma", "n_px")
    }
    for k in usable:
        measured = measure_frame(source, k, affines[k], contrast(k), template, regions)
        for name, column in values.items():
            column[k] = getattr(measured, name)
        advance()
    covered = np.nan_to_num(values["n_px"]) / sizes
    accepted = valid[:, None] & (covered >= settings.min_coverage)
    frames = np.arange(len(valid))
    rows = {
        "region": np.tile([r.name for r in regions.regions], len(valid)),
        "region_id": np.tile([r.region_id for r in regions.regions], len(valid)),
        "frame": np.repeat(frames, len(regions.regions)),
        "signal": values["signal"],
        "signal_ratio": values["signal_ratio"],
        "signal_ratio_sigma": values["signal_ratio_sigma"],
        "lattice": values["lattice"],
        "lattice_sigma": values["lattice_sigma"],
        "n_px": np.nan_to_num(values["n_px"]).astype(np.int64),
        "coverage": np.minimum(covered, 1.0),
        "valid": accepted,
    }
    for witness, name in WITNESSES.items():
        ratio, sigma = _ratio_to_reference(values[name], values[f"{name}_sigma"], reference_frame, accepted)
        rows |= {
            witness: ratio,
            f"{witness}_sigma": sigma,
            f"{witness}_lo95": ratio - Z95 * sigma,
            f"{witness}_hi95": ratio + Z95 * sigma,
        }
    return pd.DataFrame({name: np.asarray(column).reshape(-1) for name, column in rows.items()})


def fit_critical_fluence(
    damage: pd.DataFrame, axis: pd.Series, unit: str, regions: RegionSet, settings: DamageSettings
) -> pd.DataFrame:
    """One row per region and witness (columns as in critical_fluence.csv); `axis` is the fluence or time of each
    row.
    """
    rows = []
    for region in regions.regions:
        of_region = damage["region_id"] == region.region_id
        part = damage[of_region & damage["valid"]]
        x = axis[part.index].to_numpy(float)
        for witness, name in WITNESSES.items():
            value, sigma = (part[c].to_numpy(float) for c in (witness, f"{witness}_sigma"))
            # Frame by frame the noise is independent in the amplitudes; the ratios share the reference frame's.
            y, y_sigma = (part[c].to_numpy(float) for c in (name, f"{name}_sigma"))
            fit = fit_exponential(x, y, y_sigma, min_span_of_critical=settings.min_span_of_critical)
            last = np.flatnonzero(np.isfinite(value))
            loss, spread = (100 * (1 - value[last[-1]]), 100 * Z95 * sigma[last[-1]]) if len(last) else (np.nan, np.nan)
            rows.append(
                {
                    "region": region.name,
                    "region_id": region.region_id,
                    "witness": witness,
                    "model": fit.model,
                    "unit": unit,
                    "critical_fluence": fit.critical_fluence,
                    "critical_fluence_lo95": fit.critical_fluence_lo95,
                    "critical_fluence_hi95": fit.critical_fluence_hi95,
                    "lower_bound": fit.lower_bound,
                    "aicc": fit.aicc,
                    "aicc_constant": fit.aicc_constant,
                    "p_value": fit.p_value,
                    "loss_percent": loss,
                    "loss_lo95": loss - spread,
                    "loss_hi95": loss + spread,
                    "onset_frame": onset_frame(value, sigma, part["frame"].to_numpy()),
                    "span": fit.span,
                    "n_frames": fit.n_frames,
                }
            )
    return pd.DataFrame(rows)


def _estimated_contrast(source: FrameSource, affines: torch.Tensor, origin: int, index: int) -> np.ndarray:
    stride = DecaySettings.map_stride
    maps = estimate_decay_maps(
        source.prepared([origin]),
        source.prepared([index]),
        affines[index][None],
        noise=source.noise,
        scales=source.scales,
        stride=stride,
    )
    return full_resolution(maps.contrast, stride, source.shape)[0].cpu().numpy()


def _filled(contrast: np.ndarray, source: FrameSource) -> torch.Tensor:
    """A map (1, Y, X) without gaps: where it is unknown, what is typical of the frame."""
    known = np.isfinite(contrast)
    typical = float(np.median(contrast[known])) if known.any() else 1.0
    return torch.as_tensor(np.where(known, contrast, typical), dtype=torch.float32, device=source.device)[None]


def _ratio_to_reference(
    value: np.ndarray, sigma: np.ndarray, reference: int, accepted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(t, regions) ratios to the reference frame and their 1 σ, which holds the noise of both frames."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = value / value[reference]
        relative = np.hypot(sigma / value, (sigma / value)[reference])
    spread = np.abs(ratio) * relative
    spread[reference] = 0.0
    ratio = np.where(accepted & (value[reference] > 0), ratio, np.nan)
    return ratio, np.where(np.isfinite(ratio), spread, np.nan)
