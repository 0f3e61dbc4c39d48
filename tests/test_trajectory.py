"""Pairs reconciled into one trajectory: exact, robust against hops, honest about its own error."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import drifts

from atomdiffuser import geometry as g
from atomdiffuser.pairs import choose_pairs
from atomdiffuser.simulation.drift import simulate_drift
from atomdiffuser.simulation.randomness import RandomStreams
from atomdiffuser.trajectory import (
    OUTLIER_PX,
    OUTLIER_SIGMAS,
    _adjoint,
    _chain,
    _closure,
    _frame_variances,
    solve_trajectory,
)

SHAPE = (120, 160)
HOP = torch.tensor([0.0, 13.0], dtype=torch.float64)
# 1 σ of the six numbers of a motion: 2e-4 of the linear part, 0.02 px of the shift, taken at the frame's centre
PER_FRAME = torch.diag(torch.tensor([2e-4, 2e-4, 0.02, 2e-4, 2e-4, 0.02], dtype=torch.float64) ** 2)


def truth(n: int, seed: int = 0) -> torch.Tensor:
    return simulate_drift(
        n, SHAPE, RandomStreams(seed), drift_px_per_frame=(2.0, -3.0), rotation_deg_per_frame=0.2,
        strain_per_frame=5e-4, shear_per_frame=3e-4,
    )  # fmt: skip


def all_pairs(n: int, lags=(1, 2, 4)) -> np.ndarray:
    neighbours, others = choose_pairs(range(n), lags)
    return np.array(neighbours + others)


def between(frames: torch.Tensor, pairs: np.ndarray) -> torch.Tensor:
    return frames[pairs[:, 1]] @ g.invert(frames[pairs[:, 0]])


def about_centre(covariance: torch.Tensor) -> torch.Tensor:
    """A covariance of six numbers taken at the frame's centre, for numbers taken at its first pixel."""
    (cy, cx) = ((s - 1) / 2 for s in SHAPE)
    block = torch.tensor([[1, 0, 0], [0, 1, 0], [-cy, -cx, 1]], dtype=torch.float64)
    change = torch.block_diag(block, block)
    return change @ covariance @ change.T


def solve(pairs, measured, *, n, origin=0, covariance=None):
    covariance = 2 * about_centre(PER_FRAME) if covariance is None else covariance
    wide = covariance.expand(len(pairs), 6, 6) if covariance.ndim == 2 else covariance
    return solve_trajectory(n, pairs, measured, wide, shape=SHAPE, origin=origin)


def error_px(solved, frames: torch.Tensor) -> np.ndarray:
    return g.displacement_rms_px(solved.frame_from_reference, frames, SHAPE).numpy()


def test_consistent_pairs_give_the_trajectory_exactly() -> None:
    frames, pairs = truth(9), all_pairs(9)
    solved = solve(pairs, between(frames, pairs), n=9)
    assert error_px(solved, frames).max() < 1e-8
    assert error_px(solved, g.identity(9)).max() > 25  # had nothing been done
    assert solved.connected.all() and solved.pair_accepted.all() and solved.pair_residual_px.max() < 1e-8
    assert torch.equal(solved.frame_from_reference[0], torch.eye(3, dtype=torch.float64))


def test_the_wrong_order_of_composition_is_no_trajectory() -> None:
    """The counter-test: pairs that read i from j, or chains that multiply from the right, do not fit."""
    frames, pairs = truth(9), all_pairs(9)
    turns = torch.tensor([0, 3, -2, 1, 4, -3, 0, 2, 1], dtype=torch.float64)  # steady drift alone nearly commutes
    frames = frames @ g.exp_affine(
        torch.deg2rad(turns)[:, None] * torch.tensor([0.0, -1, 0, 1, 0, 0], dtype=torch.float64)
    )
    frames = frames @ g.invert(frames[0])
    assert error_px(solve(pairs, between(frames, pairs), n=9), frames).max() < 1e-8
    swapped = g.invert(frames[pairs[:, 0]]) @ frames[pairs[:, 1]]
    assert error_px(solve(pairs, swapped, n=9), frames).max() > 1
    assert error_px(solve(pairs, g.invert(between(frames, pairs)), n=9), frames).max() > 25


def test_pairs_may_point_backwards() -> None:
    frames, pairs = truth(6), all_pairs(6)[:, ::-1].copy()
    assert error_px(solve(pairs, between(frames, pairs), n=6), frames).max() < 1e-8


def test_any_frame_may_be_the_origin() -> None:
    frames, pairs = truth(8), all_pairs(8)
    solved = solve(pairs, between(frames, pairs), n=8, origin=3)
    assert error_px(solved, frames @ g.invert(frames[3])).max() < 1e-8
    assert solved.displacement_sigma_px[3] == 0 and solved.displacement_sigma_px[[0, 7]].min() > 0


@pytest.mark.parametrize("bad", [(0, 1), (4, 5), (2, 4), (7, 8)])
def test_a_hop_is_rejected_and_named(bad) -> None:
    """One pair off by a lattice vector: taking all pairs alike would leave more than a pixel."""
    frames, pairs = truth(9), all_pairs(9)
    measured = between(frames, pairs)
    m = int(np.flatnonzero((pairs == bad).all(axis=1))[0])
    measured[m] = measured[m] @ g.translation(HOP)
    solved = solve(pairs, measured, n=9)
    assert not solved.pair_accepted[m] and solved.pair_accepted.sum() == len(pairs) - 1
    assert solved.pair_residual_px[m] == pytest.approx(13, abs=0.2)
    assert error_px(solved, frames).max() < 0.01
    plain = measured[: len(pairs)].clone()
    chained = torch.stack([g.identity(1)[0], *plain[:8]])  # the neighbours, chained
    for k in range(1, 9):
        chained[k] = plain[k - 1] @ chained[k - 1]
    if bad[1] - bad[0] == 1:
        assert float(g.displacement_rms_px(chained, frames, SHAPE).max()) > 12


def test_two_hops_at_once_are_rejected() -> None:
    frames, pairs = truth(12), all_pairs(12)
    measured = between(frames, pairs)
    for m, sign in ((1, 1), (7, -1)):
        measured[m] = measured[m] @ g.translation(sign * HOP)
    solved = solve(pairs, measured, n=12)
    assert np.flatnonzero(~solved.pair_accepted).tolist() == [1, 7] and error_px(solved, frames).max() < 0.01


def test_a_rejected_pair_has_no_say_at_all(rng) -> None:
    """Places, σ and closures are those of the pairs without it."""
    pairs, measured, covariance, _ = noisy_pairs(9, rng)
    bad = [int(np.flatnonzero((pairs == p).all(axis=1))[0]) for p in ((2, 3), (6, 7))]
    for m, size in zip(bad, (40.0, 2.0), strict=True):
        measured[m] = measured[m] @ g.translation(torch.tensor([0.0, size], dtype=torch.float64))
    solved = solve(pairs, measured, n=9, covariance=covariance)
    assert np.flatnonzero(~solved.pair_accepted).tolist() == sorted(bad)
    keep = np.setdiff1d(np.arange(len(pairs)), bad)
    left = solve(pairs[keep], measured[keep], n=9, covariance=covariance[keep])
    assert float((solved.frame_from_reference - left.frame_from_reference).abs().max()) < 1e-7
    assert solved.displacement_sigma_px == pytest.approx(left.displacement_sigma_px, rel=1e-6)
    assert solved.closure_px == pytest.approx(left.closure_px, rel=1e-6)
    assert solved.pair_residual_px[bad] == pytest.approx([40, 2], rel=0.05)  # and still shown


@pytest.mark.parametrize(
    ("misfit_sigmas", "sigma_px", "is_outlier"),
    [
        (0.95 * OUTLIER_SIGMAS, 0.2, False), (1.06 * OUTLIER_SIGMAS, 0.2, True),  # beyond 0.5 px either way
        (0.1 * OUTLIER_SIGMAS, 5.0, False),
        (5 * OUTLIER_SIGMAS, 0.9 * OUTLIER_PX / (5 * 6**0.5 * OUTLIER_SIGMAS), False),
        (5 * OUTLIER_SIGMAS, 1.1 * OUTLIER_PX / (5 * 6**0.5 * OUTLIER_SIGMAS), True),
    ],
)  # fmt: skip
def test_an_outlier_is_off_by_six_sigma_and_by_half_a_pixel(misfit_sigmas, sigma_px, is_outlier) -> None:
    """σ per degree of freedom: a pure shift, one of six numbers, has to be √6 times as large."""
    shift_px = misfit_sigmas * 6**0.5 * sigma_px
    pairs = np.array([(0, 1)] * 201)
    measured = g.translation(torch.tensor([[0.0, 0.0]] * 200 + [[shift_px, 0.0]], dtype=torch.float64))
    covariance = about_centre(torch.diag(torch.tensor([1e-4, 1e-4, sigma_px, 1e-4, 1e-4, 0.02]).double() ** 2))
    solved = solve(pairs, measured, n=2, covariance=covariance)
    assert solved.pair_accepted[:200].all() and bool(solved.pair_accepted[200]) is not is_outlier
    assert solved.pair_residual_px[200] == pytest.approx(shift_px, rel=0.02)


def test_a_chain_alone_cannot_tell_a_hop_and_says_so() -> None:
    frames, pairs = truth(4), all_pairs(4, lags=(1,))
    measured = between(frames, pairs)
    measured[1] = measured[1] @ g.translation(HOP)
    solved = solve(pairs, measured, n=4)
    assert solved.pair_accepted.all() and np.isnan(solved.closure_px[[0, 3]]).all()


def test_frames_that_no_pair_reaches_have_no_place() -> None:
    frames, pairs = truth(7), np.array([(0, 1), (1, 2), (4, 5), (5, 6), (4, 6)])
    solved = solve(pairs, between(frames, pairs), n=7)
    assert solved.connected.tolist() == [True, True, True, False, False, False, False]
    assert torch.isnan(solved.frame_from_reference[3:]).all() and np.isnan(solved.displacement_sigma_px[3:]).all()
    assert error_px(solved, frames)[:3].max() < 1e-8


def test_pairs_without_a_trajectory_have_no_residual() -> None:
    frames, pairs = truth(7), np.array([(0, 1), (1, 2), (4, 5), (5, 6), (4, 6)])
    solved = solve(pairs, between(frames, pairs), n=7)
    assert np.isnan(solved.pair_residual_px[2:]).all() and solved.pair_residual_px[:2].max() < 1e-8
    assert solved.pair_accepted.all() and np.isfinite(solved.displacement_sigma_px[:3]).all()
    assert solved.closure_px[1] < 1e-8 and np.isnan(solved.closure_px[[0, 2, 3, 4, 5, 6]]).all()


def test_the_first_frame_is_the_origin_unless_told_otherwise() -> None:
    frames, pairs = truth(4), all_pairs(4)
    covariance = about_centre(PER_FRAME).expand(len(pairs), 6, 6)
    solved = solve_trajectory(4, pairs, between(frames, pairs), covariance, shape=SHAPE)
    assert torch.equal(solved.frame_from_reference[0], torch.eye(3, dtype=torch.float64))
    assert error_px(solved, frames).max() < 1e-8


def test_no_pairs_at_all_leave_the_origin() -> None:
    solved = solve(np.zeros((0, 2), int), g.identity(0), n=3)
    assert solved.connected.tolist() == [True, False, False] and torch.isnan(solved.frame_from_reference[1:]).all()


def test_precise_pairs_weigh_more() -> None:
    """Two measurements of one step that differ by 0.1 px: the answer lies by the precise one."""
    pairs = np.array([(0, 1), (0, 1)])
    measured = g.translation(torch.tensor([[0.0, 1.0], [0.0, 1.1]], dtype=torch.float64))
    sure = about_centre(PER_FRAME)
    solved = solve(pairs, measured, n=2, covariance=torch.stack([sure, 25 * sure]))
    assert float(solved.frame_from_reference[1, 1, 2]) == pytest.approx(1 + 0.1 / 26, abs=1e-3)


def noisy_series(n: int, rng, pairs: np.ndarray, scale: np.ndarray):
    """Pairs as images give them: each frame has its own error, which all its pairs share."""
    frames = truth(n)
    draws = torch.as_tensor(rng.multivariate_normal(np.zeros(6), about_centre(PER_FRAME).numpy(), n) * scale[:, None])
    seen = g.exp_affine(draws) @ frames
    covariance = (
        about_centre(PER_FRAME) * torch.as_tensor(scale[pairs[:, 0]] ** 2 + scale[pairs[:, 1]] ** 2)[:, None, None]
    )
    return frames, between(seen, pairs), covariance


@pytest.mark.statistics
def test_sigma_is_that_of_two_frames_however_many_pairs_there_are(rng) -> None:
    """z over draws is about one; pairs taken as independent would claim several times less. Frames differ in noise."""
    n, pairs, scale = 8, all_pairs(8, (1, 2, 3, 4, 5, 6, 7)), np.linspace(1, 3, 8)
    z, sigmas = [], None
    for _ in range(30):
        frames, measured, covariance = noisy_series(n, rng, pairs, scale)
        solved = solve(pairs, measured, n=n, covariance=covariance)
        z.append(error_px(solved, frames)[1:] / solved.displacement_sigma_px[1:])
        sigmas = solved.displacement_sigma_px
    assert 0.85 < np.sqrt(np.mean(np.square(z))) < 1.15
    own = float(g.displacement_sigma_px(about_centre(PER_FRAME), SHAPE))
    assert np.allclose(sigmas[1:], own * np.hypot(scale[0], scale[1:]), rtol=0.1)


def test_closure_shows_contradiction_and_is_nearly_zero_for_shared_noise(rng) -> None:
    pairs = all_pairs(8)
    frames, measured, covariance = noisy_series(8, rng, pairs, np.ones(8))
    consistent = solve(pairs, measured, n=8, covariance=covariance)
    assert np.nanmax(consistent.closure_px) < 1e-6 and error_px(consistent, frames).max() > 0.01
    contradicting = measured.clone()
    contradicting[pairs[:, 1] - pairs[:, 0] == 2] = (
        g.translation(torch.tensor([0.0, 0.3], dtype=torch.float64)) @ measured[pairs[:, 1] - pairs[:, 0] == 2]
    )
    solved = solve(pairs, contradicting, n=8, covariance=covariance)
    assert 0.05 < np.nanmax(solved.closure_px) < 0.4


def test_large_drift_does_not_stop_the_solution() -> None:
    n = 20
    frames = simulate_drift(n, SHAPE, RandomStreams(3), drift_px_per_frame=(8.0, 5.0), rotation_deg_per_frame=1.5)
    pairs = all_pairs(n)
    assert error_px(solve(pairs, between(frames, pairs), n=n), frames).max() < 1e-7


@st.composite
def chains(draw):
    """Frames that drift anyhow, pairs that tie them all together in any order and direction, and an origin."""
    steps = draw(st.lists(drifts(), min_size=1, max_size=6))
    frames = [torch.eye(3, dtype=torch.float64)]
    for step in steps:
        frames.append(step @ frames[-1])
    n = len(frames)
    tree = [(draw(st.integers(0, k - 1)), k) for k in range(1, n)]
    more = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])))
    pairs = [p[::-1] if draw(st.booleans()) else p for p in draw(st.permutations(tree + more))]
    return torch.stack(frames), np.array(pairs), draw(st.integers(0, n - 1))


@given(chains())
@settings(max_examples=40, deadline=None)
def test_any_pairs_that_tie_the_frames_together_give_them_back(chain) -> None:
    frames, pairs, origin = chain
    solved = solve(pairs, between(frames, pairs), n=len(frames), origin=origin)
    true = frames @ g.invert(frames[origin])
    assert error_px(solved, true).max() < 1e-6 and solved.connected.all() and solved.pair_accepted.all()
    again = between(solved.frame_from_reference, pairs)
    assert float(g.displacement_rms_px(again, between(frames, pairs), SHAPE).max()) < 1e-6


@given(chains())
@settings(max_examples=20, deadline=None)
def test_the_origin_is_a_matter_of_choice(chain) -> None:
    """Another one multiplies every frame from the right, and changes no motion between frames."""
    frames, pairs, origin = chain
    small = 1e-4 * torch.sin(torch.arange(6 * len(pairs), dtype=torch.float64)).reshape(-1, 6)
    measured = between(frames, pairs) @ g.exp_affine(small)
    one, other = (solve(pairs, measured, n=len(frames), origin=k).frame_from_reference for k in (0, origin))
    assert float(g.displacement_rms_px(other, one @ g.invert(one[origin]), SHAPE).max()) < 1e-4


# --- step by step ---------------------------------------------------------------------------------


def noisy_pairs(n: int, rng: np.random.Generator):
    """Pairs whose errors, drawn with a covariance of their own each, contradict one another a little."""
    pairs, frames = all_pairs(n), truth(n, seed=3)
    covariance = about_centre(PER_FRAME)[None] * torch.as_tensor(rng.uniform(0.5, 4, (len(pairs), 1, 1)))
    error = np.stack([rng.multivariate_normal(np.zeros(6), c) for c in covariance.numpy()])
    measured = between(frames, pairs) @ g.exp_affine(torch.as_tensor(error))
    return pairs, measured, covariance, frames


def test_the_trajectory_is_where_the_robust_cost_is_flat(rng) -> None:
    """Σ 6c²·log(1 + s/6c²) over the pairs (s: squared misfit in σ, c = 4) has no slope along any frame's motion."""
    pairs, measured, covariance, _ = noisy_pairs(6, rng)
    solved = solve(pairs, measured, n=6, covariance=covariance)

    def slopes(frames: torch.Tensor) -> torch.Tensor:
        motion = torch.zeros(len(pairs), 6, 6, dtype=torch.float64, requires_grad=True)  # pair, frame, numbers
        cost = torch.zeros((), dtype=torch.float64)
        for m, (i, j) in enumerate(pairs):
            ends = [g.exp_affine(motion[m, k]) @ frames[k] for k in (i, j)]
            misfit = g.log_affine(g.invert(measured[m]) @ ends[1] @ g.invert(ends[0]))
            squared = misfit @ torch.linalg.inv(covariance[m]) @ misfit
            cost = cost + 96 * torch.log1p(squared / 96)
        cost.backward()
        return motion.grad

    # of the six numbers each has units of its own: slopes count in those of single pairs
    each = slopes(solved.frame_from_reference)
    share = each.sum(0)[1:].abs() / each.abs().sum(0)[1:]
    assert float(share.max()) < 5e-3
    moved = solved.frame_from_reference.clone()
    moved[3] = g.translation(torch.tensor([0.02, 0.0], dtype=torch.float64)) @ moved[3]
    assert float((slopes(moved).sum(0)[1:].abs() / slopes(moved).abs().sum(0)[1:]).max()) > 0.05


def test_residuals_and_closures_are_distances_in_pixels(rng) -> None:
    pairs, measured, covariance, _ = noisy_pairs(6, rng)
    solved = solve(pairs, measured, n=6, covariance=covariance)
    found = g.displacement_rms_px(between(solved.frame_from_reference, pairs), measured, SHAPE).numpy()
    assert solved.pair_residual_px == pytest.approx(found, rel=1e-6)
    for k in range(6):
        touching = (pairs == k).any(axis=1)
        assert solved.closure_px[k] == pytest.approx(np.sqrt(np.mean(found[touching] ** 2)), rel=1e-6)
    assert solved.pair_accepted.all() and solved.connected.all()


def test_closure_needs_two_pairs_at_a_frame_and_leaves_out_those_not_used() -> None:
    pairs = np.array([[0, 1], [1, 2], [0, 2], [2, 3]])
    closure = _closure(5, pairs, np.array([3.0, 4.0, 100.0, 7.0]), np.array([True, True, False, True]))
    assert closure == pytest.approx([np.nan, np.sqrt(12.5), np.sqrt(32.5), np.nan, np.nan], nan_ok=True)


def test_a_motion_seen_from_another_frame(rng) -> None:
    a = g.affine_from_parameters(torch.as_tensor(rng.normal(0, 0.3, (5, 6))) + torch.tensor([1, 0, 40, 0, 1, -30]))
    numbers = torch.as_tensor(rng.normal(0, 1, (5, 6)))
    motion = torch.zeros(5, 3, 3, dtype=torch.float64)
    motion[:, :2] = numbers.reshape(5, 2, 3)
    seen = (a @ motion @ torch.linalg.inv(a))[:, :2].reshape(5, 6)
    assert torch.allclose((_adjoint(a) @ numbers[..., None])[..., 0], seen, rtol=1e-9, atol=1e-9)


def test_start_values_come_over_the_shortest_lags() -> None:
    pairs = np.array([[0, 2], [0, 1], [2, 1], [0, 4], [2, 4], [3, 4]])
    shift = lambda y: g.translation(torch.tensor([float(y), 0.0], dtype=torch.float64))
    measured = torch.stack([shift(y) for y in (50, 1, -2, 60, 7, 100)])
    accepted = np.array([True, True, True, True, True, False])
    frames, connected = _chain(6, pairs, measured, accepted, 0)
    assert frames[:, 0, 2].tolist()[:3] == [0, 1, 3]  # 2 over 1, backwards along (2, 1), not straight
    assert float(frames[4, 0, 2]) == 10  # over 2
    assert connected.tolist() == [True, True, True, False, True, False]
    assert torch.equal(frames[[3, 5]], g.identity(2))
    other, _ = _chain(6, pairs, measured, accepted, 4)
    assert other[:, 0, 2].tolist()[:3] == [-10, -9, -7]


def test_frame_variances_are_the_least_squares_of_their_sums(rng) -> None:
    pairs = all_pairs(5)
    own = np.array([1.0, 2.0, 0.0, 0.5, 3.0])
    of_pairs = own[pairs].sum(axis=1) * rng.uniform(0.8, 1.2, len(pairs)) * 1e-4
    best = np.array([of_pairs[(pairs == k).any(axis=1)].min() for k in range(5)])
    rows = np.zeros((len(pairs) + 6, 6))
    rows[np.arange(len(pairs))[:, None], pairs] = 1 / of_pairs[:, None]
    rows[len(pairs) :] = np.diag(0.2 / np.r_[best, np.median(of_pairs)])  # a frame without pairs is like the others
    expected = scipy.optimize.nnls(rows, np.r_[np.ones(len(pairs)), np.full(6, 0.1)])[0]
    found = _frame_variances(6, pairs, of_pairs)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4 * expected.max())
    assert np.isnan(_frame_variances(3, pairs[:0], of_pairs[:0])).all()


def test_sigma_against_the_reference_adds_both_frames(rng) -> None:
    pairs, measured, covariance, _ = noisy_pairs(6, rng)
    for origin in (0, 3):
        frames_sigma = solve(pairs, measured, n=6, covariance=covariance, origin=origin).displacement_sigma_px
        own = _frame_variances(6, pairs, g.displacement_sigma_px(covariance, SHAPE).numpy() ** 2)
        expected = np.where(np.arange(6) == origin, 0.0, np.sqrt(own + own[origin]))
        assert frames_sigma == pytest.approx(expected, rel=1e-6)
