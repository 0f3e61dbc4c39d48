"""What a joint fit solves, by the loops of `fit_kernels`: on a processor several times as fast as tensor operations."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.compiled import array, in_parts
from atomdiffuser.estimation import fit_kernels
from atomdiffuser.estimation.cells import CellGrid, ReferenceCells
from atomdiffuser.estimation.fit_problem import LEAST_VARIANCE, FitImages, FitModel, FitProblem
from atomdiffuser.estimation.normal_matrix import NormalMatrix, both_directions
from atomdiffuser.estimation.prepare import PreparedFrames
from atomdiffuser.estimation.separable_bases import QUADRATIC
from atomdiffuser.interpolation import sample_spline_grid

NOTHING = np.empty((0, 0, 0), np.float32)


@dataclass(frozen=True)
class _Axis:
    """Cells along an axis: `position` [px] and `normalised`, the lower `node` of each and the `share` of the way to the
    next, the first cell of each node (`start`, and the count at the end); `low` + `step`·share is normalised. `powers`
    (k, 3) of the normalised position; `hats` (k, 3): products of the two hat functions at a cell, both lower, one of
    each, both upper.
    """

    position: np.ndarray
    normalised: np.ndarray
    node: np.ndarray
    share: np.ndarray
    start: np.ndarray
    low: np.ndarray
    step: float
    hats: np.ndarray
    powers: np.ndarray

    @classmethod
    def of(cls, position: Tensor, size: int, nodes: int, half: float) -> _Axis:
        at = array(position, torch.float64)
        along = at * ((nodes - 1) / (size - 1))
        node = np.clip(np.floor(along), 0, nodes - 2).astype(np.int32)
        start = np.searchsorted(node, np.arange(nodes))
        knots = np.linspace(0, size - 1, nodes)
        low = (knots - (size - 1) / 2) / half
        normalised = (at - (size - 1) / 2) / half
        share = along - node
        hats = np.stack([(1 - share) ** 2, share * (1 - share), share**2], axis=1)
        return cls(
            at, normalised.astype(np.float32), node, share.astype(np.float32), start, low[:-1], float(low[1] - low[0]),
            hats.astype(np.float32), (normalised[:, None] ** np.arange(3)).astype(np.float32),
        )  # fmt: skip


@lru_cache(maxsize=64)
def _axes(grid: CellGrid, nodes: int) -> tuple[_Axis, _Axis]:
    half = max(grid.shape) / 2
    y, x = (_Axis.of(p, size, nodes, half) for p, size in zip((grid.rows, grid.columns), grid.shape, strict=True))
    return y, x


class CompiledFitProblem(FitProblem):
    """The same numbers as `FitProblem`, but for rounding. Frames are not copied for fits that are of the same ones."""

    def __init__(self, reference: ReferenceCells, moving: PreparedFrames, model: FitModel, of: Tensor | None = None):
        super().__init__(reference, moving, model)
        self.of = np.arange(len(reference)) if of is None else array(of, torch.int64)

    def at(self, index: Tensor) -> CompiledFitProblem:
        if index.numel() == len(self.of):
            return self
        part = copy.copy(self)
        part.of = self.of[index.numpy()]
        part.misfit = None if self.misfit is None else self.misfit[index]
        return part

    @property
    def noise_left(self) -> Tensor:
        return self.reference.noise_left[torch.from_numpy(self.of)]

    def images(self, affine: Tensor, fields: Tensor) -> FitImages:
        grid, noise, known, places = self.grid, self.noise, self._known, array(affine, torch.float64)
        n, shape = len(affine), known["structure"].shape[-2:]
        y, x = _axes(grid, self.basis.nodes)
        warped = sample_spline_grid(self.moving.coefficients, affine, grid.rows, grid.columns, self.of)
        residual, contrast, precision = (np.empty((n, *shape), np.float32) for _ in range(3))
        over_rim = self._over_rim(places)
        bounded = over_rim or known["of_moving"].size or known["of_reference"].size
        inside = np.empty((n, *shape), np.float32) if bounded else NOTHING
        given = (
            self.of, places, y.position, x.position, y.node, y.share, x.node, x.share, array(fields),
            known["structure"], known["base_variance"], *self._noise_numbers[:2], self.shape, float(self.margin_px),
            over_rim, known["of_moving"], known["of_reference"], warped.numpy(), residual, contrast, precision, inside,
        )  # fmt: skip
        totals: dict[int, np.ndarray] = {}

        def look(first: int, last: int) -> None:
            totals[first] = np.zeros(n)
            fit_kernels.residuals(first, last, *given, totals[first])

        in_parts(look, shape[0], warped.numel())
        total = np.sum([totals[first] for first in sorted(totals)], axis=0)  # in order: the same bits each time
        mean = total / (shape[0] * shape[1])
        lowest, misfit = np.maximum(LEAST_VARIANCE * mean, noise.floor).astype(np.float32), _optional(self.misfit)
        weight = np.empty_like(precision) if bounded or misfit.size else precision
        weigh = lambda first, last: fit_kernels.weights(first, last, lowest, misfit, inside, precision, weight)
        in_parts(weigh, shape[0], warped.numel())
        images = (torch.from_numpy(image) for image in (residual, contrast, precision, weight))
        return FitImages(warped, *images, torch.from_numpy(inside) if bounded else None)

    def _over_rim(self, affine: np.ndarray) -> bool:
        """Whether some cells lie outside the moving frames less their margin, as the four corners tell."""
        y, x = _axes(self.grid, self.basis.nodes)
        rows, columns = y.position[[0, 0, -1, -1]], x.position[[0, -1, 0, -1]]
        found = affine[:, :2] @ np.stack([rows, columns, np.ones(4)])  # (n, 2, 4)
        largest = np.array(self.shape)[:, None] - 1 - self.margin_px
        return not bool(((found >= self.margin_px) & (found <= largest)).all())

    @cached_property
    def _known(self) -> dict[str, np.ndarray]:
        """What does not change from step to step, as arrays."""
        reference, m = self.reference, len(self.reference)
        known = {"slopes": reference.slopes, "clean": reference.clean_slopes, "structure": reference.structure}
        known |= {"share": self.share, "base_variance": self.base_variance.expand(m, *reference.base.shape[1:])}
        share = self.moving.noise_share
        known["of_moving"] = torch.isfinite(share) if share.shape[-2:] == self.shape else None
        known["of_reference"] = self.known
        return {name: _optional(image) for name, image in known.items()}

    def normal_sums(self, images: FitImages) -> tuple[NormalMatrix, Tensor]:
        y, sums = _axes(self.grid, self.basis.nodes)[0], self._empty_sums(len(images.weight))
        fit_kernels.normal_sums(
            self.of, array(images.weight), array(images.contrast),
            *(self._known[name] for name in ("slopes", "clean", "structure", "share")), *self._noise_numbers,
            y.start, y.hats, y.powers, *sums,
        )  # fmt: skip
        return self._put_together(*sums, self.prior)

    def noise_sums(self, images: FitImages) -> NormalMatrix:
        n, y = len(images.weight), _axes(self.grid, self.basis.nodes)[0]
        sums, left = self._empty_sums(n), torch.empty(n, 4, *images.weight.shape[1:])
        square = np.empty(images.weight.shape, np.float32)
        fit_kernels.noise_images(
            self.of, *(array(image) for image in (images.weight, images.contrast, images.warped)),
            *(self._known[name] for name in ("clean", "structure", "share")), _optional(self.misfit),
            *self._noise_numbers, self.shared_reference, left.numpy(), square,
        )  # fmt: skip
        right = self.filter.correlate(left)
        fit_kernels.product_sums(left.numpy(), right.numpy(), square, y.start, y.hats, y.powers, *sums)
        meat, own = self._put_together(*sums, 0.0)
        meat.motion.sub_(both_directions(self.filter.slope_and_value * self.noise_left[:, 1:, None] * own))
        return meat

    @property
    def _noise_numbers(self) -> tuple[np.float32, ...]:
        return tuple(np.float32(number) for number in (self.noise.per_count, self.noise.readout, self.noise.floor))

    def _empty_sums(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the motion and the noise's own, (n, 4, 3, X'), and of the fields between nodes, (n, G − 1, 7, 3, X')."""
        columns = len(self.grid.columns)
        return np.zeros((n, 4, 3, columns)), np.zeros((n, self.basis.nodes - 1, 7, 3, columns), np.float32)

    def _put_together(self, whole: np.ndarray, powers: np.ndarray, prior: float) -> tuple[NormalMatrix, Tensor]:
        """The normal matrix and the noise's own sums (n, 3, 3), from sums over rows."""
        n, nodes, (y, x) = len(whole), self.basis.nodes, _axes(self.grid, self.basis.nodes)
        size, width = 2 * nodes**2, 2 * (nodes + 1) + 2
        motion = (whole @ x.powers).reshape(n, 4, 9)[..., QUADRATIC].reshape(n, 4, 3, 3)
        moments = np.empty((n, nodes - 1, 7, 3, nodes - 1, 3))
        fit_kernels.along_columns(powers, x.start, x.hats, moments)
        cross, band = np.zeros((n, 6, size)), np.zeros((n, size, width))
        fit_kernels.put_together(moments, y.low, y.step, x.low, x.step, cross, band)
        band[:, :, -1] += prior
        square = motion[:, [0, 1, 1, 2]].reshape(n, 2, 2, 3, 3).swapaxes(2, 3).reshape(n, 6, 6)
        normal = BandedNormalMatrix(*(torch.from_numpy(block) for block in (square, cross, band)))
        return normal, torch.from_numpy(motion[:, 3])

    def solve(self, images: FitImages, normal: NormalMatrix, fields: Tensor) -> tuple[Tensor, Tensor]:
        motion, field = self.right_sums(images)
        step, change = torch.empty_like(motion), torch.empty_like(fields, memory_format=torch.contiguous_format)
        known = (normal.regular, normal.gain, normal.cross, normal.factor, motion, field, fields)
        fit_kernels.solve_steps(
            *(array(block, torch.float64) for block in known), self.prior, self.px_from_normalised.numpy(),
            step.numpy(), change.numpy(),
        )  # fmt: skip
        return step, change

    def right_sums(self, images: FitImages) -> tuple[Tensor, Tensor]:
        n, nodes, (y, x) = len(images.weight), self.basis.nodes, _axes(self.grid, self.basis.nodes)
        motion, field = np.zeros((n, 6)), np.zeros((n, 2 * nodes**2))
        fit_kernels.right_side(
            self.of, *(array(image) for image in (images.weight, images.residual, images.contrast)),
            *(self._known[name] for name in ("clean", "structure")),
            y.start, y.share, y.normalised, x.start, x.share, x.normalised, motion, field,
        )  # fmt: skip
        return torch.from_numpy(motion), torch.from_numpy(field)


class BandedNormalMatrix(NormalMatrix):
    """One whose fields' block is its lower band (n, 2G², w): row i holds columns i − w + 1 to i."""

    @cached_property
    def factor(self) -> Tensor:
        """Lower band of the Cholesky factor."""
        factor = self.field.clone(memory_format=torch.contiguous_format)
        fit_kernels.factor_band(factor.numpy())
        return factor

    @property
    def dense_field(self) -> Tensor:
        n, size, _ = self.field.shape
        return self.of_fields(torch.eye(size, dtype=self.field.dtype).expand(n, size, size))

    def of_fields(self, sides: Tensor) -> Tensor:
        found = torch.zeros_like(sides, memory_format=torch.contiguous_format)
        fit_kernels.multiply_band(*(array(block, torch.float64) for block in (self.field, sides)), found.numpy())
        return found

    def divided(self, sides: Tensor) -> Tensor:
        found = np.array(sides.numpy(), order="C")
        fit_kernels.solve_band(array(self.factor, torch.float64), found)
        return torch.from_numpy(found)


def _optional(image: Tensor | None) -> np.ndarray:
    return NOTHING if image is None else array(image)
