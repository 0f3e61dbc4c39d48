"""Memory and time of every stage of one series, from DM4 to report, for n and for 2n frames."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measured_process import Measured, measure
from benchmarks.scale_frames import write_series

MOST_MB = 2000.0
MOST_GROWTH = 1.1
MOST_TIME = 2.1


def run() -> list[dict[str, Any]]:
    """Peak resident memory of each stage, and how it and processor time grow with the frames.

    SCALE_SIDE and SCALE_FRAMES choose the size: the full one is 2048 and 500, hours of a processor.
    """
    side_px, n_frames = int(os.environ.get("SCALE_SIDE", 1024)), int(os.environ.get("SCALE_FRAMES", 60))
    few, many = (stages_of(n, side_px) for n in (n_frames, 2 * n_frames))
    what = f"{n_frames} frames of {side_px}²"
    rows: list[dict[str, Any]] = []
    for stage, measured in few.items():
        again = many[stage]
        rows += [
            dict(quantity=f"{stage}, {what}: peak memory (MB)", value=measured.peak_mb, most=MOST_MB),
            dict(quantity=f"{stage}, twice the frames: memory over it", value=again.peak_mb / measured.peak_mb),
            dict(quantity=f"{stage}, {what}: processor time (s)", value=measured.cpu_s),
            dict(quantity=f"{stage}, twice the frames: time over it", value=again.cpu_s / measured.cpu_s),
        ]
    peaks = [max(m.peak_mb for m in stages.values()) for stages in (few, many)]
    times = [sum(m.cpu_s for m in stages.values()) for stages in (few, many)]
    return [
        *rows,
        dict(quantity=f"all stages, {2 * n_frames} frames: peak memory (MB)", value=peaks[1], most=MOST_MB),
        dict(quantity="all stages, twice the frames: memory over it", value=peaks[1] / peaks[0], most=MOST_GROWTH),
        dict(quantity="all stages, twice the frames: time over it", value=times[1] / times[0], most=MOST_TIME),
    ]


def stages_of(n_frames: int, side_px: int) -> dict[str, Measured]:
    """Every stage of one series, each a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        raw = write_series(Path(folder) / "raw.dm4", n_frames, side_px)
        results = Path(folder) / "raw"
        at = lambda name: str(results / name)
        frames, track, decay = at("frames.ome.zarr"), at("trajectory.parquet"), at("decay.zarr")
        calls = {
            "convert": [str(raw), frames],
            "register": [frames, at("pairs.parquet"), track],
            "decay": [frames, track, decay],
            "damage": [frames, track, decay, at("damage.parquet"), at("critical_fluence.csv")],
            "align": [frames, track, at("aligned.ome.zarr")],
            "report": [str(results)],
        }
        measured = {}
        for stage, arguments in calls.items():
            status = ["--status", at("status.json"), "--threads", "1"]
            measured[stage] = measure([sys.executable, "-m", "atomdiffuser", stage, *arguments, *status])
            m = measured[stage]
            print(f"{n_frames} × {side_px}² {stage}: {m.wall_s:.0f} s, processor {m.cpu_s:.0f} s, {m.peak_mb:.0f} MB")
        return measured
