"""Big sessions: start-up, workflow, conversion, memory and speed, each with what it must reach.

Numbers of processor time and of memory hold on a busy machine too, those by the clock do not: the load is printed.
SCALE_PARTS=startup,convert chooses parts.
"""

from __future__ import annotations

import os
from typing import Any

import pandas as pd

from benchmarks import (
    scale_convert,
    scale_pairs,
    scale_reading,
    scale_series,
    scale_session,
    scale_startup,
    scale_storage,
)

PARTS = {
    "startup": scale_startup.run,
    "convert": scale_convert.run,
    "reading": scale_reading.run,
    "pairs": scale_pairs.run,
    "series": scale_series.run,
    "storage": scale_storage.run,
    "session": scale_session.run,
}


def run() -> pd.DataFrame:
    """A row a quantity: its value, its limit, and whether that is reached; those without a limit are told only."""
    rows: list[dict[str, Any]] = []
    for name in os.environ.get("SCALE_PARTS", ",".join(PARTS)).split(","):
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        print(f"{name}: {os.cpu_count()} cores, {load:.1f} processes at work before it started", flush=True)
        rows += [{"part": name, **row} for row in PARTS[name]()]
    return pd.DataFrame([judged(row) for row in rows])


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """A measured row with its limit in words."""
    most, least, value = row.pop("most", None), row.pop("least", None), row["value"]
    limit = f"≤ {most:g}" if most is not None else f"≥ {least:g}" if least is not None else ""
    reached = (most is None or value <= most) and (least is None or value >= least)
    return {**row, "limit": limit, "reached": bool(reached)}
