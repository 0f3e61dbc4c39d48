"""frames.ome.zarr and trajectory.parquet → aligned.ome.zarr."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from atomdiffuser.alignment import align_frame, choose_grid
from atomdiffuser.config import AlignSettings
from atomdiffuser.io.store import create_frames, read_frames
from atomdiffuser.stages._sources import open_trajectory


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
    total, count = np.zeros(grid.shape), np.zeros(grid.shape, np.int32)
    attributes = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": origin,
        "origin_px": list(grid.origin_px),
        "interpolation": settings.interpolation,
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
    ) as writer:
        for k in range(series.n_frames):
            aligned = np.full(grid.shape, np.nan, np.float32)
            if valid[k]:
                aligned = align_frame(series.frame(k), affines[k], grid, settings.interpolation)
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
