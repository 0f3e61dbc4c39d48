"""Joint Gauss–Newton fit of affine drift and smooth decay fields to pairs of frames.

Model, on the pixels q of the reference frame, both frames matched-filtered:

    moving(A q) = μ(q)·base(q) + κ(q)·lattice(q) + noise

μ and κ are bilinear on a coarse grid of nodes; A is a full affine. Weights are the inverse noise variance of both
frames. The gradient is the mean of the two frames' (symmetric), so that the noise of either does not shift the
solution. The products in the normal equations are images contracted with separable bases, which never forms the
Jacobian.

Assumes structure finer than the node spacing, decay that varies little within a node, and no occlusion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import PreparedFrames, noise_of
from atomdiffuser.interpolation import (
    affine_coordinates,
    chain_kernels,
    filter_separable,
    gaussian_kernel,
    inside_frame,
    sample_linear,
    sample_spline,
)

DERIVATIVE = (
    torch.tensor([-1.0, 9.0, -45.0, 0.0, 45.0, -9.0, 1.0], dtype=torch.float64) / -60
)  # sixth order, as a convolution
FIELD_PRIOR_SIGMA = 1.0  # a node without data stays at 1 (intact)
LARGEST_STEP_PX = 1.5
NOISE_IN_STEPS = 0.95  # of the noise's own gradients taken out of a step's normal matrix; all of it could overshoot
LEAST_VARIANCE = 0.2  # of a pixel, as a share of the frame's mean variance


@dataclass(frozen=True)
class PairFit:
    """Results of n pair fits; tensors on the fit's device.

    Attributes
    ----------
    moving_from_reference
        (n, 3, 3) float64.
    covariance
        (n, 6, 6) float64, of the six numbers of a motion applied on the reference side (A·exp(ξ)).
    intensity_nodes, contrast_nodes
        (n, G, G) μ and κ at the nodes.
    correlation
        (n,) between the aligned lattices.
    overlap
        (n,) share of the reference frame seen by both.
    converged
        (n,) bool.
    residual, weight
        (n, Y, X) filtered misfit and its weight (zero outside the overlap).
    """

    moving_from_reference: Tensor
    covariance: Tensor
    intensity_nodes: Tensor
    contrast_nodes: Tensor
    correlation: Tensor
    overlap: Tensor
    converged: Tensor
    residual: Tensor
    weight: Tensor


def fit_pairs(
    reference: PreparedFrames,
    moving: PreparedFrames,
    start: Tensor,
    *,
    noise: NoiseModel,
    filter_px: float,
    margin_px: float,
    nodes: int = 8,
    max_iterations: int = 30,
    tolerance_px: float = 1e-3,
    covariance: bool = True,
    start_fields: Tensor | None = None,
) -> PairFit:
    """Fit n pairs from the starting affines `start` (n, 3, 3) moving_from_reference.

    `start_fields` (n, 2, G, G) are nodes of μ and κ where they are known already.

    `filter_px` is the σ of the matched filter that prepared the frames; `margin_px` the rim not used. Without
    `covariance` (half the time of a short fit) it is infinite.
    """
    problem = _Problem(reference, moving, noise, filter_px, margin_px, nodes)
    n = len(reference)
    affine = start.to(problem.device, torch.float64).clone()
    fields = torch.ones(n, 2, nodes, nodes, dtype=torch.float64, device=problem.device)
    if start_fields is not None:
        fields = start_fields.to(fields).clone()
    converged = torch.zeros(n, dtype=torch.bool, device=problem.device)
    active = torch.arange(n, device=problem.device)
    stride = _Stride(n, problem.device)
    for _ in range(max_iterations):
        step, new_fields = problem.at(active).solve(affine[active], fields[active])
        size = geometry.displacement_rms_px(geometry.exp_affine(step), torch.eye(3, device=step.device), problem.shape)
        step = step * stride.next(active, step)[:, None]
        step = step * (LARGEST_STEP_PX / (size * stride.factor[active]).clamp_min(LARGEST_STEP_PX))[:, None]
        affine[active] = affine[active] @ geometry.exp_affine(step)
        fields[active] = new_fields
        finished = size < tolerance_px
        converged[active[finished]] = True
        active = active[~finished]
        if active.numel() == 0:
            break
    return problem.summarise(affine, fields, converged, covariance)


class _Stride:
    """How far to go along each pair's step: further while steps agree, shorter where they go back and forth.

    At few counts the normal matrix is a poor guess of the curvature, and plain steps creep or swing.
    """

    def __init__(self, n: int, device: torch.device):
        self.factor = torch.ones(n, dtype=torch.float64, device=device)
        self._last = torch.zeros(n, 6, dtype=torch.float64, device=device)

    def next(self, active: Tensor, step: Tensor) -> Tensor:
        last = self._last[active]
        agreement = (step * last).sum(1) / (step.norm(dim=1) * last.norm(dim=1)).clamp_min(1e-30)
        factor = self.factor[active]
        factor = torch.where(agreement > 0.5, (1.4 * factor).clamp_max(2.5), factor)
        self.factor[active] = torch.where(agreement < -0.3, 0.5 * factor.clamp_max(1.0), factor)
        self._last[active] = step
        return self.factor[active]


class _Problem:
    """Images, bases and weights shared by the iterations of one batch."""

    def __init__(self, reference, moving, noise, filter_px, margin_px, nodes):
        self.reference, self.moving, self.noise = reference, moving, noise
        self.filter_px, self.margin_px, self.nodes = filter_px, margin_px, nodes
        self.shape, self.device = reference.shape, reference.base.device
        self.centre = [(s - 1) / 2 for s in self.shape]
        self.half = max(self.shape) / 2
        self.axes = [
            _AxisBasis(s, nodes, c, self.half, self.device) for s, c in zip(self.shape, self.centre, strict=True)
        ]
        self.px_from_normalised = self._px_from_normalised()

    def at(self, index: Tensor) -> _Problem:
        """The same problem for some of the pairs."""
        if index.numel() == len(self.reference):
            return self
        part = object.__new__(_Problem)
        part.__dict__.update(self.__dict__)
        part.reference, part.moving = self.reference.select(index), self.moving.select(index)
        return part

    def solve(self, affine: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """One Gauss–Newton step: the six numbers (n, 6) of the motion to append, and the new fields."""
        images = self._images(affine, fields)
        normal, right = self._normal_matrix(images, images.weight), self._right_side(images)
        spurious = NOISE_IN_STEPS * self._gradient_noise(images)
        normal[:, :3, :3] -= spurious
        normal[:, 3:6, 3:6] -= spurious
        n, g2 = affine.shape[0], self.nodes**2
        prior = torch.zeros(6 + 2 * g2, dtype=torch.float64, device=self.device)
        prior[6:] = FIELD_PRIOR_SIGMA**-2
        right[:, 6:] += prior[6:] * (1 - fields.flatten(1))
        scale = normal.diagonal(dim1=1, dim2=2)[:, :6].mean(1)
        ridge = torch.zeros_like(right)
        ridge[:, :6] = 1e-9 * scale[:, None] + 1e-12
        solution = torch.linalg.solve(normal + torch.diag_embed(ridge + prior), right)
        step = solution[:, :6] @ self.px_from_normalised.T
        return step, fields + solution[:, 6:].reshape(n, 2, self.nodes, self.nodes)

    def summarise(self, affine: Tensor, fields: Tensor, converged: Tensor, with_covariance: bool) -> PairFit:
        """Covariance and quality of the final state."""
        images = self._images(affine, fields)
        covariance = (
            self._covariance(images)
            if with_covariance
            else torch.full_like(affine[:, :1, :1], torch.inf).expand(-1, 6, 6)
        )
        transform = self.px_from_normalised
        signal = images.lattice
        observed = images.warped - images.intensity * images.base
        w = images.weight
        correlation = (w * signal * observed).sum((1, 2)) / (
            (w * signal**2).sum((1, 2)) * (w * observed**2).sum((1, 2))
        ).clamp_min(1e-30).sqrt()
        return PairFit(
            moving_from_reference=affine,
            covariance=transform @ covariance @ transform.T if with_covariance else covariance,
            intensity_nodes=fields[:, 0],
            contrast_nodes=fields[:, 1],
            correlation=correlation.double(),
            overlap=(w > 0).double().mean((1, 2)),
            converged=converged,
            residual=images.residual,
            weight=w,
        )

    def _images(self, affine: Tensor, fields: Tensor) -> _Images:
        y, x = affine_coordinates(affine, self.shape)
        warped = sample_spline(self.moving.coefficients, y, x)
        base, lattice = self.reference.base, self.reference.lattice
        intensity, contrast = (self._spread(fields[:, k]) for k in (0, 1))
        model = intensity * base + contrast * lattice
        symmetric = (warped + model) / 2
        m = self.margin_px
        inside = inside_frame(y, x, self.shape, m) & self._inner(m)
        reference_share = contrast**2 * self.reference.noise_share
        known = torch.isfinite(reference_share)
        reference_share = torch.where(known, reference_share, 0.0)
        inside = inside & known
        if self.moving.noise_share.shape[-2:] == self.shape:
            known_there = torch.isfinite(self.moving.noise_share).float()
            inside = inside & (sample_linear(known_there, y, x) > 0.99)
        smooth_variance = noise_of(base * intensity, self.noise) + reference_share * noise_of(base, self.noise)
        smallest = LEAST_VARIANCE * (inside * smooth_variance).mean((1, 2), keepdim=True)
        smooth_variance = torch.maximum(smooth_variance, smallest)  # vacuum knows no shot noise, but model errors
        variance = noise_of(warped, self.noise) + reference_share * noise_of(base + lattice, self.noise)
        return _Images(
            warped=warped,
            base=base,
            lattice=lattice,
            intensity=intensity,
            residual=warped - model,
            gradient_y=filter_separable(symmetric, DERIVATIVE, torch.ones(1)),
            gradient_x=filter_separable(symmetric, torch.ones(1), DERIVATIVE),
            weight=inside / smooth_variance,
            variance=variance,
        )

    def _normal_matrix(self, im: _Images, weight: Tensor) -> Tensor:
        """Jᵀ W J, (n, 6 + 2G², 6 + 2G²), J = [gradient·(y, x, 1), −base·φ, −lattice·φ]."""
        ay, ax = self.axes
        n, g = im.base.shape[0], self.nodes
        total = 6 + 2 * g * g
        out = torch.zeros(n, total, total, dtype=torch.float64, device=self.device)
        gradients, structures = (im.gradient_y, im.gradient_x), (im.base, im.lattice)
        for a in (0, 1):
            weighted = weight * gradients[a]
            for b in range(a, 2):
                moments = _contract(weighted * gradients[b], ay.powers, ax.powers)  # (n, 3, 3): y^i x^j
                block = _monomial_block(moments)
                out[:, 3 * a : 3 * a + 3, 3 * b : 3 * b + 3] = block
                out[:, 3 * b : 3 * b + 3, 3 * a : 3 * a + 3] = block.mT
            for s in (0, 1):
                product = _contract(weighted * structures[s], ay.hats_and_ramped, ax.hats_and_ramped)  # (n, 2G, 2G)
                columns = torch.stack([product[:, g:, :g], product[:, :g, g:], product[:, :g, :g]], dim=1).flatten(2)
                at = 6 + s * g * g
                out[:, 3 * a : 3 * a + 3, at : at + g * g] = -columns
                out[:, at : at + g * g, 3 * a : 3 * a + 3] = -columns.mT
        for s in (0, 1):
            for t in range(s, 2):
                compact = _contract(weight * structures[s] * structures[t], ay.hat_products, ax.hat_products)
                block = self._expand_hats(compact)
                i, j = 6 + s * g * g, 6 + t * g * g
                out[:, i : i + g * g, j : j + g * g] = block
                out[:, j : j + g * g, i : i + g * g] = block
        return out

    def _right_side(self, im: _Images) -> Tensor:
        """−Jᵀ W r, (n, 6 + 2G²)."""
        ay, ax = self.axes
        weighted = im.weight * im.residual
        parts = []
        for gradient in (im.gradient_y, im.gradient_x):
            moments = _contract(weighted * gradient, ay.powers[:, :2], ax.powers[:, :2])
            parts.append(-torch.stack([moments[:, 1, 0], moments[:, 0, 1], moments[:, 0, 0]], dim=1))
        for structure in (im.base, im.lattice):
            parts.append(_contract(weighted * structure, ay.hats, ax.hats).flatten(1))
        return torch.cat(parts, dim=1)

    def _covariance(self, im: _Images) -> Tensor:
        """(n, 6, 6) of the normalised motion: sandwich H⁻¹ B H⁻¹ with the noise's correlation through the filter.

        H counts the signal's gradients only (the noise's own gradients are subtracted); B carries the filtered noise.
        """
        kernel = gaussian_kernel(self.filter_px)
        through = lambda image: filter_separable(im.weight * image, kernel, kernel)
        filtered = _Images(
            warped=im.warped,
            base=through(im.base),
            lattice=through(im.lattice),
            intensity=im.intensity,
            residual=im.residual,
            gradient_y=through(im.gradient_y),
            gradient_x=through(im.gradient_x),
            weight=im.weight,
            variance=im.variance,
        )
        meat = self._normal_matrix(filtered, im.variance)
        bread = self._normal_matrix(im, im.weight)
        spurious = self._gradient_noise(im)
        bread[:, 0:3, 0:3] -= spurious
        bread[:, 3:6, 3:6] -= spurious
        prior = torch.zeros(bread.shape[-1], dtype=torch.float64, device=self.device)
        prior[6:] = FIELD_PRIOR_SIGMA**-2
        inverse = torch.linalg.pinv(bread + torch.diag(prior), hermitian=True)
        covariance = (inverse @ meat @ inverse)[:, :6, :6]
        informative = torch.linalg.eigvalsh(bread[:, :6, :6])[:, 0] > 0
        return torch.where(informative[:, None, None], covariance, torch.full_like(covariance, torch.inf))

    def _gradient_noise(self, im: _Images) -> Tensor:
        """What the noise's own gradients add to a gradient block of the normal matrix, (n, 3, 3)."""
        kernel = gaussian_kernel(self.filter_px)
        slope = chain_kernels(kernel, DERIVATIVE)
        energy = float((slope**2).sum() * (kernel**2).sum()) / 4
        return _monomial_block(_contract(im.weight * im.variance * energy, self.axes[0].powers, self.axes[1].powers))

    def _spread(self, nodes: Tensor) -> Tensor:
        """Fields (n, Y, X) from their nodes (n, G, G)."""
        return torch.einsum("yi,nij,xj->nyx", self.axes[0].hats, nodes.float(), self.axes[1].hats)

    def _expand_hats(self, compact: Tensor) -> Tensor:
        """(n, G², G²) from moments with products of neighbouring hats (n, 2G−1, 2G−1)."""
        (index_y, near_y), (index_x, near_x) = self.axes[0].product_index, self.axes[1].product_index
        g = self.nodes
        full = compact[:, index_y[:, None, :, None], index_x[None, :, None, :]]  # (n, i, j, i', j')
        return (full * (near_y[:, None, :, None] & near_x[None, :, None, :])).reshape(-1, g * g, g * g)

    def _inner(self, margin: float) -> Tensor:
        y, x = (torch.arange(s, device=self.device) for s in self.shape)
        keep = lambda v, size: (v >= margin) & (v <= size - 1 - margin)
        return keep(y, self.shape[0])[:, None] & keep(x, self.shape[1])[None, :]

    def _px_from_normalised(self) -> Tensor:
        """(6, 6): numbers for (y, x, 1) in pixels from numbers for centred coordinates in half frame widths."""
        (cy, cx), h = self.centre, self.half
        block = torch.tensor([[1 / h, 0, 0], [0, 1 / h, 0], [-cy / h, -cx / h, 1]], dtype=torch.float64)
        return torch.block_diag(block, block).to(self.device)


@dataclass(frozen=True)
class _Images:
    """Everything the normal equations are made of, each (n, Y, X).

    The weight follows the local mean, so that no pixel's own noise steers it; the variance, which only the covariance
    uses, follows the structure.
    """

    warped: Tensor
    base: Tensor
    lattice: Tensor
    intensity: Tensor
    residual: Tensor
    gradient_y: Tensor
    gradient_x: Tensor
    weight: Tensor
    variance: Tensor


class _AxisBasis:
    """1-D bases along one axis: powers of the normalised coordinate u, hat functions φ, u·φ, products φᵢφⱼ."""

    def __init__(self, size: int, nodes: int, centre: float, half: float, device: torch.device):
        position = torch.arange(size, dtype=torch.float64, device=device)
        u = (position - centre) / half
        knots = torch.linspace(0, size - 1, nodes, dtype=torch.float64, device=device)
        hats = (1 - (position[:, None] - knots).abs() * ((nodes - 1) / (size - 1))).clamp_min(0)
        self.powers = torch.stack([torch.ones_like(u), u, u * u], dim=1).float()
        self.hats = hats.float()
        self.hats_and_ramped = torch.cat([hats, u[:, None] * hats], dim=1).float()
        self.hat_products = torch.cat([hats**2, hats[:, :-1] * hats[:, 1:]], dim=1).float()
        i = torch.arange(nodes, device=device)
        distance = (i[:, None] - i).abs()
        index = torch.where(distance == 0, i[:, None].expand(nodes, nodes), nodes + torch.minimum(i[:, None], i))
        self.product_index = index.clamp_max(2 * nodes - 2), distance <= 1


def _contract(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Σ image(y, x)·rows(y, i)·columns(x, j), (n, i, j) float64."""
    return (rows.T @ (image @ columns)).double()


def _monomial_block(moments: Tensor) -> Tensor:
    """(n, 3, 3) of Σ (u, v, 1)ᵀ(u, v, 1) from moments (n, i, j) of uⁱvʲ."""
    m = moments
    return torch.stack(
        [
            torch.stack([m[:, 2, 0], m[:, 1, 1], m[:, 1, 0]], dim=1),
            torch.stack([m[:, 1, 1], m[:, 0, 2], m[:, 0, 1]], dim=1),
            torch.stack([m[:, 1, 0], m[:, 0, 1], m[:, 0, 0]], dim=1),
        ],
        dim=1,
    )
