"""AtomDiffuser: separates beam damage from drift in STEM time series.

Public names load when they are first used, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import Any

from atomdiffuser._version import __version__

_HOME = {
    "AtomDiffuser": "atomdiffuser.model",
    "Acquisition": "atomdiffuser.series",
    "FrameSeries": "atomdiffuser.series",
    "PairEstimates": "atomdiffuser.estimation.api",
    "SeriesEstimate": "atomdiffuser.estimation.api",
    "estimate_pairs": "atomdiffuser.estimation.api",
    "estimate_series": "atomdiffuser.estimation.api",
    "load_model": "atomdiffuser.model",
    "read_series": "atomdiffuser.io.readers",
    "simulate_series": "atomdiffuser.simulation.series",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'atomdiffuser' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
