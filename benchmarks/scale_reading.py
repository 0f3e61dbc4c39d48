"""Whether reading is hidden behind computing: a series from a slow disk, mapped frame by frame.

Reading waits as long as computing a frame took on average, and half and twice as long; by the clock, within one run.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.measured_process import measure

SIDE_PX, N_FRAMES = 512, 16
CODE = """
import sys, time
import numpy as np
import torch
from atomdiffuser.config import DecaySettings
from atomdiffuser.estimation.decay import decay_estimator
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.series import FrameSeries
from benchmarks.scale_frames import frames

class Slow:
    def __init__(self, frames):
        self.frames, self.shape, self.takes_s, self.spent_s = frames, frames.shape, 0.0, 0.0
    def __getitem__(self, index):
        began = time.perf_counter()
        time.sleep(self.takes_s)
        frame = self.frames[index].copy()
        self.spent_s += time.perf_counter() - began
        return frame

torch.set_num_threads(1)
side, n = map(int, sys.argv[1:])
slow = Slow(frames(n, side, 30.0, 1))
source = FrameSource(FrameSeries(slow), torch.device("cpu"), gain_e=1.0)
estimate = decay_estimator(source, DecaySettings(method="regression"))

def run():
    slow.spent_s, began = 0.0, time.perf_counter()
    for k in source.each(range(n)):
        estimate([(k, k)], torch.eye(3, dtype=torch.float64)[None])
        source._cache.clear()  # each frame is read once
    return time.perf_counter() - began

run()
compute = run()
for share in (0.5, 1.0, 2.0):
    slow.takes_s = share * compute / n
    took = run()
    print("TOOK", share, took, slow.spent_s, compute)
"""


def run() -> list[dict[str, Any]]:
    """Time taken over that of the longer of reading and computing."""
    done = measure([sys.executable, "-c", CODE, str(SIDE_PX), str(N_FRAMES)])
    rows = []
    for line in done.said.splitlines():
        if line.startswith("TOOK"):
            share, took, read, compute = map(float, line.split()[1:])
            what = f"reading {share:g} × as slow as computing: time over the longer of both"
            rows.append(dict(quantity=what, value=took / max(read, compute), most=1.3))
            rows.append(dict(quantity="without reading ahead it would be", value=(read + compute) / max(read, compute)))
    return rows
