"""Simulated series with faults put into single frames, before or after detection; shared by the tests of quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from scipy import ndimage

from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.quality.measure import FrameQuality, measure_quality
from atomdiffuser.simulation import SimulatedSeries, simulate_series

SHAPE = (128, 160)
N = 10
CPU = torch.device("cpu")
Fault = Callable[[np.ndarray], np.ndarray]


@cache
def simulated(specimen: str = "SrTiO3", **options) -> SimulatedSeries:
    """Drift, a little turn, and damage that takes most of the lattice."""
    default = dict(
        n_frames=N, shape=SHAPE, pixel_size_nm=0.02, electrons_per_px=20.0, damage="holes", witness="both",
        fluence_per_frame=1000.0, critical_fluence=6000.0, rotation_deg_per_frame=0.1, vacancies=0.05, seed=2,
    )  # fmt: skip
    return simulate_series(specimen, **{**default, **options})


def with_faults(series: SimulatedSeries, before_noise: Mapping[int, Fault]) -> np.ndarray:
    """Frames of a series, those listed detected anew after their expected image has been changed."""
    frames = np.asarray(series.series.frames).copy()
    rng = np.random.default_rng(5)
    for k, fault in before_noise.items():
        frames[k] = rng.poisson(np.clip(fault(series.expected[k].astype(float)), 0, None))
    return frames


def quality(series: SimulatedSeries, frames: np.ndarray | None = None, **settings) -> FrameQuality:
    """Quality of a series, or of other frames in its place."""
    own = series.series if frames is None else dataclasses.replace(series.series, frames=frames)
    return measure_quality(FrameSource(own, CPU), RegisterSettings(**settings))


def flagged(found: FrameQuality) -> dict[int, str]:
    return {k: ",".join(words) for k, words in enumerate(found.flags.words) if words}


def out_of_focus(image: np.ndarray) -> np.ndarray:
    """A disc, as geometric optics has it: its σ along any direction is half of its radius."""
    y, x = np.mgrid[-5:6, -5:6]
    disc = np.clip(4.6 - np.hypot(y, x), 0, 1)
    return ndimage.convolve(image, disc / disc.sum(), mode="nearest")


def smeared(image: np.ndarray) -> np.ndarray:
    """Motion along the diagonal during the frame, 9 px long."""
    return ndimage.convolve(image, np.eye(7) / 7, mode="nearest")
