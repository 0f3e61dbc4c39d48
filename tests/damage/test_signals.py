"""One signal described: intervals and bounds that hold, no change that is called none, windows that can be summed."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.damage.curves import shape_of
from atomdiffuser.damage.signals import describe_signal

X = 2000.0 * np.arange(1, 25)
FRAMES = np.arange(24)


def described(y: np.ndarray, noise: float, seed: int = 0, x=X, frames=FRAMES, **options):
    random = np.random.default_rng(seed)
    sigma = np.full(len(y), noise)
    draw = lambda curve: curve + random.normal(0, 1, (80, len(curve))) * sigma
    return describe_signal(x, y, sigma, frames, int(frames[0]), draw, **options)


def decays(critical: float, noise: float, n: int, kind: str = "exponential"):
    random = np.random.default_rng(7)
    for k in range(n):
        yield described(shape_of(kind, X / critical, 1.0, 0.3) + random.normal(0, noise, 24), noise, k)


def test_intervals_hold_and_numbers_are_right() -> None:
    found = list(decays(24000.0, 0.02, 60))
    held = [f.critical.lo95 <= 24000 <= f.critical.hi95 for f in found]
    assert np.mean(held) >= 0.88 and not any(f.lower_bound for f in found)  # 95 of 100; 60 leave ±6
    assert np.median([f.critical.value for f in found]) == pytest.approx(24000, rel=0.02)
    assert np.median([f.half.value for f in found]) == pytest.approx(24000 * np.log(2), rel=0.03)
    loss = 100 * (1 - np.exp(-46000 / 24000))
    assert np.mean([f.loss.lo95 <= loss <= f.loss.hi95 for f in found]) >= 0.85


def test_bounds_hold_where_the_series_ends_early() -> None:
    found = list(decays(48000 / 0.15, 0.02, 60))
    assert np.mean([f.lower_bound for f in found]) > 0.9
    right = [
        f.critical.value <= 320000 if f.lower_bound else f.critical.lo95 <= 320000 <= f.critical.hi95 for f in found
    ]
    assert np.mean(right) >= 0.92


def test_nothing_is_seen_where_nothing_happens() -> None:
    found = list(decays(1e12, 0.02, 60))
    assert np.mean([f.p_value < 0.05 for f in found]) <= 0.12 and all(f.lower_bound for f in found)
    assert np.mean([f.loss.lo95 <= 0 <= f.loss.hi95 for f in found]) >= 0.88
    assert all(f.usable == (0, 23) for f in found if f.p_value > 0.05)


def test_frames_that_can_be_summed_end_where_the_tolerance_does() -> None:
    y = shape_of("latency", X / 60000, 1.0, 0.3)
    found = described(y, 0.002, tolerance_percent=5.0)
    still = np.flatnonzero(y / y[0] >= 0.95)[-1]
    assert found.model.startswith("latency") and abs(found.usable[1] - still) <= 1 and found.usable[0] == 0
    assert described(y, 0.002, tolerance_percent=20.0).usable[1] > found.usable[1]


def test_what_rises_and_falls_is_not_forced_to_decay() -> None:
    bump = 1 + 0.3 * np.exp(-(((FRAMES - 12) / 4.0) ** 2))
    found = described(bump + np.random.default_rng(0).normal(0, 0.01, 24), 0.01)
    assert found.p_misfit < 1e-6 and found.onset_frame > 3
    assert found.lower_bound  # no number is made up for it


def test_growth_gives_a_negative_loss_and_no_critical_fluence() -> None:
    found = described(np.exp(X / 100000), 0.01)
    assert found.loss.hi95 < 0 and found.rate.hi95 < 0 and found.lower_bound and found.usable[1] < 5


def test_a_longer_gap_in_the_frames_keeps_their_numbers() -> None:
    keep = np.r_[0:5, 9:24]
    found = described(shape_of("exponential", X[keep] / 200000), 0.001, x=X[keep], frames=FRAMES[keep])
    assert found.n_frames == 20 and found.onset_frame in FRAMES[keep]


@pytest.mark.parametrize("n", [0, 2])
def test_too_few_frames_are_left_undescribed(n) -> None:
    found = described(np.ones(n), 0.1, x=X[:n], frames=FRAMES[:n] if n else np.array([0]))
    assert found.model == "none" and found.lower_bound and found.fits is None and np.isnan(found.p_value)
