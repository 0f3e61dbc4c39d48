"""Beam damage of regions, from a notebook as from the workflow::

from atomdiffuser import damage, read_series

regions = damage.grid_regions(shape, (3, 3))
measured = damage.measure_regions(source, affines, valid, 0, regions, settings)
fits = damage.fit_regions(measured, fluence, "e_per_A2", settings, scales)
fits.critical_fluence      # pandas: a row per region and witness
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
