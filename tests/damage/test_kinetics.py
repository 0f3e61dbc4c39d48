"""Decay curves: critical fluence with an interval that holds, bounds that hold, and what cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.damage.kinetics import fit_exponential, onset_frame

X = 1000.0 * np.arange(1, 11)
SPAN = float(np.ptp(X))


def curves(n: int, critical: float, noise: float, seed: int, x=X, amplitude: float = 1.0):
    rng = np.random.default_rng(seed)
    sigma = np.full(len(x), noise)
    return [fit_exponential(x, amplitude * np.exp(-x / critical) + rng.normal(0, sigma), sigma) for _ in range(n)]


def test_an_exact_exponential_is_recovered() -> None:
    fit = fit_exponential(X, 7.0 * np.exp(-X / 4321.0), np.full(len(X), 1e-6))
    assert fit.critical_fluence == pytest.approx(4321.0, rel=1e-5) and fit.rate == pytest.approx(1 / 4321.0, rel=1e-5)
    assert fit.critical_fluence_lo95 < 4321.0 < fit.critical_fluence_hi95 and not fit.lower_bound
    assert fit.model == "exponential" and fit.p_value < 1e-6 and fit.span == SPAN and fit.n_frames == 10


def test_the_critical_fluence_is_where_the_signal_has_fallen_to_one_over_e() -> None:
    fit = fit_exponential(np.array([0.0, 1, 2, 3]), np.array([1, 0.5, 0.25, 0.125]), np.full(4, 1e-4))
    assert fit.critical_fluence == pytest.approx(1 / np.log(2), rel=1e-3)


@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_intervals_hold_the_truth_in_95_of_100_curves(noise) -> None:
    """200 curves. Intervals are a little wide, since an estimated scatter may widen them and never narrows them."""
    critical = 0.8 * SPAN
    fits = curves(200, critical, noise, seed=4)
    held = np.mean([f.critical_fluence_lo95 <= critical <= f.critical_fluence_hi95 for f in fits])
    assert 0.92 <= held <= 0.995 and not any(f.lower_bound for f in fits)
    assert np.median([f.critical_fluence for f in fits]) == pytest.approx(critical, rel=0.03)


def test_intervals_hold_when_the_scatter_is_larger_than_claimed() -> None:
    """A beam that fluctuates by twice the shot noise: σ is widened by what is seen."""
    rng, critical = np.random.default_rng(6), 0.8 * SPAN
    fits = [
        fit_exponential(X, np.exp(-X / critical) + rng.normal(0, 0.06, len(X)), np.full(len(X), 0.03))
        for _ in range(150)
    ]
    assert np.mean([f.critical_fluence_lo95 <= critical <= f.critical_fluence_hi95 for f in fits]) >= 0.91


@pytest.mark.parametrize("spans", [5.0, 30.0])
def test_lower_bounds_hold_in_95_of_100_curves(spans) -> None:
    """A series that ends long before 1/e gives a bound; it is below the truth, and not by much more than it must."""
    critical = spans * SPAN
    fits = curves(200, critical, 0.03, seed=5)
    assert all(f.lower_bound and np.isinf(f.critical_fluence_hi95) for f in fits)
    assert np.mean([f.critical_fluence <= critical for f in fits]) >= 0.95
    assert np.median([f.critical_fluence for f in fits]) > min(0.4 * critical, 5 * SPAN)
    assert all(f.critical_fluence == f.critical_fluence_lo95 for f in fits)


def test_numbers_and_bounds_together_are_wrong_in_no_more_than_5_of_100() -> None:
    """At the border between the two, where noise decides which is given."""
    critical = 3.2 * SPAN
    fits = curves(200, critical, 0.04, seed=9)
    assert 0.1 < np.mean([f.lower_bound for f in fits]) < 0.9
    wrong = [
        f.critical_fluence > critical
        if f.lower_bound
        else not f.critical_fluence_lo95 <= critical <= f.critical_fluence_hi95
        for f in fits
    ]
    assert np.mean(wrong) <= 0.05


def test_no_change_is_called_constant() -> None:
    fits = curves(200, 1e12, 0.03, seed=1)
    assert np.mean([f.model == "constant" for f in fits]) > 0.85 and np.mean([f.p_value < 0.05 for f in fits]) < 0.07
    assert all(f.lower_bound for f in fits)


def test_growth_has_a_negative_rate_and_no_critical_fluence() -> None:
    fit = fit_exponential(X, np.exp(X / 5000.0), np.full(len(X), 0.02))
    assert fit.rate == pytest.approx(-1 / 5000.0, rel=0.01) and fit.rate_lo95 < fit.rate < fit.rate_hi95 < 0
    assert fit.lower_bound and fit.critical_fluence == np.inf and fit.model == "exponential"


def test_scale_and_units_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    y = np.exp(-X / 6000) + rng.normal(0, 0.02, len(X))
    plain = fit_exponential(X, y, np.full(len(X), 0.02))
    other = fit_exponential(X * 1e-6, y * 300, np.full(len(X), 6.0))
    assert other.critical_fluence == pytest.approx(1e-6 * plain.critical_fluence, rel=1e-6)
    assert other.critical_fluence_hi95 == pytest.approx(1e-6 * plain.critical_fluence_hi95, rel=1e-6)
    assert other.p_value == pytest.approx(plain.p_value, rel=1e-6)


def test_gaps_are_left_out() -> None:
    y, sigma = np.exp(-X / 6000), np.full(len(X), 0.02)
    y[3], sigma[5], sigma[6] = np.nan, np.nan, 0.0
    fit = fit_exponential(X, y, sigma)
    assert fit.n_frames == 7 and fit.critical_fluence == pytest.approx(6000, rel=1e-3)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2], [1, 0.5]), ([], []), ([2, 2, 2], [1, 1, 1]), ([1, 2, 3], [1, np.nan, 0.5]), ([1, 2, 3], [np.nan] * 3)],
)
def test_too_few_points_give_no_curve_and_no_bound(x, y) -> None:
    fit = fit_exponential(np.array(x, float), np.array(y, float), np.full(len(x), 0.1))
    assert fit.model == "none" and fit.lower_bound and fit.critical_fluence == 0 and np.isinf(fit.critical_fluence_hi95)
    assert np.isnan(fit.p_value) and np.isnan(fit.rate)


def test_a_signal_that_is_gone_at_once_or_never_there() -> None:
    gone = fit_exponential(X, np.r_[1.0, np.zeros(9)], np.full(10, 0.01))
    assert 0 < gone.critical_fluence < 500 and not gone.lower_bound
    nothing = fit_exponential(X, np.zeros(10), np.full(10, 0.01))
    assert nothing.lower_bound and nothing.model == "constant" and nothing.critical_fluence == 0


def test_model_and_number_agree_for_three_frames() -> None:
    fit = fit_exponential(np.array([1.0, 2, 3]), np.exp(-np.array([1.0, 2, 3])), np.full(3, 1e-3))
    assert not fit.lower_bound and fit.p_value < 0.05
    assert fit.model == "exponential"


# --- onset ----------------------------------------------------------------------------------------


def ratios(amplitude: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Ratios to the first frame, whose noise they share."""
    ratio = amplitude / amplitude[0]
    sigma = ratio * np.hypot(noise / amplitude, noise / amplitude[0])
    sigma[0] = 0
    return ratio, sigma


@pytest.mark.parametrize("n", [3, 10, 25])
def test_onset_is_seen_where_nothing_happens_in_5_of_100(n) -> None:
    rng = np.random.default_rng(8)
    seen = [onset_frame(*ratios(1 + rng.normal(0, 0.03, n), 0.03), np.arange(n)) >= 0 for _ in range(600)]
    assert np.mean(seen) <= 0.07  # 25 frames tested one by one would give 30 of 100


def test_onset_is_the_first_frame_that_differs_in_either_direction() -> None:
    sigma, frames = np.r_[0, np.full(5, 0.01)], np.array([2, 3, 5, 6, 7, 8])
    assert onset_frame(np.array([1, 1.0, 1.0, 0.9, 0.8, 0.7]), sigma, frames) == 6
    assert onset_frame(np.array([1, 1.0, 1.1, 1.2, 1.2, 1.2]), sigma, frames) == 5
    assert onset_frame(np.ones(6), sigma, frames) == -1
    assert onset_frame(np.array([1, 0.5, 0.5, 0.5, 0.5, 0.5]), sigma, frames) == 3


def test_onset_without_values() -> None:
    assert onset_frame(np.full(3, np.nan), np.ones(3), np.arange(3)) == -1
    assert onset_frame(np.array([1.0]), np.array([0.0]), np.array([0])) == -1
    assert onset_frame(np.array([1, np.nan, 0.5]), np.array([0, 0.01, 0.01]), np.arange(3)) == 2
