"""Simulated pairs and how far estimates are from their truth; shared by the tests of the estimation."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from atomdiffuser import geometry as g
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.series import FrameSeries
from atomdiffuser.simulation import PairBatch, PairRanges, SimulatedSeries, simulate_pairs, simulate_series

SHAPE = (96, 128)
CPU = torch.device("cpu")
PLAIN = dict(
    period_px=(9, 14), particles=0.0, film_only=0.0, edges=0.0, amorphous_borders=0.0, grain_boundaries=0.0, jitter=0.0,
    eight_bit=0.0, integer=0.0, readout_e=(0.0, 0.0), dark_level=(0.0, 0.0), gain_e=(1.0, 1.0),
    drift_periods=(0.1, 0.3),
    patterns=("uniform",), electrons=(60, 200), loss=(0.2, 0.5), damaged_before=0.0, undamaged=0.0,
)  # fmt: skip


@cache
def pairs(n: int = 20, seed: int = 7, **ranges) -> PairBatch:
    """Pairs on plain random lattices, pure shot noise, one electron a count."""
    return simulate_pairs(n, SHAPE, seed, ranges=PairRanges(**{**PLAIN, **ranges}))


@cache
def series(specimen: str = "SrTiO3", **options) -> SimulatedSeries:
    """A series whose lattice has enough vacancies to be unique."""
    default = dict(
        n_frames=6, shape=SHAPE, pixel_size_nm=0.025, electrons_per_px=60.0, vacancies=0.1, drift_px_per_frame=1.5,
        critical_fluence=20000.0, seed=3,
    )  # fmt: skip
    return simulate_series(specimen, **{**default, **options})


def source(simulated: SimulatedSeries | FrameSeries | np.ndarray, gain_e: float | None = 1.0, **options) -> FrameSource:
    frames = getattr(simulated, "series", simulated)
    return FrameSource(
        frames if isinstance(frames, FrameSeries) else FrameSeries(frames), CPU, gain_e=gain_e, **options
    )


def error_px(found, true, shape=SHAPE) -> np.ndarray:
    """RMS over the frame between affines (n, 3, 3)."""
    return g.displacement_rms_px(torch.as_tensor(found), torch.as_tensor(true), shape).numpy()


def rms(values, where=True) -> float:
    values = np.asarray(values, float)
    return float(np.sqrt(np.mean(np.square(values[np.broadcast_to(where, values.shape) & np.isfinite(values)]))))
