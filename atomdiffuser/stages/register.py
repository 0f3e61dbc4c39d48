"""frames.ome.zarr → pairs.parquet and trajectory.parquet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from atomdiffuser.config import RegisterSettings
from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.estimation.device_faults import with_processor_in_reserve
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.drift_tables import pairs_table, trajectory_table
from atomdiffuser.estimation.frame_source import FrameSource, choose_device
from atomdiffuser.io.tables import read_table, write_table
from atomdiffuser.quality.columns import with_quality_columns, with_scan_columns
from atomdiffuser.quality.line_jitter import measure_jitter
from atomdiffuser.quality.measure import FrameQuality, measure_quality
from atomdiffuser.quality.shared_drift import shared_trajectory, with_other_reference
from atomdiffuser.series import FrameSeries
from atomdiffuser.stages._sources import describe_estimation, open_source

LEAST_FRAMES = 2


def register(
    frames: Path,
    pairs: Path,
    trajectory: Path,
    settings: RegisterSettings,
    *,
    drift_of: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Judge the frames of a stored series and measure their drift.

    Parameters
    ----------
    drift_of
        trajectory.parquet of another channel of the same acquisition, with its pairs.parquet beside it: its drift is
        taken, and only the frames' quality is measured.

    Raises
    ------
    AtomDiffuserError
        When fewer than two frames can be used, or the other channel's frames are others than these.
    """
    with_processor_in_reserve(
        choose_device(settings.device),
        lambda device: _register(frames, pairs, trajectory, settings, drift_of, progress, device),
    )


def _register(
    frames: Path,
    pairs: Path,
    trajectory: Path,
    settings: RegisterSettings,
    drift_of: Path | None,
    progress: Callable[[int, int], None] | None,
    device: torch.device,
) -> None:
    series, source = open_source(frames, device, "register")
    quality = measure_quality(source, settings)
    if drift_of is not None:
        _take_over(drift_of, pairs, trajectory, series, quality, settings, source)
        return
    source.leave_out(quality.excluded(settings))
    _require_frames(source, series)
    drift = estimate_drift(source, settings, progress)
    origin = drift.reference_frame
    table = trajectory_table(drift, series)
    valid = np.flatnonzero(table["valid"]).tolist()
    jitter = measure_jitter(source, drift.trajectory.frame_from_reference.numpy(), valid)
    table = with_scan_columns(table, series, origin, jitter)
    table = with_quality_columns(table, quality, settings, series.frame_shape)
    metadata = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "frame_shape": list(series.frame_shape),
        "estimation": describe_estimation(source),
        "drift_from": "",
        "lattice_vectors_px": None if source.lattice_vectors_px is None else source.lattice_vectors_px.tolist(),
    }
    write_table(pairs_table(drift, series), pairs, "pairs", **metadata)
    write_table(table, trajectory, "trajectory", **metadata)


def _take_over(
    drift_of: Path,
    pairs: Path,
    trajectory: Path,
    series: FrameSeries,
    quality: FrameQuality,
    settings: RegisterSettings,
    source: FrameSource,
) -> None:
    """Write another channel's drift as this one's, with this one's own quality."""
    taken, taken_pairs = read_table(drift_of), read_table(drift_of.with_name("pairs.parquet"))
    channel, origin = drift_of.absolute().parent.name, int(taken.attrs["reference_frame"])
    attributes = {**taken.attrs, "drift_from": channel, "settings": dataclasses.asdict(settings)}
    table = shared_trajectory(taken, series, channel)
    for k, reason in source.unusable.items():
        table.loc[k, ["valid", "reason"]] = False, reason
    table = with_quality_columns(table, quality, settings, series.frame_shape)
    if int(table["valid"].sum()) < LEAST_FRAMES:
        raise AtomDiffuserError(_too_few(series, int(table["valid"].sum()), set(table["reason"])))
    if not table.loc[origin, "valid"]:
        origin = int(np.flatnonzero(table["valid"])[0])
        table = with_other_reference(table, origin, series.frame_shape, series.acquisition.pixel_size_nm)
    kept = {"estimation", "frame_shape", "settings", "drift_from", "lattice_vectors_px"}
    metadata = {name: value for name, value in attributes.items() if name in kept} | {"reference_frame": origin}
    write_table(taken_pairs, pairs, "pairs", **metadata)
    write_table(table, trajectory, "trajectory", **metadata)


def _require_frames(source: FrameSource, series: FrameSeries) -> None:
    if len(source.usable) < LEAST_FRAMES:
        reasons = set(source.unusable.values()) or {"the series has one frame"}
        raise AtomDiffuserError(_too_few(series, len(source.usable), reasons))


def _too_few(series: FrameSeries, found: int, reasons: set[str]) -> str:
    told = "; ".join(sorted(filter(None, reasons))[:3])
    return f"{series.name}: drift needs two frames with an image, found {found} ({told})"
