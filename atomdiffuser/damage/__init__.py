"""Beam damage of regions, from a notebook as from the workflow.

`measure_regions` takes frames and their drift to amplitudes of each region, `fit_regions` those to critical fluences;
`fit_exponential` fits a single curve:

>>> import numpy as np
>>> from atomdiffuser import damage
>>> fluence = np.linspace(0, 20_000, 11)
>>> fit = damage.fit_exponential(fluence, np.exp(-fluence / 8_000), np.full(11, 0.01))
>>> round(fit.critical_fluence, -2), fit.lower_bound
(8000.0, False)
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Fits": "fitting",
    "Measurement": "analysis",
    "RegionMask": "regions",
    "RegionSet": "regions",
    "Scales": "fitting",
    "compare_samples": "comparison",
    "describe_exposure": "exposure",
    "describe_signal": "signals",
    "estimate_gain": "gain",
    "fit_curves": "curves",
    "fit_exponential": "kinetics",
    "fit_regions": "fitting",
    "grid_regions": "regions",
    "join_regions": "regions",
    "measure_damage": "analysis",
    "measure_regions": "analysis",
    "measure_spots": "spots",
    "onset_frame": "kinetics",
    "region_fluence": "exposure",
    "samples_table": "comparison",
    "segment": "segmentation",
    "track_columns": "columns",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imported on first use: comparing samples needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
