"""From pairwise drift to one affine per frame: robust weighted least squares on the affine group.

Each pair (i, j) measures T_j·T_i⁻¹ with a covariance; T_0 of the reference frame is fixed to the identity.
Gauss–Newton on the logarithms of the misfits, with weights that fade out pairs which contradict the others.

Pair errors share the noise of their frames (the error of pair (i, j) is nearly n_j − n_i), so the least-squares
covariance, which takes pairs as independent, would be too small by the root of their number. A frame's own variance
v_k is therefore recovered from the pair variances v_i + v_j, and its error against the reference frame is v_0 + v_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from atomdiffuser import geometry

ROBUST_SCALES = (1000.0, 100.0, 30.0, 10.0, 4.0, 4.0)  # in units of σ, tightened as the solution settles
STEPS_PER_SCALE = 3
OUTLIER_SIGMAS = 6.0
OUTLIER_PX = 0.5


@dataclass(frozen=True)
class Trajectory:
    """One affine per frame.

    Attributes
    ----------
    frame_from_reference
        (t, 3, 3) float64; NaN for frames that could not be tied to the reference frame.
    displacement_sigma_px
        (t,) 1 σ against the reference frame, RMS over the frame [px].
    closure_px
        (t,) RMS misfit of the accepted pairs that touch the frame [px]; NaN where only one path leads to the frame.
    connected
        (t,) bool.
    pair_residual_px
        (m,) misfit of each pair against the trajectory, RMS over the frame [px]; NaN where there is none.
    pair_accepted
        (m,) bool; False for pairs that contradict the others.
    """

    frame_from_reference: Tensor
    displacement_sigma_px: np.ndarray
    closure_px: np.ndarray
    connected: np.ndarray
    pair_residual_px: np.ndarray
    pair_accepted: np.ndarray


def solve_trajectory(
    n_frames: int,
    pairs: np.ndarray,
    moving_from_reference: Tensor,
    motion_covariance: Tensor,
    *,
    shape: tuple[int, int],
    origin: int = 0,
) -> Trajectory:
    """Reconcile pairs into one trajectory.

    Parameters
    ----------
    n_frames
        Frames in the series.
    pairs
        (m, 2) frame numbers (i, j); pairs known to be invalid must be left out.
    moving_from_reference
        (m, 3, 3) affines from frame i to frame j.
    motion_covariance
        (m, 6, 6) covariance of the six numbers of a motion appended on the side of frame i.
    shape
        Of the frames, for displacements.
    origin
        The frame whose affine is the identity.
    """
    pairs = np.asarray(pairs, dtype=int).reshape(-1, 2)
    measured, shift = _about_centre(moving_from_reference.double().cpu(), shape)
    covariance = _covariance_about_centre(motion_covariance.double().cpu(), shape)
    information = torch.linalg.inv(covariance + 1e-12 * torch.eye(6, dtype=torch.float64))
    accepted = np.ones(len(pairs), dtype=bool)
    for _ in range(4):
        frames, connected = _chain(n_frames, pairs, measured, accepted, origin)
        usable = accepted & connected[pairs].all(axis=1)
        frames = _gauss_newton(frames, pairs, measured, information, usable, connected, origin)
        residual_px, residual_sigma = _misfit(frames, pairs, measured, information, shape)
        residual_px[~connected[pairs].all(axis=1)] = np.nan
        outlying = usable & (residual_sigma > OUTLIER_SIGMAS) & (residual_px > OUTLIER_PX)
        if not outlying.any():
            break
        accepted &= ~outlying
    usable = accepted & connected[pairs].all(axis=1)
    frame_variance = _frame_variances(
        n_frames, pairs[usable], geometry.displacement_sigma_px(motion_covariance, shape).cpu().numpy()[usable] ** 2
    )
    sigma = np.sqrt(frame_variance + frame_variance[origin])
    sigma[origin] = 0.0
    sigma[~connected] = np.nan
    result = shift @ frames @ geometry.invert(shift)
    result[torch.as_tensor(~connected)] = torch.nan
    return Trajectory(result, sigma, _closure(n_frames, pairs, residual_px, usable), connected, residual_px, accepted)


def _about_centre(affines: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same motions with coordinates counted from the frame's centre, and the shift back to pixel coordinates."""
    shift = geometry.translation(torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64))
    return geometry.invert(shift) @ affines @ shift, shift


def _covariance_about_centre(covariance: Tensor, shape: tuple[int, int]) -> Tensor:
    _, shift = _about_centre(geometry.identity(1), shape)
    change = _adjoint(geometry.invert(shift))
    return change @ covariance @ change.mT


def _adjoint(affine: Tensor) -> Tensor:
    """(..., 6, 6) that turns the six numbers of a small motion E into those of A·E·A⁻¹."""
    inverse = geometry.invert(affine)
    linear = affine[..., :2, :2]
    return torch.einsum("...ab,...dc->...acbd", linear, inverse).flatten(-2).flatten(-3, -2)


def _chain(
    n_frames: int, pairs: np.ndarray, measured: Tensor, accepted: np.ndarray, origin: int
) -> tuple[Tensor, np.ndarray]:
    """Start values: walk from the origin over accepted pairs, shortest lags first."""
    frames, connected = geometry.identity(n_frames), np.zeros(n_frames, dtype=bool)
    connected[origin] = True
    neighbours: dict[int, list[tuple[int, int, int]]] = {}
    for m in np.flatnonzero(accepted):
        i, j = pairs[m]
        neighbours.setdefault(i, []).append((abs(j - i), j, m))
        neighbours.setdefault(j, []).append((abs(j - i), i, m))
    queue = [(lag, origin, other, m) for lag, other, m in neighbours.get(origin, [])]
    while queue:
        queue.sort()
        _, known, new, m = queue.pop(0)
        if connected[new]:
            continue
        step = measured[m] if pairs[m, 0] == known else geometry.invert(measured[m])
        frames[new] = step @ frames[known]
        connected[new] = True
        queue += [(lag, new, other, k) for lag, other, k in neighbours.get(new, []) if not connected[other]]
    return frames, connected


def _gauss_newton(frames, pairs, measured, information, usable, connected, origin) -> Tensor:
    free = np.flatnonzero(connected & (np.arange(len(connected)) != origin))
    if len(free) == 0:
        return frames
    column = -np.ones(len(connected), dtype=int)
    column[free] = np.arange(len(free))
    index = np.flatnonzero(usable)
    first, second = pairs[index, 0], pairs[index, 1]
    measured, information = measured[index], information[index]
    for scale in ROBUST_SCALES:
        for _ in range(STEPS_PER_SCALE):
            misfit = geometry.log_affine(
                geometry.invert(measured) @ frames[second] @ geometry.invert(frames[first])
            )  # (m, 6)
            squared = torch.einsum("mi,mij,mj->m", misfit, information, misfit)
            weight = information / (1 + squared / (6 * scale**2))[:, None, None]
            lift = _adjoint(geometry.invert(measured))  # ∂misfit/∂ε_second; ∂misfit/∂ε_first is −1
            step = _solve_blocks(column[first], column[second], lift, weight, misfit, len(free))
            frames = frames.clone()
            frames[free] = geometry.exp_affine(step) @ frames[free]
            if float(step.abs().max()) < 1e-12:
                break
    return frames


def _solve_blocks(first, second, lift, weight, misfit, n_free) -> Tensor:
    """Solve the sparse normal equations for the six numbers of each free frame."""
    blocks, rows, columns = [], [], []
    right = torch.zeros(n_free, 6, dtype=torch.float64)
    jacobians = ((first, -torch.eye(6, dtype=torch.float64).expand_as(lift)), (second, lift))
    for a, ja in jacobians:
        present = torch.as_tensor(a >= 0)
        right.index_add_(0, torch.as_tensor(a)[present], -(ja.mT @ weight @ misfit[..., None])[..., 0][present])
        for b, jb in jacobians:
            both = (a >= 0) & (b >= 0)
            blocks.append((ja.mT @ weight @ jb)[torch.as_tensor(both)].numpy())
            rows.append(a[both])
            columns.append(b[both])
    block, row, col = np.concatenate(blocks), np.concatenate(rows), np.concatenate(columns)
    offset = np.arange(6)
    r = np.broadcast_to((6 * row)[:, None, None] + offset[:, None], block.shape)
    c = np.broadcast_to((6 * col)[:, None, None] + offset[None, :], block.shape)
    normal = scipy.sparse.coo_matrix((block.ravel(), (r.ravel(), c.ravel())), shape=(6 * n_free,) * 2).tocsc()
    return torch.as_tensor(scipy.sparse.linalg.spsolve(normal, right.flatten().numpy())).reshape(n_free, 6)


def _misfit(frames, pairs, measured, information, shape) -> tuple[np.ndarray, np.ndarray]:
    """Misfit of every pair as RMS displacement [px] and in σ per degree of freedom."""
    predicted = frames[pairs[:, 1]] @ geometry.invert(frames[pairs[:, 0]])
    _, shift = _about_centre(geometry.identity(1), shape)
    in_pixels = lambda a: shift @ a @ geometry.invert(shift)
    residual_px = geometry.displacement_rms_px(in_pixels(predicted), in_pixels(measured), shape)
    misfit = geometry.log_affine(geometry.invert(measured) @ predicted)
    squared = torch.einsum("mi,mij,mj->m", misfit, information, misfit)
    return residual_px.numpy(), (squared / 6).sqrt().numpy()


def _frame_variances(n_frames: int, pairs: np.ndarray, pair_variance: np.ndarray) -> np.ndarray:
    """Non-negative v with v_i + v_j ≈ variance of pair (i, j), pulled weakly towards half of the frame's best pair.

    Misfits count as shares of each pair's variance, or a few poor pairs would leave nothing for the good frames.
    """
    if len(pairs) == 0:
        return np.full(n_frames, np.nan)
    m, weak = len(pairs), 0.1
    best = np.full(n_frames, np.inf)
    np.minimum.at(best, pairs.ravel(), np.repeat(pair_variance, 2))
    best = np.where(np.isfinite(best), best, np.median(pair_variance))
    rows = np.concatenate([np.arange(m), np.arange(m), m + np.arange(n_frames)])
    columns = np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(n_frames)])
    entries = np.concatenate([1 / pair_variance, 1 / pair_variance, 2 * weak / best])
    right = np.concatenate([np.ones(m), np.full(n_frames, weak)])
    matrix = scipy.sparse.csr_matrix((entries, (rows, columns)), shape=(m + n_frames, n_frames))
    scale = float(np.median(pair_variance))  # unknowns of order one
    return scipy.optimize.lsq_linear(matrix * scale, right, bounds=(0, np.inf), tol=1e-10).x * scale


def _closure(n_frames: int, pairs: np.ndarray, residual_px: np.ndarray, usable: np.ndarray) -> np.ndarray:
    total, count = np.zeros(n_frames), np.zeros(n_frames)
    for (i, j), r in zip(pairs[usable], residual_px[usable], strict=True):
        for k in (i, j):
            total[k] += r * r
            count[k] += 1
    return np.sqrt(np.divide(total, count, out=np.full(n_frames, np.nan), where=count > 1))
