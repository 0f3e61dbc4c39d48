"""The bound of a pair against a bound derived otherwise, its scaling with counts, and an estimator that reaches it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from atomdiffuser.evaluation.bound import affine_bound_px
from atomdiffuser.simulation.drift_bound import pair_bound, pair_bound_px

SHAPE = (80, 110)


def image(width_px: float = 2.0) -> np.ndarray:
    """Random structure around 30 electrons that ends well inside the frame."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    inside = np.minimum.reduce([y, x, SHAPE[0] - 1 - y, SHAPE[1] - 1 - x]) > 14
    noise = gaussian_filter(np.random.default_rng(1).normal(size=SHAPE) * inside, width_px)
    return 30 + 12 * noise / noise.std()


def test_two_undamaged_frames_of_known_decay_have_the_sum_of_both_frames_bounds() -> None:
    expected = image(4.0).clip(1)  # wide enough for that bound's slopes, which are differences of pixels
    assert pair_bound_px(expected, expected, np.eye(3), nodes=0) == pytest.approx(
        affine_bound_px(expected, expected), rel=0.03
    )


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
