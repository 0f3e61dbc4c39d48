"""The affine that fits a field of displacements best, weighted and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from atomdiffuser import geometry

PRIOR_PER_PX2 = 1e-2  # displacement of the identity: σ of 10 px at the frame's edge, so that a blank pair stays put


def fit_affine(
    points: Tensor, displacement: Tensor, information: Tensor, shape: tuple[int, int], *, prior: float = PRIOR_PER_PX2
) -> tuple[Tensor, Tensor]:
    """Weighted least squares: the affine M that minimises Σ eᵀ·information·e with e = M p − p − displacement.

    Parameters
    ----------
    points
        (c, 2) positions (y, x) [px].
    displacement
        (n, c, 2) [px].
    information
        (n, c, 2, 2) inverse covariance of each displacement [1/px²]; zero where nothing is known.
    shape
        Of the frame; its half diameter scales the coordinates.
    prior
        Weight of the identity, for each of the six numbers [1/px²].

    Returns
    -------
    affine
        (n, 3, 3) float64.
    normal_matrix
        (n, 6, 6) float64: the fit's information on the six numbers, prior included.
    """
    scale = _normalised_from_px(shape).to(points.device)
    z = torch.cat([points.double(), torch.ones_like(points[:, :1], dtype=torch.float64)], 1) @ scale.T  # (c, 3)
    information, displacement = information.double(), displacement.double()
    pairs = (z[:, :, None] * z[:, None, :]).flatten(1)  # (c, 9)
    n = len(displacement)
    blocks = torch.einsum("ncab,ck->nabk", information, pairs).unflatten(-1, (3, 3))  # (n, 2, 2, 3, 3)
    normal = blocks.permute(0, 1, 3, 2, 4).reshape(n, 6, 6)
    right = torch.einsum("ncab,ncb,ck->nak", information, displacement, z).reshape(n, 6)
    normal = normal + prior * torch.eye(6, dtype=torch.float64, device=points.device)
    numbers = torch.linalg.solve(normal, right).unflatten(-1, (2, 3)) @ scale
    bottom = torch.zeros_like(numbers[:, :1])
    return torch.cat([numbers, bottom], 1) + torch.eye(3, dtype=torch.float64, device=points.device), normal


def motion_covariance(normal_matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """(n, 6, 6) covariance of the six numbers in pixels of a motion appended on the reference side."""
    scale = _normalised_from_px(shape).to(normal_matrix.device)
    lift = torch.block_diag(scale.T, scale.T)
    return lift @ torch.linalg.inv(normal_matrix) @ lift.T


def displacement_rms(a: Tensor, b: Tensor, shape: tuple[int, int], *, floor_px: float = 1e-3) -> Tensor:
    """`geometry.displacement_rms_px` with a gradient everywhere, (n,) [px]."""
    difference = (a - b)[..., :2, :].double()
    moments = geometry.second_moments(shape).to(difference.device)
    return (torch.einsum("...ri,ij,...rj->...", difference, moments, difference).clamp_min(0) + floor_px**2).sqrt()


def _normalised_from_px(shape: tuple[int, int]) -> Tensor:
    """(3, 3): coordinates centred on the frame, in half its longer side."""
    half = max(shape) / 2
    (cy, cx) = ((s - 1) / 2 for s in shape)
    return torch.tensor([[1 / half, 0, -cy / half], [0, 1 / half, -cx / half], [0, 0, 1]], dtype=torch.float64)
