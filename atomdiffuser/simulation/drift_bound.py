"""The Cramér–Rao bound of drift between two simulated frames: what no unbiased estimator can beat.

Two frames are all there is: the specimen itself is unknown, and the decay between them too. Where the reference frame
expects E₀(q) electrons and the moving frame E(A q), Poisson both, and structure is carried over by the factor κ(q),
what the two say about the motion is the difference of the second from κ times the first. With the specimen's value at
every pixel eliminated, the information about the six numbers of the motion and about smooth fields of decay is

    F = Σ D Dᵀ / (E(A q) + κ² E₀(q) + readout),      D = [∇E·(y, x, 1), base·φ, lattice·φ]

over the pixels that both frames show; φ are bilinear nuisance fields of intensity and contrast. Without damage this is
the sum of the two frames' bounds over a known specimen; with damage it lies above that sum, because a place that faded
cannot use what the reference frame knew about it.

Independent of the estimation: derivatives of quintic splines through the noise-free frames, nothing filtered, no rim
left out.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import gaussian_filter

from atomdiffuser import geometry

NUISANCE_NODES = 8
LEAST_ELECTRONS = 1e-3


def pair_bound(
    expected_reference: np.ndarray,
    expected_moving: np.ndarray,
    moving_from_reference: np.ndarray,
    contrast: np.ndarray | float = 1.0,
    *,
    readout_e: float = 0.0,
    local_mean_px: float = 10.0,
    nodes: int = NUISANCE_NODES,
) -> np.ndarray:
    """Least covariance (6, 6) of the six numbers of `moving_from_reference` (3, 3).

    Parameters
    ----------
    expected_reference, expected_moving
        (Y, X) expected electrons without noise.
    contrast
        (Y, X) on the reference grid, or one number: the structure of the moving frame over that of the reference.
    readout_e
        1 σ of the readout noise [electrons].
    local_mean_px
        σ of the Gaussian that splits the moving frame into local mean and structure for the nuisance fields.
    nodes
        Nodes of each nuisance field per axis; 0 takes the decay as known.
    """
    reference, moving = (np.asarray(e, dtype=float) for e in (expected_reference, expected_moving))
    affine = np.asarray(moving_from_reference, dtype=float)
    rows, columns = (np.arange(n) for n in reference.shape)
    q = geometry.pixel_grid(reference.shape).numpy().reshape(-1, 2)
    p = q @ affine[:2, :2].T + affine[:2, 2]
    seen = ((p >= 0) & (p <= np.array(reference.shape) - 1)).all(axis=1)
    q, p = q[seen], p[seen]
    spline = RectBivariateSpline(rows, columns, moving, kx=5, ky=5)
    at = lambda image, **order: RectBivariateSpline(rows, columns, image, kx=5, ky=5).ev(*p.T, **order)
    slope = np.stack([spline.ev(*p.T, dx=1), spline.ev(*p.T, dy=1)], axis=-1) @ affine[:2, :2]
    points = np.concatenate([q, np.ones((len(q), 1))], axis=1)  # (m, 3)
    jacobian = [slope[:, :1] * points, slope[:, 1:] * points]
    signal = spline.ev(*p.T)
    if nodes:
        base = at(gaussian_filter(moving, local_mean_px, mode="nearest"))
        hats = _hats(q, reference.shape, nodes)
        jacobian += [base[:, None] * hats, (signal - base)[:, None] * hats]
    kappa = np.broadcast_to(np.asarray(contrast, dtype=float), reference.shape).reshape(-1)[seen]
    variance = signal + readout_e**2 + kappa**2 * (reference.reshape(-1)[seen] + readout_e**2)
    stacked = np.concatenate(jacobian, axis=1)
    information = stacked.T @ (stacked / np.maximum(variance, LEAST_ELECTRONS)[:, None])
    scale = 1 / np.sqrt(np.maximum(np.diag(information), 1e-300))
    bound = (np.linalg.pinv(information * np.outer(scale, scale), hermitian=True) * np.outer(scale, scale))[:6, :6]
    lift = np.kron(affine[:2, :2], np.eye(3))  # from a motion on the reference side to the affine's own numbers
    return lift @ bound @ lift.T


def pair_bound_px(
    expected_reference: np.ndarray,
    expected_moving: np.ndarray,
    moving_from_reference: np.ndarray,
    contrast: np.ndarray | float = 1.0,
    **options,
) -> float:
    """The same as displacement, 1 σ, RMS over the frame [px]."""
    covariance = pair_bound(expected_reference, expected_moving, moving_from_reference, contrast, **options)
    return float(geometry.displacement_sigma_px(torch.as_tensor(covariance), np.shape(expected_reference)))


def _hats(points: np.ndarray, shape: tuple[int, ...], nodes: int) -> np.ndarray:
    """(m, nodes²) bilinear hat functions over the frame at `points` (m, 2)."""
    along = []
    for axis, size in enumerate(shape):
        position = points[:, axis] * ((nodes - 1) / (size - 1))
        along.append(np.clip(1 - np.abs(position[:, None] - np.arange(nodes)), 0, None))
    return (along[0][:, :, None] * along[1][:, None, :]).reshape(len(points), -1)
