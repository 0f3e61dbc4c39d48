"""Normal matrices of a fit of motion and smooth fields, and what is solved with them.

Numbers of the fields go node by node, the mean's before the lattice's: what nodes far from each other have in common is
then far from the diagonal, and zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from atomdiffuser.estimation.separable_bases import FrameBasis

WORKED_OUT = ("factor", "gain", "information", "regular")


@dataclass(frozen=True)
class NormalMatrix:
    """Blocks of a normal matrix: motion (n, 6, 6), cross (n, 6, 2G²), field (n, 2G², 2G²), the prior included."""

    motion: Tensor
    cross: Tensor
    field: Tensor

    @classmethod
    def of(cls, basis: FrameBasis, motion: Tensor, cross: Tensor, field: Tensor, *, prior: float = 0.0) -> NormalMatrix:
        """Blocks from products of images: of the motion (n, 3, Y', X') yy, yx, xx, between motion and fields
        (n, 2, 2, Y', X'), and of the fields (n, 3, Y', X').
        """
        n, size = len(motion), 2 * basis.nodes**2
        square = lambda three: torch.stack([three[:, :2], three[:, 1:]], 1)  # (n, 2, 2, …)
        of_motion = square(basis.quadratic(motion)).transpose(2, 3).reshape(n, 6, 6)
        across = -basis.linear_hats(cross).permute(0, 1, 3, 4, 2).reshape(n, 6, size)
        of_fields = square(basis.hat_pairs(field)).permute(0, 3, 1, 4, 2).reshape(n, size, size)
        of_fields.diagonal(dim1=1, dim2=2).add_(prior)
        return cls(of_motion, across, of_fields)

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor of `field`; not a number where rounding left none."""
        factor, failed = torch.linalg.cholesky_ex(self.field)
        return torch.where(failed[:, None, None] == 0, factor, torch.nan)

    def divided(self, sides: Tensor) -> Tensor:
        """sides · field⁻¹, (n, r, 2G²)."""
        return torch.cholesky_solve(sides.mT, self.factor).mT

    @property
    def dense_field(self) -> Tensor:
        """`field` with all its numbers, (n, 2G², 2G²)."""
        return self.field

    def of_fields(self, sides: Tensor) -> Tensor:
        """sides · field, (n, r, 2G²)."""
        return sides @ self.field

    @cached_property
    def gain(self) -> Tensor:
        """cross · field⁻¹, (n, 6, 2G²)."""
        return self.divided(self.cross)

    @cached_property
    def information(self) -> Tensor:
        """(n, 6, 6) about the motion, the fields unknown."""
        return self.motion - self.gain @ self.cross.mT

    def solve(self, motion: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Motions (n, 6) and fields (n, 2G²) for right sides of the same shapes."""
        step = torch.linalg.solve(self.regular, motion[..., None] - self.gain @ field[..., None])
        return step[..., 0], self.divided(field[:, None] - step.mT @ self.cross)[:, 0]

    @cached_property
    def regular(self) -> Tensor:
        """`information` with so little added to its diagonal that there is always an inverse."""
        square = self.information.clone()
        square.diagonal(dim1=1, dim2=2).add_(1e-9 * self.motion.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-12)
        return square

    def put(self, index: Tensor, other: NormalMatrix) -> NormalMatrix:
        """This one with the pairs at `index` replaced."""
        if len(index) == len(self.motion):
            return other
        put = lambda whole, part: whole.index_copy(0, index, part)
        return type(self)(put(self.motion, other.motion), put(self.cross, other.cross), put(self.field, other.field))

    def select(self, index: Tensor) -> NormalMatrix:
        """Some of the pairs, with what has been worked out for them."""
        part = type(self)(self.motion[index], self.cross[index], self.field[index])
        part.__dict__.update({k: v[index] for k, v in self.__dict__.items() if k in WORKED_OUT})
        return part


def both_directions(block: Tensor) -> Tensor:
    """(n, 6, 6) that has `block` (n, 3, 3) for either direction."""
    out = block.new_zeros(len(block), 6, 6)
    out[:, :3, :3] = out[:, 3:, 3:] = block
    return out


def by_node(fields: Tensor) -> Tensor:
    """Numbers (n, 2G²) of fields (n, 2, G, G)."""
    return fields.permute(0, 2, 3, 1).flatten(1)


def of_nodes(numbers: Tensor, nodes: int) -> Tensor:
    """Fields (n, 2, G, G) of numbers (n, 2G²)."""
    return numbers.reshape(-1, nodes, nodes, 2).permute(0, 3, 1, 2)
