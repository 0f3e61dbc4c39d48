"""Frames fitted to the mean of the others: a better place for late frames, each with a σ of its own."""

from __future__ import annotations

import numpy as np
import torch
from measured_pairs import SHAPE, error_px, rms, series, source

from atomdiffuser import geometry as g
from atomdiffuser.estimation.groupwise import refine_trajectory
from atomdiffuser.estimation.register import FitOptions, register_from
from atomdiffuser.estimation.template import TemplateSum, aligned_part, sum_template

N = 8
FADING = dict(n_frames=N, critical_fluence=9000.0)
SIGMA = np.r_[0.0, np.full(N - 1, 0.3)]


def disturbed(true: torch.Tensor, seed: int) -> torch.Tensor:
    """Frames 0.25 px off in a random direction, the reference frame excepted."""
    draws = 0.25 * torch.randn(N, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2**0.5
    draws[0] = 0
    return g.translation(draws) @ true


def test_every_frame_gets_closer_to_the_truth() -> None:
    """From 0.25 px to what the counts allow: 0.1 px early, 0.2 px where a tenth of the lattice is left."""
    before, after = [], []
    for seed in (3, 4):
        s = series(**FADING, seed=seed)
        src, true = source(s), torch.as_tensor(s.frame_from_reference)
        start = disturbed(true, seed)
        found = refine_trajectory(src, start, SIGMA, 0, FitOptions(src.noise, src.scales), rounds=1)
        before.append(error_px(start, true))
        after.append(error_px(found.frame_from_reference, true))
    before, after = np.stack(before), np.stack(after)
    assert rms(before[:, 1:]) > 0.2 and rms(after[:, 1:5]) < 0.6 * rms(before[:, 1:5])


def test_late_frames_are_placed_better_than_by_the_pair_with_the_first() -> None:
    """Few counts and a fading lattice: the mean of the others has less noise than one frame, and σ holds.

    Faded frames weigh the first one little already (its noise counts by κ²), so that no more than that is to be had.
    """
    late = [N - 3, N - 2, N - 1]
    pair, group, pair_sigma, group_sigma = [], [], [], []
    for seed in range(4):
        s = series(n_frames=N, electrons_per_px=20.0, critical_fluence=12000.0, seed=seed)
        src, true = source(s), torch.as_tensor(s.frame_from_reference)
        options = FitOptions(src.noise, src.scales)
        alone = register_from(src.prepared([0] * N), src.prepared(range(N)), true, options)
        start = torch.cat([true[:1], alone.moving_from_reference[1:]])
        found = refine_trajectory(src, start, alone.displacement_sigma_px.numpy(), 0, options, rounds=1)
        pair.append(error_px(start, true)[late])
        group.append(error_px(found.frame_from_reference, true)[late])
        pair_sigma.append(alone.displacement_sigma_px.numpy()[late])
        group_sigma.append(np.hypot(found.frame_sigma_px, found.frame_sigma_px[0])[late])
    assert rms(group) < rms(pair)
    assert np.nanmean(np.array(group_sigma) / np.array(pair_sigma)) < 1.1
    assert 0.6 < rms(np.array(group) / np.array(group_sigma)) < 1.4


def test_a_frame_is_left_out_of_its_own_template() -> None:
    """The counter-test: fitted to a mean that holds the frame itself, its noise keeps it back by its share, 1/N."""
    s = series(**FADING, electrons_per_px=30.0)
    src, true = source(s), torch.as_tensor(s.frame_from_reference)
    start = disturbed(true, 8)
    total = sum_template(src, start, range(N))
    nothing = TemplateSum(*(torch.zeros_like(t) for t in (total.filtered, total.base, total.count, total.squares)))
    options = FitOptions(src.noise, src.scales)
    moved_with, moved_without = [], []
    for k in range(1, N):
        own, at = aligned_part(src, k, start[k]), start[k : k + 1]
        fit = lambda left_out, k=k, at=at: register_from(total.without(left_out), src.prepared([k]), at, options)
        without = fit(own)
        assert error_px(without.moving_from_reference, true[k : k + 1])[0] < 4 * float(without.displacement_sigma_px[0])
        moved_with.append(error_px(fit(nothing).moving_from_reference, at)[0])
        moved_without.append(error_px(without.moving_from_reference, at)[0])
    assert rms(np.array(moved_with)) < (1 - 0.8 / N) * rms(np.array(moved_without))


def test_sums_and_counts_of_a_template_are_those_of_its_frames() -> None:
    s = series(**FADING)
    src, true = source(s), torch.as_tensor(s.frame_from_reference)
    total = sum_template(src, true, range(N))
    assert float(total.count.max()) == N and float(total.count.min()) == 0
    left = total.without(aligned_part(src, 2, true[2]))
    again = sum_template(src, true, [k for k in range(N) if k != 2])
    assert torch.allclose(left.base, (again.base / again.count.clamp_min(1)).float(), atol=1e-3)
    assert torch.isinf(left.noise_share[again.count < 0.5]).all()


def test_a_faint_frame_converges() -> None:
    """One in eight faint frames is thrown away, started from the truth: the step stays at 0.027 px where σ is 0.25."""
    s = series(**FADING, seed=0)
    src, true = source(s), torch.as_tensor(s.frame_from_reference)
    found = register_from(src.prepared([0]), src.prepared([6]), true[6:7], FitOptions(src.noise, src.scales))
    assert error_px(found.moving_from_reference, true[6:7])[0] < 2 * float(found.displacement_sigma_px[0])
    assert found.valid[0], found.reason


def test_steps_far_below_the_error_count_as_converged() -> None:
    """At few counts, cells that come and go at the rim keep a fit stepping by hundredths of its σ for ever."""
    s = series(**FADING, electrons_per_px=8.0)
    src, true = source(s), torch.as_tensor(s.frame_from_reference)
    options = FitOptions(src.noise, src.scales, tolerance_px=1e-9, max_iterations=4)
    near = register_from(src.prepared([0]), src.prepared([1]), true[1:2], options)
    assert near.valid[0] and error_px(near.moving_from_reference, true[1:2])[0] < 3 * float(near.displacement_sigma_px)


def test_the_second_round_is_left_out_where_the_first_moved_nothing() -> None:
    s = series(**FADING, electrons_per_px=500.0)
    src, true = source(s), torch.as_tensor(s.frame_from_reference)
    options, steps = FitOptions(src.noise, src.scales), []
    once = refine_trajectory(src, true, SIGMA, 0, options, rounds=1)
    start, count = once.frame_from_reference, lambda: steps.append(1)
    twice = refine_trajectory(src, start, SIGMA, 0, options, rounds=5, advance=count)
    single = refine_trajectory(src, start, SIGMA, 0, options, rounds=1)
    assert torch.equal(twice.frame_from_reference, single.frame_from_reference) and len(steps) == 5 * N


def test_what_jumps_is_not_believed_and_two_frames_are_left_alone() -> None:
    s = series(**FADING)
    src, true = source(s), torch.as_tensor(s.frame_from_reference)
    far = true.clone()
    far[5] = g.translation(torch.tensor([0.0, 2.0], dtype=torch.float64)) @ far[5]
    options = FitOptions(src.noise, src.scales)
    found = refine_trajectory(src, far, np.full(N, 0.02), 0, options, rounds=1)
    assert np.isnan(found.frame_sigma_px[5])  # the cure would move it by 2 px where the trajectory claims 0.02
    unknown = true.clone()
    unknown[2:] = torch.nan
    alone = refine_trajectory(src, unknown, SIGMA, 0, options, rounds=1)
    assert torch.equal(alone.frame_from_reference[:2], true[:2]) and np.isnan(alone.frame_sigma_px).all()


def test_frames_without_a_place_get_none() -> None:
    s = series(**FADING)
    src, known = source(s), torch.as_tensor(s.frame_from_reference).clone()
    known[4] = torch.nan
    found = refine_trajectory(src, known, SIGMA, 0, FitOptions(src.noise, src.scales), rounds=1)
    assert torch.isnan(found.frame_from_reference[4]).all() and np.isfinite(found.frame_sigma_px[[1, 3, 5]]).all()
    assert SHAPE == src.shape
