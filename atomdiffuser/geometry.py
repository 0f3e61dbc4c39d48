"""Affine motions of pixel points.

Points are (y, x) in pixels, the centre of the first pixel is (0, 0). An affine is a (..., 3, 3) matrix that acts on
columns (y, x, 1)::

        ⎡ a_yy  a_yx  a_y ⎤ ⎡ y ⎤
        ⎢ a_xy  a_xx  a_x ⎥ ⎢ x ⎥
        ⎣  0     0     1  ⎦ ⎣ 1 ⎦

Names carry both ends (`moving_from_reference`); chains read `c_from_a = c_from_b @ b_from_a`. The six numbers are
always listed as (a_yy, a_yx, a_y, a_xy, a_xx, a_x), and so are the six coordinates of its logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atomdiffuser.errors import ShapeError

PARAMETER_NAMES = ("a_yy", "a_yx", "a_y", "a_xy", "a_xx", "a_x")


def identity(*batch: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Identity affines, (*batch, 3, 3)."""
    return torch.eye(3, dtype=dtype, device=device).expand(*batch, 3, 3).clone()


def translation(shift_px: Tensor) -> Tensor:
    """Affines (..., 3, 3) that move every point by `shift_px` (..., 2) along (y, x) [px]."""
    affine = identity(*shift_px.shape[:-1], dtype=shift_px.dtype, device=shift_px.device)
    affine[..., :2, 2] = shift_px
    return affine


def affine_from_parameters(parameters: Tensor) -> Tensor:
    """Affines (..., 3, 3) from their six numbers (..., 6)."""
    if parameters.shape[-1] != 6:
        raise ShapeError(f"affine parameters have shape {tuple(parameters.shape)}, expected (..., 6)")
    affine = identity(*parameters.shape[:-1], dtype=parameters.dtype, device=parameters.device)
    affine[..., :2, :] = parameters.unflatten(-1, (2, 3))
    return affine


def parameters_from_affine(affine: Tensor) -> Tensor:
    """The six numbers (..., 6) of affines (..., 3, 3)."""
    return _checked(affine)[..., :2, :].flatten(-2)


def compose(c_from_b: Tensor, b_from_a: Tensor) -> Tensor:
    """Chain two affines (..., 3, 3) into the one that maps a to c."""
    return _checked(c_from_b) @ _checked(b_from_a)


def invert(b_from_a: Tensor) -> Tensor:
    """The affine (..., 3, 3) that maps b back to a."""
    linear = torch.linalg.inv(_checked(b_from_a)[..., :2, :2])
    inverse = torch.zeros_like(b_from_a)
    inverse[..., :2, :2] = linear
    inverse[..., :2, 2:] = -linear @ b_from_a[..., :2, 2:]
    inverse[..., 2, 2] = 1
    return inverse


def of_finer_pixels(b_from_a: Tensor, factor: int) -> Tensor:
    """Affines (…, 3, 3) of frames whose pixels, `factor` along each axis, had been added up."""
    finer = _pixel_scale(factor, b_from_a)
    return finer @ b_from_a @ torch.linalg.inv(finer)


def of_coarser_pixels(b_from_a: Tensor, factor: int) -> Tensor:
    """Affines (…, 3, 3) of frames after their pixels, `factor` along each axis, are added up."""
    finer = _pixel_scale(factor, b_from_a)
    return torch.linalg.inv(finer) @ b_from_a @ finer


def apply_affine(b_from_a: Tensor, points: Tensor) -> Tensor:
    """Points (..., 2) of a, mapped to b; the affine (..., 3, 3) broadcasts over the points' leading axes."""
    return (b_from_a[..., :2, :2] @ points[..., None])[..., 0] + b_from_a[..., :2, 2]


def exp_affine(velocity: Tensor) -> Tensor:
    """Affines (..., 3, 3) reached after unit time by the steady flow whose six numbers are `velocity` (..., 6)."""
    generator = velocity.new_zeros(*velocity.shape[:-1], 3, 3)
    generator[..., :2, :] = velocity.unflatten(-1, (2, 3))
    return torch.linalg.matrix_exp(generator)


def log_affine(affine: Tensor) -> Tensor:
    """Six numbers (..., 6) of the steady flow that reaches `affine` (..., 3, 3) after unit time.

    Closed form for the 2×2 part; requires that it turns by less than 180° and does not mirror.
    """
    linear, shift = _checked(affine)[..., :2, :2], affine[..., :2, 2]
    half_trace = linear.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    determinant = torch.linalg.det(linear)
    discriminant = half_trace**2 - determinant
    root = discriminant.abs().sqrt()
    small = root < 1e-9
    safe = torch.where(small, torch.ones_like(root), root)
    angle = torch.where(discriminant < 0, torch.atan2(safe, half_trace), torch.atanh((safe / half_trace).clamp(-1, 1)))
    slope = torch.where(small, 1 / half_trace, angle / safe)
    eye = torch.eye(2, dtype=affine.dtype, device=affine.device)
    log_linear = determinant.log()[..., None, None] / 2 * eye + slope[..., None, None] * (
        linear - half_trace[..., None, None] * eye
    )
    return torch.cat([log_linear, torch.linalg.solve(_mean_flow(log_linear), shift)[..., None]], dim=-1).flatten(-2)


def geodesic(affine: Tensor, tau: Tensor | float) -> Tensor:
    """The motion at a share `tau` of the way, exp(τ·log A): identity at 0, `affine` at 1, and composing in between."""
    tau = torch.as_tensor(tau, dtype=affine.dtype, device=affine.device)
    return exp_affine(tau[..., None] * log_affine(affine))


def second_moments(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Mean of (y, x, 1)ᵀ(y, x, 1) over the pixels of a frame, (3, 3)."""
    (my, vy), (mx, vx) = (((n - 1) / 2, (n * n - 1) / 12) for n in shape)
    return torch.tensor([[vy + my * my, my * mx, my], [my * mx, vx + mx * mx, mx], [my, mx, 1.0]], dtype=dtype)


def displacement_rms_px(a: Tensor, b: Tensor, shape: tuple[int, int]) -> Tensor:
    """RMS distance over the pixels of a frame between where affines `a` and `b` (..., 3, 3) put them [px], (...)."""
    difference = (a - b)[..., :2, :].double()
    moments = second_moments(shape).to(difference.device)
    return torch.einsum("...ri,ij,...rj->...", difference, moments, difference).clamp_min(0).sqrt()


def displacement_sigma_px(covariance: Tensor, shape: tuple[int, int]) -> Tensor:
    """1 σ displacement, RMS over a frame [px], (...), from covariances (..., 6, 6) of the six numbers."""
    moments = second_moments(shape).to(covariance)
    return (
        sum(torch.einsum("...ij,ij->...", covariance[..., r : r + 3, r : r + 3], moments) for r in (0, 3))
        .clamp_min(0)
        .sqrt()
    )


def drift_at_centre(frame_from_reference: Tensor, shape: tuple[int, int]) -> Tensor:
    """How far the reference frame's centre has moved, (..., 2) along (y, x) [px]."""
    centre = torch.tensor(
        [(n - 1) / 2 for n in shape], dtype=frame_from_reference.dtype, device=frame_from_reference.device
    )
    return apply_affine(frame_from_reference, centre) - centre


def rotation_scale_shear(affine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation [deg], scale and shear of affines (..., 3, 3), each (...).

    Polar form L = R(θ)·S: θ positive turns the y axis (down) towards the x axis (right), scale is √det L, shear is the
    off-diagonal element of the symmetric stretch S over the scale.
    """
    linear = _checked(affine)[..., :2, :2]
    angle = torch.atan2(linear[..., 1, 0] - linear[..., 0, 1], linear[..., 0, 0] + linear[..., 1, 1])
    scale = torch.linalg.det(linear).abs().sqrt()
    stretch_yx = torch.cos(angle) * linear[..., 0, 1] + torch.sin(angle) * linear[..., 1, 1]
    return torch.rad2deg(angle), scale, stretch_yx / scale


def pixel_grid(
    shape: tuple[int, int], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """(y, x) of every pixel, (Y, X, 2)."""
    rows, columns = (torch.arange(n, dtype=dtype, device=device) for n in shape)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def _pixel_scale(factor: int, like: Tensor) -> Tensor:
    """Where centres of added pixels lie among the pixels, (3, 3)."""
    scale = torch.eye(3, dtype=like.dtype, device=like.device)
    scale[:2] *= factor
    scale[:2, 2] = (factor - 1) / 2  # the centre of the first pixel
    return scale


def _mean_flow(log_linear: Tensor) -> Tensor:
    """∫₀¹ exp(s·X) ds for 2×2 X, read from the exponential of [[X, 1], [0, 0]]."""
    block = log_linear.new_zeros(*log_linear.shape[:-2], 4, 4)
    block[..., :2, :2] = log_linear
    block[..., :2, 2:] = torch.eye(2, dtype=log_linear.dtype, device=log_linear.device)
    return torch.linalg.matrix_exp(block)[..., :2, 2:]


def _checked(affine: Tensor) -> Tensor:
    if affine.shape[-2:] != (3, 3):
        raise ShapeError(f"an affine has shape {tuple(affine.shape)}, expected (..., 3, 3)")
    return affine
