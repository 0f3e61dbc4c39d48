"""A made-up series of any size as a DM4 file: a lattice with vacancies that drifts, fades and is counted.

Run as a script, so that the frames, which the writer of DM4 holds several times, are gone with the process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from atomdiffuser.io.raw_writers import write_dm4
from benchmarks.measured_process import measure

PERIOD_PX = 14.0
STEP_PX = (1, -1)  # drift a frame along (y, x)
MOST_DRIFT_PX = 40
LEFT = 0.7  # contrast at the last frame
COUNTS = 30.0


def write_series(path: Path, n_frames: int, side_px: int, *, counts: float = COUNTS, seed: int = 1) -> Path:
    """Write one series (n_frames, side_px, side_px) of uint16 in a process of its own."""
    arguments = [str(path), str(n_frames), str(side_px), str(counts), str(seed)]
    measure([sys.executable, "-m", "benchmarks.scale_frames", *arguments])
    return path


def frames(n_frames: int, side_px: int, counts: float, seed: int) -> np.ndarray:
    """(t, y, x) uint16. Drift goes forth and back, so that it stays small in series of any length."""
    rng = np.random.default_rng(seed)
    side = side_px + 2 * MOST_DRIFT_PX
    y, x = np.mgrid[:side, :side].astype(np.float32)
    wave = 2 * np.pi / PERIOD_PX
    columns = (np.cos(wave * (y + 0.2 * x)) + np.cos(wave * (x - 0.15 * y)) + 2) / 4
    cells = -(-side // int(PERIOD_PX))
    thickness = rng.uniform(0.6, 1.0, (cells, cells)).astype(np.float32).repeat(int(PERIOD_PX), 0)
    thickness = thickness.repeat(int(PERIOD_PX), 1)[:side, :side]
    background = np.float32(0.3 * counts) * (1 + 0.3 * np.sin(y / 170) * np.cos(x / 230))
    lattice = np.float32(0.7 * counts) * columns**2 * thickness
    stack = np.empty((n_frames, side_px, side_px), np.uint16)
    for k in range(n_frames):
        away = MOST_DRIFT_PX - abs(k % (2 * MOST_DRIFT_PX) - MOST_DRIFT_PX)
        top, left = (MOST_DRIFT_PX + away * step for step in STEP_PX)
        window = np.s_[top : top + side_px, left : left + side_px]
        stack[k] = rng.poisson(background[window] + LEFT ** (k / max(n_frames - 1, 1)) * lattice[window])
    return stack


def main(path: str, n_frames: str, side_px: str, counts: str, seed: str) -> None:
    write_dm4(
        Path(path), frames(int(n_frames), int(side_px), float(counts), int(seed)), frame_time_s=2.0,
        pixel_size_nm=0.03, beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
