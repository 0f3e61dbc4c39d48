"""Pairs a second on the CPU, drift and decay maps together, start-up left out.

On two cores the workflow analyses two series at a time, a thread each: the rate is that of two such processes, by the
processor time of one. More threads a pair (SCALE_THREADS) wait for each other where other work is going on.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.measured_process import measure

CORES = 2
CASES = {512: (6, 3.0), 2048: (2, 0.25)}
CODE = """
import sys, time
import numpy as np
import torch
import atomdiffuser
from benchmarks.scale_frames import frames
side, n, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
stack = frames(n + 1, side, 30.0, 1)
run = lambda k: atomdiffuser.estimate_pairs(stack[:k], stack[1 : k + 1], gain_e=1.0, device="cpu")
run(1)
began = time.perf_counter(), time.process_time()
found = run(n)
wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
assert found.valid.all(), found.reason
print(f"PAIRS {wall} {cpu}")
"""


def run() -> list[dict[str, Any]]:
    """Rates from processor time and by the clock."""
    threads = int(os.environ.get("SCALE_THREADS", 1))
    rows: list[dict[str, Any]] = []
    for side_px, (n_pairs, least) in CASES.items():
        done = measure([sys.executable, "-c", CODE, str(side_px), str(n_pairs), str(threads)], threads=threads)
        wall_s, cpu_s = (float(v) for v in done.said.partition("PAIRS ")[2].split()[:2])
        rows += [
            dict(quantity=f"pairs a second at {side_px}², of 2 cores", value=CORES * n_pairs / cpu_s, least=least),
            dict(quantity=f"by the clock at {side_px}², {threads} threads", value=n_pairs / wall_s),
            dict(quantity=f"peak memory of pairs at {side_px}² (MB)", value=done.peak_mb),
        ]
    return rows
