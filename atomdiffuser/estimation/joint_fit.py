"""Joint Gauss–Newton fit of affine drift and smooth decay fields to pairs of frames.

Model, at the cell centres q of the reference frame, both frames matched-filtered:

    moving(A q) = μ(q)·base(q) + κ(q)·lattice(q) + noise

μ and κ are bilinear on a coarse grid of nodes; A is a full affine. Weights are the inverse noise variance of both
frames. The gradient is the reference frame's, freed of noise, times κ: it does not move with A, and the noise of a
frame is uncorrelated with its own slope, so that the fit's zero lies where the frames match. The normal matrix has
products of the clean and the given slopes, less what the noise's own slopes add to them.

The matched filter F smears decay: F(κ·x) = κ·F(x) + σ²·∇κ·∇F(x), as if the specimen had moved up the slope of the
contrast. The last step takes that back.

Where the misfit stays above the noise, because decay has an edge that the fields cannot follow, it counts as noise.

Assumes structure finer than the node spacing, decay that varies little within a node, and no occlusion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atomdiffuser.compiled import compiled_here
from atomdiffuser.estimation.cells import ReferenceCells
from atomdiffuser.estimation.fit_problem import FitImages, FitModel, FitProblem, PairFit
from atomdiffuser.estimation.normal_matrix import NormalMatrix
from atomdiffuser.estimation.prepare import PreparedFrames

LARGEST_STEP_PX = 1.5
NOISE_IN_STEPS = 0.95  # of the noise's own slopes taken out of a step's normal matrix; all of it could overshoot
NOISE_IN_TRIALS = 0.6  # the same where steps are few and nothing watches over them
NORMAL_MATRIX_AT = (0, 1, 4, 10, 20)  # steps; it hardly changes near the end
FAST, SLOWEST_GUESS = 0.3, 0.05  # how steps shrink from one to the next: where that foretells the next one
FEWEST_STEPS = 1  # after the first, the normal matrix knows the decay, which a good start does not bring along


def fit_pairs(
    reference: ReferenceCells,
    moving: PreparedFrames,
    start: Tensor,
    model: FitModel,
    *,
    max_iterations: int = 30,
    tolerance_px: float = 1e-3,
    covariance: bool = True,
    start_fields: Tensor | None = None,
) -> PairFit:
    """Fit n pairs from starting affines (n, 3, 3).

    Parameters
    ----------
    max_iterations
        After so many steps without settling, a pair is returned as not converged.
    tolerance_px
        A pair has settled when a step moves the frame by less (RMS), or the next one would, as fast as steps shrink.
    covariance
        False saves its work; covariances are then infinite.
    start_fields
        (n, 2, nodes, nodes) μ and κ to start from; intact by default.
    """
    problem = _problem(reference, moving, model)
    affine, fields, last_px, normal = _settle(problem, start, start_fields, max_iterations, tolerance_px)
    images = problem.images(affine, fields)
    if not covariance:
        return problem.summarise(affine, fields, images, last_px, None)
    affine = _moved(affine, problem.smeared(images, fields, normal))
    return problem.summarise(affine, fields, images, last_px, normal)


def settle_pairs(
    reference: ReferenceCells, moving: PreparedFrames, start: Tensor, model: FitModel, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Affines (n, 3, 3) and fields (n, 2, nodes, nodes) a few Gauss–Newton steps on, without judging them."""
    return _settle(_problem(reference, moving, model), start, None, steps, 0.0, trial=True)[:2]


def try_pairs(
    reference: ReferenceCells, moving: PreparedFrames, of: Tensor, start: Tensor, start_fields: Tensor,
    model: FitModel, *, steps: int,
) -> tuple[Tensor, Tensor, FitImages]:  # fmt: skip
    """The same from affines and fields that are each `of` (n,) one of the pairs of frames, and what is left there."""
    problem = _problem(reference, moving, model, of)
    affine, fields, *_ = _settle(problem, start, start_fields, steps, 0.0, trial=True)
    return affine, fields, problem.images(affine, fields)


def _settle(
    problem: FitProblem, start: Tensor, start_fields: Tensor | None, max_iterations: int, tolerance_px: float,
    *, trial: bool = False,
) -> tuple[Tensor, Tensor, Tensor, NormalMatrix]:  # fmt: skip
    """Affines, fields, the last step of pairs that have not settled [px], 0 of others, and the last normal matrices."""
    n = len(start)
    affine = start.to(problem.device, torch.float64).clone()
    fields = torch.ones(n, 2, *(2 * (problem.basis.nodes,)), dtype=torch.float64, device=problem.device)
    if start_fields is not None:
        fields = start_fields.to(fields).clone()
    last_px = torch.full((n,), torch.inf, dtype=torch.float64, device=problem.device)
    active = torch.arange(n, device=problem.device)
    stride = _Stride(n, problem.device)
    part, latest = problem, None
    for k in range(max_iterations):
        images = part.images(affine[active], fields[active])
        if k in NORMAL_MATRIX_AT:
            if k > 0 and not trial:
                problem.learn_misfit(active, images)
                part = problem.at(active)
                images = part.weighed(images)
            normal = part.normal_matrix(images, NOISE_IN_TRIALS if trial else NOISE_IN_STEPS)
            latest = normal if latest is None else latest.put(active, normal)
        step, change = part.solve(images, normal, fields[active])
        size = problem.size_px(step)
        settled = stride.settled(active, size, tolerance_px)
        if k < FEWEST_STEPS:
            settled = torch.zeros_like(settled)
        step = step * stride.next(active, step)[:, None]
        step = step * (LARGEST_STEP_PX / (size * stride.factor[active]).clamp_min(LARGEST_STEP_PX))[:, None]
        affine[active] = _moved(affine[active], step)
        fields[active] += change
        last_px[active] = torch.where(settled, 0.0, size)
        if bool(settled.any()):
            active = active[~settled]
            if active.numel() == 0:
                break
            part, normal = problem.at(active), normal.select(~settled)
    return affine, fields, last_px, latest


def _problem(
    reference: ReferenceCells, moving: PreparedFrames, model: FitModel, of: Tensor | None = None
) -> FitProblem:
    """Solved by compiled loops where they run, by tensor operations elsewhere."""
    if not compiled_here(reference.slopes.device):
        return FitProblem(reference, moving, model, of)
    from atomdiffuser.estimation.compiled_fit import CompiledFitProblem

    return CompiledFitProblem(reference, moving, model, of)


def _moved(affine: Tensor, step: Tensor) -> Tensor:
    """The affines (…, 3, 3) after a small motion (…, 6) on the reference side."""
    generator = torch.nn.functional.pad(step.unflatten(-1, (2, 3)), (0, 0, 0, 1))
    along = affine @ generator
    return affine + along + along @ generator / 2


class _Stride:
    """How far to go along each pair's step: further while steps agree, shorter where they go back and forth.

    At few counts the normal matrix is a poor guess of the curvature, and plain steps creep or swing.
    """

    def __init__(self, n: int, device: torch.device):
        self.factor = torch.ones(n, dtype=torch.float64, device=device)
        self._last = torch.zeros(n, 6, dtype=torch.float64, device=device)
        self._size = torch.full((n,), torch.inf, dtype=torch.float64, device=device)

    def settled(self, active: Tensor, size: Tensor, tolerance: float) -> Tensor:
        """Whether the steps' `size`, or what it foretells of the next, is below the tolerance."""
        rate = size / self._size[active]
        self._size[active] = size
        return (size < tolerance) | ((rate < FAST) & (size * rate.clamp_min(SLOWEST_GUESS) < tolerance / 2))

    def next(self, active: Tensor, step: Tensor) -> Tensor:
        last = self._last[active]
        agreement = (step * last).sum(1) / (step.norm(dim=1) * last.norm(dim=1)).clamp_min(1e-30)
        factor = self.factor[active]
        factor = torch.where(agreement > 0.5, (1.4 * factor).clamp_max(2.5), factor)
        self.factor[active] = torch.where(agreement < -0.3, 0.5 * factor.clamp_max(1.0), factor)
        self._last[active] = step
        return self.factor[active]
