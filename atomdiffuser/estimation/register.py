"""Registration of pairs: coarse start, lattice alternatives, joint fit, verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.alternatives import hop_probability
from atomdiffuser.estimation.candidates import judge_candidates
from atomdiffuser.estimation.cells import ReferenceCells, reference_cells
from atomdiffuser.estimation.coarse import correlation_peaks
from atomdiffuser.estimation.joint_fit import FitModel, PairFit, fit_pairs, settle_pairs
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import PreparedFrames, usable_margin_px
from atomdiffuser.estimation.spectrum import ImageScales

BRIEF_STEPS = 3
CANDIDATES = 6
CLEARLY_MORE_ALIKE = 0.05  # in correlation
CORRELATION_SLACK = 0.25  # a peak this much lower than the best is not a lattice alternative
MIN_CORRELATION_SIGMAS = 5.0
SMALLEST_FIELD_PX = 24
MISFIT = 5.0  # variance over that of the noise, above which decay is taken for finer than its fields
FINER, ROUNDS = 1.5, 2  # times as many nodes then; each round starts from what the one before left of the lattice


@dataclass(frozen=True)
class FitOptions:
    """What a fit needs besides the frames; see RegisterSettings for the meaning of each."""

    noise: NoiseModel
    scales: ImageScales
    field_nodes: int = 8
    max_iterations: int = 30
    tolerance_px: float = 1e-3
    max_shift_px: float = 64.0
    candidates: int = CANDIDATES
    shared_reference: bool = False

    def cells(self, frames: PreparedFrames) -> ReferenceCells:
        """Frames as the reference of a fit."""
        return reference_cells(frames, self.noise, self.scales.filter_px, self.scales.stride, self.margin_px)

    @property
    def margin_px(self) -> float:
        """Rim of a frame that the fit leaves out: there the matched filter sees the frame's mirror image."""
        return self.scales.filter_px

    @property
    def model(self) -> FitModel:
        """What fits take as known."""
        return FitModel(
            self.noise, self.scales.filter_px, self.margin_px, self.field_nodes, self.shared_reference
        )  # fmt: skip

    def fit(
        self, reference: PreparedFrames | ReferenceCells, moving: PreparedFrames, start: Tensor,
        fields: Tensor | None = None, *, steps: int | None = None,
    ) -> PairFit:  # fmt: skip
        """Fit from `start`, and from decay `fields` where known; one of a few `steps` gives no covariance."""
        return fit_pairs(
            self.cells(reference) if isinstance(reference, PreparedFrames) else reference, moving, start, self.model,
            max_iterations=steps or self.max_iterations, tolerance_px=self.tolerance_px, covariance=steps is None,
            start_fields=fields,
        )  # fmt: skip


@dataclass(frozen=True)
class PairRegistration:
    """Drift of n pairs.

    Attributes
    ----------
    moving_from_reference
        (n, 3, 3) float64.
    motion_covariance
        (n, 6, 6) of the six numbers of a motion appended on the reference side.
    displacement_sigma_px
        (n,) 1 σ, RMS over the frame [px].
    correlation
        (n,) of the aligned lattices.
    hop_probability
        (n,) that a lattice-equivalent registration is the right one; NaN where no alternative was tried.
    valid
        (n,) bool.
    reason
        Why a pair is invalid; empty when valid.
    """

    moving_from_reference: Tensor
    motion_covariance: Tensor
    displacement_sigma_px: Tensor
    correlation: Tensor
    hop_probability: Tensor
    valid: Tensor
    reason: list[str]

    def affine_covariance(self) -> Tensor:
        """(n, 6, 6) of the six numbers of moving_from_reference."""
        linear = self.moving_from_reference[:, :2, :2].contiguous()
        lift = torch.stack([torch.kron(a, torch.eye(3, dtype=a.dtype, device=a.device)) for a in linear])
        return lift @ self.motion_covariance @ lift.mT


def register_unknown(
    reference: PreparedFrames, moving: PreparedFrames, options: FitOptions, *, drift_scale_px: float | None = None,
    starts: Tensor | None = None,
) -> PairRegistration:  # fmt: skip
    """Register pairs of which nothing is known: correlation peaks, a fit from each, the likeliest wins.

    Parameters
    ----------
    drift_scale_px
        The typical drift between the frames where it is known; among fits that the images cannot tell apart the shorter
        drift is favoured (see `_expectation`).
    starts
        (n, 3, 3) moving_from_reference that another source suggests, NaN where it has none. One that makes the frames
        clearly more alike than the highest peak does, as where they are turned, takes its place.
    """
    cells, n = options.cells(reference), len(reference)
    shifts, plausible = _peaks(reference, moving, options)
    # The highest peak's fit knows rotation, strain and decay; the others start from it, a lattice vector away.
    thin = cells.thinned()
    first, decay = settle_pairs(thin, moving, geometry.translation(shifts[:, 0]), options.model, steps=BRIEF_STEPS)
    home = shifts[:, :1]
    if starts is not None:
        first, decay, better = _better_start(thin, moving, options, first, decay, starts)
        known = geometry.drift_at_centre(first, reference.shape)[:, None]
        home = torch.where(better[:, None, None], known, home)
        shifts, plausible = torch.cat([shifts, known], dim=1), torch.cat([plausible, better[:, None]], dim=1)
    away = torch.where(plausible[..., None], shifts - home, 0.0)
    affines = geometry.translation(away) @ first[:, None]
    drift = geometry.drift_at_centre(affines, reference.shape).norm(dim=-1)
    expected = _expectation(drift, drift_scale_px, options.scales.period_px, options.max_shift_px)
    expected = torch.where(plausible, expected, -torch.inf)
    fields = decay[:, None].expand(-1, affines.shape[1], -1, -1, -1)
    found = judge_candidates(cells, thin, moving, affines, fields, expected, options.model, options.scales)
    rows, chosen = torch.arange(n, device=affines.device), found.odds.argmax(1)
    start, fields = found.moving_from_reference[rows, chosen], found.fields[rows, chosen]
    return _fitted(cells, moving, start, options, fields, hop_probability(found.odds, chosen))


def register_from(
    reference: PreparedFrames, moving: PreparedFrames, start: Tensor, options: FitOptions
) -> PairRegistration:
    """Register pairs from known starting affines (n, 3, 3)."""
    return _fitted(options.cells(reference), moving, start, options)


def _fitted(
    cells: ReferenceCells, moving: PreparedFrames, start: Tensor, options: FitOptions, fields: Tensor | None = None,
    hops: Tensor | None = None,
) -> PairRegistration:  # fmt: skip
    """Fit to the end from where pairs start, and judge; `hops` are their hop probabilities, where any were tried."""
    fits = _followed(cells, moving, options.fit(cells, moving, start, fields), options)
    if hops is None:
        hops = torch.full_like(fits.overlap, torch.nan)
    return _verdict(fits, hops, options, moving.shape)


def _followed(cells: ReferenceCells, moving: PreparedFrames, fits: PairFit, options: FitOptions) -> PairFit:
    """The fits, with the drift of those that decay was too fine for fitted again.

    Decay that its fields cut short pulls at the drift. The reference frame is given the decay found, smooth between the
    nodes, and finer fields have only what is left to follow. The decay returned is that of the first fit.
    """
    again = torch.nonzero((fits.misfit > MISFIT) & fits.converged)[:, 0]
    if len(again) == 0:
        return fits
    finer = replace(options, field_nodes=round(FINER * options.field_nodes))
    cells, moving, found = cells.select(again), moving.select(again), fits.select(again)
    for _ in range(ROUNDS):
        cells = cells.decayed(found.fields, options.scales.filter_px)
        found = finer.fit(cells, moving, found.moving_from_reference)
    sound = torch.nonzero(found.converged)[:, 0]
    return fits.moved(again[sound], found.select(sound))


def _peaks(reference: PreparedFrames, moving: PreparedFrames, options: FitOptions) -> tuple[Tensor, Tensor]:
    """Shifts (n, count, 2) of the highest correlation peaks, best first, and which of them (n, count) are plausible."""
    s, period_px = options.scales.stride, options.scales.period_px or 4 * options.scales.base_px
    shifts, peak = correlation_peaks(
        reference.lattice[:, ::s, ::s],
        moving.lattice[:, ::s, ::s],
        max_shift_px=options.max_shift_px / s,
        count=options.candidates,
        separation_px=max(3.0, 0.4 * period_px) / s,
    )
    plausible = torch.isfinite(peak) & (peak >= peak[:, :1] - CORRELATION_SLACK)
    count = max(1, int(plausible.sum(1).max()))
    return s * shifts[:, :count], plausible[:, :count]


def _better_start(
    reference: ReferenceCells, moving: PreparedFrames, options: FitOptions, found: Tensor, fields: Tensor,
    suggested: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The suggested motions (n, 3, 3), with fields, where a brief fit from them is clearly better than those found; and
    where.
    """
    other = torch.where(torch.isfinite(suggested), suggested.to(found), found)
    fits = [
        options.fit(reference, moving, found, fields, steps=1),
        options.fit(reference, moving, other, steps=BRIEF_STEPS),
    ]
    score = [fit.correlation * fit.overlap.sqrt() for fit in fits]
    better = score[1] > score[0] + CLEARLY_MORE_ALIKE
    at = lambda mask, a, b: torch.where(mask.reshape(-1, *(a.dim() - 1) * (1,)), a, b)
    return at(better, fits[1].moving_from_reference, found), at(better, fits[1].fields, fields), better


def _expectation(drift_px: Tensor, scale_px: float | None, period_px: float | None, max_shift_px: float) -> Tensor:
    """Log odds of drifts before the images are asked.

    Where the scale is known, Gaussian. Else short drifts are likelier, with a tail that a few good features overcome:
    on a perfect lattice the short way is taken.
    """
    if scale_px is not None:
        return -(drift_px**2) / (2 * scale_px**2)
    usual = period_px / 2 if period_px else max_shift_px / 3
    return -1.5 * torch.log1p((drift_px / usual) ** 2)


def _verdict(fits: PairFit, hops: Tensor, options: FitOptions, shape: tuple[int, int]) -> PairRegistration:
    affine, covariance = fits.moving_from_reference, fits.covariance
    sigma = geometry.displacement_sigma_px(covariance, shape)
    sigma = torch.where(torch.isfinite(sigma), sigma, torch.inf)
    independent = shape[0] * shape[1] / (4 * torch.pi * options.scales.filter_px**2 + 1)
    limit = options.scales.period_px / 4 if options.scales.period_px else max(1.0, 2 * options.scales.filter_px)
    smallest = 2 * usable_margin_px(options.scales) + SMALLEST_FIELD_PX
    reasons = []
    found = (values.tolist() for values in (fits.correlation, fits.overlap, fits.converged, sigma))
    for correlation, overlap, converged, sigma_px in zip(*found, strict=True):
        if min(shape) < smallest:
            reason = f"frames of {shape[0]} × {shape[1]} px are too small: drift needs at least {smallest:.0f} px"
        elif overlap < 0.1:
            reason = f"frames share only {100 * overlap:.0f} % of the field"
        elif not correlation * (overlap * independent) ** 0.5 > MIN_CORRELATION_SIGMAS:
            reason = "no common structure above the noise"
        elif not sigma_px < limit:
            reason = "too little structure to fix the drift"
        elif not converged:
            reason = f"fit did not converge in {options.max_iterations} steps"
        else:
            reason = ""
        reasons.append(reason)
    valid = torch.tensor([not r for r in reasons], dtype=torch.bool, device=sigma.device)
    return PairRegistration(affine, covariance, sigma, fits.correlation, hops, valid, reasons)
