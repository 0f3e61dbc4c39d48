"""What training minimises: errors of the maps against their own σ, of the affine over the frame, of the search."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.model.affine_fit import displacement_rms
from atomdiffuser.model.config import STEM_STRIDE
from atomdiffuser.model.shift_search import turned_about_centre

BETA = 0.5
ROBUST_FROM = 4.0  # σ beyond which an error counts linearly


def map_loss(value: Tensor, log_sigma: Tensor, truth: Tensor, weight: Tensor, *, beta: float = BETA) -> Tensor:
    """Negative log-likelihood of a map under its own σ, robust, averaged with weights.

    Each pixel's term is multiplied by σ^2β over its mean, not differentiated: with β = 0 all count alike, relative to
    what can be known of them; with β = 1 the mean is fitted by least squares and only σ by likelihood.

    Parameters
    ----------
    value, log_sigma, truth
        (n, y, x).
    weight
        (n, y, x); where it is 0 nothing counts, whatever stands there.

    References
    ----------
    Seitzer et al. 2022, arXiv:2203.09168, eq. 5: β-NLL.
    """
    counted = weight > 0
    blank = torch.zeros((), dtype=value.dtype, device=value.device)
    error = torch.where(counted, value - torch.where(counted, truth, blank), blank)
    log_sigma = torch.where(counted, log_sigma, blank)
    standard = error * (-log_sigma).exp()
    size = standard.abs()
    robust = torch.where(size < ROBUST_FROM, 0.5 * standard.square(), ROBUST_FROM * (size - ROBUST_FROM / 2))
    counts = weight * (2 * beta * log_sigma).exp().detach()
    return ((robust + log_sigma) * counts).sum() / counts.sum().clamp_min(1e-12)


def drift_loss(affine: Tensor, truth: Tensor, shape: tuple[int, int], *, scale_px: float) -> Tensor:
    """log(1 + displacement/scale), (n,): displacement is RMS over the frame; precise below the scale, patient above."""
    return torch.log1p(displacement_rms(affine, truth, shape) / scale_px)


def drift_likelihood(affine: Tensor, truth: Tensor, normal_matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Negative log-likelihood per number of an affine under the information of its fit, robust, (n,).

    Only the information learns from it: the affine counts as given.
    """
    half = max(shape) / 2
    (cy, cx) = ((s - 1) / 2 for s in shape)
    px_from_normalised = torch.tensor(
        [[half, 0, cy], [0, half, cx], [0, 0, 1]], dtype=torch.float64, device=truth.device
    )
    left = (torch.linalg.solve(affine.detach(), truth) - torch.eye(3, device=truth.device))[:, :2] @ px_from_normalised
    error = left.flatten(1)
    squared = torch.einsum("ni,nij,nj->n", error, normal_matrix, error) / 6
    limit = ROBUST_FROM**2
    robust = torch.where(squared < limit, squared, limit * (1 + (squared / limit).clamp_min(1e-12).log()))
    return 0.5 * (robust - torch.linalg.slogdet(normal_matrix)[1] / 6)


def search_loss(log_odds: Tensor, truth: Tensor, turns_deg: tuple[float, ...], shape: tuple[int, int]) -> Tensor:
    """Cross-entropy (n,) of the search: the true turn is shared among the two nearest, the shift at each of them among
    its four neighbours on the grid.

    Parameters
    ----------
    log_odds
        (n, turns, y, x).
    truth
        (n, 3, 3) moving_from_reference. Shifts off the grid give 0.
    """
    n, turns, height, width = log_odds.shape
    log_probability = F.log_softmax(log_odds.flatten(1), 1).reshape(n, turns, height, width)
    tried = torch.tensor(turns_deg, dtype=torch.float64, device=log_odds.device)
    degrees = geometry.rotation_scale_shear(truth)[0]
    nearness = _hat_weights(degrees, tried)  # (n, turns)
    total = log_odds.new_zeros(n)
    for k in range(turns):
        back = geometry.invert(turned_about_centre(tried[k : k + 1], shape)).expand(n, -1, -1)
        shift_px = geometry.drift_at_centre(back @ truth, shape)
        total = total - nearness[:, k].float() * _shared_among_four(log_probability[:, k], shift_px)
    return total


def _hat_weights(value: Tensor, nodes: Tensor) -> Tensor:
    """(n, nodes) shares of the two nearest nodes, adding up to 1; beyond the ends the end takes all."""
    if len(nodes) == 1:
        return torch.ones(len(value), 1, device=value.device)
    place = torch.searchsorted(nodes, value.contiguous()).clamp(1, len(nodes) - 1)
    low, high = nodes[place - 1], nodes[place]
    share = ((value - low) / (high - low)).clamp(0, 1)
    weights = torch.zeros(len(value), len(nodes), dtype=value.dtype, device=value.device)
    return weights.scatter(1, (place - 1)[:, None], (1 - share)[:, None]).scatter(1, place[:, None], share[:, None])


def _shared_among_four(log_probability: Tensor, shift_px: Tensor) -> Tensor:
    n, height, width = log_probability.shape
    place = shift_px.to(log_probability) / STEM_STRIDE + torch.tensor([height // 2, width // 2]).to(log_probability)
    low = place.floor()
    share = place - low
    total = log_probability.new_zeros(n)
    rows = torch.arange(n, device=log_probability.device)
    inside = torch.ones(n, dtype=torch.bool, device=log_probability.device)
    for dy in (0, 1):
        for dx in (0, 1):
            y, x = (low[:, 0] + dy).long(), (low[:, 1] + dx).long()
            inside &= (y >= 0) & (y < height) & (x >= 0) & (x < width)
            part = (share[:, 0] if dy else 1 - share[:, 0]) * (share[:, 1] if dx else 1 - share[:, 1])
            total = total + part * log_probability[rows, y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return torch.where(inside, total, 0.0)
