"""How long a job of each stage takes before it works: Python, the command line and all that the stage imports."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.measured_process import measure

STAGES = {
    "convert": 1.5, "report": 1.5, "summary": 1.5, "register": 4.0, "decay": 4.0, "damage": 4.0, "align": 4.0,
}  # fmt: skip
READER = (
    "; from atomdiffuser.io._lean_dask import import_dask; import_dask()"
    "; import atomdiffuser.io._digital_micrograph, rsciio.digitalmicrograph"
)
REPEATS = 3


def run() -> list[dict[str, Any]]:
    """Processor time of starting each stage: what others run at the same time does not count."""
    rows = []
    for stage, limit_s in STAGES.items():
        code = f"import atomdiffuser.cli, atomdiffuser.stages.{stage}" + (READER if stage == "convert" else "")
        seconds = min(measure([sys.executable, "-c", code]).cpu_s for _ in range(REPEATS))
        rows.append(dict(quantity=f"start-up of {stage} (s)", value=seconds, most=limit_s))
    return rows
