"""Dask for a process that only reads frames: without xarray, which Dask imports where it is installed.

The import of xarray takes a third of the time of a small conversion. Dask asks for it once, to recognise xarray's own
arrays among what it is given; a reader of microscope files gives it none.
"""

from __future__ import annotations

import sys


def import_dask() -> None:
    """Import Dask's arrays without xarray; for the process of a job, not for one that goes on to other work."""
    if "dask.array" in sys.modules or "xarray" in sys.modules:
        return
    sys.modules["xarray"] = None  # type: ignore[assignment]  # to import it now fails as if it were not installed
    try:
        import dask.array  # noqa: F401
    finally:
        del sys.modules["xarray"]
