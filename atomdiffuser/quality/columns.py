"""Columns of trajectory.parquet about single frames: their quality, and what happens while one is scanned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.drift_tables import affines_of
from atomdiffuser.quality.flags import find_jumps
from atomdiffuser.quality.line_jitter import LineOffsets
from atomdiffuser.quality.measure import FrameQuality
from atomdiffuser.quality.scan_drift import measure_scan_drift
from atomdiffuser.series import FrameSeries

JITTER = ("line_jitter_px", "line_jitter_sigma_px")


def with_scan_columns(
    table: pd.DataFrame, series: FrameSeries, origin: int, jitter: Mapping[int, LineOffsets]
) -> pd.DataFrame:
    """The trajectory with its velocities between and within frames, and the lines' jitter where it was measured."""
    valid = table["valid"].to_numpy(bool)
    affines = np.where(valid[:, None, None], affines_of(table), np.nan)
    drift, sigma = _drift(table)
    found = measure_scan_drift(affines, drift, sigma, series, origin)
    columns = {}
    for name, velocity, velocity_sigma in (
        ("velocity", found.between, found.between_sigma),
        ("scan_velocity", found.within, found.within_sigma),
    ):
        columns |= {f"{name}_{axis}_nm_per_s": velocity[:, i] for i, axis in enumerate("yx")}
        columns[f"{name}_sigma_nm_per_s"] = velocity_sigma
    for name, field in zip(JITTER, ("jitter", "jitter_sigma"), strict=True):
        columns[name] = [getattr(jitter[k], field) if k in jitter else np.nan for k in range(len(table))]
    return table.assign(**columns)


def with_quality_columns(
    table: pd.DataFrame, quality: FrameQuality, settings: RegisterSettings, shape: tuple[int, int]
) -> pd.DataFrame:
    """The trajectory with flags and the numbers behind them; frames that jumped are flagged now that drift is known.

    Frames whose flags the settings exclude become invalid here, if they are not yet.
    """
    drift, sigma = _drift(table)
    flags = quality.flags
    for k, reason in find_jumps(drift, sigma, shape, settings).items():
        flags.add(k, "jump", reason)
    table = table.assign(
        flags=[",".join(words) for words in flags.words],
        flag_reasons=["; ".join(reasons) for reasons in flags.reasons],
        sharpness=quality.sharpness,
        sharpness_sigma=quality.sharpness_sigma,
        blur_px=quality.blur_px,
        saturated_fraction=quality.saturated_fraction,
        missing_rows_fraction=quality.missing_rows_fraction,
    )
    for k, reason in quality.excluded(settings).items():
        if table.loc[k, "valid"]:
            table.loc[k, "valid"], table.loc[k, "reason"] = False, reason
    return table


def _drift(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    valid = table["valid"].to_numpy(bool)
    drift = np.where(valid[:, None], table[["drift_y_px", "drift_x_px"]].to_numpy(float), np.nan)
    return drift, np.where(valid, table["displacement_sigma_px"].to_numpy(float), np.nan)
