"""What the workflow itself costs: a session of many tiny series, analysed once, then once more with nothing to do."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scale_frames import write_series

SERIES = 100
CORES = 2
MOST_S = 600.0
NOTHING_MOST_S = 10.0
CHECKOUT = Path(__file__).parents[1]


def run() -> list[dict[str, Any]]:
    """Seconds by the clock and of processor; with SCALE_SERIES=20 for fewer series, scaled to 100 and called so.

    Processor time over two cores is what a machine takes by the clock that has nothing else to do, as long as both
    cores find work.
    """
    count = int(os.environ.get("SCALE_SERIES", SERIES))
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder) / "session"
        session.mkdir()
        first = write_series(session / "series_0.dm4", 4, 96)
        for k in range(1, count):  # the same bytes: only the name is another
            os.link(first, session / f"series_{k}.dm4")
        all_s, all_cpu_s = _run(session)
        nothing_s = min(_run(session)[0] for _ in range(2))
    scale = SERIES / count
    told = "" if count == SERIES else f", of {count} scaled to {SERIES}"
    return [
        dict(quantity=f"{SERIES} tiny series on {CORES} cores{told} (s)", value=all_s * scale, most=MOST_S),
        dict(quantity=f"its processor time over {CORES}{told} (s)", value=all_cpu_s / CORES * scale, most=MOST_S),
        dict(quantity=f"{count} series, nothing to do (s)", value=nothing_s, most=NOTHING_MOST_S),
    ]


def _run(session: Path) -> tuple[float, float]:
    """Seconds by the clock and of processor of the documented command, with all that it started."""
    before, began = _processor_s(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", str(CORES), "--config", f"session={session}"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    return time.perf_counter() - began, _processor_s() - before


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
