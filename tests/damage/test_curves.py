"""Curves of known shape are found again, from any start; weights say which it was."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.damage.curves import MODELS, N_PARAMETERS, akaike_weights, fit_curves, shape_of

X = 2000.0 * np.arange(1, 25)
TRUE = 20000.0
SHAPES = {
    "exponential": (1.0, 0.0), "linear": (1.0, 0.0), "latency": (1.0, 0.3), "stretched": (0.55, 0.0),
    "avrami": (2.0, 0.0),
}  # fmt: skip


def signal(kind: str, offset: float = 0.0, amplitude: float = 1.3) -> np.ndarray:
    return amplitude * ((1 - offset) * shape_of(kind, X / TRUE, *SHAPES[kind]) + offset)


@pytest.mark.parametrize("kind", SHAPES)
def test_an_exact_curve_is_recovered(kind) -> None:
    fits = fit_curves(X, signal(kind)[None], np.full(len(X), 0.01))
    m = MODELS.index(kind)
    assert fits.critical[m, 0] == pytest.approx(TRUE, rel=2e-3) and fits.amplitude[m, 0] == pytest.approx(1.3, rel=2e-3)
    assert fits.chi2[m, 0] < 0.05 and np.allclose(fits.at(X)[m, 0], signal(kind), atol=2e-3)
    assert fits.chi2[0, 0] > 1000  # no change at all


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_start_at_one_and_reach_one_over_e(kind) -> None:
    assert shape_of(kind, np.array([0.0, 1.0]), *SHAPES[kind]) == pytest.approx([1.0, np.exp(-1)])


def test_a_residue_moves_the_point_of_one_over_e_and_may_put_it_out_of_reach() -> None:
    sigma, m = np.full(len(X), 0.01), MODELS.index("exponential+offset")
    some = fit_curves(X, signal("exponential", 0.2)[None], sigma)
    assert some.offset[m, 0] == pytest.approx(0.2, abs=0.005)
    z = -np.log((np.exp(-1) - 0.2) / 0.8)
    assert some.critical[m, 0] == pytest.approx(z * TRUE, rel=0.01)
    much = fit_curves(X, signal("exponential", 0.6)[None], sigma)
    assert np.isinf(much.critical[m, 0]) and np.isinf(much.half[m, 0]) and much.rate()[m, 0] == 0


def test_growth_is_no_loss() -> None:
    grown = 1.5 - 0.5 * np.exp(-X / 15000)
    fits = fit_curves(X, grown[None], np.full(len(X), 0.005))
    m = MODELS.index("exponential+offset")
    assert fits.chi2[m, 0] < 1 and fits.offset[m, 0] == pytest.approx(1.5, abs=0.02) and fits.rate()[m, 0] < 0
    assert fits.rate()[MODELS.index("exponential"), 0] < 0 and np.isinf(fits.critical[m, 0])


def test_many_signals_are_fitted_as_each_alone() -> None:
    random = np.random.default_rng(1)
    y = np.stack([signal(k) for k in SHAPES]) + random.normal(0, 0.02, (len(SHAPES), len(X)))
    together = fit_curves(X, y, np.full(len(X), 0.02))
    for i in range(len(y)):
        alone = fit_curves(X, y[i : i + 1], np.full(len(X), 0.02))
        assert np.allclose(together.chi2[:, i], alone.chi2[:, 0], rtol=1e-9)


@pytest.mark.parametrize("kind", SHAPES)
def test_weights_name_the_right_curve(kind) -> None:
    random, right = np.random.default_rng(5), 0
    for _ in range(20):
        y = signal(kind) + random.normal(0, 0.01, len(X))
        aicc, weight = akaike_weights(fit_curves(X, y[None], np.full(len(X), 0.01)).chi2, len(X))
        assert weight.sum() == pytest.approx(1)
        right += MODELS[int(aicc[:, 0].argmin())].startswith(kind)
    assert right >= 14


def test_small_samples_leave_out_what_they_cannot_fix() -> None:
    fits = fit_curves(X[:4], signal("exponential")[None, :4], np.full(4, 0.01))
    aicc, _ = akaike_weights(fits.chi2, 4)
    assert np.all(np.isinf(aicc[N_PARAMETERS >= 3])) and np.isfinite(aicc[:2]).all()
    three, _ = akaike_weights(fit_curves(X[:3], signal("exponential")[None, :3], np.full(3, 0.01)).chi2, 3)
    assert np.isfinite(three[:2]).all()


def test_a_signal_of_nothing_has_no_loss() -> None:
    fits = fit_curves(X, np.zeros((1, len(X))), np.full(len(X), 0.1))
    assert np.isfinite(fits.chi2[0, 0]) and fits.amplitude[0, 0] == 0
