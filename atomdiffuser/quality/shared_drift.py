"""The trajectory of one channel handed on to another channel of the same acquisition: one scan, one drift."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from atomdiffuser import geometry
from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.estimation.drift_tables import affines_of
from atomdiffuser.series import FrameSeries


def shared_trajectory(table: pd.DataFrame, series: FrameSeries, channel: str) -> pd.DataFrame:
    """The drift that `channel` measured, as a row for each frame of another channel.

    Time, fluence and lengths in nm are the other channel's own; a frame that `channel` could not use says so.

    Raises
    ------
    AtomDiffuserError
        When the two channels differ in the number or the shape of their frames.
    """
    shape = tuple(table.attrs["frame_shape"])
    if len(table) != series.n_frames or shape != series.frame_shape:
        raise AtomDiffuserError(
            f"{series.name}: {series.n_frames} frames of {series.frame_shape} cannot take the drift of {channel}, "
            f"which has {len(table)} of {shape}; set `register: channels: own` in the configuration"
        )
    fluence = series.cumulative_fluence_e_per_A2()
    unknown = np.full(len(table), np.nan)
    pixel = series.acquisition.pixel_size_nm or (np.nan, np.nan)
    return table.assign(
        time_s=unknown if series.times_s is None else series.times_s,
        fluence_e_per_A2=unknown if fluence is None else fluence,
        drift_y_nm=table["drift_y_px"] * pixel[0],
        drift_x_nm=table["drift_x_px"] * pixel[1],
        reason=[f"channel {channel}: {reason}" if reason else "" for reason in table["reason"]],
    )


def with_other_reference(table: pd.DataFrame, origin: int, shape: tuple[int, int], pixel: tuple[float, float] | None):
    """The trajectory seen from another valid frame `origin`, for a channel in which the reference frame is unusable."""
    valid = table["valid"].to_numpy(bool)
    affines = torch.as_tensor(affines_of(table))
    seen = affines @ geometry.invert(affines[origin])
    seen[origin] = geometry.identity()
    seen[torch.as_tensor(~valid)] = torch.nan
    shift = geometry.drift_at_centre(seen, shape).numpy()
    rotation, scale, shear = (v.numpy() for v in geometry.rotation_scale_shear(seen))
    numbers = geometry.parameters_from_affine(seen).numpy()
    sigma = table["displacement_sigma_px"].to_numpy(float)
    sigma = np.where(np.arange(len(table)) == origin, 0.0, np.hypot(sigma, sigma[origin]))
    size = pixel or (np.nan, np.nan)
    return table.assign(
        **{name: numbers[:, i] for i, name in enumerate(geometry.PARAMETER_NAMES)},
        drift_y_px=shift[:, 0], drift_x_px=shift[:, 1], drift_y_nm=shift[:, 0] * size[0],
        drift_x_nm=shift[:, 1] * size[1], rotation_deg=rotation, scale=scale, shear=shear, displacement_sigma_px=sigma,
    )  # fmt: skip
