"""Drift: where the specimen lies in each frame, as exact affines.

Within one frame the lines are scanned one after the other. A drift velocity v that is constant during the scan moves
the line at row y by v·(y − c)/n_y relative to the moment the central row is scanned: exactly an affine, a shear of x
and a scale of y. Every frame has its own, the reference frame too; `with_scan` folds both in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atomdiffuser.errors import SettingsError
from atomdiffuser.geometry import identity, invert
from atomdiffuser.simulation.randomness import Draws, RandomStreams


def centred_affine(
    shape: tuple[int, int], shift_px: Tensor, rotation_deg: Tensor, strain: Tensor, shear: Tensor
) -> Tensor:
    """Affines (n, 3, 3) that turn and stretch about the frame's centre, then shift.

    Parameters
    ----------
    shift_px
        (n, 2) along (y, x).
    rotation_deg
        (n,), y towards x.
    strain
        (n, 2) relative stretch along y and x, before the turn.
    shear
        (n,) off-diagonal of the symmetric stretch.
    """
    angle = torch.deg2rad(rotation_deg)
    c, s = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    stretch = torch.stack([torch.stack([1 + strain[:, 0], shear], -1), torch.stack([shear, 1 + strain[:, 1]], -1)], -2)
    linear = turn @ stretch
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=linear.dtype, device=linear.device)
    affine = identity(len(linear), dtype=linear.dtype, device=linear.device)
    affine[:, :2, :2] = linear
    affine[:, :2, 2] = centre + shift_px - linear @ centre
    return affine


def simulate_drift(
    n_frames: int,
    shape: tuple[int, int],
    streams: RandomStreams,
    *,
    drift_px_per_frame: float | tuple[float, float] = 1.0,
    random_walk_px: float = 0.2,
    rotation_deg_per_frame: float = 0.0,
    strain_per_frame: float = 0.0,
    shear_per_frame: float = 0.0,
) -> Tensor:
    """Steady drift plus a random walk, (t, 3, 3) float64; frame 0 is the identity.

    `drift_px_per_frame` is a vector along (y, x), or a length in a random direction. Rotation, strain and shear grow
    steadily, with a random walk of a fifth of their rate.
    """
    if n_frames < 1:
        raise SettingsError(f"a series needs at least one frame, not {n_frames}")
    one = Draws(1, streams)
    steps = torch.arange(n_frames, dtype=torch.float64)
    if isinstance(drift_px_per_frame, int | float):
        velocity = one.directions("drift direction")[0] * float(drift_px_per_frame)
    else:
        velocity = torch.tensor(drift_px_per_frame, dtype=torch.float64)
        if velocity.shape != (2,):
            raise SettingsError(f"drift_px_per_frame is {drift_px_per_frame}, expected one length or (y, x)")
    frames = Draws(n_frames, streams)
    walk = _walk(frames.normal("shift walk", random_walk_px, 2))
    rates = torch.tensor(
        [rotation_deg_per_frame, strain_per_frame, strain_per_frame, shear_per_frame], dtype=torch.float64
    )
    growth = steps[:, None] * rates + _walk(frames.normal("shape walk", 0.2, 4)) * rates
    shift = steps[:, None] * velocity + walk
    return centred_affine(shape, shift, growth[:, 0], growth[:, 1:3], growth[:, 3])


def with_scan(frame_from_specimen: Tensor, shape: tuple[int, int], duty: float) -> Tensor:
    """Affines (t, 3, 3) of frames whose lines are scanned while the specimen drifts on.

    `duty` is the share of the frame time that the scan takes. The given affines hold when the central row is scanned.
    """
    if len(frame_from_specimen) < 2 or duty == 0:
        return frame_from_specimen
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64)
    place = (frame_from_specimen[:, :2, :2] @ centre) + frame_from_specimen[:, :2, 2]
    velocity = torch.gradient(place, dim=0)[0]  # (t, 2) [px/frame]
    per_row = velocity * duty / shape[0]
    slowed = identity(len(place))
    slowed[:, :2, 0] -= per_row
    slowed[:, :2, 2] += per_row * centre[0]
    return invert(slowed) @ frame_from_specimen


def scan_jitter(n_frames: int, rows: int, sigma_px: float, streams: RandomStreams) -> Tensor:
    """Independent offsets of the scan lines, (t, y, 2) [px]; along y a third of those along x."""
    return Draws(n_frames, streams).normal("lines", sigma_px, rows, 2) * torch.tensor([1 / 3, 1.0], dtype=torch.float64)


def long_range_distortion(n_frames: int, shape: tuple[int, int], rms_px: float, streams: RandomStreams) -> Tensor:
    """Smooth offsets (t, y, x, 2) [px] with wavelengths of the frame and half of it, drawn anew for every frame."""
    draws = Draws(n_frames, streams)
    rows, columns = (torch.linspace(0, 1, s, dtype=torch.float64) for s in shape)
    orders = draws.uniform("orders", 0.5, 2.0, 2, 2, 2) * torch.where(draws.uniform("signs", -1, 1, 2, 2, 2) < 0, -1, 1)
    phases = draws.uniform("phases", 0.0, 1.0, 2, 2)
    turns = (
        orders[..., 0, None, None] * rows[:, None] + orders[..., 1, None, None] * columns + phases[..., None, None]
    )  # (t, 2 axes, 2 waves, y, x)
    return rms_px * torch.sin(2 * torch.pi * turns).sum(2).permute(0, 2, 3, 1)


def _walk(steps: Tensor) -> Tensor:
    walk = steps.cumsum(0)
    return walk - walk[:1]
