"""The joint fit around one alignment: what its equations are made of, their solution and its covariance.

Sums over pixels are images contracted with separable bases, which never forms the Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from atomdiffuser.estimation.fit_frames import FitFrames, FitGrid, noise_kernel
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import noise_of
from atomdiffuser.interpolation import (
    affine_coordinates,
    filter_separable,
    inside_frame,
    sample_linear,
    sample_spline,
    smooth,
)

DERIVATIVE = (
    torch.tensor([-1.0, 9.0, -45.0, 0.0, 45.0, -9.0, 1.0], dtype=torch.float64) / -60
)  # sixth order, as a convolution
FIELD_PRIOR_SIGMA = 1.0  # a node without data stays at 1 (intact)
LEAST_VARIANCE = 0.2  # of a pixel, as a share of the frame's mean variance
LEAST_SLOPE = 0.3  # of the cross-information, over the denoised frames' own: below this it is too noisy to step by


def sample_moving(moving: FitFrames, affine: Tensor, shape: tuple[int, int]) -> Tensor:
    """The lightly filtered moving frames (n, Y, X) where affines (n, 3, 3) of samples put the reference's samples."""
    return sample_spline(moving.coefficients, *affine_coordinates(affine, shape))


class Problem:
    """Images, bases and noise shared by the steps of one batch; everything in units of samples."""

    def __init__(self, reference: FitFrames, moving: FitFrames, grid: FitGrid, noise: NoiseModel, nodes: int):
        self.reference, self.moving, self.noise = reference, moving, grid.noise(noise)
        self.grid, self.nodes = grid, nodes
        self.shape, self.device = reference.shape, reference.base.device
        self.axes = _bases(self.shape, nodes, self.device)
        self.inner = inside_frame(*_pixel_axes(self.shape, self.device), self.shape, grid.margin)

    def at(self, index: Tensor) -> Problem:
        """The same problem for some of the pairs."""
        if index.numel() == len(self.reference):
            return self
        part = object.__new__(Problem)
        part.__dict__.update(self.__dict__)
        part.reference, part.moving = self.reference.select(index), self.moving.select(index)
        return part

    def residual(self, warped: Tensor, fields: Tensor, affine: Tensor, state: Linearised) -> tuple[Tensor, Tensor]:
        """Misfit of the samples and its weight, each (n, Y, X)."""
        base, lattice = self.reference.base, self.reference.lattice
        residual = warped - self.spread(fields[:, 0]) * base - self.spread(fields[:, 1]) * lattice
        return residual, self._seen(affine) * state.inverse_variance

    def linearise(self, affine: Tensor, fields: Tensor) -> Linearised:
        """Slopes and weights at affines (n, 3, 3) and fields (n, 2, G, G)."""
        base, lattice, share = self.reference.base, self.reference.lattice, self.reference.noise_share
        y, x = affine_coordinates(affine, self.shape)
        warped = sample_spline(self.moving.coefficients, y, x)
        clean = sample_linear(self.moving.clean, y, x)
        intensity, contrast = self.spread(fields[:, 0]), self.spread(fields[:, 1])
        known = torch.isfinite(share)
        share = torch.where(known, share, 0.0)
        kappa = contrast.clamp_min(0.0)
        seen = self._seen(affine)
        # Shares of the two denoised lattices by the noise around each local mean; then, with the structure that they
        # give, each sample's own noise. That structure is independent of the residual, so it may steer the weights.
        own, other = (
            share * noise_of(base, self.noise),
            self.moving.noise_share * noise_of(base * intensity, self.noise),
        )
        total = (other + kappa**2 * own).clamp_min(1e-12)
        from_reference = (other / total) * self.reference.clean
        from_moving = (kappa * own / total) * clean
        structure = from_reference + from_moving
        variance = self.moving.noise_share * noise_of(
            intensity * base + kappa * structure, self.noise
        ) + kappa**2 * share * noise_of(base + structure, self.noise)
        least = LEAST_VARIANCE * (seen * total).mean((1, 2), keepdim=True)
        variance = torch.maximum(variance, least)  # vacuum knows no shot noise, but model errors
        model = intensity * base + contrast * lattice
        full = self.moving.noise_share * noise_of(warped, self.noise) + kappa**2 * share * noise_of(
            base + lattice, self.noise
        )
        return Linearised(
            problem=self,
            warped=warped,
            first=_gradient(intensity * base + kappa * from_reference),
            second=_gradient(kappa * from_moving),
            across_first=_gradient(warped),
            across_second=_gradient(model),
            base=base,
            lattice=lattice,
            structure=structure,
            inverse_variance=known / variance,
            seen_weight=seen * known / variance,
            variance=full,
        ).prepared()

    def mean_variance(self, fields: Tensor) -> Tensor:
        """Noise variance of the residual around the local mean, (n, Y, X)."""
        base, share = self.reference.base, self.reference.noise_share
        share = torch.where(torch.isfinite(share), share, 0.0)
        other = self.moving.noise_share * noise_of(base * self.spread(fields[:, 0]), self.noise)
        return other + self.spread(fields[:, 1]).clamp_min(0.0) ** 2 * share * noise_of(base, self.noise)

    def spread(self, nodes: Tensor) -> Tensor:
        """Fields (n, Y, X) from their nodes (n, G, G)."""
        return self.axes[0].hats @ nodes.float() @ self.axes[1].hats.T

    def _seen(self, affine: Tensor) -> Tensor:
        """Which samples both frames show soundly, (n, Y, X) float."""
        y, x = affine_coordinates(affine, self.shape)
        seen = (inside_frame(y, x, self.shape, self.grid.margin) & self.inner).float()
        if self.reference.good.shape[-2:] == self.shape:
            seen = seen * self.reference.good
        if self.moving.good.shape[-2:] == self.shape:
            seen = seen * (sample_linear(self.moving.good, y, x) > 0.99)
        return seen


@dataclass(frozen=True)
class Linearised:
    """Slopes at one alignment; images (n, Y, X), gradients pairs of them.

    `first` is the gradient of what the reference frame tells (and of the local mean), `second` of what the moving frame
    tells; `across_first` and `across_second` are the gradients of the other frame, whose noise is independent.
    `gradient` is their sum, less what is slower than the local mean;
    `normal` are the equations' slopes, `factor` what steps use.
    """

    problem: Problem
    warped: Tensor
    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    across_first: tuple[Tensor, Tensor]
    across_second: tuple[Tensor, Tensor]
    base: Tensor
    lattice: Tensor
    structure: Tensor
    inverse_variance: Tensor
    seen_weight: Tensor
    variance: Tensor
    gradient: tuple[Tensor, Tensor] | None = None
    normal: Tensor | None = None
    factor: Tensor | None = None
    pivots: Tensor | None = None

    def prepared(self) -> Linearised:
        """With the equations' slopes and their factors."""
        axes, nodes, weight = self.problem.axes, self.problem.nodes, self.seen_weight
        both = tuple(a + b for a, b in zip(self.first, self.second, strict=True))
        gradient = _structural(both, weight, self.problem.grid.base_px / self.problem.grid.stride)
        slopes = _slopes(self, gradient, axes, nodes) + _prior(self.base.shape[0], nodes, weight.device)
        own, cross = _own_block(weight, gradient, axes), _cross_block(self, gradient, axes)
        stepping = slopes.clone()
        stepping[:, :6, :6] = torch.where(_trusted(own, cross)[:, None, None], cross, own) + _ridge(own)
        slopes[:, :6, :6] = cross
        factor, pivots, _ = torch.linalg.lu_factor_ex(stepping)
        return replace(self, gradient=gradient, normal=slopes, factor=factor, pivots=pivots)

    def at(self, index: Tensor) -> Linearised:
        """The same for some of the pairs."""
        if index.numel() == len(self.base):
            return self
        pick = lambda v: (
            tuple(t[index] for t in v) if isinstance(v, tuple) else v[index] if isinstance(v, Tensor) else v
        )
        values = {f.name: pick(getattr(self, f.name)) for f in fields(self)}
        return Linearised(**values)

    def replaced(self, index: Tensor, new: Linearised, n: int) -> Linearised:
        """With the pairs at `index` taken from `new`; all n of them are `new` itself."""
        if index.numel() == n:
            return new

        def put(old, fresh):
            if isinstance(old, tuple):
                return tuple(put(a, b) for a, b in zip(old, fresh, strict=True))
            return old.index_copy(0, index, fresh) if isinstance(old, Tensor) else old

        values = {f.name: put(getattr(self, f.name), getattr(new, f.name)) for f in fields(self)}
        return Linearised(**values)

    def solve(self, residual: Tensor, weight: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the six numbers (n, 6) of the motion to append, and the fields' change (n, 2, G, G)."""
        axes, nodes = self.problem.axes, self.problem.nodes
        weighted = weight * residual
        parts = []
        for gradient in self.gradient:
            moments = _contract(weighted * gradient, axes[0].powers[:, :2], axes[1].powers[:, :2])
            parts.append(-torch.stack([moments[:, 1, 0], moments[:, 0, 1], moments[:, 0, 0]], dim=1))
        for structure in (self.base, self.structure):
            parts.append(_contract(weighted * structure, axes[0].hats, axes[1].hats).flatten(1))
        right = torch.cat(parts, dim=1)
        right[:, 6:] += FIELD_PRIOR_SIGMA**-2 * (1 - fields.flatten(1))
        solution = torch.linalg.lu_solve(self.factor, self.pivots, right[..., None])[..., 0]
        return solution[:, :6] @ _samples_from_normalised(self.problem.shape).to(solution).T, solution[:, 6:].reshape(
            -1, 2, nodes, nodes
        )

    def covariance(self, weight: Tensor) -> Tensor:
        """(n, 6, 6) of a motion on the reference side, in samples: H⁻¹ B H⁻¹, infinite where nothing is fixed."""
        kernel = noise_kernel(self.problem.grid)
        through = lambda image: filter_separable(weight * image, kernel, kernel)
        axes, nodes = self.problem.axes, self.problem.nodes
        meat = normal_matrix(
            tuple(through(g) for g in self.gradient), through(self.base), through(self.structure), self.variance, axes,
            nodes,
        )  # fmt: skip
        cross = self.normal[:, :6, :6]
        informative = torch.linalg.eigvalsh((cross + cross.mT) / 2)[:, 0] > 0
        safe = torch.where(informative[:, None, None], self.normal, torch.eye(self.normal.shape[-1]).to(self.normal))
        inverse = torch.linalg.inv(safe)[:, :6]
        covariance = inverse @ meat @ inverse.mT
        transform = _samples_from_normalised(self.problem.shape).to(covariance)
        covariance = transform @ covariance @ transform.T
        return torch.where(informative[:, None, None], covariance, torch.full_like(covariance, torch.inf))


def normal_matrix(
    gradient: tuple[Tensor, Tensor], base: Tensor, structure: Tensor, weight: Tensor, axes, nodes: int
) -> Tensor:
    """Jᵀ W J, (n, 6 + 2G², 6 + 2G²), J = [gradient·(y, x, 1), −base·φ, −structure·φ]."""
    ay, ax = axes
    n, g = base.shape[0], nodes
    total = 6 + 2 * g * g
    out = torch.zeros(n, total, total, dtype=torch.float64, device=base.device)
    structures = (base, structure)
    for a in (0, 1):
        weighted = weight * gradient[a]
        for b in range(a, 2):
            moments = _contract(weighted * gradient[b], ay.powers, ax.powers)  # (n, 3, 3): y^i x^j
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
        weighted = weight * structures[s]
        for t in range(s, 2):
            block = _expand_hats(_contract(weighted * structures[t], ay.hat_products, ax.hat_products), axes, g)
            i, j = 6 + s * g * g, 6 + t * g * g
            out[:, i : i + g * g, j : j + g * g] = block
            out[:, j : j + g * g, i : i + g * g] = block
    return out


def _structural(gradient: tuple[Tensor, Tensor], weight: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """A gradient (pair of (n, Y, X)) whose weighted sum with a residual is blind to what changes slower than the local
    mean.

    Decay that the smooth fields cannot follow (a small hole) leaves a residual in the local mean that would pass for
    drift of the mean's own slopes.
    """
    seen = (weight > 0).float()
    around, inverse = smooth(seen, width).clamp_min(0.1), seen / weight.clamp_min(1e-30)
    return tuple(g * seen - inverse * smooth(weight * g, width) / around for g in gradient)


def _cross_block(state: Linearised, gradient, axes) -> Tensor:
    """(n, 6, 6) of the motion's information, each frame's gradient against the other frame's, made symmetric."""
    w = state.seen_weight
    out = torch.zeros(len(w), 6, 6, dtype=torch.float64, device=w.device)
    for a in (0, 1):
        for b in (0, 1):
            product = (w * state.second[a]) * (state.across_second[b] - state.across_first[b]) + (
                w * gradient[a]
            ) * state.across_first[b]
            out[:, 3 * a : 3 * a + 3, 3 * b : 3 * b + 3] = _monomial_block(
                _contract(product, axes[0].powers, axes[1].powers)
            )
    return (out + out.mT) / 2


def _own_block(weight: Tensor, gradient: tuple[Tensor, Tensor], axes) -> Tensor:
    """(n, 6, 6) of the motion's information in the denoised gradients alone."""
    out = torch.zeros(len(weight), 6, 6, dtype=torch.float64, device=weight.device)
    for a in (0, 1):
        weighted = weight * gradient[a]
        for b in range(a, 2):
            block = _monomial_block(_contract(weighted * gradient[b], axes[0].powers, axes[1].powers))
            out[:, 3 * a : 3 * a + 3, 3 * b : 3 * b + 3] = block
            out[:, 3 * b : 3 * b + 3, 3 * a : 3 * a + 3] = block.mT
    return out


def _slopes(state: Linearised, gradient: tuple[Tensor, Tensor], axes, nodes: int) -> Tensor:
    """How the equations (rows) answer to motion and fields (columns), (n, 6 + 2G², 6 + 2G²), its first block left out.

    The residual's slope in κ is the lattice itself and in a motion the moving frame's gradient, not the denoised ones
    that the equations weigh it with; a symmetric matrix of these would overshoot.
    """
    ay, ax = axes
    g2 = nodes * nodes
    out = torch.zeros(len(state.base), 6 + 2 * g2, 6 + 2 * g2, dtype=torch.float64, device=state.base.device)
    weight, weigh_with, slope_of = state.seen_weight, (state.base, state.structure), (state.base, state.lattice)

    def against_hats(image: Tensor) -> Tensor:
        product = _contract(image, ay.hats_and_ramped, ax.hats_and_ramped)  # (n, 2G, 2G)
        g = nodes
        return torch.stack([product[:, g:, :g], product[:, :g, g:], product[:, :g, :g]], dim=1).flatten(2)

    for s in (0, 1):
        field = slice(6 + s * g2, 6 + (s + 1) * g2)
        weighted = weight * weigh_with[s]
        for a in (0, 1):
            motion = slice(3 * a, 3 * a + 3)
            out[:, motion, field] = -against_hats(weight * gradient[a] * slope_of[s])
            out[:, field, motion] = -against_hats(weighted * state.across_first[a]).mT
        for t in (0, 1):
            compact = _contract(weighted * slope_of[t], ay.hat_products, ax.hat_products)
            out[:, field, 6 + t * g2 : 6 + (t + 1) * g2] = _expand_hats(compact, axes, nodes)
    return out


def _trusted(own: Tensor, cross: Tensor) -> Tensor:
    """Whether the cross-information (n, 6, 6) is well above its own noise in every direction."""
    root = own.diagonal(dim1=1, dim2=2).clamp_min(1e-30).sqrt()
    scaled = lambda m: m / (root[:, :, None] * root[:, None, :])
    return torch.linalg.eigvalsh(scaled(cross))[:, 0] > LEAST_SLOPE * torch.linalg.eigvalsh(scaled(own))[:, 0]


def _prior(n: int, nodes: int, device: torch.device) -> Tensor:
    """(n, 6 + 2G², 6 + 2G²): a field without data stays at 1."""
    diagonal = torch.zeros(n, 6 + 2 * nodes * nodes, dtype=torch.float64, device=device)
    diagonal[:, 6:] = FIELD_PRIOR_SIGMA**-2
    return torch.diag_embed(diagonal)


def _ridge(own: Tensor) -> Tensor:
    mean = own.diagonal(dim1=1, dim2=2).mean(1)
    return (1e-9 * mean + 1e-12)[:, None, None] * torch.eye(6, dtype=own.dtype, device=own.device)


def _gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.ones(1)
    return filter_separable(image, DERIVATIVE, one), filter_separable(image, one, DERIVATIVE)


def _pixel_axes(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    y, x = (torch.arange(n, device=device) for n in shape)
    return y[:, None], x[None, :]


@lru_cache
def _samples_from_normalised(shape: tuple[int, int]) -> Tensor:
    """(6, 6): numbers for (y, x, 1) in samples from numbers for centred coordinates in half frame widths."""
    (cy, cx), h = ((s - 1) / 2 for s in shape), max(shape) / 2
    block = torch.tensor([[1 / h, 0, 0], [0, 1 / h, 0], [-cy / h, -cx / h, 1]], dtype=torch.float64)
    return torch.block_diag(block, block)


@lru_cache
def _bases(shape: tuple[int, int], nodes: int, device: torch.device) -> tuple[_AxisBasis, _AxisBasis]:
    half = max(shape) / 2
    return tuple(_AxisBasis(s, nodes, (s - 1) / 2, half, device) for s in shape)


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


def _expand_hats(compact: Tensor, axes, g: int) -> Tensor:
    """(n, G², G²) from moments with products of neighbouring hats (n, 2G−1, 2G−1)."""
    (index_y, near_y), (index_x, near_x) = axes[0].product_index, axes[1].product_index
    full = compact[:, index_y[:, None, :, None], index_x[None, :, None, :]]  # (n, i, j, i', j')
    return (full * (near_y[:, None, :, None] & near_x[None, :, None, :])).reshape(-1, g * g, g * g)


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
