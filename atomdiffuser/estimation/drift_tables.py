"""A drift estimate as the two tables that are stored: a row a pair, a row a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from atomdiffuser import geometry
from atomdiffuser.series import FrameSeries

if TYPE_CHECKING:
    from atomdiffuser.estimation.drift import DriftEstimate


def pairs_table(drift: DriftEstimate, series: FrameSeries) -> pd.DataFrame:
    """A row a pair; affines of invalid pairs are NaN."""
    reference, moving = drift.pairs.T if len(drift.pairs) else np.zeros((2, 0), int)
    registration = drift.registration
    fluence = series.cumulative_fluence_e_per_A2()
    valid = registration.valid.numpy()
    numbers = geometry.parameters_from_affine(registration.moving_from_reference).numpy()
    numbers = np.where(valid[:, None], numbers, np.nan)
    return pd.DataFrame(
        {
            "reference": reference,
            "moving": moving,
            "lag": moving - reference,
            "dt_s": _difference(series.times_s, reference, moving),
            "fluence_e_per_A2": _difference(fluence, reference, moving),
            **{name: numbers[:, i] for i, name in enumerate(geometry.PARAMETER_NAMES)},
            "displacement_sigma_px": np.where(valid, registration.displacement_sigma_px.numpy(), np.nan),
            "score": registration.correlation.numpy(),
            "hop_probability": registration.hop_probability.numpy(),
            "ambiguous": drift.ambiguous_pairs,
            "residual_px": drift.trajectory.pair_residual_px,
            "valid": valid,
            "reason": _with_doubt(registration.reason, drift.ambiguous_pairs, drift.ambiguity),
        }
    )


def trajectory_table(drift: DriftEstimate, series: FrameSeries) -> pd.DataFrame:
    """A row a frame, excluded and failed ones too (with NaN)."""
    affines, t = drift.trajectory.frame_from_reference, series.n_frames
    numbers = geometry.parameters_from_affine(affines).numpy()
    shift = geometry.drift_at_centre(affines, series.frame_shape).numpy()
    rotation, scale, shear = (v.numpy() for v in geometry.rotation_scale_shear(affines))
    pixel = series.acquisition.pixel_size_nm or (np.nan, np.nan)
    fluence = series.cumulative_fluence_e_per_A2()
    unknown = np.full(t, np.nan)
    return pd.DataFrame(
        {
            "frame": np.arange(t),
            "time_s": unknown if series.times_s is None else series.times_s,
            "fluence_e_per_A2": unknown if fluence is None else fluence,
            **{name: numbers[:, i] for i, name in enumerate(geometry.PARAMETER_NAMES)},
            "drift_y_nm": shift[:, 0] * pixel[0],
            "drift_x_nm": shift[:, 1] * pixel[1],
            "drift_y_px": shift[:, 0],
            "drift_x_px": shift[:, 1],
            "rotation_deg": rotation,
            "scale": scale,
            "shear": shear,
            "displacement_sigma_px": drift.trajectory.displacement_sigma_px,
            "closure_px": drift.trajectory.closure_px,
            "hop_probability": drift.frame_hop_probability,
            "ambiguous": drift.ambiguous_frames,
            "valid": [not r for r in drift.frame_reason],
            "reason": _with_doubt(drift.frame_reason, drift.ambiguous_frames, drift.ambiguity),
        }
    )


def affines_of(table: pd.DataFrame) -> np.ndarray:
    """(n, 3, 3) affines from the six columns of a table of pairs or frames."""
    affines = np.tile(np.eye(3), (len(table), 1, 1))
    affines[:, :2, :] = table[list(geometry.PARAMETER_NAMES)].to_numpy(dtype=float).reshape(-1, 2, 3)
    return affines


def _with_doubt(reason: list[str], ambiguous: np.ndarray, words: str) -> list[str]:
    return [words if doubt and not text else text for text, doubt in zip(reason, ambiguous, strict=True)]


def _difference(values: np.ndarray | None, reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
    return np.full(len(reference), np.nan) if values is None else values[moving] - values[reference]
