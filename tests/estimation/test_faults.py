"""Faults of detector and scan: found where they are, nowhere else, and without a say in the drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, error_px, series

from atomdiffuser import estimate_pairs
from atomdiffuser.compiled import compiled_here
from atomdiffuser.estimation import faults
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


@pytest.mark.parametrize("fault", ["none", "nan", "inf", "row", "column", "hot", "saturated", "blank"])
def test_first_look_finds_what_the_others_find(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = torch.from_numpy(np.random.default_rng(3).poisson(30.0, (1, 61, 83)).astype(np.float32))
    if fault == "row":
        frame[0, -1] = 7
    elif fault == "column":
        frame[0, :, 0] = 31
    elif fault == "saturated":
        frame[0, 20:40, 5] = 100
    elif fault == "blank":
        frame[:] = 3
    elif fault != "none":
        frame[0, 60, 40] = {"nan": torch.nan, "inf": torch.inf, "hot": 900.0}[fault]
    monkeypatch.setattr(faults, "compiled_here", lambda device: False)
    whole = find_faults(frame, SHOT)
    monkeypatch.undo()
    found = find_faults(frame, SHOT)
    assert (found is None) == (whole is None) == (fault == "none")
    assert found is None or torch.equal(found, whole)
    if compiled_here(frame.device):
        assert faults._plainly_sound(frame, SHOT) == (fault == "none")
