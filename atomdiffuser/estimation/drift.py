"""Drift of a whole series: neighbours first, far pairs from their chain, one trajectory over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.fit_frames import FitPairs
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.groupwise import Refined, refine_trajectory
from atomdiffuser.estimation.hops import CLEAR_HOP_PROBABILITY, Links, settle_links
from atomdiffuser.estimation.register import TENSORS, FitOptions, PairRegistration, register_from, register_unknown
from atomdiffuser.pairs import choose_pairs
from atomdiffuser.trajectory import Trajectory, solve_trajectory


@dataclass(frozen=True)
class DriftEstimate:
    """Pairs, in the order of `pairs` (m, 2), and the trajectory they give.

    `frame_reason` says for each frame why it has no place in the trajectory, or in what its place is ambiguous; else
    empty.

    Attributes
    ----------
    frame_hop_probability
        (t,) that a frame is off by a lattice vector against the reference frame; NaN without a lattice.
    ambiguous_pairs, ambiguous_frames
        (m,) and (t,) bool: that probability is above the limit in the settings.
    frame_covariance
        (t, 6, 6) of the six numbers of frame_from_reference; NaN where a frame could not be fitted to the others.
    lattice_vectors_px
        (2, 2) rows (y, x), the two shortest; None without a lattice.
    """

    pairs: np.ndarray
    registration: PairRegistration
    trajectory: Trajectory
    reference_frame: int
    frame_reason: list[str]
    frame_hop_probability: np.ndarray
    ambiguous_pairs: np.ndarray
    ambiguous_frames: np.ndarray
    frame_covariance: Tensor
    lattice_vectors_px: np.ndarray | None

    @property
    def frame_valid(self) -> np.ndarray:
        """(t,) bool: frames with a place in the trajectory, be it ambiguous."""
        return np.array([not r for r in self.frame_reason], dtype=bool) | self.ambiguous_frames


def estimate_drift(
    source: FrameSource, settings: RegisterSettings, progress: Callable[[int, int], None] | None = None
) -> DriftEstimate:
    """Register the pairs of a series and reconcile them.

    `progress(done, total)` is called as pairs are finished.
    """
    options = FitOptions.of(
        source,
        field_nodes=settings.field_nodes,
        max_iterations=settings.max_iterations,
        tolerance_px=settings.tolerance_px,
        max_shift_px=settings.max_drift_fraction * min(source.shape),
    )
    neighbours, others = choose_pairs(source.usable, settings.lags)
    report = _Counter(progress, len(neighbours) + len(others) + settings.groupwise_rounds * len(source.usable))
    near, links = _register_neighbours(source, neighbours, options, report)
    chain = links.chain(source.n_frames)

    def fit_far(part: slice, fit_pairs: FitPairs) -> PairRegistration:
        report.add(part.stop - part.start)
        start = torch.stack([_between(chain, i, j) for i, j in others[part]]).to(source.device)
        found = register_from(fit_pairs.reference, fit_pairs.moving, start, options)
        broken = [m for m, (i, j) in enumerate(others[part]) if not links.unbroken(i, j)]
        if broken:  # nothing leads from one frame to the other
            found = found.replaced(broken, register_unknown(fit_pairs.select(broken), options))
        return found

    far = source.in_batches(others, fit_far)
    registration = _join([near, *far])
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
    hops = _Hops.of(links, pairs, registration, source, origin, settings.hop_probability_limit)
    trajectory, registration = _judge_pairs(solved, replace(registration, hop_probability=hops.pairs), pairs, valid)
    return DriftEstimate(
        pairs,
        _with_ambiguity(registration, hops),
        trajectory,
        origin,
        _frame_reasons(source, trajectory, registration, pairs, hops),
        hops.frames,
        hops.ambiguous_pairs,
        hops.ambiguous_frames & trajectory.connected,
        _affine_covariance(refined, origin),
        source.lattice_vectors_px,
    )


def _register_neighbours(source, neighbours, options, report) -> tuple[PairRegistration, Links]:
    """Each pair alone; all but the clear ones again, expecting the drift that the clear ones show; then all together.

    Where no pair is clear (a perfect lattice), the shorter drift is taken and the pairs keep their high hop
    probability.
    """

    def fit(scale: float | None) -> Callable:
        def run(part: slice, fit_pairs: FitPairs) -> PairRegistration:
            report.add(part.stop - part.start if scale is None else 0)
            return register_unknown(fit_pairs, options, drift_scale_px=scale)

        return run

    found = _join(source.in_batches(neighbours, fit(None)))
    doubtful = (found.hop_probability > CLEAR_HOP_PROBABILITY) & found.valid
    if bool(doubtful.any()):
        clear = found.valid & ~doubtful
        period = options.scales.period_px or 4 * options.scales.base_px
        drift = geometry.drift_at_centre(found.moving_from_reference, source.shape).norm(dim=-1)
        scale = max(1.0, 1.5 * float(drift[clear].median())) if bool(clear.any()) else period / 4
        again = np.flatnonzero(doubtful.numpy()).tolist()
        second = _join(source.in_batches([neighbours[m] for m in again], fit(scale)))
        # The expectation chooses; what the images alone leave open stays open until many of them have been asked.
        at = torch.as_tensor(again)
        alone = found.hop_probability[at]
        moved = geometry.displacement_rms_px(
            second.moving_from_reference, found.moving_from_reference[at], source.shape
        )
        found = found.replaced(
            again, replace(second, hop_probability=torch.where(moved > period / 4, alone.clamp_min(0.5), alone))
        )
    links = Links(
        neighbours, found.moving_from_reference, found.hop_probability.numpy().copy(), found.valid.numpy().copy()
    )
    settled, changed = settle_links(source, links, options)
    if changed:
        start = settled.moving_from_reference[changed]

        def refit(part: slice, fit_pairs: FitPairs) -> PairRegistration:
            return register_from(fit_pairs.reference, fit_pairs.moving, start[part].to(source.device), options)

        found = found.replaced(changed, _join(source.in_batches([neighbours[m] for m in changed], refit)))
    links = replace(settled, moving_from_reference=found.moving_from_reference, holds=found.valid.numpy().copy())
    return replace(found, hop_probability=torch.as_tensor(settled.hop_probability)), links


@dataclass(frozen=True)
class _Hops:
    """What is known of lattice hops, for pairs and frames."""

    pairs: Tensor
    frames: np.ndarray
    ambiguous_pairs: np.ndarray
    ambiguous_frames: np.ndarray
    words: str

    @classmethod
    def of(cls, links: Links, pairs, registration, source, origin: int, limit: float) -> _Hops:
        vectors = source.lattice_vectors_px
        between = np.array([links.hop_between(i, j) for i, j in pairs])
        own = registration.hop_probability.numpy()  # of pairs that no chain of links connects
        probability = np.where([links.unbroken(i, j) for i, j in pairs], between, own).astype(float)
        frames = np.array([links.hop_between(origin, k) for k in range(source.n_frames)], dtype=float)
        if source.scales.period_px is None:
            frames[:] = np.nan
        words = "ambiguous modulo lattice"
        if vectors is not None:
            words += " " + ", ".join(f"({y:.1f}, {x:.1f})" for y, x in vectors) + " px"
        return cls(torch.as_tensor(probability), frames, probability > limit, frames > limit, words)


def _with_ambiguity(registration: PairRegistration, hops: _Hops) -> PairRegistration:
    reason = [
        hops.words if ambiguous and not text else text
        for text, ambiguous in zip(registration.reason, hops.ambiguous_pairs, strict=True)
    ]
    return replace(registration, reason=reason)


def _affine_covariance(refined: Refined, origin: int) -> Tensor:
    """(t, 6, 6) of frame_from_reference: a frame's own error against the sample and the reference frame's."""
    covariance = refined.frame_covariance + refined.frame_covariance[origin]
    covariance[origin] = 0.0 * covariance[origin]
    linear = refined.frame_from_reference[:, :2, :2].contiguous()
    lift = torch.stack([torch.kron(a, torch.eye(3, dtype=a.dtype)) for a in linear])
    return lift @ covariance @ lift.mT


def _between(chain: Tensor, i: int, j: int) -> Tensor:
    return chain[j] @ geometry.invert(chain[i])


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
    source: FrameSource, trajectory: Trajectory, registration: PairRegistration, pairs: np.ndarray, hops: _Hops
) -> list[str]:
    reasons = []
    for k in range(source.n_frames):
        if k in source.unusable:
            reasons.append(source.unusable[k])
        elif trajectory.connected[k]:
            reasons.append(hops.words if hops.ambiguous_frames[k] else "")
        else:
            touching = [
                registration.reason[m] for m in np.flatnonzero((pairs == k).any(axis=1)) if registration.reason[m]
            ]
            reasons.append("cannot be tied to the reference frame" + (f": {touching[0]}" if touching else ""))
    return reasons


def _join(parts: list[PairRegistration]) -> PairRegistration:
    parts = [p for p in parts if len(p.reason)]
    if not parts:
        empty = torch.zeros(0, dtype=torch.float64)
        return PairRegistration(geometry.identity(0), empty.reshape(0, 6, 6), empty, empty, empty, empty.bool(), [])
    joined = {f: torch.cat([getattr(p, f) for p in parts]).cpu() for f in TENSORS}
    return PairRegistration(**joined, reason=[r for p in parts for r in p.reason])


class _Counter:
    def __init__(self, progress: Callable[[int, int], None] | None, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def add(self, n: int) -> None:
        self.done += n
        if self.progress:
            self.progress(self.done, self.total)
