"""Series and results as the objects of other libraries: HyperSpy signals and xarray datasets.

HyperSpy and xarray are imported when a function needs them, and not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atomdiffuser.interop.frames import as_frame_series
    from atomdiffuser.interop.results import SeriesResults, open_results
    from atomdiffuser.interop.signals import (
        align_signal,
        map_signal,
        series_from_signal,
        signal_from_series,
        trajectory_signal,
    )

_HOME = {
    "SeriesResults": "results",
    "align_signal": "signals",
    "as_frame_series": "frames",
    "map_signal": "signals",
    "open_results": "results",
    "series_from_signal": "signals",
    "signal_from_series": "signals",
    "trajectory_signal": "signals",
}
__all__ = [
    "SeriesResults",
    "align_signal",
    "as_frame_series",
    "map_signal",
    "open_results",
    "series_from_signal",
    "signal_from_series",
    "trajectory_signal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
