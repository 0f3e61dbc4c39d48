"""Pairs of several specimens in one call: told apart, and each as right as when it comes alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomdiffuser import estimate_pairs, simulate_series
from atomdiffuser.errors import ShapeError
from atomdiffuser.estimation import frame_source
from atomdiffuser.estimation.alike import alike

SHAPE = (160, 176)


def series(seed: int, specimen: str = "SrTiO3", electrons_per_px: float = 20.0, **options) -> np.ndarray:
    options = dict(shape=SHAPE, drift_px_per_frame=1.5, rotation_deg_per_frame=0.1) | options
    drawn = simulate_series(specimen, n_frames=5, electrons_per_px=electrons_per_px, seed=seed, **options)
    return np.asarray(drawn.series.frames, dtype=np.float32)


@pytest.mark.parametrize("electrons_per_px", [3.0, 100.0])
def test_pairs_of_one_series_belong_together(electrons_per_px: float) -> None:
    frames = series(1, electrons_per_px=electrons_per_px, damage="holes", witness="both", fluence_per_frame=1000.0,
                    critical_fluence=4000.0)  # fmt: skip
    assert [g.tolist() for g in alike(frames[:-1], frames[1:])] == [[0, 1, 2, 3]]


def test_other_specimens_and_orientations_do_not() -> None:
    one, other, third = series(1), series(2), series(3, "Si")
    reference = np.stack([one[0], other[0], third[0], one[1], other[1]])
    moving = np.stack([one[1], other[1], third[1], one[2], other[2]])
    assert [g.tolist() for g in alike(reference, moving)] == [[0, 3], [1, 4], [2]]


def test_what_shows_nothing_goes_with_the_others() -> None:
    one, rng = series(1), np.random.default_rng(1)
    noise, blank = rng.poisson(5.0, (2, *SHAPE)).astype(np.float32), np.full((2, *SHAPE), np.nan, np.float32)
    reference, moving = (np.stack([noise[k], blank[k], one[k], one[k + 1]]) for k in (0, 1))
    assert [g.tolist() for g in alike(reference, moving)] == [[0, 1, 2, 3]]
    assert [g.tolist() for g in alike(reference[2:], moving[2:])] == [[0, 1]]


def test_pairs_of_several_specimens_are_as_right_together_as_alone() -> None:
    """In a common spectrum of many orientations no lattice is left, and pairs were put a lattice vector off."""
    drawn = [series(seed, shape=(256, 256), vacancies=0.04) for seed in range(6)]
    reference, moving = (np.stack([frames[k] for frames in drawn]) for k in (0, 1))
    together = estimate_pairs(reference, moving, predict=False, maps=False)
    for k in range(len(drawn)):
        alone = estimate_pairs(reference[k], moving[k], predict=False, maps=False)
        assert alone.valid[0] and not alone.ambiguous[0]
        np.testing.assert_allclose(together.moving_from_reference[k], alone.moving_from_reference[0], atol=0.02)
        assert together.valid[k] and not together.ambiguous[k]


def test_batches_of_several_specimens_by_threads_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One specimen is measured while the pairs of another are fitted."""
    stacks, blank = [series(k, s) for k, s in ((1, "SrTiO3"), (2, "SrTiO3"), (3, "Si"))], np.zeros((1, *SHAPE))
    reference = np.concatenate([*(stack[:-1] for stack in stacks), blank]).astype(np.float32)
    moving = np.concatenate([*(stack[1:] for stack in stacks), blank]).astype(np.float32)
    estimate = lambda: estimate_pairs(reference, moving, predict=False, maps=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = estimate()
        torch.set_num_threads(3)
        monkeypatch.setattr(frame_source, "CPU_TOGETHER_PX", 6 * SHAPE[0] * SHAPE[1])
        assert frame_source.shares(SHAPE, torch.device("cpu")) == (3, 2)
        together = estimate()
    finally:
        torch.set_num_threads(before)
    assert alone.valid[:-1].all() and not alone.valid[-1] and together.reason == alone.reason
    assert np.allclose(together.moving_from_reference, alone.moving_from_reference, atol=1e-5, equal_nan=True)


def test_results_stand_in_the_order_of_the_pairs() -> None:
    one, other = series(1), series(2)
    blank = np.zeros(SHAPE, np.float32)
    reference, moving = np.stack([one[0], other[0], blank, one[1]]), np.stack([one[1], other[1], blank, one[2]])
    times = np.arange(8.0).reshape(4, 2)
    found = estimate_pairs(reference, moving, predict=False, time=times)
    assert found.valid.tolist() == [True, True, False, True] and "blank" in found.reason[2]
    backwards = estimate_pairs(reference[::-1], moving[::-1], predict=False, time=times[::-1])
    np.testing.assert_allclose(backwards.moving_from_reference[::-1], found.moving_from_reference, atol=1e-3)
    np.testing.assert_allclose(backwards.contrast[::-1], found.contrast, atol=1e-3)


def test_frames_too_small_to_be_judged_are_refused_with_a_reason() -> None:
    tiny = np.ones((3, 6, 6), np.float32)
    with pytest.raises(ShapeError, match="too small"):
        estimate_pairs(tiny, tiny, predict=False)
