"""Faults of detector and scan: found where they are, nowhere else, and without a say in the drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, error_px, series

from atomdiffuser import estimate_pairs
from atomdiffuser.estimation.faults import fill_faults, find_faults, touched
from atomdiffuser.estimation.noise import NoiseModel

SHOT = NoiseModel.poisson(1.0)
TWO = dict(n_frames=2, drift_px_per_frame=(4.0, -3.0), random_walk_px=0, electrons_per_px=40.0)


def hot_pixels(frame: np.ndarray) -> np.ndarray:
    at = np.random.default_rng(5).permutation(frame.size)[:60]
    frame.flat[at] = 5000
    return frame


def dead_rows(frame: np.ndarray) -> np.ndarray:
    frame[[20, 47, 48, 70]] = 0
    return frame


def saturated_column(frame: np.ndarray) -> np.ndarray:
    frame[10:75, 60] = 65535
    return frame


def missing_rows(frame: np.ndarray) -> np.ndarray:
    frame[70:] = 0
    return frame


def unknown_pixels(frame: np.ndarray) -> np.ndarray:
    frame[30:36, 40:90] = np.nan
    return frame


FAULTS = [
    pytest.param(hot_pixels, marks=pytest.mark.fault(
        fault="hot pixels in the same places of all frames",
        happens="found and filled from around, without a say in the drift", user_sees="nothing",
    )),
    pytest.param(dead_rows, marks=pytest.mark.fault(
        fault="dead rows or columns of the detector or scan",
        happens="found and filled from around, without a say in the drift", user_sees="nothing",
    )),
    pytest.param(saturated_column, marks=pytest.mark.fault(
        fault="a saturated line (a bleeding pixel)",
        happens="found and filled from around, without a say in the drift", user_sees="nothing",
    )),
    pytest.param(missing_rows, marks=pytest.mark.fault(
        fault="the last rows of a frame are missing (zeros)",
        happens="drift is measured on the rows that are there, with the larger σ that follows",
        user_sees="the flag missing_rows of that frame, with the share of rows",
    )),
    pytest.param(unknown_pixels, marks=pytest.mark.fault(
        fault="pixels that are not a number", happens="filled from around, without a say in the drift",
        user_sees="nothing",
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def sound():
    s = series(**TWO)
    return s.series.frames.astype(np.float32), s.frame_from_reference[1:]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_faults_in_the_same_place_of_both_frames_do_not_move_the_answer(sound, fault) -> None:
    """They stay where they are while the specimen moves by 5 px, so that what they say is: no drift."""
    frames, true = sound
    spoilt = np.stack([fault(f.copy()) for f in frames])
    plain, found = (estimate_pairs(*f, predict=False, maps=False) for f in (frames, spoilt))
    assert plain.valid[0] and found.valid[0], found.reason
    sigma = found.displacement_sigma_px[0]
    assert error_px(found.moving_from_reference, true)[0] < 3 * sigma
    assert sigma < 2.2 * plain.displacement_sigma_px[0]
    if fault is not missing_rows:  # these take a quarter of the field with them
        assert error_px(found.moving_from_reference, plain.moving_from_reference)[0] < sigma


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_faults_are_found_and_little_else(sound, fault) -> None:
    frame = sound[0][0]
    spoilt = fault(frame.copy())
    changed = torch.as_tensor((spoilt != frame) | np.isnan(spoilt))[None]
    found = find_faults(torch.as_tensor(spoilt)[None], SHOT)
    assert float((found & changed).sum()) > 0.97 * float(changed.sum())
    assert float((found & ~changed).sum()) <= 0.02 * float(changed.sum())
    filled = fill_faults(torch.as_tensor(spoilt)[None], found)
    assert torch.isfinite(filled).all() and float(filled.max()) <= float(frame.max())


@pytest.mark.parametrize(("specimen", "electrons"), [("SrTiO3", 2000.0), ("nanoparticle", 5.0), ("SrTiO3", 0.5)])
def test_sound_frames_have_no_faults(specimen, electrons) -> None:
    for frame in series(specimen, n_frames=2, electrons_per_px=electrons).series.frames:
        assert find_faults(torch.as_tensor(frame.astype(np.float32))[None], SHOT) is None


def test_vacuum_without_counts_is_no_fault() -> None:
    frame = torch.zeros(1, *SHAPE)
    frame[:, 40:] = torch.poisson(
        torch.full((1, SHAPE[0] - 40, SHAPE[1]), 0.1), generator=torch.Generator().manual_seed(1)
    )
    assert find_faults(frame, SHOT) is None


def test_what_the_filter_carries_further_is_left_out_too() -> None:
    bad = torch.zeros(1, *SHAPE, dtype=torch.bool)
    bad[0, 50, 60] = True
    assert int(touched(bad, 2.0).sum()) == 11 * 11 and bool(touched(bad, 2.0)[0, 45, 65])
