"""Joint fit of affine drift and smooth decay fields to pairs of frames.

Model, on the samples q of the reference frame, both frames lightly filtered:

    moving(A q) = μ(q)·base(q) + κ(q)·lattice(q) + noise

μ and κ are bilinear on a coarse grid of nodes; A is a full affine. The equations Jᵀ W r = 0 are solved for the residual
r of the lightly filtered frames, W the inverse noise variance of both. What stands in J, the sample's gradient and its
lattice, is the maximum-likelihood mean of the two *denoised* frames at the current alignment: its noise is independent
of that of r, so that it cannot shift the solution, and there is little of it, so that it costs little precision.

Newton steps take the slope of r from the other frame's gradient, whose noise is independent again; the covariance is
a sandwich with the noise's correlation through the light filter.

Assumes structure finer than the node spacing, decay that varies little within a node, and no occlusion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from dataclasses import fields as fields_of

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.fit_frames import FitFrames, FitGrid
from atomdiffuser.estimation.linearised import Linearised, Problem, sample_moving
from atomdiffuser.estimation.noise import NoiseModel

LARGEST_STEP_PX = 1.5
LARGEST_VARIANCE_RATIO = 2.0  # of an alternative's noise over the first's; more is a field gone astray
RELINEARISE_PX = 0.05  # what the denoised frames say depends on where they were compared, by 1 % of σ at this distance
RELINEARISE_FIELDS = 0.04  # RMS over the nodes: the weights follow the fields


@dataclass(frozen=True)
class PairFit:
    """Results of n pair fits; tensors on the fit's device.

    Attributes
    ----------
    moving_from_reference
        (n, 3, 3) float64, acts on pixel points.
    covariance
        (n, 6, 6) float64, of the six numbers of a motion applied on the reference side (A·exp(ξ)).
    fields
        (n, 2, G, G) μ and κ at the nodes.
    correlation
        (n,) between the aligned lattices.
    overlap
        (n,) share of the reference frame seen by both.
    converged
        (n,) bool.
    residual, weight
        (n, Y, X) misfit of the samples and its weight (zero outside the overlap).
    state
        The fit's last linearisation.
    """

    moving_from_reference: Tensor
    covariance: Tensor
    fields: Tensor
    correlation: Tensor
    overlap: Tensor
    converged: Tensor
    residual: Tensor
    weight: Tensor
    state: Linearised

    def at(self, index: Tensor) -> PairFit:
        """The same for some of the pairs."""
        values = {f.name: getattr(self, f.name) for f in fields_of(self)}
        state = self.state.at(index)
        state = replace(state, problem=self.state.problem.at(index))
        return PairFit(**{k: v[index] if isinstance(v, Tensor) else v for k, v in values.items()} | {"state": state})


def fit_pairs(
    reference: FitFrames,
    moving: FitFrames,
    start: Tensor,
    *,
    grid: FitGrid,
    noise: NoiseModel,
    nodes: int = 8,
    max_iterations: int = 30,
    tolerance_px: float = 1e-3,
    covariance: bool = True,
    start_fields: Tensor | None = None,
) -> PairFit:
    """Fit n pairs from the starting affines `start` (n, 3, 3) moving_from_reference, of pixel points.

    `noise` is that of a raw pixel, `start_fields` (n, 2, G, G) are nodes of μ and κ where they are known already.
    Without `covariance` it is infinite.
    """
    problem = Problem(reference, moving, grid, noise, nodes)
    n = len(reference)
    affine = grid.to_samples(start.to(problem.device))
    fields = torch.ones(n, 2, nodes, nodes, dtype=torch.float64, device=problem.device)
    if start_fields is not None:
        fields = start_fields.to(fields).clone()
    converged = torch.zeros(n, dtype=torch.bool, device=problem.device)
    moved_px = torch.zeros(n, dtype=torch.float64, device=problem.device)
    changed = torch.zeros_like(fields)
    stride = _Stride(n, problem.device)
    active = torch.arange(n, device=problem.device)
    state = problem.linearise(affine, fields)
    sampled, residuals, weights = state.warped, torch.empty_like(state.warped), torch.empty_like(state.warped)
    for _ in range(max_iterations):
        part = problem.at(active)
        now = state.at(active)
        residual, weight = part.residual(sampled, fields[active], affine[active], now)
        residuals[active], weights[active] = residual, weight
        step, change = now.solve(residual, weight, fields[active])
        size = grid.stride * geometry.displacement_rms_px(
            geometry.exp_affine(step), torch.eye(3, device=step.device), problem.shape
        )
        step = step * stride.next(active, step)[:, None]
        step = step * (LARGEST_STEP_PX / (size * stride.factor[active]).clamp_min(LARGEST_STEP_PX))[:, None]
        affine[active] = affine[active] @ geometry.exp_affine(step)
        fields[active] = fields[active] + change
        changed[active] += change
        moved_px[active] += size.clamp_max(LARGEST_STEP_PX)
        outdated = (moved_px > RELINEARISE_PX) | (changed.square().mean((1, 2, 3)).sqrt() > RELINEARISE_FIELDS)
        finished = (size < tolerance_px) & ~outdated[active]
        converged[active[finished]] = True
        active = active[~finished]
        if active.numel() == 0:
            break
        stale = active[outdated[active]]
        if stale.numel():
            state = state.replaced(stale, problem.at(stale).linearise(affine[stale], fields[stale]), n)
            moved_px[stale], changed[stale] = 0.0, 0.0
        sampled = sample_moving(problem.at(active).moving, affine[active], problem.shape)
    return _summary(problem, state, affine, fields, converged, (residuals, weights), covariance)


def _summary(
    problem: Problem,
    state: Linearised,
    affine: Tensor,
    fields: Tensor,
    converged: Tensor,
    last: tuple[Tensor, Tensor],
    with_covariance: bool,
) -> PairFit:
    """Quality of the final state from residual and weight before the last step, and its covariance."""
    grid, (residual, weight) = problem.grid, last
    signal = problem.reference.lattice
    observed = residual + problem.spread(fields[:, 1]) * signal
    total = lambda a, b: (weight * a * b).sum((1, 2))
    correlation = total(signal, observed) / (total(signal, signal) * total(observed, observed)).clamp_min(1e-30).sqrt()
    covariance = state.covariance(weight) if with_covariance else torch.full_like(affine[:, :1, :1], torch.inf)
    return PairFit(
        moving_from_reference=grid.to_pixels(affine),
        covariance=grid.covariance_to_pixels(covariance) if with_covariance else covariance.expand(-1, 6, 6),
        fields=fields,
        correlation=correlation.double(),
        overlap=(weight > 0).double().mean((1, 2)),
        converged=converged,
        residual=residual,
        weight=weight,
        state=state,
    )


@dataclass(frozen=True)
class NearbyFits:
    """Fits of `count` alternatives to each of n pairs: affines (n, count, 3, 3) of pixel points, fields
    (n, count, 2, G, G), and misfit and weight of the samples, (n, count, Y, X).
    """

    moving_from_reference: Tensor
    fields: Tensor
    residual: Tensor
    weight: Tensor


def fit_nearby(fit: PairFit, starts: Tensor, *, steps: int = 1) -> NearbyFits:
    """Fit alternatives that show the same structure in the same direction, as a lattice vector away.

    The slopes are those of `fit`, so that an alternative, `starts` (n, count, 3, 3), costs two samplings of the moving
    frame. Its weights follow its own fields: one that meets a darker, so quieter, part must not gain by that.
    """
    state = fit.state
    problem = state.problem
    known = (state.seen_weight > 0).float()  # elsewhere the slopes know nothing of the fields
    found = []
    for start in starts.unbind(1):
        affine, fields = problem.grid.to_samples(start), fit.fields.clone()
        for _ in range(steps):
            residual, weight = problem.residual(
                sample_moving(problem.moving, affine, problem.shape), fields, affine, state
            )
            step, change = state.solve(residual, weight * known, fields)
            size = problem.grid.stride * geometry.displacement_rms_px(
                geometry.exp_affine(step), torch.eye(3, device=step.device), problem.shape
            )
            affine = affine @ geometry.exp_affine(step * (LARGEST_STEP_PX / size.clamp_min(LARGEST_STEP_PX))[:, None])
            fields = fields + change
        residual, weight = problem.residual(sample_moving(problem.moving, affine, problem.shape), fields, affine, state)
        ratio = problem.mean_variance(fit.fields) / problem.mean_variance(fields)
        weight = weight * known * ratio.clamp(1 / LARGEST_VARIANCE_RATIO, LARGEST_VARIANCE_RATIO)
        found.append((problem.grid.to_pixels(affine), fields, residual, weight))
    return NearbyFits(*(torch.stack(parts, dim=1) for parts in zip(*found, strict=True)))


class _Stride:
    """How far to go along each pair's step: further while steps agree, shorter where they go back and forth.

    At few counts the slopes are a poor guess, and plain steps creep or swing.
    """

    def __init__(self, n: int, device: torch.device):
        self.factor = torch.ones(n, dtype=torch.float64, device=device)
        self._last = torch.zeros(n, 6, dtype=torch.float64, device=device)
        self._steps = torch.zeros(n, dtype=torch.long, device=device)

    def next(self, active: Tensor, step: Tensor) -> Tensor:
        last = self._last[active]
        agreement = (step * last).sum(1) / (step.norm(dim=1) * last.norm(dim=1)).clamp_min(1e-30)
        slow = step.norm(dim=1) > 0.3 * last.norm(dim=1)  # steps that shrink fast need no help
        factor = self.factor[active]
        factor = torch.where(
            (agreement > 0.5) & slow & (self._steps[active] > 0), (1.4 * factor).clamp_max(2.5), factor
        )
        self.factor[active] = torch.where((agreement < -0.3) & slow, 0.5 * factor.clamp_max(1.0), factor)
        self._last[active] = step
        self._steps[active] += 1
        return self.factor[active]
