"""Whatever holds frames, brought to a `FrameSeries`: arrays, HyperSpy signals, series themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from atomdiffuser.errors import SettingsError
from atomdiffuser.series import FrameSeries


def as_frame_series(frames: Any, *, times: Any = None) -> FrameSeries:
    """A `FrameSeries` from a stack of frames in any of the usual forms.

    Parameters
    ----------
    frames
        (t, Y, X) array of NumPy, Dask or Zarr; a HyperSpy `Signal2D` with one navigation axis; a `FrameSeries`.
    times
        (t,) start of each frame [s]; only for arrays, the others bring their own.

    Raises
    ------
    SettingsError
        When times are given for something that has its own.
    ShapeError
        When there are not three axes.

    Examples
    --------
    >>> import numpy as np
    >>> as_frame_series(np.zeros((3, 8, 10)), times=[0, 2, 4]).n_frames
    3
    """
    is_signal = hasattr(frames, "axes_manager")
    if times is not None and (is_signal or isinstance(frames, FrameSeries)):
        raise SettingsError(f"times are given twice: a {type(frames).__name__} has its own; set them there")
    if isinstance(frames, FrameSeries):
        return frames
    if is_signal:
        from atomdiffuser.interop.signals import series_from_signal

        return series_from_signal(frames)
    return FrameSeries(frames, times_s=None if times is None else np.asarray(times, dtype=float))
