"""How fast `convert` is beside a plain copy into Zarr and HyperSpy's eager load and save, each in its own process."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from atomdiffuser.io._fingerprint import file_sha256
from benchmarks.measured_process import Measured, measure
from benchmarks.scale_frames import write_series

REPEATS = 3
PLAIN = """
import sys
import numpy as np
from rsciio.digitalmicrograph import file_reader
import zarr
from atomdiffuser.config import ConvertSettings
from atomdiffuser.io.store import compressors
frames = file_reader(sys.argv[1], lazy=True, chunks={0: 1})[0]["data"]
out = zarr.create_array(sys.argv[2], shape=frames.shape, dtype=frames.dtype, chunks=(1, *frames.shape[1:]),
                        compressors=compressors(ConvertSettings().compression_level, frames.dtype))
for k in range(frames.shape[0]):
    out[k] = np.asarray(frames[k])
"""
HYPERSPY = """
import sys
import hyperspy.api as hs
signal = hs.load(sys.argv[1])
signal.save(sys.argv[2], overwrite=True)
"""
CONVERT = """
import sys
from atomdiffuser.__main__ import run
sys.argv = ["atomdiffuser", "convert", *sys.argv[1:], "--threads", "1"]
run()
"""  # with the fingerprint that the workflow hands over: it was read when the session was looked at


def run() -> list[dict[str, Any]]:
    """Ratios of speed by processor time, start-up left out, and peak memory of n and 2n frames."""
    side_px, n_frames = int(os.environ.get("SCALE_SIDE", 1024)), int(os.environ.get("SCALE_FRAMES", 60))
    with tempfile.TemporaryDirectory() as folder:
        small = write_series(Path(folder) / "few.dm4", 2, 64)
        raw = write_series(Path(folder) / "one.dm4", n_frames, side_px)
        twice = write_series(Path(folder) / "two.dm4", 2 * n_frames, side_px)
        taken = {name: [_once(name, path, Path(folder)) for path in (small, raw)] for name in ("plain", "ours", "hs")}
        for _ in range(REPEATS - 1):
            for name, best in taken.items():
                best[:] = [_better(a, _once(name, p, Path(folder))) for a, p in zip(best, (small, raw), strict=True)]
        large = _once("ours", twice, Path(folder))
    seconds = {name: raw.cpu_s - start.cpu_s for name, (start, raw) in taken.items()}
    megabytes = 2 * n_frames * side_px**2 / 1e6
    what = f"convert, {n_frames} frames of {side_px}²"
    peak = taken["ours"][1].peak_mb
    return [
        dict(quantity=f"{what}: MB a second of processor time", value=megabytes / seconds["ours"]),
        dict(quantity=f"{what}: speed over plain Zarr's", value=seconds["plain"] / seconds["ours"], least=0.6),
        dict(quantity=f"{what}: speed over HyperSpy's load and save", value=seconds["hs"] / seconds["ours"], least=2.0),
        dict(quantity=f"{what}: the same with start-up", value=taken["hs"][1].cpu_s / taken["ours"][1].cpu_s),
        dict(quantity=f"{what}: peak memory (MB)", value=peak),
        dict(quantity=f"{what}: peak memory with twice the frames over it", value=large.peak_mb / peak, most=1.1),
    ]


def _better(a: Measured, b: Measured) -> Measured:
    return a if a.cpu_s <= b.cpu_s else b


def _once(name: str, raw: Path, folder: Path) -> Measured:
    code, out = {
        "plain": (PLAIN, folder / "plain.zarr"),
        "ours": (CONVERT, folder / "ours" / "frames.ome.zarr"),
        "hs": (HYPERSPY, folder / "saved.hspy"),
    }[name]
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        command = [sys.executable, "-c", code, str(raw), str(Path(fresh) / out.relative_to(folder))]
        return measure(command + (["--fingerprint", file_sha256(raw)] if name == "ours" else []))
