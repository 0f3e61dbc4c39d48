"""The bound of a pair against a bound derived otherwise, its scaling with counts, and an estimator that reaches it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from atomdiffuser import geometry
from atomdiffuser.simulation.drift_bound import pair_bound, pair_bound_px

SHAPE = (80, 110)


def image(width_px: float = 2.0) -> np.ndarray:
    """Random structure around 30 electrons that ends well inside the frame."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    inside = np.minimum.reduce([y, x, SHAPE[0] - 1 - y, SHAPE[1] - 1 - x]) > 14
    noise = gaussian_filter(np.random.default_rng(1).normal(size=SHAPE) * inside, width_px)
    return 30 + 12 * noise / noise.std()


def one_frames_bound_px(expected: np.ndarray) -> float:
    """Of an affine against a specimen that is known, from differences between pixels, its rim left out."""
    points = geometry.pixel_grid(SHAPE).numpy()
    columns = np.concatenate([points, np.ones((*SHAPE, 1))], axis=-1)
    jacobian = np.concatenate([slope[..., None] * columns for slope in np.gradient(expected)], axis=-1)[8:-8, 8:-8]
    jacobian = jacobian.reshape(-1, 6)
    covariance = np.linalg.inv(jacobian.T @ (jacobian / expected[8:-8, 8:-8].reshape(-1, 1)))
    return float(geometry.displacement_sigma_px(torch.as_tensor(covariance), SHAPE))


def test_a_wave_is_as_well_known_as_its_slopes_say() -> None:
    """σ² = noise / Σ slope², twice (two frames), along either axis; six numbers of equal weight."""
    y, x = np.mgrid[:64, :96]
    wave = 100 + 40 * np.sin(2 * np.pi * x / 12) + 40 * np.sin(2 * np.pi * y / 12)
    slope = 40 * np.sqrt(0.5) * 2 * np.pi / 12
    shift_px = np.sqrt(2 * 100 / (wave.size * slope**2))
    bound = pair_bound_px(wave, wave, np.eye(3), nodes=0)
    # counts where it is steep are those of the mean; the linear numbers are known as the frame is long, evenly lit
    assert bound == pytest.approx(shift_px * np.sqrt(6), rel=0.15)
    assert pair_bound_px(4 * wave, 4 * wave, np.eye(3), nodes=0) == pytest.approx(bound / 2, rel=1e-6)


def test_two_undamaged_frames_of_known_decay_have_the_sum_of_both_frames_bounds() -> None:
    expected = image(4.0).clip(1)  # wide enough for that bound's slopes, which are differences of pixels
    both = np.sqrt(2) * one_frames_bound_px(expected)
    assert pair_bound_px(expected, expected, np.eye(3), nodes=0) == pytest.approx(both, rel=0.03)


def test_four_times_the_electrons_halve_it() -> None:
    expected = image().clip(1)
    ratio = pair_bound_px(expected, expected, np.eye(3)) / pair_bound_px(4 * expected, 4 * expected, np.eye(3))
    assert ratio == pytest.approx(2, rel=0.01)


def test_unknown_decay_and_faded_contrast_cost_precision() -> None:
    expected = image().clip(1)
    faded = expected.mean() + 0.5 * (expected - expected.mean())
    known, unknown = (pair_bound_px(expected, expected, np.eye(3), nodes=n) for n in (0, 8))
    assert known < unknown < 1.5 * known
    assert pair_bound_px(expected, faded, np.eye(3), 0.5) > 1.3 * unknown


def test_a_shift_fitted_by_weighted_least_squares_scatters_as_the_bound_says() -> None:
    """Translation alone, small, decay known: (m − r)·slope over the slope's information, 400 pairs."""
    expected, rng = image().clip(1), np.random.default_rng(2)
    slope = np.gradient(expected, axis=0)
    weight = 1 / (2 * expected)
    drawn = [(rng.poisson(expected) - rng.poisson(expected).astype(float)) for _ in range(400)]
    shifts = [(weight * slope * d).sum() / (weight * slope**2).sum() for d in drawn]
    covariance = pair_bound(expected, expected, np.eye(3), nodes=0)
    information = np.linalg.inv(covariance)  # of all six; of one number alone it is the diagonal's
    assert np.std(shifts) == pytest.approx(information[2, 2] ** -0.5, rel=0.12)
