"""Decay curves: critical fluence with an interval that holds, bounds that hold, and what cannot be fitted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from atomdiffuser.damage.kinetics import _best_rate, fit_exponential, onset_frame

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


def textbook(x, y, sigma) -> dict[str, float]:
    """The same numbers step by step: linear least squares at each rate, F test, profile of χ², AICc."""
    n, span = len(x), x.max() - x.min()

    def chi2(rate: float) -> float:
        design = (np.exp(-rate * (x - x[0])) / sigma)[:, None]
        return float(np.sum((design @ np.linalg.lstsq(design, y / sigma, rcond=None)[0] - y / sigma) ** 2))

    tried = np.linspace(-5, 20, 5001) / span
    start = tried[np.argmin([chi2(r) for r in tried])]
    rate = scipy.optimize.minimize_scalar(chi2, bracket=(start - 0.01 / span, start + 0.01 / span), tol=1e-12).x
    scatter = max(1.0, chi2(rate) / (n - 2))
    edge = {}
    for side, share in (("two", 0.975), ("one", 0.95)):
        level = chi2(rate) + scatter * scipy.stats.t.ppf(share, n - 2) ** 2
        for sign in (-1, 1):
            reach = next((r for r in rate + sign * np.geomspace(0.01, 50, 40) / span if chi2(r) > level), np.inf * sign)
            if np.isfinite(reach):
                reach = scipy.optimize.brentq(lambda r, level=level: chi2(r) - level, rate, reach)
            edge[side, sign] = reach
    correction = lambda k: 2 * k * (k + 1) / (n - k - 1) if n > 3 else 0.0
    return {
        "rate": rate, "rate_lo95": edge["two", -1], "rate_hi95": edge["two", 1], "bound": 1 / edge["one", 1],
        "aicc": chi2(rate) / scatter + 2 * 2 + correction(2), "aicc_constant": chi2(0) / scatter + 2 + correction(1),
        "p_value": scipy.stats.f.sf((chi2(0) - chi2(rate)) / scatter, 1, n - 2), "span": span, "n_frames": n,
    }  # fmt: skip


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("n", "critical"), [(3, 0.4), (4, 1.0), (9, 0.8), (12, 20.0)])
def test_every_number_is_that_of_the_textbook(n, critical, noise) -> None:
    rng = np.random.default_rng(5)
    x = np.sort(rng.uniform(2.0, 3.0, n))
    sigma = rng.uniform(0.01, 0.05, n)  # of its own for every frame, and once larger, once smaller than claimed
    y = 3 * np.exp(-x / critical) * 10 + rng.normal(0, noise * sigma)
    fit, expected = fit_exponential(x, y, sigma), textbook(x, y, sigma)
    bound = expected.pop("bound")
    found = dataclasses.asdict(fit)
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert fit.model == ("exponential" if expected["aicc"] < expected["aicc_constant"] else "constant")
    assert fit.lower_bound == (expected["rate_lo95"] <= 0 or expected["span"] * expected["rate"] < 0.3)
    number = (1 / expected["rate"], 1 / expected["rate_hi95"], 1 / expected["rate_lo95"])
    given = (fit.critical_fluence, fit.critical_fluence_lo95, fit.critical_fluence_hi95)
    assert given == pytest.approx((bound, bound, np.inf) if fit.lower_bound else number, rel=1e-5)


@pytest.mark.parametrize(("share", "known"), [(0.31, True), (0.29, False)])
def test_a_series_must_span_three_tenths_of_the_critical_fluence_it_states(share, known) -> None:
    y, sigma = np.exp(-X * share / SPAN), np.full(len(X), 1e-4)
    assert fit_exponential(X, y, sigma).lower_bound is not known
    assert fit_exponential(X, y, sigma, min_span_of_critical=0.28).lower_bound is False


@pytest.mark.parametrize("rate", [-18.0, -5.0, -0.1, -0.002, 0.0, 0.002, 0.1, 3.0, 45.0])
def test_the_best_rate_is_found_wherever_it_is(rate) -> None:
    width = max(0.15 * abs(rate), 3e-4)
    found = _best_rate(lambda r: -np.exp(-(((r - rate) / width) ** 2)) - 0.1 * np.exp(-((r - 0.5) ** 2)))
    assert found == pytest.approx(rate, abs=0.02 * width)


@pytest.mark.statistics
@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_intervals_hold_the_truth_in_95_of_100_curves(noise) -> None:
    """200 curves. Intervals are a little wide, since an estimated scatter may widen them and never narrows them."""
    critical = 0.8 * SPAN
    fits = curves(200, critical, noise, seed=4)
    held = np.mean([f.critical_fluence_lo95 <= critical <= f.critical_fluence_hi95 for f in fits])
    assert 0.92 <= held <= 0.995 and not any(f.lower_bound for f in fits)
    assert np.median([f.critical_fluence for f in fits]) == pytest.approx(critical, rel=0.03)


@pytest.mark.statistics
def test_intervals_hold_when_the_scatter_is_larger_than_claimed() -> None:
    """A beam that fluctuates by twice the shot noise: σ is widened by what is seen."""
    rng, critical = np.random.default_rng(6), 0.8 * SPAN
    fits = [
        fit_exponential(X, np.exp(-X / critical) + rng.normal(0, 0.06, len(X)), np.full(len(X), 0.03))
        for _ in range(150)
    ]
    assert np.mean([f.critical_fluence_lo95 <= critical <= f.critical_fluence_hi95 for f in fits]) >= 0.91


@pytest.mark.statistics
@pytest.mark.parametrize("spans", [5.0, 30.0])
def test_lower_bounds_hold_in_95_of_100_curves(spans) -> None:
    """A series that ends long before 1/e gives a bound; it is below the truth, and not by much more than it must."""
    critical = spans * SPAN
    fits = curves(200, critical, 0.03, seed=5)
    assert all(f.lower_bound and np.isinf(f.critical_fluence_hi95) for f in fits)
    assert np.mean([f.critical_fluence <= critical for f in fits]) >= 0.95
    assert np.median([f.critical_fluence for f in fits]) > min(0.4 * critical, 5 * SPAN)
    assert all(f.critical_fluence == f.critical_fluence_lo95 for f in fits)


@pytest.mark.statistics
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


@pytest.mark.statistics
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
    span = float(np.ptp(good)) if (good := [a for a, b in zip(x, y, strict=True) if np.isfinite(b)]) else 0.0
    nan, inf = np.nan, np.inf
    expected = ("none", nan, nan, nan, 0.0, 0.0, inf, True, nan, nan, nan, span, len(good))
    np.testing.assert_equal(dataclasses.astuple(fit), expected)


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


@pytest.mark.statistics
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


def test_onset_takes_holms_steps_one_after_the_other() -> None:
    def of(*p: float) -> int:
        deviation = -scipy.special.ndtri(np.array(p) / 2)
        return onset_frame(1 + 0.01 * deviation, np.full(len(p), 0.01), 10 + np.arange(len(p)))

    assert of(0.03, 0.02) == 10  # 0.02 ≤ 0.05/2, then 0.03 ≤ 0.05
    assert of(0.06, 0.02) == 11  # 0.06 > 0.05
    assert of(0.03, 0.06) == -1  # 0.03 > 0.05/2: nothing after it counts
    assert of(0.9, 0.015, 0.04, 0.02) == -1
    assert of(0.9, 0.012, 0.04, 0.016) == 11
