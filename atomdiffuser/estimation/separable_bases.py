"""Smooth functions over a frame as products of functions of y and of x, and sums of images against them.

A Jacobian of such functions is never formed: its products are images contracted along one axis, then the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atomdiffuser import geometry

QUADRATIC = [6, 4, 3, 4, 2, 1, 3, 1, 0]  # of the moments uⁱvʲ, i and j to 2, those of (u, v, 1)ᵀ(u, v, 1)


class AxisBasis:
    """1-D bases, a row each, at `position` (k,) along one axis of a frame of `size` px: powers of the normalised
    coordinate u, hat functions φ on `nodes` knots, u·φ, and products φᵢφⱼ.
    """

    def __init__(self, position: Tensor, size: int, nodes: int, half: float):
        position = position.double()
        device = position.device
        u = (position - (size - 1) / 2) / half
        knots = torch.linspace(0, size - 1, nodes, dtype=torch.float64, device=device)
        hats = (1 - (position[:, None] - knots).abs() * ((nodes - 1) / (size - 1))).clamp_min(0)
        hats = hats.T
        self.powers = torch.stack([torch.ones_like(u), u, u * u]).float()
        self.hats = hats.float().contiguous()
        self.hats_and_ramped = torch.cat([hats, u * hats]).float()
        self.hat_products = torch.cat([hats**2, hats[:-1] * hats[1:]]).float()
        i = torch.arange(nodes, device=device)
        distance = (i[:, None] - i).abs()
        index = torch.where(distance == 0, i[:, None].expand(nodes, nodes), nodes + torch.minimum(i[:, None], i))
        self.product_index = index.clamp_max(2 * nodes - 2), distance <= 1


class FrameBasis:
    """Bases of both axes: `rows` and `columns` are positions in a frame of `shape` [px].

    `px_from_normalised` (6, 6) gives the numbers for (y, x, 1) in pixels from those for (u, v, 1).
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int], nodes: int):
        half = max(shape) / 2
        self.nodes, self.centre, self.half = nodes, [(s - 1) / 2 for s in shape], half
        self.y, self.x = (AxisBasis(p, s, nodes, half) for p, s in zip((rows, columns), shape, strict=True))
        (cy, cx), h = self.centre, half
        block = torch.tensor([[1 / h, 0, 0], [0, 1 / h, 0], [-cy / h, -cx / h, 1]], dtype=torch.float64)
        self.px_from_normalised = torch.block_diag(block, block).to(rows.device)
        (index_y, near_y), (index_x, near_x) = self.y.product_index, self.x.product_index
        products = len(self.x.hat_products)
        across, along = index_y[:, None, :, None], index_x[None, :, None, :]  # (i, j, i', j')
        self.pair_index = (across * products + along).flatten()
        self.pair_near = (near_y[:, None, :, None] & near_x[None, :, None, :]).flatten().double()
        self.second_moments = geometry.second_moments(shape).to(rows.device)

    def spread(self, nodes: Tensor) -> Tensor:
        """Fields (…, Y, X) from their nodes (…, G, G)."""
        return self.y.hats.T @ (nodes.float() @ self.x.hats)

    def quadratic(self, image: Tensor) -> Tensor:
        """Σ image·(u, v, 1)ᵀ(u, v, 1), (…, 3, 3); u along y, v along x."""
        m = contract(image, self.y.powers, self.x.powers)
        return m.flatten(-2)[..., QUADRATIC].unflatten(-1, (3, 3))

    def linear(self, image: Tensor) -> Tensor:
        """Σ image·(u, v, 1), (…, 3)."""
        m = contract(image.double(), self.y.powers[:2], self.x.powers[:2])
        return m.flatten(-2)[..., [2, 1, 0]]

    def hats(self, image: Tensor) -> Tensor:
        """Σ image·φ, (…, G²)."""
        return contract(image.double(), self.y.hats, self.x.hats).flatten(-2)

    def linear_hats(self, image: Tensor) -> Tensor:
        """Σ image·(u, v, 1)ᵀφ, (…, 3, G²)."""
        g = self.nodes
        product = contract(image, self.y.hats_and_ramped, self.x.hats_and_ramped)  # (…, 2G, 2G)
        parts = [product[..., g:, :g], product[..., :g, g:], product[..., :g, :g]]
        return torch.stack(parts, dim=-3).flatten(-2)

    def hat_pairs(self, image: Tensor) -> Tensor:
        """Σ image·φᵀφ, (…, G², G²)."""
        compact = contract(image, self.y.hat_products, self.x.hat_products)
        return (compact.flatten(-2)[..., self.pair_index] * self.pair_near).unflatten(-1, 2 * (self.nodes**2,))


def contract(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Σ image(y, x)·rows(i, y)·columns(j, x), (…, i, j) float64; summed along x as precisely as the image is given."""
    leading, height = image.shape[:-2], image.shape[-2]
    # A few rows times many columns is what matrix products are quick at; the other way round takes four times as long.
    along = (columns.to(image.dtype) @ image.reshape(-1, image.shape[-1]).T).reshape(-1, height)  # (j·…, y)
    both = (rows.double() @ along.T.double()).reshape(len(rows), len(columns), -1)  # (i, j, …)
    return both.permute(2, 0, 1).reshape(*leading, len(rows), len(columns))
