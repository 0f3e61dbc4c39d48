"""estimate_pairs as a user calls it: any dtype, one pair or many, states in between, and frames that hold nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, error_px, pairs, rms, series

from atomdiffuser import estimate_pairs
from atomdiffuser.config import RegisterSettings
from atomdiffuser.errors import ShapeError

TWO = dict(n_frames=2, drift_px_per_frame=(3.0, -2.0), random_walk_px=0)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return series(**TWO).series.frames


@pytest.fixture(scope="module")
def plain(frames):
    return estimate_pairs(frames[0], frames[1])


@pytest.fixture(scope="module")
def mixed(frames):
    """A good pair and one whose moving frame is blank."""
    return estimate_pairs(np.stack([frames[0]] * 2), np.stack([frames[1], np.zeros_like(frames[0])]))


def test_a_point_that_moved_down_and_left_is_found_there(plain) -> None:
    assert plain.valid.tolist() == [True] and plain.reason == [""]
    assert plain.moving_from_reference[0, :2, 2] == pytest.approx([3, -2], abs=0.5)
    error = error_px(plain.moving_from_reference, series(**TWO).frame_from_reference[1:])[0]
    assert error < 4 * plain.displacement_sigma_px[0] < 0.4  # doing nothing errs by 3.6


def test_shapes_and_dtypes_of_results(plain) -> None:
    assert plain.moving_from_reference.shape == (1, 3, 3) and plain.moving_from_reference.dtype == np.float64
    assert plain.affine_covariance.shape == (1, 6, 6) and np.linalg.eigvalsh(plain.affine_covariance[0]).min() > 0
    for name in ("intensity", "contrast", "intensity_sigma", "contrast_sigma"):
        assert getattr(plain, name).shape == (1, *SHAPE) and getattr(plain, name).dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int32", "float32", ">f4", "float64"])
def test_all_dtypes_and_byte_orders_give_the_same(frames, plain, dtype) -> None:
    found = estimate_pairs(frames[0].astype(dtype), frames[1].astype(dtype))
    assert error_px(found.moving_from_reference, plain.moving_from_reference)[0] < 1e-5
    assert np.nanmax(np.abs(found.contrast - plain.contrast)) < 1e-4


def test_inputs_are_left_alone(frames) -> None:
    reference, moving = frames[0].astype(np.float32), frames[1].astype(np.float32)
    reference[5, 5] = np.nan
    before = reference.copy(), moving.copy()
    estimate_pairs(reference, moving, dark_level=3.0, maps=False)
    assert np.array_equal(reference, before[0], equal_nan=True) and np.array_equal(moving, before[1])


def test_one_pair_and_a_batch_of_pairs_agree(frames, plain) -> None:
    both = estimate_pairs(np.stack([frames[0], frames[0]]), np.stack([frames[1], frames[1]]))
    found, alone = both.moving_from_reference, np.repeat(plain.moving_from_reference, 2, 0)
    assert error_px(found, alone).max() < RegisterSettings.tolerance_px and error_px(found[:1], found[1:])[0] < 1e-6
    assert np.nanmax(np.abs(both.intensity - plain.intensity)) < 1e-4


def test_without_maps_the_drift_is_the_same(frames, plain) -> None:
    found = estimate_pairs(frames[0], frames[1], maps=False)
    assert found.intensity is None and found.contrast_sigma is None
    assert np.array_equal(found.moving_from_reference, plain.moving_from_reference)


def test_dark_level_and_gain_are_taken_out(frames, plain) -> None:
    """Twenty counts an electron on a dark level of 300: the same drift, the same σ, the same ratios."""
    found = estimate_pairs(*(20.0 * f + 300 for f in frames), dark_level=300.0, gain_e=1 / 20)
    assert error_px(found.moving_from_reference, plain.moving_from_reference)[0] < 1e-4
    assert found.displacement_sigma_px == pytest.approx(plain.displacement_sigma_px, rel=1e-4)
    assert np.nanmax(np.abs(found.intensity - plain.intensity)) < 1e-4


def test_a_dark_level_that_is_forgotten_hides_the_loss() -> None:
    s = series(**TWO, witness="both", critical_fluence=12000.0)
    bright = s.series.frames.astype(float) + 60
    right, wrong = (estimate_pairs(bright[0], bright[1], dark_level=d) for d in (60.0, 0.0))
    true = s.intensity[1].mean()
    assert np.nanmean(right.intensity) == pytest.approx(true, abs=0.01) and np.nanmean(wrong.intensity) > true + 0.1


def test_an_unknown_gain_is_measured(frames, plain) -> None:
    found = estimate_pairs(*(20.0 * f for f in frames), gain_e=None)
    assert found.displacement_sigma_px == pytest.approx(plain.displacement_sigma_px, rel=0.1)


@pytest.mark.parametrize(
    ("reference", "moving", "reason"),
    [
        ("good", "zero", "blank: every pixel is 0"),
        ("zero", "good", "blank: every pixel is 0"),
        ("nan", "good", "no finite pixel"),
    ],
)
def test_blank_frames_are_flagged_and_nothing_is_invented(frames, reference, moving, reason) -> None:
    images = {"good": frames[0].astype(float), "zero": np.zeros(SHAPE, np.uint16), "nan": np.full(SHAPE, np.nan)}
    found = estimate_pairs(images[reference], images[moving])
    assert not found.valid[0] and found.reason == [reason]
    for name in ("moving_from_reference", "affine_covariance", "displacement_sigma_px", "intensity", "contrast"):
        assert np.isnan(getattr(found, name)).all(), name


def test_featureless_frames_are_flagged_and_nothing_is_invented(rng) -> None:
    """Noise alone, and noise on a smooth slope: six pairs each."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for mean in (np.full(SHAPE, 20.0), 40 + 10 * np.sin(x / 40) + 5 * np.cos(y / 30)):
        found = estimate_pairs(rng.poisson(mean, (6, *SHAPE)), rng.poisson(mean, (6, *SHAPE)))
        assert not found.valid.any() and np.isnan(found.moving_from_reference).all() and np.isnan(found.contrast).all()
        assert set(found.reason) == {"no common structure above the noise"}


def test_a_bad_pair_does_not_disturb_its_neighbour(mixed, plain) -> None:
    assert mixed.valid.tolist() == [True, False]
    assert error_px(mixed.moving_from_reference[:1], plain.moving_from_reference)[0] < 0.02


def test_maps_are_nan_outside_the_overlap(plain) -> None:
    """The sample moved 3 px down and 2 px left: the reference's last rows and first columns went out."""
    for name in ("intensity", "contrast", "intensity_sigma", "contrast_sigma"):
        image = getattr(plain, name)[0]
        assert np.isnan(image[-3:]).all() and np.isnan(image[:, :2]).all(), name
        assert np.isfinite(image[20:-20, 20:-20]).all(), name


# --- states in between ----------------------------------------------------------------------------


def test_nothing_has_happened_at_zero_and_everything_at_one(plain) -> None:
    states = plain.at([0.0, 1.0])
    assert np.array_equal(states.moving_from_reference[0, 0], np.eye(3))
    known = np.isfinite(plain.intensity)
    assert np.all(states.intensity[0][known] == 1) and np.all(states.contrast[0][known] == 1)
    assert np.allclose(states.moving_from_reference[1], plain.moving_from_reference, atol=1e-12)
    assert np.allclose(states.contrast[1], np.clip(plain.contrast, 0, None), equal_nan=True)


def test_steps_compose(plain) -> None:
    states = plain.at([0.3, 0.5, 0.8])
    a, b, c = states.moving_from_reference[:, 0]
    assert np.allclose(b @ a, c, atol=1e-10)
    assert np.allclose(states.contrast[0] * states.contrast[1], states.contrast[2], rtol=1e-4, equal_nan=True)
    blend = lambda t: np.eye(3) + t * (plain.moving_from_reference[0] - np.eye(3))
    turned = estimate_like(plain, np.deg2rad(20))
    half = turned.at(0.5).moving_from_reference[0, 0]
    assert np.allclose(half @ half, turned.moving_from_reference[0]) and not np.allclose(
        ((np.eye(3) + turned.moving_from_reference[0]) / 2) @ ((np.eye(3) + turned.moving_from_reference[0]) / 2),
        turned.moving_from_reference[0], atol=1e-3,
    )  # fmt: skip
    assert np.allclose(blend(1.0), plain.moving_from_reference[0])


def estimate_like(plain, angle: float):
    import dataclasses

    affine = np.array([[np.cos(angle), -np.sin(angle), 3.0], [np.sin(angle), np.cos(angle), -2.0], [0, 0, 1]])
    return dataclasses.replace(plain, moving_from_reference=affine[None])


def test_time_outside_the_pair_is_refused(plain) -> None:
    for tau in (-0.1, 1.1, [0.5, 2.0]):
        with pytest.raises(ValueError, match="expected values from 0 to 1"):
            plain.at(tau)


def test_states_without_maps(frames) -> None:
    state = estimate_pairs(frames[0], frames[1], maps=False).at(0.5)
    assert state.intensity is None and state.moving_from_reference.shape == (1, 1, 3, 3)


def test_states_of_a_failed_pair_are_unknown(mixed) -> None:
    states = mixed.at([0.0, 0.5, 1.0])
    assert np.isnan(states.moving_from_reference[:, 1]).all() and np.isnan(states.intensity[1:, 1]).all()


def test_what_is_unknown_stays_unknown_at_zero(mixed) -> None:
    start = mixed.at(0.0)
    assert np.isnan(start.intensity[0, 1]).all()
    assert np.array_equal(np.isnan(start.contrast[0, 0]), np.isnan(mixed.contrast[0]))


# --- refusals and machines ------------------------------------------------------------------------


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"reference has shape \(2, 30, 40\) and moving \(3, 30, 40\), expected two equal"
    ):
        estimate_pairs(np.zeros((2, 30, 40)), np.zeros((3, 30, 40)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused(frames) -> None:
    with pytest.raises(ValueError, match="device is 'cuda', but no CUDA GPU is visible; use 'auto' or 'cpu'"):
        estimate_pairs(frames[0], frames[1], device="cuda")


def test_results_do_not_depend_on_the_number_of_threads(frames, plain) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if before != 3 else 2)
        found = estimate_pairs(frames[0], frames[1])
    finally:
        torch.set_num_threads(before)
    assert np.allclose(found.moving_from_reference, plain.moving_from_reference, rtol=0, atol=1e-6)
    assert np.nanmax(np.abs(found.contrast - plain.contrast)) < 1e-6


def test_results_do_not_depend_on_the_batch(monkeypatch) -> None:
    batch = pairs(4)
    together = estimate_pairs(batch.reference.numpy(), batch.moving.numpy(), maps=False)
    monkeypatch.setattr("atomdiffuser.estimation.frame_source.CPU_BATCH_PX", 1)
    one_by_one = estimate_pairs(batch.reference.numpy(), batch.moving.numpy(), maps=False)
    apart = error_px(together.moving_from_reference, one_by_one.moving_from_reference)
    assert apart.max() < 1e-5 and rms(apart) < 1e-5  # far below the fit's own tolerance of 1e-3 px
    assert together.hop_probability == pytest.approx(one_by_one.hop_probability, abs=1e-4)


def test_a_longer_drift_than_allowed_is_not_returned(frames) -> None:
    found = estimate_pairs(frames[0], np.roll(frames[1], (0, 25), (0, 1)), max_drift_px=10.0, maps=False)
    assert not found.valid[0] or np.linalg.norm(found.moving_from_reference[0, :2, 2]) < 14
