"""Normal matrices of a fit of motion and smooth fields, and what is solved with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from atomdiffuser.estimation.separable_bases import FrameBasis


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
        square = lambda three: torch.stack([three[:, :2], three[:, 1:]], 1).transpose(2, 3).flatten(3).flatten(1, 2)
        across = -basis.linear_hats(cross).transpose(2, 3).reshape(len(cross), 6, 2 * basis.nodes**2)
        found = cls(square(basis.quadratic(motion)), across, square(basis.hat_pairs(field)))
        found.field.diagonal(dim1=1, dim2=2).add_(prior)
        return found

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor of `field`."""
        return torch.linalg.cholesky(self.field)

    @cached_property
    def gain(self) -> Tensor:
        """cross · field⁻¹, (n, 6, 2G²)."""
        return torch.cholesky_solve(self.cross.mT, self.factor).mT

    @cached_property
    def information(self) -> Tensor:
        """(n, 6, 6) about the motion, the fields unknown."""
        return self.motion - self.gain @ self.cross.mT

    def solve(self, motion: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Motions (n, 6) and fields (n, 2G²) for right sides of the same shapes."""
        ridge = 1e-9 * self.motion.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
        square = self.information + ridge[:, None, None] * torch.eye(6, dtype=ridge.dtype, device=ridge.device)
        motion, field = motion[..., None], field[..., None]
        step = torch.linalg.solve(square, motion - self.gain @ field)
        return step[..., 0], (torch.cholesky_solve(field, self.factor) - self.gain.mT @ step)[..., 0]

    def put(self, index: Tensor, other: NormalMatrix) -> NormalMatrix:
        """This one with the pairs at `index` replaced."""
        if len(index) == len(self.motion):
            return other
        put = lambda whole, part: whole.index_copy(0, index, part)
        return NormalMatrix(put(self.motion, other.motion), put(self.cross, other.cross), put(self.field, other.field))

    def select(self, index: Tensor) -> NormalMatrix:
        """Some of the pairs, with what has been worked out for them."""
        part = NormalMatrix(self.motion[index], self.cross[index], self.field[index])
        part.__dict__.update({k: v[index] for k, v in self.__dict__.items() if k in ("factor", "gain", "information")})
        return part


def both_directions(block: Tensor) -> Tensor:
    """(n, 6, 6) that has `block` (n, 3, 3) for either direction."""
    out = block.new_zeros(len(block), 6, 6)
    out[:, :3, :3] = out[:, 3:, 3:] = block
    return out
