import pytest
import torch

from atomdiffuser import geometry
from atomdiffuser.model.affine_fit import displacement_rms, fit_affine, motion_covariance

SHAPE = (96, 160)


@pytest.fixture
def points():
    y, x = torch.meshgrid(torch.arange(3.5, 96, 8), torch.arange(3.5, 160, 8), indexing="ij")
    return torch.stack([y, x], -1).flatten(0, 1).double()


def known_affine():
    return geometry.affine_from_parameters(torch.tensor([[1.01, -0.02, 3.0, 0.015, 0.99, -1.5]], dtype=torch.float64))


def displacements(points, affine):
    return geometry.apply_affine(affine[:, None], points[None]) - points


def test_recovers_a_known_affine(points):
    truth = known_affine()
    weights = torch.eye(2).double().expand(1, len(points), 2, 2)
    found, _ = fit_affine(points, displacements(points, truth), weights, SHAPE, prior=0.0)
    assert geometry.displacement_rms_px(found, truth, SHAPE) < 1e-9  # doing nothing: 2.7 px
    assert geometry.displacement_rms_px(torch.eye(3), truth, SHAPE) > 2.5


def test_cells_without_information_do_not_count(points):
    truth = known_affine()
    moved = displacements(points, truth)
    weights = torch.eye(2).double().expand(1, len(points), 2, 2).clone()
    weights[:, ::2] = 0
    moved[:, ::2] += 50.0
    found, _ = fit_affine(points, moved, weights, SHAPE, prior=0.0)
    assert geometry.displacement_rms_px(found, truth, SHAPE) < 1e-9
    even, _ = fit_affine(points, moved, torch.eye(2).double().expand_as(weights), SHAPE, prior=0.0)
    assert geometry.displacement_rms_px(even, truth, SHAPE) > 10  # the same, unweighted


def test_an_edge_fixes_only_what_lies_across_it(points):
    """Information along y alone: y is found, x stays with the prior."""
    shift = torch.tensor([2.0, 3.0], dtype=torch.float64).expand(1, len(points), 2)
    along_y = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double().expand(1, len(points), 2, 2)
    found, _ = fit_affine(points, shift, along_y, SHAPE)
    assert found[0, 0, 2] == pytest.approx(2.0, abs=1e-3)
    assert found[0, 1, 2] == pytest.approx(0.0, abs=1e-9)


def test_covariance_is_that_of_noisy_cells(points):
    generator = torch.Generator().manual_seed(1)
    sigma = 0.5
    noise = sigma * torch.randn(400, len(points), 2, generator=generator, dtype=torch.float64)
    weights = (torch.eye(2).double() / sigma**2).expand(400, len(points), 2, 2)
    found, normal = fit_affine(points, noise, weights, SHAPE, prior=0.0)
    predicted = geometry.displacement_sigma_px(motion_covariance(normal[:1], SHAPE), SHAPE)
    observed = geometry.displacement_rms_px(found, torch.eye(3), SHAPE).square().mean().sqrt()
    assert float(observed / predicted) == pytest.approx(1.0, abs=0.1)


def test_gradients_reach_displacements_and_weights(points):
    moved = displacements(points, known_affine()).requires_grad_()
    root = (0.3 + torch.rand(1, len(points), 2, generator=torch.Generator().manual_seed(2))).requires_grad_()
    found, _ = fit_affine(points, moved + torch.randn_like(moved) * 0.1, torch.diag_embed(root**2), SHAPE)
    displacement_rms(found, torch.eye(3), SHAPE).sum().backward()
    assert moved.grad.abs().min() > 0 and root.grad.abs().max() > 0


def test_displacement_rms_has_a_gradient_at_zero():
    affine = torch.eye(3, dtype=torch.float64)[None].requires_grad_()
    displacement_rms(affine, torch.eye(3), SHAPE).sum().backward()
    assert torch.isfinite(affine.grad).all()
