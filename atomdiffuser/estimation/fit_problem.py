"""What a joint fit of affine drift and decay fields solves: images of the misfit, normal equations, covariance.

See `joint_fit` for the model. The products in the normal equations are images contracted with separable bases, which
never forms the Jacobian. On a processor `compiled_fit` does the same in loops.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.cells import ReferenceCells
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.normal_matrix import NormalMatrix, both_directions, by_node, of_nodes
from atomdiffuser.estimation.prepare import PreparedFrames, noise_of
from atomdiffuser.interpolation import affine_coordinates_at, inside_frame, sample_linear, sample_spline, smooth

FIELD_PRIOR_SIGMA = 1.0  # a node without data stays at 1 (intact)
LARGEST_NOISE = 0.85  # that share of the normal matrix; a noise model that claims more is not believed
LEAST_SHARE = 0.5  # of a frame's contrast that a fit finds, and of its square that is not noise
STILL_SIGMAS = 0.1  # steps that go back and forth by less, as cells at the rim come and go, change nothing
MISFIT_PX, MISFIT_BY_CHANCE = 8.0, 1.2  # misfit is averaged over so far; so many times the noise's is not above it
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
    misfit
        (n,) variance of the residual over that of the noise, where it is largest; 1 where none was looked for.
    """

    moving_from_reference: Tensor
    covariance: Tensor
    intensity_nodes: Tensor
    contrast_nodes: Tensor
    correlation: Tensor
    overlap: Tensor
    converged: Tensor
    misfit: Tensor

    @property
    def fields(self) -> Tensor:
        """(n, 2, G, G) μ and κ at the nodes."""
        return torch.stack([self.intensity_nodes, self.contrast_nodes], dim=1)

    def moved(self, index: Tensor, other: PairFit) -> PairFit:
        """The same fits, the drift of those at `index` taken from others."""
        put = lambda name: getattr(self, name).index_copy(0, index, getattr(other, name))
        return replace(self, **{name: put(name) for name in ("moving_from_reference", "covariance")})

    def select(self, index: Tensor) -> PairFit:
        """Some of the fits."""
        return PairFit(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class FitModel:
    """What a fit takes as known of its frames.

    Attributes
    ----------
    noise
        Of a raw frame.
    filter_px
        σ of the matched filter that the frames went through; makes their noise correlated.
    margin_px
        Rim of the moving frame left out.
    nodes
        Nodes per axis of each decay field.
    shared_reference
        The reference's noise is left out of covariances: where many are fitted to it, what one is off against another
        does not have it.
    """

    noise: NoiseModel
    filter_px: float
    margin_px: float
    nodes: int = 8
    shared_reference: bool = False


@dataclass(frozen=True)
class FitImages:
    """Everything the normal equations are made of, each (n, Y', X').

    Precision and weight follow the local mean, so that no pixel's own noise steers them; the weight counts misfit too,
    and is zero where one frame knows nothing.
    `inside` is None where they do everywhere.
    """

    warped: Tensor
    residual: Tensor
    contrast: Tensor
    precision: Tensor
    weight: Tensor
    inside: Tensor | None


class FitProblem:
    """Images, bases and weights shared by the iterations of one batch of n fits.

    `of` (n,) says which reference and moving frame each fit is of; by default each has its own.
    """

    def __init__(self, reference: ReferenceCells, moving: PreparedFrames, model: FitModel, of: Tensor | None = None):
        if of is not None:
            reference, moving = reference.select(of), moving.select(of)
        self.reference, self.moving, self.noise = reference, moving, model.noise
        self.shared_reference, self.prior = model.shared_reference, FIELD_PRIOR_SIGMA**-2
        self.filter_px = model.filter_px
        self.margin_px, self.grid, self.shape = model.margin_px, reference.grid, reference.grid.shape
        self.device = reference.slopes.device
        self.basis, self.filter = self.grid.basis(model.nodes), self.grid.noise(model.filter_px)
        self.px_from_normalised = self.basis.px_from_normalised
        share = reference.noise_share
        self.known = None
        if share.shape[-2:] != (1, 1):
            known = torch.isfinite(share)
            share, self.known = torch.where(known, share, 0.0), known.float()
        self.share = share
        self.base_variance = share * noise_of(reference.base, self.noise)
        self.misfit: Tensor | None = None  # (n, Y', X') variance over that of the noise

    def at(self, index: Tensor) -> FitProblem:
        """The same problem for some of the pairs."""
        if index.numel() == len(self.reference):
            return self
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.reference, part.moving = self.reference.select(index), self.moving.select(index)
        part.known = None if self.known is None else self.known[index]
        part.misfit = None if self.misfit is None else self.misfit[index]
        part.share, part.base_variance = self.share[index], self.base_variance[index]
        return part

    @property
    def noise_left(self) -> Tensor:
        """(n, 2) as in `ReferenceCells`."""
        return self.reference.noise_left

    def learn_misfit(self, index: Tensor, images: FitImages) -> None:
        """Count as noise what the pairs at `index` misfit beyond it."""
        width = MISFIT_PX * self.grid.share**0.5
        square, seen = images.residual**2 * images.precision, (images.weight > 0).float()
        ratio = smooth(square * seen, width) / (self.filter.energy * smooth(seen, width)).clamp_min(1e-6)
        if self.misfit is None:
            self.misfit = torch.ones_like(self.reference.base)
        self.misfit = self.misfit.index_copy(0, index, 1 + (ratio - MISFIT_BY_CHANCE).clamp_min(0))

    def weighed(self, images: FitImages) -> FitImages:
        """The images with weights that count the misfit as it is known now."""
        weight = images.precision if self.misfit is None else images.precision / self.misfit
        return replace(images, weight=weight if images.inside is None else weight * images.inside)

    def normal_matrix(self, images: FitImages, noise_share: float) -> NormalMatrix:
        """JᵀWJ without a share of what the noise's own slopes add, J = [κ·slope·(u, v, 1), −base·φ, −lattice·φ]."""
        normal, of_noise = self.normal_sums(images)
        left = self.filter.slope_energy * self.noise_left[:, :1, None]
        own = both_directions(left * of_noise)
        trace = lambda block: block.diagonal(dim1=1, dim2=2).sum(1)
        share = (LARGEST_NOISE * trace(normal.motion) / trace(own).clamp_min(1e-30)).clamp_max(noise_share)
        normal.motion.sub_(share[:, None, None] * own)
        return normal

    def normal_sums(self, images: FitImages) -> tuple[NormalMatrix, Tensor]:
        """JᵀWJ, and Σ weight·κ²·variance·(u, v, 1)ᵀ(u, v, 1), (n, 3, 3), of the reference's raw noise."""
        weight, slopes, structure = images.weight, self.reference.slopes, self.reference.structure
        clean = self.reference.clean_slopes
        weighted = weight * images.contrast
        twice = weighted * images.contrast
        scaled = twice[:, None] * slopes
        across = (scaled[:, 0] * clean[:, 1] + scaled[:, 1] * clean[:, 0]) / 2
        motion = torch.stack([scaled[:, 0] * clean[:, 0], across, scaled[:, 1] * clean[:, 1]], 1)
        cross = (weighted[:, None] * clean)[:, :, None] * structure[:, None]
        scaled = weight[:, None] * structure
        field = torch.stack(
            [scaled[:, 0] * structure[:, 0], scaled[:, 0] * structure[:, 1], scaled[:, 1] * structure[:, 1]], 1
        )
        normal = NormalMatrix.of(self.basis, motion, cross, field, prior=self.prior)
        return normal, self.basis.quadratic(twice * self._reference_variance())

    def solve(self, images: FitImages, normal: NormalMatrix, fields: Tensor) -> tuple[Tensor, Tensor]:
        """One Gauss–Newton step: the six numbers (n, 6) of the motion to append, and the fields' change.

        The right side is −JᵀWr, what is known of the fields beforehand included.
        """
        motion, field = self.right_sums(images)
        step, change = normal.solve(-motion, field + self.prior * (1 - by_node(fields)))
        return step @ self.px_from_normalised.T, of_nodes(change, self.basis.nodes)

    def smeared(self, images: FitImages, fields: Tensor, normal: NormalMatrix) -> Tensor:
        """The motion (n, 6) that undoes what the matched filter's smearing of decay `fields` does to a settled fit."""
        ascent = self.reference.ascent(fields[:, 1], self.filter_px)
        motion, field = self.right_sums(replace(images, residual=-ascent))
        return normal.solve(-motion, field)[0] @ self.px_from_normalised.T

    def summarise(
        self, affine: Tensor, fields: Tensor, images: FitImages, last_px: Tensor, normal: NormalMatrix | None
    ) -> PairFit:
        """Quality of the final state, and its covariance where there is a normal matrix."""
        transform = self.px_from_normalised
        covariance = affine.new_full((len(affine), 6, 6), torch.inf)
        if normal is not None:
            covariance = transform @ self._covariance(images, normal) @ transform.T
        sigma_px = geometry.displacement_sigma_px(covariance, self.shape)
        signal = self.reference.lattice
        observed = images.residual + images.contrast * signal
        weighted = images.weight * signal
        total = lambda image: image.sum((1, 2)).double()
        energy = (total(weighted * signal) * total(images.weight * observed**2)).clamp_min(1e-30)
        seen = signal[0].numel() * torch.ones_like(energy) if images.inside is None else total(images.inside)
        return PairFit(
            moving_from_reference=affine,
            covariance=covariance,
            intensity_nodes=fields[:, 0],
            contrast_nodes=fields[:, 1],
            correlation=total(weighted * observed) / energy.sqrt(),
            overlap=seen / (self.shape[0] * self.shape[1] * self.grid.share),
            converged=(last_px == 0) | (last_px < STILL_SIGMAS * sigma_px),
            misfit=torch.ones_like(energy) if self.misfit is None else self.misfit.amax((1, 2)).double(),
        )

    def images(self, affine: Tensor, fields: Tensor) -> FitImages:
        """What the normal equations are made of at affines (n, 3, 3) and fields (n, 2, G, G)."""
        y, x = affine_coordinates_at(affine, self.grid.rows, self.grid.columns)
        warped = sample_spline(self.moving.coefficients, y, x)
        inside = self._inside(y, x)
        if self.known is not None:
            inside = self.known if inside is None else inside * self.known
        decay = self.basis.spread(fields)  # (n, 2, Y', X')
        model = decay * self.reference.structure
        contrast = decay[:, 1]
        variance = model[:, 0] * self.noise.per_count
        variance += self.noise.readout
        variance.addcmul_(contrast**2, self.base_variance)
        mean = (variance if inside is None else variance * inside).mean((-2, -1), keepdim=True)
        variance = torch.maximum(
            variance, (LEAST_VARIANCE * mean).clamp_min(self.noise.floor)
        )  # vacuum knows no shot noise, but model errors
        residual, precision = warped - model[:, 0] - model[:, 1], 1 / variance
        return self.weighed(FitImages(warped, residual, contrast, precision, precision, inside))

    def _inside(self, y: Tensor, x: Tensor) -> Tensor | None:
        """1 where the moving frame knows, 0 elsewhere; None where it knows all, as the four corners tell."""
        inside, corners = None, (slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
        if not bool(inside_frame(y[corners], x[corners], self.shape, self.margin_px).all()):
            inside = inside_frame(y, x, self.shape, self.margin_px).float()
        if self.moving.noise_share.shape[-2:] == self.shape:
            known = sample_linear(torch.isfinite(self.moving.noise_share).float(), y, x) > 0.99
            inside = known.float() if inside is None else inside * known
        return inside

    def right_sums(self, images: FitImages) -> tuple[Tensor, Tensor]:
        """Σ weight·residual times κ·slope·(u, v, 1), (n, 6), and times base·φ and lattice·φ, (n, 2G²)."""
        weighted = images.weight * images.residual
        motion = self.basis.linear((weighted * images.contrast)[:, None] * self.reference.clean_slopes)
        field = self.basis.hats(weighted[:, None] * self.reference.structure)
        return motion.flatten(1), field.mT.flatten(1)

    def _covariance(self, images: FitImages, bread: NormalMatrix) -> Tensor:
        """(n, 6, 6) of the normalised motion: sandwich H⁻¹ B H⁻¹ with the noise's correlation through the filter.

        H counts the signal's slopes only.
        """
        meat = self.noise_sums(images)
        across = bread.gain @ meat.cross.mT
        spread = meat.motion - across - across.mT + meat.of_fields(bread.gain) @ bread.gain.mT
        known = torch.isfinite(bread.information).flatten(1).all(1) & torch.isfinite(bread.motion).flatten(1).all(1)
        sound = lambda matrix: torch.where(known[:, None, None], matrix, torch.eye(6, dtype=matrix.dtype).to(matrix))
        inverse = torch.linalg.pinv(sound(bread.information), hermitian=True)
        if self.shared_reference:
            inverse = inverse * self._own_slopes(images, bread, meat)[:, None, None]
        informative = known & (torch.linalg.eigvalsh(sound(bread.motion))[:, 0] > 0)
        return torch.where(informative[:, None, None], inverse @ spread @ inverse, torch.inf)

    def noise_sums(self, images: FitImages) -> NormalMatrix:
        """B of the sandwich, in which the noise's own slopes meet the noise of the other frame alone: a frame's noise
        is uncorrelated with its slope.
        """
        own = 0.0 if self.shared_reference else images.contrast**2 * self._reference_variance()
        variance = noise_of(images.warped, self.noise) + own
        scaled = images.weight * (variance if self.misfit is None else variance * self.misfit).sqrt()
        slopes = (scaled * images.contrast)[:, None] * self.reference.clean_slopes
        left = torch.cat([slopes, scaled[:, None] * self.reference.structure], 1)
        right = self.filter.correlate(left)
        meat = NormalMatrix.of(
            self.basis, left[:, [0, 0, 1]] * right[:, [0, 1, 1]], left[:, :2, None] * right[:, None, 2:],
            left[:, [2, 2, 3]] * right[:, [2, 3, 3]],
        )  # fmt: skip
        if not self.shared_reference:
            noise = self.filter.slope_and_value * self.noise_left[:, 1:, None]
            meat.motion.sub_(both_directions(noise * self.basis.quadratic((images.weight * own) ** 2)))
        return meat

    def _own_slopes(self, images: FitImages, bread: NormalMatrix, meat: NormalMatrix) -> Tensor:
        """(n,) information that a fit takes from its own contrast, over that from the moving frame's true one.

        With a reference whose noise passes for lattice the contrast comes out too small, and its square counts the
        noise of the contrast itself. Where the reference's noise counts in the covariance, it would count for more by
        about as much as the first.
        """
        total = lambda image: image.sum((1, 2)).double()
        noise = self.filter.energy * total(images.weight * self._reference_variance())
        found = 1 - noise / total(images.weight * self.reference.lattice**2).clamp_min(1e-30)
        energy = images.weight * self.reference.clean_slopes.square().sum(1)
        covariance = bread.divided(bread.divided(meat.dense_field).mT)[:, 1::2, 1::2]
        of_contrast = (self.basis.hat_pairs(energy) * covariance).sum((1, 2)) / total(energy * images.contrast**2)
        return found.clamp_min(LEAST_SHARE) / (1 - of_contrast).clamp_min(LEAST_SHARE)

    def _reference_variance(self) -> Tensor:
        """(n, Y', X') raw noise of the reference frame, which follows its structure."""
        return self.share * noise_of(self.reference.structure.sum(1), self.noise)
