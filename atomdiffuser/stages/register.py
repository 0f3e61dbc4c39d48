"""frames.ome.zarr → pairs.parquet and trajectory.parquet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from atomdiffuser.config import RegisterSettings
from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.estimation.drift import estimate_drift
from atomdiffuser.estimation.drift_tables import pairs_table, trajectory_table
from atomdiffuser.io.tables import write_table
from atomdiffuser.stages._sources import describe_estimation, open_source


def register(
    frames: Path,
    pairs: Path,
    trajectory: Path,
    settings: RegisterSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Measure the drift of a stored series.

    Raises
    ------
    AtomDiffuserError
        When fewer than two frames can be used.
    """
    series, source = open_source(frames, settings.device)
    if len(source.usable) < 2:
        reasons = sorted({r for r in source.unusable.values()}) or ["the series has one frame"]
        found = f"found {len(source.usable)} ({'; '.join(reasons[:3])})"
        raise AtomDiffuserError(f"{series.name}: drift needs two frames with an image, {found}")
    drift = estimate_drift(source, settings, progress)
    metadata = {
        "settings": dataclasses.asdict(settings),
        "reference_frame": drift.reference_frame,
        "frame_shape": list(series.frame_shape),
        "estimation": describe_estimation(source),
    }
    write_table(pairs_table(drift, series), pairs, "pairs", **metadata)
    write_table(trajectory_table(drift, series), trajectory, "trajectory", **metadata)
