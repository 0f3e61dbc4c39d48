"""The joint fit by compiled loops against the same by tensor operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, error_px, pairs, source
from tensor_operations import both_ways

from atomdiffuser import geometry as g
from atomdiffuser.estimation.alternatives import log_odds
from atomdiffuser.estimation.api import estimate_pairs
from atomdiffuser.estimation.compiled_fit import CompiledFitProblem
from atomdiffuser.estimation.fit_problem import FitModel, FitProblem
from atomdiffuser.estimation.normal_matrix import NormalMatrix
from atomdiffuser.estimation.register import FitOptions, register_from

PAIRS = 5
IMAGES = ("warped", "residual", "contrast", "precision", "weight")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def dense(band: torch.Tensor) -> torch.Tensor:
    """Symmetric matrices (n, N, N) from lower bands (n, N, w)."""
    n, size, width = band.shape
    whole = torch.zeros(n, size, size, dtype=band.dtype)
    for row in range(size):
        for k in range(width):
            if (column := row - width + 1 + k) >= 0:
                whole[:, row, column] = whole[:, column, row] = band[:, row, k]
    return whole


@pytest.fixture(params=["all in view", "over the rim", "lines missing", "a mean of frames", "thinned", "misfit"])
def problems(request) -> tuple[FitProblem, FitProblem, torch.Tensor, torch.Tensor]:
    """The same fit both ways, with affines and fields to look at."""
    batch = pairs(PAIRS)
    src = source(np.stack([batch.reference.numpy(), batch.moving.numpy()], 1).reshape(-1, *SHAPE))
    moving, options = src.prepared(range(1, 2 * PAIRS, 2)), FitOptions(src.noise, src.scales)
    reference, shift, unknown = src.prepared(range(0, 2 * PAIRS, 2)), 0.0, torch.ones(PAIRS, *SHAPE)
    if request.param == "over the rim":
        shift = 30.0
    if request.param == "lines missing":
        unknown[:, 20:24], unknown[2, :, 50] = torch.inf, torch.inf
        moving = replace(moving, noise_share=unknown)
    if request.param == "a mean of frames":
        unknown *= 0.1 + 0.05 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
        unknown[:, :, 100:] = torch.inf
        reference = replace(reference, noise_share=unknown)
    cells = options.cells(reference)
    if request.param == "thinned":
        cells = cells.thinned()
    both = tuple(kind(cells, moving, options.model) for kind in (CompiledFitProblem, FitProblem))
    draw = torch.Generator().manual_seed(2)
    turned = g.identity(PAIRS) + torch.nn.functional.pad(
        0.01 * torch.randn(PAIRS, 2, 2, generator=draw, dtype=torch.float64), (0, 1, 0, 1)
    )
    affine = g.translation(torch.tensor([[0.4, shift - 1.3]] * PAIRS, dtype=torch.float64)) @ turned
    fields = 0.3 + torch.rand(PAIRS, 2, 8, 8, generator=draw, dtype=torch.float64)
    if request.param == "misfit":
        for problem in both:
            problem.learn_misfit(torch.arange(PAIRS), problem.images(affine, fields))
            assert float(problem.misfit.max()) > 1.5
    return *both, affine, fields


def test_images_sums_and_steps_are_the_same(problems) -> None:
    by_loops, by_tensors, affine, fields = problems
    ours, theirs = (problem.images(affine, fields) for problem in (by_loops, by_tensors))
    assert (ours.inside is None) == (theirs.inside is None)
    if theirs.inside is not None:
        assert 0 < theirs.inside.mean() < 1 and float((ours.inside != theirs.inside).float().mean()) < 1e-4
    counts = theirs.weight > 0
    for name in IMAGES:
        assert relative(counts * getattr(ours, name), counts * getattr(theirs, name)) < 1e-4, name

    (matrix, of_noise), (expected, their_noise) = (p.normal_sums(theirs) for p in (by_loops, by_tensors))
    for found, known in (
        (matrix.motion, expected.motion), (matrix.cross, expected.cross), (dense(matrix.field), expected.field),
        (of_noise, their_noise),
    ):  # fmt: skip
        assert relative(found, known) < 3e-6
    for found, known in zip(by_loops.right_sums(theirs), by_tensors.right_sums(theirs), strict=True):
        assert relative(found, known) < 3e-5

    solved, known = (
        problem.solve(theirs, problem.normal_matrix(theirs, 0.6), fields) for problem in (by_loops, by_tensors)
    )
    assert relative(solved[0], known[0]) < 3e-5 and relative(solved[1], known[1]) < 3e-4


def test_some_of_the_pairs_are_fitted_as_with_all(problems) -> None:
    by_loops, _, affine, fields = problems
    index = torch.tensor([3, 1])
    by_loops.normal_matrix(by_loops.images(affine, fields), 0.6)
    part = by_loops.at(index)
    ours = part.images(affine[index], fields[index])
    theirs = by_loops.images(affine, fields)
    assert torch.equal(ours.weight, theirs.weight[index]) and torch.equal(ours.residual, theirs.residual[index])
    assert relative(part.normal_sums(ours)[0].field, by_loops.normal_sums(theirs)[0].field[index]) < 1e-12


def test_several_fits_may_be_of_one_pair(problems) -> None:
    """The frames are not copied for them, and the numbers are those of fits that have their own."""
    by_loops, _, affine, fields = problems
    of = torch.tensor([2, 0, 0, 4, 2])
    model = FitModel(by_loops.noise, by_loops.filter_px, by_loops.margin_px)
    shared = CompiledFitProblem(by_loops.reference, by_loops.moving, model, of)
    assert shared.reference is by_loops.reference and shared.at(torch.tensor([1, 3])).moving is by_loops.moving
    own = CompiledFitProblem(by_loops.reference.select(of), by_loops.moving.select(of), model)
    copied = FitProblem(by_loops.reference, by_loops.moving, model, of)
    assert torch.equal(copied.moving.coefficients, own.moving.coefficients)
    for part in (slice(None), [4, 1]):
        index = torch.arange(PAIRS)[part]
        one, other = (problem.at(index) for problem in (shared, own))
        images = one.images(affine[index], fields[index])
        assert torch.equal(images.weight, other.images(affine[index], fields[index]).weight)
        both = [problem.solve(images, problem.normal_matrix(images, 0.6), fields[index]) for problem in (one, other)]
        assert torch.equal(both[0][0], both[1][0]) and torch.equal(both[0][1], both[1][1])


def test_what_noise_makes_of_a_fit_is_the_same(problems) -> None:
    by_loops, by_tensors, affine, fields = problems
    images = by_tensors.images(affine, fields)
    ours, theirs = (problem.noise_sums(images) for problem in (by_loops, by_tensors))
    for found, known in (
        (ours.motion, theirs.motion), (ours.cross, theirs.cross), (ours.dense_field, theirs.field),
    ):  # fmt: skip
        assert relative(found, known) < 1e-5
    sides = torch.randn(PAIRS, 6, 128, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert relative(ours.of_fields(sides), sides @ ours.dense_field) < 1e-12
    normal = by_tensors.normal_matrix(images, 0.6)
    known = by_tensors.summarise(affine, fields, images, torch.zeros(PAIRS), normal)
    found = by_loops.summarise(affine, fields, images, torch.zeros(PAIRS), by_loops.normal_matrix(images, 0.6))
    assert relative(found.covariance, known.covariance) < 1e-3


def test_a_band_is_divided_by_like_the_whole_matrix(problems) -> None:
    by_loops, _, affine, fields = problems
    banded, _ = by_loops.normal_sums(by_loops.images(affine, fields))
    whole = NormalMatrix(banded.motion, banded.cross, dense(banded.field))
    sides = torch.randn(PAIRS, 7, 128, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(banded.divided(sides), whole.divided(sides), rtol=1e-9)
    assert torch.allclose(banded.information, whole.information, rtol=1e-9)
    both = [m.select(torch.tensor([1, 3])).solve(sides[:2, 0, :6], sides[:2, 1]) for m in (banded, whole)]
    for ours, theirs in zip(*both, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7)


@pytest.mark.parametrize("share", ["few", "all"])
def test_odds_of_candidates_are_the_same(share: str) -> None:
    """Fits that see unequal parts, a lattice vector apart."""
    src = source(pairs(2).reference.numpy())
    cells = FitOptions(src.noise, src.scales).cells(src.prepared([0]))
    cells = cells.thinned() if share == "few" else cells
    draw = torch.Generator().manual_seed(4)
    residual, weight = torch.randn(2, 3, *cells.base.shape[1:], generator=draw), cells.base.new_full((2, 3, 1, 1), 0.1)
    weight = weight * (torch.rand(residual.shape, generator=draw) > 0.2)
    weight[:, 1, :6] = 0
    residual[:, 2] *= 1.3
    drift = torch.tensor([[[0.0, 0.0], [20.0, -3.0], [5.0, 40.0]]] * 2, dtype=torch.float64)
    ours, theirs = both_ways(lambda: log_odds(residual, weight, drift, cells.grid, src.scales, among=6))
    assert (
        torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3) and (theirs[:, 2] < -1).all() and (theirs[:, 0] == 0).all()
    )


def test_whole_estimates_are_the_same() -> None:
    batch = pairs(6, patterns=("holes",), loss=(0.4, 0.6), edges=0.5)
    estimate = lambda: estimate_pairs(batch.reference.numpy(), batch.moving.numpy(), predict=False, maps=False)
    ours, theirs = both_ways(estimate)
    assert theirs.valid.all() and ours.reason == theirs.reason
    assert error_px(ours.moving_from_reference, torch.as_tensor(theirs.moving_from_reference)).max() < 1e-3
    assert np.allclose(ours.displacement_sigma_px, theirs.displacement_sigma_px, rtol=1e-3)
    assert np.allclose(ours.affine_covariance, theirs.affine_covariance, rtol=1e-2, atol=1e-12)
    assert np.allclose(ours.hop_probability, theirs.hop_probability, atol=1e-4)


def particle(counts: float, shape: tuple[int, int] = (512, 512)) -> np.ndarray:
    """A bright particle on perfect vacuum, near a corner."""
    y, x = (np.arange(n, dtype=float) - n + 41 for n in shape)
    spot = np.exp(-(y[:, None] ** 2 + x**2) / 288)
    return (counts * spot * (1 + 0.5 * np.cos(0.8 * y)[:, None] * np.cos(0.8 * x))).astype(np.float32)


def test_a_bright_particle_on_vacuum_leaves_a_matrix_that_can_be_solved() -> None:
    """Nodes that hardly see it keep what is known beforehand, to the last of eight orders of magnitude."""
    frames = np.random.default_rng(0).poisson([particle(1e8)] * 2).astype(np.float32)
    src = source(frames)
    options = FitOptions(src.noise, src.scales, field_nodes=3)
    cells, moving = options.cells(src.prepared([0])), src.prepared([1])
    ours, theirs = (kind(cells, moving, options.model) for kind in (CompiledFitProblem, FitProblem))
    images = theirs.images(g.identity(1), torch.ones(1, 2, 3, 3).double())
    (banded, _), (whole, _) = ours.normal_sums(images), theirs.normal_sums(images)
    diagonal = whole.field.diagonal(dim1=1, dim2=2)
    assert diagonal.max() > 1e8 * diagonal.min()
    assert torch.allclose(dense(banded.field).diagonal(dim1=1, dim2=2), diagonal, rtol=1e-5)
    assert torch.isfinite(banded.factor).all()
    found = estimate_pairs(frames[0], np.roll(frames[1], (1, 1), (0, 1)), predict=False, maps=False)
    assert found.valid.all() and np.abs(found.moving_from_reference[0, :2, 2] - 1).max() < 0.1


def test_a_pair_that_cannot_be_solved_is_invalid_and_no_other_is() -> None:
    batch = pairs(2)
    src = source(np.stack([batch.reference.numpy(), batch.moving.numpy()], 1).reshape(-1, *SHAPE))
    options, true = FitOptions(src.noise, src.scales), batch.moving_from_reference
    start = torch.stack([true[0] * torch.nan, true[1]])
    by_loops, by_tensors = both_ways(
        lambda: register_from(src.prepared([0, 2]), src.prepared([1, 3]), start, options)
    )  # fmt: skip
    for found in (by_loops, by_tensors):
        assert found.valid.tolist() == [False, True] and found.reason[0] and not found.reason[1]
        assert error_px(found.moving_from_reference[1:], true[1:]).max() < 0.25


def test_cells_of_one_column_know_their_noise() -> None:
    frames = np.random.default_rng(1).poisson(40, (2, 60, 8)).astype(np.float32)
    src = source(frames)
    options = FitOptions(src.noise, replace(src.scales, stride=2))
    cells, moving = options.cells(src.prepared([0])).thinned(), src.prepared([1])
    assert cells.base.shape[-1] == 1
    both = [kind(cells, moving, options.model) for kind in (CompiledFitProblem, FitProblem)]
    images = both[1].images(g.identity(1), torch.ones(1, 2, 8, 8).double())
    images = replace(images, weight=torch.ones_like(images.weight))
    assert relative(both[0].normal_sums(images)[1], both[1].normal_sums(images)[1]) < 1e-6


@pytest.mark.parametrize("stride", [1, 2])
def test_cells_are_the_same(stride: int) -> None:
    src = source(pairs(2).reference.numpy())
    options = FitOptions(src.noise, replace(src.scales, stride=stride))
    prepared = src.prepared([0, 1])
    ours, theirs = both_ways(lambda: options.cells(prepared))
    assert ours.slopes.shape == theirs.slopes.shape and ours.grid == theirs.grid
    for name in ("slopes", "structure", "clean_slopes", "noise_left"):
        assert relative(getattr(ours, name), getattr(theirs, name)) < 1e-5, name
