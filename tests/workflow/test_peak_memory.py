"""Peak memory of the stages on frames of a million pixels, each measured in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from atomdiffuser.io.tables import read_table, write_table
from atomdiffuser.memory_limit import LEAST_BYTES_PER_PX, PROGRAM_BYTES
from benchmarks.measured_process import measure
from benchmarks.scale_frames import write_series

SIDE_PX, N_FRAMES = 1024, 3


def run(stage: str, *arguments: object, limit: str | None = None) -> float:
    """Peak resident memory of one stage [bytes]."""
    extra = ["--memory-limit", limit] if limit else []
    command = [sys.executable, "-m", "atomdiffuser", stage, *map(str, arguments), "--threads", "1", *extra]
    return 1e6 * measure(command).peak_mb


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted series whose drift is known: registering it would take most of the time."""
    folder = tmp_path_factory.mktemp("series")
    raw = write_series(folder / "raw.dm4", N_FRAMES, SIDE_PX)
    assert run("convert", raw, folder / "frames.ome.zarr") < PROGRAM_BYTES + LEAST_BYTES_PER_PX["convert"] * SIDE_PX**2
    small = write_series(folder / "small.dm4", N_FRAMES, 128)
    run("convert", small, folder / "small" / "frames.ome.zarr")
    track = folder / "trajectory.parquet"
    run("register", folder / "small" / "frames.ome.zarr", folder / "pairs.parquet", track)
    table: pd.DataFrame = read_table(track)
    table["valid"], table["reason"] = True, ""
    names = ["a_yy", "a_yx", "a_y", "a_xy", "a_xx", "a_x"]
    for k in range(N_FRAMES):  # as benchmarks.scale_frames moves the view: (1, -1) px a frame
        table.loc[k, names] = [1.0, 0.0, -k, 0.0, 1.0, k]
    known = {name: table.attrs[name] for name in ("settings", "estimation", "drift_from")}
    write_table(table, track, "trajectory", **known, frame_shape=[SIDE_PX, SIDE_PX], reference_frame=0)
    return folder


@pytest.mark.slow
def test_decay_damage_and_align_take_what_they_say(series: Path) -> None:
    frames, track, maps = series / "frames.ome.zarr", series / "trajectory.parquet", series / "decay.zarr"
    out = series / "critical_fluence.csv"
    peaks = {
        "decay": run("decay", frames, track, maps),
        "damage": run("damage", frames, track, maps, series / "damage.parquet", out, "--bootstrap", "40"),
        "align": run("align", frames, track, series / "aligned.ome.zarr"),
    }
    for stage, peak in peaks.items():
        assert peak < PROGRAM_BYTES + LEAST_BYTES_PER_PX[stage] * SIDE_PX**2, (stage, peaks)
