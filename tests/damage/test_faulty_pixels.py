"""Pixels that the detector got wrong have no say in what a region lost."""

from __future__ import annotations

from functools import cache

import numpy as np
from measured_pairs import series, source

from atomdiffuser.config import DamageSettings
from atomdiffuser.damage.analysis import Measurement, measure_regions
from atomdiffuser.damage.regions import grid_regions
from atomdiffuser.series import FrameSeries

SHAPE, N = (96, 130), 5


@cache
def simulated():
    return series(
        n_frames=N, shape=SHAPE, critical_fluence=10000.0, witness="both", electrons_per_px=300.0,
        drift_px_per_frame=(0.0, 4.0), random_walk_px=0.0, seed=1,
    )  # fmt: skip


@cache
def measured(faulty: bool) -> Measurement:
    """25 pixels that are hot in every frame, two that are not a number."""
    s = simulated()
    frames = s.series.frames.astype(np.float32)
    if faulty:
        random = np.random.default_rng(0)
        frames[:, random.integers(5, 90, 25), random.integers(5, 125, 25)] = 20000
        frames[:, [20, 70], [33, 90]] = np.nan
    regions = grid_regions(SHAPE, (1, 1))
    return measure_regions(
        source(FrameSeries(frames)), s.frame_from_reference, np.ones(N, bool), 0, regions, DamageSettings()
    )


def whole(found: Measurement, name: str) -> np.ndarray:
    return found.ratios(name)[0][:, 0]


def test_hot_pixels_do_not_hide_a_loss() -> None:
    """Counted as signal they would add 20 % to the last frame's intensity, and turn the contrast about."""
    clean, faulty = measured(False), measured(True)
    assert np.abs(whole(faulty, "signal_ratio") - whole(clean, "signal_ratio")).max() < 0.004
    assert np.abs(whole(faulty, "lattice") - whole(clean, "lattice")).max() < 0.02
    assert np.all(faulty.values["n_px"] < clean.values["n_px"]) and faulty.accepted.all()


def test_maps_are_averaged_over_the_frames_whose_pixels_were_sound() -> None:
    """Counted more often than its frames a map would make the template look intact, or more, where pixels were hot."""
    template = measured(True).template
    looked = template.total.count > 0
    assert bool((template.total.count < measured(False).template.total.count - 0.01).any())
    for name in ("intensity", "contrast"):
        mean = getattr(template, name)[looked] / template.total.count[looked]
        assert float(mean.max()) < 1.1
