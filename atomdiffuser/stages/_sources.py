"""What the stages after conversion open alike: the frames of a store, ready for estimation, and the trajectory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atomdiffuser.estimation.drift_tables import affines_of
from atomdiffuser.estimation.frame_source import FrameSource, SeriesFacts, choose_device
from atomdiffuser.io.store import read_frames
from atomdiffuser.io.tables import read_table
from atomdiffuser.memory_limit import warn_if_too_small
from atomdiffuser.series import FrameSeries


def open_source(
    frames: Path, device: str | torch.device, stage: str, facts: SeriesFacts | None = None
) -> tuple[FrameSeries, FrameSource]:
    """The stored series, and its frames above the dark level on the device (dark level 0 where it is unknown).

    `facts` are what is known of the series already.
    """
    series = read_frames(frames, dask=False)
    warn_if_too_small(stage, series.frame_shape)
    acquisition = series.acquisition
    device = choose_device(device) if isinstance(device, str) else device
    source = FrameSource(
        series, device, dark_level=acquisition.dark_level or 0.0, gain_e=acquisition.gain_e, facts=facts
    )
    return series, source


def open_trajectory(trajectory: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, int]:
    """The table, its affines (t, 3, 3), which frames are valid (t,), and the reference frame's number."""
    table = read_table(trajectory)
    return table, affines_of(table), table["valid"].to_numpy(bool), int(table.attrs["reference_frame"])


def fluence_axis(table: pd.DataFrame) -> tuple[pd.Series, str]:
    """What decay is plotted and fitted against, and its unit: fluence, else time, else the frame's number."""
    for column, unit in (("fluence_e_per_A2", "e_per_A2"), ("time_s", "s")):
        if table[column].notna().all():
            return table[column], unit
    return table["frame"].astype(float), "frame"


def describe_estimation(source: FrameSource) -> dict:
    """Measured scales and noise, for the metadata of a result."""
    scales, noise = source.scales, source.noise
    return {
        "matched_filter_px": scales.filter_px,
        "base_px": scales.base_px,
        "lattice_period_px": scales.period_px,
        "noise_readout_counts2": noise.readout,
        "noise_per_count": noise.per_count,
        "device": source.device.type,
        "torch": torch.__version__,
    }
