"""The joint fit of drift and decay: recovers the truth within its own σ, decay does not bend it, bad frames say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, error_px, pairs, rms, source

from atomdiffuser import geometry as g
from atomdiffuser.estimation import fit_problem
from atomdiffuser.estimation.register import FitOptions, register_from


def prepared(batch):
    src = source(np.stack([batch.reference.numpy(), batch.moving.numpy()], 1).reshape(-1, *SHAPE))
    n = len(batch)
    return src.prepared(range(0, 2 * n, 2)), src.prepared(range(1, 2 * n, 2)), FitOptions(src.noise, src.scales)


def neighbourhood(true: torch.Tensor) -> torch.Tensor:
    """Starts a pixel or so off, as a correlation peak would give them: the shift alone, rounded."""
    return g.translation(g.drift_at_centre(true, SHAPE).round())


def misfit_px(affine_covariance: torch.Tensor, found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """(n,) misfit of the six numbers in their own covariance, per degree of freedom."""
    difference = (found - true)[:, :2].flatten(1)
    return (torch.einsum("ni,nij,nj->n", difference, torch.linalg.inv(affine_covariance), difference) / 6).sqrt()


@pytest.fixture(scope="module")
def uniform():
    batch = pairs()
    reference, moving, options = prepared(batch)
    return batch, register_from(reference, moving, neighbourhood(batch.moving_from_reference), options)


def test_affines_are_recovered_within_their_sigma(uniform) -> None:
    batch, found = uniform
    error = error_px(found.moving_from_reference, batch.moving_from_reference)
    nothing = error_px(g.identity(len(batch)), batch.moving_from_reference)
    assert found.valid.all() and np.all(error < 4 * found.displacement_sigma_px.numpy())
    assert error.max() < 0.25 and nothing.min() > 1  # the error of doing nothing


def test_sigma_is_calibrated_as_a_displacement_and_in_all_six_numbers(uniform) -> None:
    batch, found = uniform
    z = error_px(found.moving_from_reference, batch.moving_from_reference) / found.displacement_sigma_px.numpy()
    assert 0.7 < rms(z) < 1.4
    assert (
        0.7 < rms(misfit_px(found.affine_covariance(), found.moving_from_reference, batch.moving_from_reference)) < 1.4
    )


def test_sigma_follows_the_counts() -> None:
    """A quarter of the electrons: twice the σ, and more where the noise's own gradients count."""
    dim, bright = (pairs(8, electrons=(e, e)) for e in (50.0, 200.0))
    sigma = []
    for batch in (dim, bright):
        reference, moving, options = prepared(batch)
        sigma.append(
            register_from(reference, moving, batch.moving_from_reference, options).displacement_sigma_px.median()
        )
    assert 1.8 < float(sigma[0] / sigma[1]) < 3


@pytest.mark.parametrize("pattern", ["edge", "perlin"])
def test_decay_that_varies_over_the_frame_does_not_bend_the_drift(pattern, monkeypatch) -> None:
    """The counter-test holds the fields at 1, and takes no misfit for noise: the same pairs are then off by far more
    than they claim.
    """
    batch = pairs(patterns=(pattern,), loss=(0.4, 0.7))
    reference, moving, options = prepared(batch)
    true = batch.moving_from_reference
    found = register_from(reference, moving, true, options)
    z = rms(error_px(found.moving_from_reference, true) / found.displacement_sigma_px.numpy())
    assert 0.7 < z < 1.4
    monkeypatch.setattr(fit_problem, "FIELD_PRIOR_SIGMA", 1e-6)
    monkeypatch.setattr(fit_problem, "MISFIT_BY_CHANCE", np.inf)
    stiff = register_from(reference, moving, true, options)
    z_stiff = rms(error_px(stiff.moving_from_reference, true) / stiff.displacement_sigma_px.numpy())
    assert z_stiff > 1.6 and z_stiff > 1.6 * z


def test_uniform_decay_and_gain_change_nothing(uniform) -> None:
    """Half the contrast and a brighter moving frame: no mean error along any of the six numbers."""
    batch, found = uniform
    difference = g.log_affine(g.invert(batch.moving_from_reference) @ found.moving_from_reference)
    spread = found.motion_covariance.diagonal(dim1=1, dim2=2).sqrt()
    mean_z = (difference / spread).mean(0) * len(batch) ** 0.5
    assert float(mean_z.abs().max()) < 3.5


def test_fields_tell_intensity_from_contrast() -> None:
    """Only the lattice decays: the nodes of μ stay at 1, those of κ fall to the truth."""
    batch = pairs(6, witness_odds=(0, 1, 0, 0, 0, 0), electrons=(200, 200), kinetics=("linear",))
    reference, moving, options = prepared(batch)
    fit = options.fit(reference, moving, batch.moving_from_reference)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    contrast = batch.contrast.mean((1, 2)).double()
    assert rms(fit.intensity_nodes[inner].mean((1, 2)) - 1) < 0.01
    assert rms(fit.contrast_nodes[inner].mean((1, 2)) - contrast) < 0.06 and rms(contrast - 1) > 0.2


def test_there_and_back_is_nowhere() -> None:
    n = 24
    batch = pairs(n)
    reference, moving, options = prepared(batch)
    there = register_from(reference, moving, batch.moving_from_reference, options)
    back = register_from(moving, reference, g.invert(batch.moving_from_reference), options)
    round_trip = back.moving_from_reference @ there.moving_from_reference
    apart = error_px(round_trip, g.identity(n)) / there.displacement_sigma_px.numpy()
    assert np.median(apart) < 0.3 and rms(apart) < 0.5


def test_two_frames_of_noise_are_no_pair(rng) -> None:
    frames = rng.poisson(20, (20, *SHAPE))
    src = source(frames)
    found = register_from(
        src.prepared(range(10)), src.prepared(range(10, 20)), g.identity(10), FitOptions(src.noise, src.scales)
    )
    assert not found.valid.any() and set(found.reason) <= {"no common structure above the noise"}


def test_too_few_steps_are_reported() -> None:
    batch = pairs(2)
    reference, moving, options = prepared(batch)
    hasty = FitOptions(options.noise, options.scales, max_iterations=1)
    found = register_from(reference, moving, neighbourhood(batch.moving_from_reference), hasty)
    assert not found.valid.any() and found.reason[0] == "fit did not converge in 1 steps"


def test_frames_that_hardly_overlap_are_reported() -> None:
    batch = pairs(1)
    reference, moving, options = prepared(batch)
    far = g.translation(torch.tensor([[0.0, 118.0]], dtype=torch.float64))
    found = register_from(reference, moving, far, options)
    assert not found.valid[0] and found.reason[0].startswith("frames share only")


def test_each_pair_of_a_batch_is_its_own() -> None:
    batch = pairs(5)
    reference, moving, options = prepared(batch)
    together = register_from(reference, moving, batch.moving_from_reference, options)
    for k in (0, 3):
        alone = register_from(
            reference.select([k]), moving.select([k]), batch.moving_from_reference[k : k + 1], options
        )
        assert error_px(alone.moving_from_reference, together.moving_from_reference[k : k + 1])[0] < 1e-5
        assert float(alone.displacement_sigma_px[0]) == pytest.approx(
            float(together.displacement_sigma_px[k]), rel=1e-4
        )
