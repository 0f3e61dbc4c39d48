"""Time and peak memory of one command, seen from a process small enough not to count itself.

A child inherits the peak of the process that forked it, so a bare Python starts the command: this file, as a script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Measured:
    """What one command took: wall-clock and processor time [s], peak resident memory [MB], and what it said."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    said: str


def measure(command: Sequence[str], *, threads: int = 1, environment: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end. Raises RuntimeError with the end of what it said when it fails."""
    variables = {**os.environ, **dict.fromkeys(THREADS, str(threads)), **(environment or {})}
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, *command], env=variables, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said[-2000:]}")
    told = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    return Measured(**told, said=said)


def main(command: list[str]) -> int:
    began = time.perf_counter()
    process = os.spawnvp(os.P_NOWAIT, command[0], command)
    _, status, used = os.wait4(process, 0)
    wall_s = time.perf_counter() - began
    sys.stdout.flush()
    cpu_s, peak_mb = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb}))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
