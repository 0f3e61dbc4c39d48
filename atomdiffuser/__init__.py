"""AtomDiffuser: separates beam damage from drift in STEM time series.

Public names load when they are first used, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from atomdiffuser._version import __version__

if TYPE_CHECKING:
    from atomdiffuser.estimation.api import PairEstimates, SeriesEstimate, estimate_pairs, estimate_series
    from atomdiffuser.exports import export
    from atomdiffuser.interop.results import open_results
    from atomdiffuser.io.readers import read_series
    from atomdiffuser.model import AtomDiffuser, load_model
    from atomdiffuser.series import Acquisition, FrameSeries
    from atomdiffuser.simulation.series import simulate_series

_HOME = {
    "AtomDiffuser": "atomdiffuser.model",
    "Acquisition": "atomdiffuser.series",
    "FrameSeries": "atomdiffuser.series",
    "PairEstimates": "atomdiffuser.estimation.api",
    "SeriesEstimate": "atomdiffuser.estimation.api",
    "estimate_pairs": "atomdiffuser.estimation.api",
    "estimate_series": "atomdiffuser.estimation.api",
    "export": "atomdiffuser.exports",
    "load_model": "atomdiffuser.model",
    "open_results": "atomdiffuser.interop.results",
    "read_series": "atomdiffuser.io.readers",
    "simulate_series": "atomdiffuser.simulation.series",
}

__all__ = [
    "Acquisition",
    "AtomDiffuser",
    "FrameSeries",
    "PairEstimates",
    "SeriesEstimate",
    "__version__",
    "estimate_pairs",
    "estimate_series",
    "export",
    "load_model",
    "open_results",
    "read_series",
    "simulate_series",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'atomdiffuser' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
