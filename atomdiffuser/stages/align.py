"""frames.ome.zarr and trajectory.parquet → aligned.ome.zarr."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from atomdiffuser.alignment import align_frame, choose_grid
from atomdiffuser.config import AlignSettings
from atomdiffuser.io.store import create_frames, read_frames
from atomdiffuser.read_ahead import read_ahead
from atomdiffuser.stages._sources import open_source, open_trajectory

logger = logging.getLogger(__name__)


def align(
    frames: Path,
    trajectory: Path,
    output: Path,
    settings: AlignSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the drift-corrected series, its mean and how many frames each pixel of the mean comes from.

    Frames without a place in the trajectory keep their number and are NaN throughout.
    """
    series = read_frames(frames, dask=False)
    _, affines, valid, origin = open_trajectory(trajectory)
    grid = choose_grid(affines[valid], series.frame_shape, settings.extent)
    if settings.extent == "intersection" and grid.is_fallback:
        logger.warning("%s: no part of the sample is in all frames; aligned on the reference frame's grid", series.name)
    offsets = _line_offsets(frames, affines, valid) if settings.line_jitter == "corrected" else {}
    total, count = np.zeros(grid.shape), np.zeros(grid.shape, np.int32)
    attributes = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "origin_px": list(grid.origin_px),
        "interpolation": settings.interpolation,
        "resamplings": 1,
        "extent": "reference" if grid.is_fallback else settings.extent,
        "line_jitter": settings.line_jitter,
    }
    with create_frames(
        output,
        n_frames=series.n_frames,
        frame_shape=grid.shape,
        dtype=np.float32,
        times_s=series.times_s,
        acquisition=series.acquisition,
        name=f"{series.name} (aligned)",
        excluded=series.excluded,
        attributes=attributes,
        origin_px=grid.origin_px,
    ) as writer:
        for k, frame in read_ahead(lambda k: series.frame(k) if valid[k] else None, range(series.n_frames)):
            aligned = np.full(grid.shape, np.nan, np.float32)
            if frame is not None:
                aligned = align_frame(frame, affines[k], grid, settings.interpolation, offsets.get(k))
                seen = np.isfinite(aligned)
                total[seen] += aligned[seen]
                count += seen
            writer.write(k, aligned)
            if progress:
                progress(k + 1, series.n_frames)
        mean = np.full(grid.shape, np.nan)
        np.divide(total, count, out=mean, where=count > 0)
        writer.write_array("mean", mean.astype(np.float32))
        writer.write_array("count", count)


def _line_offsets(frames: Path, affines: np.ndarray, valid: np.ndarray) -> dict[int, np.ndarray]:
    """Offsets along x of the lines of every valid frame [px], as far as they stand out of the noise."""
    from atomdiffuser.quality.line_jitter import measure_jitter

    _, source = open_source(frames, "cpu", "align")
    return {
        k: found.correction() for k, found in measure_jitter(source, affines, np.flatnonzero(valid).tolist()).items()
    }
