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

import numpy as np
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
    smeared = problem.smeared(images, fields, normal)
    affine = torch.from_numpy(_moved(affine.cpu().numpy(), smeared.cpu().numpy())).to(affine.device)
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
    walk = _Walk(start, problem.basis.second_moments)
    fields = torch.ones(n, 2, *(2 * (problem.basis.nodes,)), dtype=torch.float64, device=problem.device)
    if start_fields is not None:
        fields = start_fields.to(fields).clone()
    active = torch.arange(n, device=problem.device)
    part, latest = problem, None
    for k in range(max_iterations):
        decay = fields if part is problem else fields[active]
        images = part.images(walk.affine(active), decay)
        if k in NORMAL_MATRIX_AT:
            if k > 0 and not trial:
                problem.learn_misfit(active, images)
                part = problem.at(active)
                images = part.weighed(images)
            normal = part.normal_matrix(images, NOISE_IN_TRIALS if trial else NOISE_IN_STEPS)
            latest = normal if latest is None else latest.put(active, normal)
        step, change = part.solve(images, normal, decay)
        fields = fields + change if part is problem else fields.index_add(0, active, change)
        settled = walk.go(active, step, tolerance_px, may_settle=k >= FEWEST_STEPS)
        if settled.any():
            left = torch.from_numpy(~settled).to(active.device)
            active = active[left]
            if active.numel() == 0:
                break
            part, normal = problem.at(active), normal.select(left)
    last_px = torch.from_numpy(walk.last_px).to(problem.device)
    return walk.affine(), fields, last_px, latest


def _problem(
    reference: ReferenceCells, moving: PreparedFrames, model: FitModel, of: Tensor | None = None
) -> FitProblem:
    """Solved by compiled loops where they run, by tensor operations elsewhere."""
    if not compiled_here(reference.slopes.device):
        return FitProblem(reference, moving, model, of)
    from atomdiffuser.estimation.compiled_fit import CompiledFitProblem

    return CompiledFitProblem(reference, moving, model, of)


class _Walk:
    """Where each fit is, and how far it goes along its steps: further while these agree, shorter where they go back and
    forth. At few counts the normal matrix is a poor guess of the curvature, and plain steps creep or swing.

    Kept on the processor: what is decided for six numbers a fit takes longest to ask a device for.

    Attributes
    ----------
    last_px
        (n,) the last step of fits that have not settled, 0 of others.
    """

    def __init__(self, start: Tensor, second_moments: Tensor):
        self._device, self._moments = second_moments.device, second_moments.cpu().numpy()
        self._affine = start.detach().to("cpu", torch.float64).numpy().copy()
        n = len(self._affine)
        self.last_px, self._size, self._factor = np.full(n, np.inf), np.full(n, np.inf), np.ones(n)
        self._last = np.zeros((n, 6))

    def affine(self, at: Tensor | None = None) -> Tensor:
        """Affines (n, 3, 3) of all fits, or of some."""
        return torch.from_numpy(self._affine if at is None else self._affine[at.cpu().numpy()]).to(self._device)

    def go(self, active: Tensor, steps: Tensor, tolerance_px: float, *, may_settle: bool) -> np.ndarray:
        """Take steps (m, 6) of the active fits, and say which of these (m,) have settled: where the step, or what steps
        so far foretell of the next, is below the tolerance.
        """
        at, step = active.cpu().numpy(), steps.cpu().numpy()
        rows = step.reshape(-1, 2, 3)
        with np.errstate(all="ignore"):  # a fit that goes astray ends where it is no number
            size = np.sqrt(np.maximum(((rows @ self._moments) * rows).sum((1, 2)), 0.0))
            rate = size / self._size[at]
            foretold = (rate < FAST) & (size * np.maximum(rate, SLOWEST_GUESS) < tolerance_px / 2)
            settled = ((size < tolerance_px) | foretold) & may_settle
            step = step * self._stride(at, step)[:, None]
            step *= (LARGEST_STEP_PX / np.maximum(size * self._factor[at], LARGEST_STEP_PX))[:, None]
            self._affine[at] = _moved(self._affine[at], step)
        self._size[at], self.last_px[at] = size, np.where(settled, 0.0, size)
        return settled

    def _stride(self, at: np.ndarray, step: np.ndarray) -> np.ndarray:
        """(m,) how many times as far as the step."""
        last, factor = self._last[at], self._factor[at]
        length = np.sqrt((step**2).sum(1) * (last**2).sum(1))
        agreement = (step * last).sum(1) / np.maximum(length, 1e-30)
        factor = np.where(agreement > 0.5, np.minimum(1.4 * factor, 2.5), factor)
        self._factor[at] = np.where(agreement < -0.3, 0.5 * np.minimum(factor, 1.0), factor)
        self._last[at] = step
        return self._factor[at]


def _moved(affine: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The affines (n, 3, 3) after a small motion (n, 6) on the reference side."""
    generator = np.zeros((len(step), 3, 3))
    generator[:, :2] = step.reshape(-1, 2, 3)
    along = affine @ generator
    return affine + along + along @ generator / 2
