"""What the network says about pairs: the drift, the two maps, and every state in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.errors import SettingsError
from atomdiffuser.interpolation import (
    affine_coordinates,
    sample_linear,
    sample_spline,
    smooth,
    spline_coefficients,
)
from atomdiffuser.model.affine_fit import motion_covariance
from atomdiffuser.model.config import MAP_STRIDE

Kinetics = Literal["exponential", "linear"]
LEAST_FACTOR = 1e-3


@dataclass(frozen=True)
class PairStates:
    """States of n pairs at m values of τ: affines (m, n, 3, 3) and maps (m, n, Y, X), NaN outside the overlap.

    Between the frames they are interpolated, not measured.
    """

    tau: Tensor
    moving_from_reference: Tensor
    intensity: Tensor
    contrast: Tensor
    intensity_sigma: Tensor
    contrast_sigma: Tensor


@dataclass(frozen=True)
class PairPrediction:
    """Drift and decay of n pairs, on the device that computed them.

    Attributes
    ----------
    moving_from_reference
        (n, 3, 3) float64.
    normal_matrix
        (n, 6, 6) information of the last weighted fit on its six normalised numbers.
    shift_probability
        (n,) that the network gave to the shift it started from.
    rates, log_sigma
        (n, 2, y, x) at stride 4: logarithms of intensity and contrast at τ = 1, and of the σ of both maps.
    known
        (n, 2, y, x) bool at stride 4: whether there is signal to judge the intensity by, and lattice for the contrast.
    seen
        (n, Y, X) bool: reference pixels that the moving frame saw.
    shape
        Of a frame.
    """

    moving_from_reference: Tensor
    normal_matrix: Tensor
    shift_probability: Tensor
    rates: Tensor
    log_sigma: Tensor
    known: Tensor
    seen: Tensor
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.moving_from_reference.shape[0]

    @property
    def intensity(self) -> Tensor:
        """(n, Y, X) at τ = 1, NaN outside the overlap and in vacuum."""
        return self._masked(full_field(self.rates[:, 0], self.shape).exp(), 0)

    @property
    def contrast(self) -> Tensor:
        """(n, Y, X) at τ = 1, NaN outside the overlap and where there is no lattice."""
        return self._masked(full_field(self.rates[:, 1], self.shape).exp(), 1)

    @property
    def intensity_sigma(self) -> Tensor:
        """(n, Y, X) 1 σ of intensity at τ = 1, NaN where intensity is."""
        return self._masked(full_field(self.log_sigma[:, 0], self.shape).exp(), 0)

    @property
    def contrast_sigma(self) -> Tensor:
        """(n, Y, X) 1 σ of contrast at τ = 1, NaN where contrast is."""
        return self._masked(full_field(self.log_sigma[:, 1], self.shape).exp(), 1)

    @property
    def motion_covariance(self) -> Tensor:
        """(n, 6, 6) of the six numbers of a motion appended on the reference side."""
        return motion_covariance(self.normal_matrix, self.shape)

    @property
    def displacement_sigma_px(self) -> Tensor:
        """(n,) 1 σ of the drift, RMS over the frame [px]."""
        return geometry.displacement_sigma_px(self.motion_covariance, self.shape)

    def at(self, tau: Tensor | float | list[float], *, kinetics: Kinetics = "exponential") -> PairStates:
        """States at any τ, all in one call.

        The motion follows the geodesic exp(τ·log A). The maps follow `kinetics`: exponential, map^τ, composes over
        time; linear, 1 + τ·(map − 1), is the published choice. At τ = 0 the affine is the identity and both maps are
        1, exactly.
        """
        tau = torch.atleast_1d(torch.as_tensor(tau, dtype=torch.float64, device=self.seen.device))
        motion = motion_at(self.moving_from_reference, tau)
        values, sigmas = self._maps_at(tau.float(), kinetics)
        masked = lambda stacks: (self._masked(stack, k) for k, stack in enumerate(stacks))
        return PairStates(tau, motion, *masked(values), *masked(sigmas))

    def degrade(
        self, image: Tensor, tau: float, *, start: float = 0.0, base_px: float | None = None, dark_level: float = 0.0,
        kinetics: Kinetics = "exponential",
    ) -> Tensor:  # fmt: skip
        """Carry images from the state at τ = `start` to the state at `tau`: a deterministic degradation D(x, τ).

        The image is split into its local mean (base) and the structure around it (lattice); each is multiplied by the
        ratio of its map, and both are moved. Nothing is drawn at random, every τ is allowed, and with exponential
        kinetics D(D(x, 0→a), a→b) is D(x, 0→b) but for interpolation.

        Parameters
        ----------
        image
            (n, Y, X), or (Y, X) for all pairs, in any unit, `dark_level` being its zero.
        base_px
            σ of the Gaussian that leaves the local mean; None measures it from the image.

        Returns
        -------
        (n, Y, X) float32, NaN where the source frame saw nothing.

        References
        ----------
        Bansal et al. 2022, Cold Diffusion, arXiv:2208.09392: degradations without noise.
        """
        image = image.to(self.seen.device).float().expand(len(self), *self.shape) - dark_level
        if base_px is None:
            from atomdiffuser.estimation.spectrum import measure_scales

            base_px = measure_scales(image).base_px
        base = smooth(image, base_px)
        source, target = motion_at(
            self.moving_from_reference, torch.tensor([start, tau], dtype=torch.float64).to(image.device)
        )
        reference_from_target = geometry.invert(target)
        y, x = affine_coordinates(reference_from_target, self.shape)
        y, x = y.clamp(0, self.shape[0] - 1), x.clamp(0, self.shape[1] - 1)
        before, after = (self._maps_at(torch.tensor([t]).to(image), kinetics)[0] for t in (start, tau))
        factors = [
            sample_linear(b[0].clamp_min(LEAST_FACTOR) / a[0].clamp_min(LEAST_FACTOR), y, x)
            for a, b in zip(before, after, strict=True)
        ]
        y, x = affine_coordinates(source @ reference_from_target, self.shape)
        pick = lambda part: sample_spline(spline_coefficients(part), y, x)
        result = pick(base) * factors[0] + pick(image - base) * factors[1] + dark_level
        slack = 1e-3
        seen = (y > -slack) & (y < self.shape[0] - 1 + slack) & (x > -slack) & (x < self.shape[1] - 1 + slack)
        return torch.where(seen, result, torch.nan)

    def of_finer_pixels(self, factor: int, shape: tuple[int, int]) -> PairPrediction:
        """The same for frames of `shape` whose pixels, `factor` along each axis, had been added up to those seen."""
        cells = tuple(-(-size // MAP_STRIDE) for size in shape)
        smoothly = dict(scale_factor=factor, mode="bilinear", align_corners=False)
        finer = lambda images, size, **how: _extended(F.interpolate(images.float(), **how), size)
        nearest = dict(scale_factor=factor)
        return PairPrediction(
            geometry.of_finer_pixels(self.moving_from_reference, factor), self.normal_matrix / factor**2,
            self.shift_probability, finer(self.rates, cells, **smoothly), finer(self.log_sigma, cells, **smoothly),
            finer(self.known, cells, **nearest) > 0.5, finer(self.seen[:, None], shape, **nearest)[:, 0] > 0.5, shape,
        )  # fmt: skip

    def _maps_at(self, tau: Tensor, kinetics: Kinetics) -> tuple[list[Tensor], list[Tensor]]:
        """Values and σ of both maps, (m, n, Y, X) each, also outside the overlap."""
        if kinetics not in get_args(Kinetics):
            raise SettingsError(f"kinetics {kinetics!r} is not known; known are {', '.join(get_args(Kinetics))}")
        tau = tau[:, None, None, None]
        values, sigmas = [], []
        for k in (0, 1):
            rate = full_field(self.rates[:, k], self.shape)
            sigma = full_field(self.log_sigma[:, k], self.shape).exp()
            if kinetics == "exponential":
                value = (tau * rate).exp()
                sigmas.append(tau * value * (-rate).exp() * sigma)
            else:
                value = 1 + tau * (rate.exp() - 1)
                sigmas.append(tau * sigma)
            values.append(value)
        return values, sigmas

    def full_known(self, witness: int) -> Tensor:
        """(n, Y, X) bool: where the intensity (0) or the contrast (1) is given."""
        fine = F.interpolate(self.known[:, witness, None].float(), scale_factor=MAP_STRIDE)[:, 0] > 0.5
        return self.seen & fine[:, : self.shape[0], : self.shape[1]]

    def _masked(self, maps: Tensor, witness: int) -> Tensor:
        return torch.where(self.full_known(witness), maps, torch.nan)


def _extended(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, k, *size): cut off, or the last row and column repeated, where the size is no multiple of the factor."""
    missing = [max(0, want - have) for want, have in zip(size, images.shape[-2:], strict=True)]
    return F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")[..., : size[0], : size[1]]


def motion_at(moving_from_reference: Tensor, tau: Tensor) -> Tensor:
    """(m, n, 3, 3) on the geodesic; exactly the identity at τ = 0 and the affine itself at 1."""
    motion = geometry.geodesic(moving_from_reference[None], tau[:, None].expand(-1, len(moving_from_reference)))
    identity = torch.eye(3, dtype=motion.dtype, device=motion.device)
    motion = torch.where((tau == 0)[:, None, None, None], identity, motion)
    return torch.where((tau == 1)[:, None, None, None], moving_from_reference, motion)


def full_field(field: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cell means (n, y, x) at stride 4, interpolated to frames (n, Y, X)."""
    fine = F.interpolate(field[:, None], scale_factor=MAP_STRIDE, mode="bicubic", align_corners=False)[:, 0]
    return fine[:, : shape[0], : shape[1]]
