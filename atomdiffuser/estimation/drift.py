"""Drift of a whole series: neighbours first, far pairs from their chain, one trajectory over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.groupwise import Refined, refine_trajectory
from atomdiffuser.estimation.hops import CLEAR_HOP_PROBABILITY, MANY_CANDIDATES, Links, settle_links
from atomdiffuser.estimation.pair_work import (
    Advance,
    FitFrom,
    FitUnknown,
    PairRunner,
    Pairs,
    Suggest,
    joined,
    on_this_machine,
    replaced,
)
from atomdiffuser.estimation.register import FitOptions, PairRegistration
from atomdiffuser.pairs import choose_pairs
from atomdiffuser.trajectory import Trajectory, solve_trajectory

EXPECTED_NOT_SEEN = 0.01  # hop probability of a pair that the drift of other pairs has decided, not its own images
OVERRULED = 0.5  # of one that was decided against its own images


@dataclass(frozen=True)
class DriftEstimate:
    """Pairs, in the order of `pairs` (m, 2), and the trajectory they give.

    Attributes
    ----------
    frame_reason
        For each frame why it has no place in the trajectory; empty when it has.
    frame_hop_probability
        (t,) that a frame is off by a lattice vector against the reference frame; NaN without a lattice.
    ambiguous_pairs, ambiguous_frames
        (m,) and (t,) bool: that probability is above the limit in the settings.
    ambiguity
        The words for it.
    frame_covariance
        (t, 6, 6) of the six numbers of frame_from_reference; NaN where a frame could not be fitted to the others.
    """

    pairs: np.ndarray
    registration: PairRegistration
    trajectory: Trajectory
    reference_frame: int
    frame_reason: list[str]
    frame_hop_probability: np.ndarray
    ambiguous_pairs: np.ndarray
    ambiguous_frames: np.ndarray
    ambiguity: str
    frame_covariance: Tensor


def estimate_drift(
    source: FrameSource,
    settings: RegisterSettings,
    progress: Callable[[int, int], None] | None = None,
    run: PairRunner | None = None,
) -> DriftEstimate:
    """Register the pairs of a series and reconcile them.

    `progress(done, total)` is called as pairs are finished. `run` does the work of pairs where that is not this
    process; the rest of the work is done here.
    """
    run = run or on_this_machine(source)
    options = FitOptions(
        noise=source.noise,
        scales=source.scales,
        field_nodes=settings.field_nodes,
        max_iterations=settings.max_iterations,
        tolerance_px=settings.tolerance_px,
        max_shift_px=settings.max_drift_fraction * min(source.shape),
    )
    neighbours, others = choose_pairs(source.usable, settings.lags)
    report = _Counter(progress, len(neighbours) + len(others) + settings.groupwise_rounds * len(source.usable))
    suggested = run(Suggest(settings.weights, options), neighbours, _uncounted) if settings.start == "network" else None
    near, links = _settled(
        source, neighbours, _register_neighbours(source, neighbours, options, run, report.add, suggested), options, run
    )
    chain = links.chain(source.n_frames)
    start = torch.stack([_between(chain, i, j) for i, j in others]) if others else geometry.identity(0)
    lost = np.array([not links.unbroken(i, j) for i, j in others], dtype=bool)  # no chain leads from one to the other
    registration = joined([near, run(FitFrom(options, start, lost), others, report.add)])
    pairs = np.array(neighbours + others, dtype=int).reshape(-1, 2)
    origin = source.usable[0] if source.usable else 0
    valid = registration.valid.numpy()
    solved = solve_trajectory(
        source.n_frames,
        pairs[valid],
        registration.moving_from_reference[valid],
        registration.motion_covariance[valid],
        shape=source.shape,
        origin=origin,
    )
    if not source.usable:
        solved = _nothing_known(solved)
    refined = refine_trajectory(
        source,
        solved.frame_from_reference,
        solved.displacement_sigma_px,
        origin,
        options,
        rounds=settings.groupwise_rounds,
        advance=lambda: report.add(1),
    )
    solved = _with_refined(solved, refined, origin)
    registration = replace(registration, hop_probability=_pair_hops(links, pairs, registration.hop_probability))
    trajectory, registration = _judge_pairs(solved, registration, pairs, valid)
    frame_hops = _frame_hops(source, links, origin, trajectory.connected)
    limit, lattice = settings.hop_probability_limit, source.scales.period_px is not None
    return DriftEstimate(
        pairs,
        registration,
        trajectory,
        origin,
        _frame_reasons(source, trajectory, registration, pairs),
        frame_hops,
        lattice & (registration.hop_probability.numpy() > limit) & registration.valid.numpy(),
        frame_hops > limit,
        _ambiguity(source.lattice_vectors_px),
        _affine_covariance(refined, origin),
    )


def _register_neighbours(
    source: FrameSource, neighbours: Pairs, options: FitOptions, run: PairRunner, advance: Advance,
    suggested: Tensor | None,
) -> PairRegistration:  # fmt: skip
    """First without any expectation; all but the clear pairs again, expecting the drift that the clear ones show.

    Where no pair is clear (a perfect lattice), the shorter drift is taken and the pair keeps its high hop probability.
    """
    first = run(FitUnknown(options, starts=suggested), neighbours, advance)
    doubtful = (first.hop_probability > CLEAR_HOP_PROBABILITY) & first.valid
    if not bool(doubtful.any()):
        return first
    clear = first.valid & ~doubtful
    period = options.scales.period_px or 4 * options.scales.base_px
    drift = geometry.drift_at_centre(first.moving_from_reference, source.shape).norm(dim=-1)
    scale = max(1.0, 1.5 * float(drift[clear].median())) if bool(clear.any()) else period / 4
    again = np.flatnonzero(doubtful.numpy())
    starts = None if suggested is None else suggested[again]
    many = replace(options, candidates=MANY_CANDIDATES)
    second = run(FitUnknown(many, scale, starts), [neighbours[m] for m in again], _uncounted)
    alone = first.hop_probability[torch.as_tensor(again)]
    if not bool(clear.any()):
        second = replace(second, hop_probability=alone)
    else:
        before = first.moving_from_reference[torch.as_tensor(again)]
        overruled = geometry.displacement_rms_px(second.moving_from_reference, before, source.shape) > period / 4
        doubt = torch.maximum(second.hop_probability, alone.clamp_max(EXPECTED_NOT_SEEN))
        second = replace(second, hop_probability=torch.where(overruled, doubt.clamp_min(OVERRULED), doubt))
    return replaced(first, again, second)


def _settled(
    source: FrameSource, neighbours: Pairs, near: PairRegistration, options: FitOptions, run: PairRunner
) -> tuple[PairRegistration, Links]:
    """Neighbours with the doubtful links decided where the frames of both sides together can, and the links."""
    links = Links(neighbours, near.moving_from_reference, near.hop_probability.numpy(), near.valid.numpy())
    if source.scales.period_px is None:
        return near, links
    settled, changed = settle_links(source, links, options)
    if changed:
        fit = FitFrom(options, settled.moving_from_reference[changed], np.zeros(len(changed), dtype=bool))
        near = replaced(near, np.array(changed), run(fit, [neighbours[m] for m in changed], _uncounted))
    near = replace(near, hop_probability=torch.as_tensor(settled.hop_probability))
    return near, replace(settled, moving_from_reference=near.moving_from_reference, holds=near.valid.numpy())


def _pair_hops(links: Links, pairs: np.ndarray, own: Tensor) -> Tensor:
    """(m,) probability that a pair is off by a lattice vector: that of the links that it follows, else its `own`."""
    hops = [
        links.hop_between(i, j) if links.unbroken(i, j) else alone
        for (i, j), alone in zip(pairs, own.tolist(), strict=True)
    ]
    return torch.tensor(hops, dtype=torch.float64)


def _frame_hops(source: FrameSource, links: Links, origin: int, connected: np.ndarray) -> np.ndarray:
    """(t,) probability that a frame is off by a lattice vector against the reference frame; NaN without a lattice, and
    without a link in doubt that would tell of one.
    """
    hops = np.full(source.n_frames, np.nan)
    if source.scales.period_px is not None or bool((links.hop_probability > CLEAR_HOP_PROBABILITY).any()):
        for k in np.flatnonzero(connected):
            hops[k] = links.hop_between(origin, int(k))
    return hops


def _ambiguity(vectors: np.ndarray | None) -> str:
    told = "" if vectors is None else " " + ", ".join(f"({y:.1f}, {x:.1f})" for y, x in vectors) + " px"
    return "ambiguous modulo lattice" + told


def _between(chain: Tensor, i: int, j: int) -> Tensor:
    return chain[j] @ geometry.invert(chain[i])


def _affine_covariance(refined: Refined, origin: int) -> Tensor:
    """(t, 6, 6) of frame_from_reference: a frame's own error against the sample, and the reference frame's."""
    covariance = refined.frame_covariance + refined.frame_covariance[origin]
    covariance[origin] = 0.0 * covariance[origin]
    linear = refined.frame_from_reference[:, :2, :2].contiguous()
    lift = torch.stack([torch.kron(a, torch.eye(3, dtype=a.dtype)) for a in linear])
    return lift @ covariance @ lift.mT


def _nothing_known(solved: Trajectory) -> Trajectory:
    """Without any usable frame there is no reference either."""
    return replace(
        solved,
        frame_from_reference=torch.full_like(solved.frame_from_reference, torch.nan),
        displacement_sigma_px=np.full_like(solved.displacement_sigma_px, np.nan),
        connected=np.zeros_like(solved.connected),
    )


def _with_refined(solved: Trajectory, refined: Refined, origin: int) -> Trajectory:
    """The refined affines with their σ: v_0 + v_k, each frame's own error against the sample."""
    own = refined.frame_sigma_px
    sigma = np.hypot(own, own[origin])
    sigma = np.where(np.isfinite(sigma), sigma, solved.displacement_sigma_px)
    sigma[origin] = 0.0 if solved.connected[origin] else np.nan
    return replace(solved, frame_from_reference=refined.frame_from_reference, displacement_sigma_px=sigma)


def _judge_pairs(solved: Trajectory, registration: PairRegistration, pairs: np.ndarray, valid: np.ndarray):
    """Mark the pairs that the trajectory rejected, and spread its residuals over all pairs."""
    residual = np.full(len(pairs), np.nan)
    residual[valid] = solved.pair_residual_px
    accepted = valid.copy()
    accepted[valid] = solved.pair_accepted
    reason = list(registration.reason)
    for m in np.flatnonzero(valid & ~accepted):
        reason[m] = f"contradicts the other pairs by {residual[m]:.1f} px (lattice hop?)"
    trajectory = replace(solved, pair_residual_px=residual, pair_accepted=accepted)
    return trajectory, replace(registration, valid=torch.as_tensor(accepted), reason=reason)


def _frame_reasons(
    source: FrameSource, trajectory: Trajectory, registration: PairRegistration, pairs: np.ndarray
) -> list[str]:
    reasons = []
    for k in range(source.n_frames):
        if k in source.unusable:
            reasons.append(source.unusable[k])
        elif trajectory.connected[k]:
            reasons.append("")
        else:
            touching = [
                registration.reason[m] for m in np.flatnonzero((pairs == k).any(axis=1)) if registration.reason[m]
            ]
            reasons.append("cannot be tied to the reference frame" + (f": {touching[0]}" if touching else ""))
    return reasons


def _uncounted(pairs: int) -> None:
    """Advance of work that the total does not count."""


class _Counter:
    def __init__(self, progress: Callable[[int, int], None] | None, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def add(self, n: int) -> None:
        self.done += n
        if self.progress:
            self.progress(self.done, self.total)
