"""Frames that share files: how many files there are, and what writing and reading them takes.

Rates are by processor time, of one run, so they compare within it only.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from atomdiffuser.io.shards import ShardWriter
from atomdiffuser.io.store import compressors

N_FRAMES, SIDE_PX = 600, 512
SIZES = (1, 2, 4, 8, 16, 32)
READ = 200


def run() -> list[dict[str, Any]]:
    """Files, and MB a second of writing, of reading frames at random, and of reading all in order."""
    rng = np.random.default_rng(1)
    some = rng.poisson(30.0, (16, SIDE_PX, SIDE_PX)).astype(np.uint16)
    order = rng.permutation(N_FRAMES)[:READ]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / str(size)
            array = zarr.create_array(
                path, shape=(N_FRAMES, SIDE_PX, SIDE_PX), dtype=some.dtype, chunks=(1, SIDE_PX, SIDE_PX),
                shards=(size, SIDE_PX, SIDE_PX) if size > 1 else None, compressors=compressors(1, some.dtype),
            )  # fmt: skip
            writer = ShardWriter(array)
            began = time.process_time()
            for k in range(N_FRAMES):
                writer.write(k, some[k % 16][None])
            writer.finish()
            written = time.process_time()
            for k in order:
                array[int(k)]
            at_random = time.process_time()
            rate = lambda n, seconds: n * some[0].nbytes / 1e6 / seconds
            what = f"{size} frames a file"
            rows += [
                dict(quantity=f"{what}: files", value=sum(p.is_file() for p in path.rglob("*"))),
                dict(quantity=f"{what}: written, MB/s", value=rate(N_FRAMES, written - began)),
                dict(quantity=f"{what}: read one by one at random, MB/s", value=rate(READ, at_random - written)),
            ]
    return rows
