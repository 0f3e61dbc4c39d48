import math

import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.model.losses import drift_likelihood, drift_loss, map_loss, search_loss
from atomdiffuser.model.shift_search import turned_about_centre

SHAPE = (64, 64)


def test_masked_pixels_do_not_count():
    value = torch.rand(2, 8, 8, requires_grad=True)
    log_sigma = torch.full((2, 8, 8), -2.0, requires_grad=True)
    truth, weight = torch.rand(2, 8, 8), torch.ones(2, 8, 8)
    weight[:, :4] = 0
    loss = map_loss(value, log_sigma, truth, weight)
    spoiled = truth.clone()
    spoiled[:, :4] = torch.nan
    other = map_loss(torch.where(weight > 0, value, 1e6), log_sigma, spoiled, weight)
    assert torch.equal(loss, other)
    other.backward()
    assert torch.equal(value.grad[:, :4], torch.zeros(2, 4, 8)) and torch.isfinite(value.grad).all()
    assert torch.equal(log_sigma.grad[:, :4], torch.zeros(2, 4, 8))
    assert value.grad[:, 4:].abs().min() > 0


def test_sigma_is_best_when_it_is_the_error():
    generator = torch.Generator().manual_seed(1)
    truth = torch.zeros(1, 100, 100)
    value = 0.05 * torch.randn(1, 100, 100, generator=generator)
    losses = {}
    for s in (0.02, 0.04, 0.05, 0.063, 0.12):
        log_sigma = torch.full_like(truth, math.log(s))
        losses[s] = float(map_loss(value, log_sigma, truth, torch.ones_like(truth), beta=0.0))
    assert min(losses, key=losses.get) == 0.05


@pytest.mark.parametrize(("beta", "times"), [(0.0, 1.0), (0.5, 10.0), (1.0, 100.0)])
def test_beta_says_how_much_more_doubtful_places_count(beta, times):
    """Errors of one σ each, where σ is 0.01 and 0.1: what moving by one σ would gain there."""
    log_sigma = torch.tensor([[[0.01, 0.1]]]).log()
    value = log_sigma.exp().requires_grad_()
    map_loss(value, log_sigma, torch.zeros_like(value), torch.ones_like(value), beta=beta).backward()
    gain = (value.grad * log_sigma.exp())[0, 0]
    assert float(gain[1] / gain[0]) == pytest.approx(times, rel=1e-4)
    assert float(gain.sum()) == pytest.approx(1.0, rel=1e-4)  # whatever the fluence, neither map outweighs the other


def test_drift_loss_measures_displacement():
    truth = geometry.translation(torch.tensor([[0.0, 0.3]], dtype=torch.float64))
    assert float(drift_loss(truth, truth, SHAPE, scale_px=0.1)) == pytest.approx(0.0, abs=0.02)
    still = torch.eye(3, dtype=torch.float64)[None]
    assert float(drift_loss(still, truth, SHAPE, scale_px=0.1)) == pytest.approx(math.log(4.0), abs=1e-3)


def test_information_is_best_when_it_is_the_errors_own():
    generator = torch.Generator().manual_seed(2)
    n, sigma = 500, 0.2
    velocity = sigma * torch.randn(n, 6, generator=generator, dtype=torch.float64)
    half, centre = 32.0, 31.5
    to_normalised = torch.tensor([[1 / half, 0, -centre / half], [0, 1 / half, -centre / half], [0, 0, 1]]).double()
    numbers = velocity.unflatten(1, (2, 3)) @ to_normalised
    truth = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    truth[:, :2] += numbers
    still = torch.eye(3, dtype=torch.float64).expand(n, 3, 3)
    losses = {}
    for s in (0.1, 0.17, 0.2, 0.24, 0.4):
        normal = (torch.eye(6).double() / s**2).expand(n, 6, 6)
        losses[s] = float(drift_likelihood(still, truth, normal, SHAPE).mean())
    assert min(losses, key=losses.get) == 0.2


def test_search_loss_points_at_the_true_turn_and_cell():
    turns, shape = (-2.0, 0.0, 2.0), (64, 64)
    odds = torch.zeros(1, 3, 11, 11)
    odds[0, 2, 7, 4] = 6.0  # +2°; cells of 2 px around (5, 5): a shift of (4, −2) px
    turned = turned_about_centre(torch.tensor([2.0]), shape)
    move = lambda y, x: geometry.translation(torch.tensor([[y, x]], dtype=torch.float64))
    loss = lambda truth: float(search_loss(odds, truth, turns, shape))
    assert loss(turned @ move(4.0, -2.0)) < 1.5
    assert loss(turned @ move(-2.0, 4.0)) > 5
    assert loss(move(4.0, -2.0)) > 5  # not turned
    assert loss(turned_about_centre(torch.tensor([-2.0]), shape) @ move(4.0, -2.0)) > 5
    assert loss(turned @ move(400.0, 0.0)) == 0.0
    half = turned_about_centre(torch.tensor([1.0]), shape) @ move(4.0, -2.0)
    assert loss(turned @ move(4.0, -2.0)) < loss(half) < 5  # shared among 0° and 2°
