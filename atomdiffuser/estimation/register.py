"""Registration of pairs: coarse start, lattice alternatives, joint fit, verdict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.alternatives import hop_probability, log_odds
from atomdiffuser.estimation.coarse import correlation_peaks
from atomdiffuser.estimation.joint_fit import PairFit, fit_pairs
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import PreparedFrames, usable_margin_px
from atomdiffuser.estimation.spectrum import ImageScales

CANDIDATES = 6
BRIEF_ITERATIONS = 4
CLEARLY_MORE_ALIKE = 0.05  # in correlation
CORRELATION_SLACK = 0.25  # a peak this much lower than the best is not a lattice alternative
MIN_CORRELATION_SIGMAS = 5.0
SMALLEST_FIELD_PX = 24


@dataclass(frozen=True)
class FitOptions:
    """What a fit needs besides the frames; see RegisterSettings for the meaning of each."""

    noise: NoiseModel
    scales: ImageScales
    field_nodes: int = 8
    max_iterations: int = 30
    tolerance_px: float = 1e-3
    max_shift_px: float = 64.0

    def fit(
        self,
        reference: PreparedFrames,
        moving: PreparedFrames,
        start: Tensor,
        fields: Tensor | None = None,
        *,
        brief: bool = False,
    ) -> PairFit:
        """Fit from `start`, and from decay `fields` where known; a brief fit takes a few steps and gives no
        covariance.
        """
        return fit_pairs(
            reference,
            moving,
            start,
            noise=self.noise,
            filter_px=self.scales.filter_px,
            margin_px=usable_margin_px(self.scales),
            nodes=self.field_nodes,
            max_iterations=BRIEF_ITERATIONS if brief else self.max_iterations,
            tolerance_px=self.tolerance_px,
            covariance=not brief,
            start_fields=fields,
        )


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
    period = options.scales.period_px or 4 * options.scales.base_px
    shifts, peak = correlation_peaks(
        reference.lattice,
        moving.lattice,
        max_shift_px=options.max_shift_px,
        count=CANDIDATES,
        separation_px=max(3.0, 0.4 * period),
    )
    peak[peak < peak[:, :1] - CORRELATION_SLACK] = -torch.inf
    n = len(reference)
    plausible = torch.isfinite(peak)
    count = max(1, int(plausible.sum(1).max()))
    plausible, shifts = plausible[:, :count], shifts[:, :count]
    # The highest peak's fit knows rotation and strain; the others start from it, a lattice vector away.
    first = options.fit(reference, moving, geometry.translation(shifts[:, 0]), brief=True).moving_from_reference
    home = shifts[:, :1]
    if starts is not None:
        first, better = _better_start(reference, moving, options, first, starts)
        known = geometry.drift_at_centre(first, reference.shape)[:, None]
        home = torch.where(better[:, None, None], known, home)
        shifts, plausible = torch.cat([shifts, known], dim=1), torch.cat([plausible, better[:, None]], dim=1)
        count += 1
    away = torch.where(plausible[..., None], shifts - home, 0.0)
    starts = geometry.translation(away) @ first[:, None]
    repeat = torch.arange(n, device=peak.device).repeat_interleave(count)
    fits = options.fit(reference.select(repeat), moving.select(repeat), starts.flatten(0, 1), brief=True)
    affines = fits.moving_from_reference.unflatten(0, (n, count))
    odds = torch.where(plausible, log_odds(fits, count, options.scales), -torch.inf)
    drift = geometry.drift_at_centre(affines, reference.shape).norm(dim=-1)
    odds = odds + _expectation(drift, drift_scale_px, options.scales.period_px, options.max_shift_px)
    distinct = _merge_equal(odds, affines, reference.shape, 0.25 * period)
    chosen, rows = distinct.argmax(1), torch.arange(n, device=peak.device)
    fields = torch.stack([fits.intensity_nodes, fits.contrast_nodes], dim=1).unflatten(0, (n, count))
    final = options.fit(reference, moving, affines[rows, chosen], fields[rows, chosen])
    return _verdict(final, hop_probability(distinct, chosen), options, reference.shape)


def register_from(
    reference: PreparedFrames, moving: PreparedFrames, start: Tensor, options: FitOptions
) -> PairRegistration:
    """Register pairs from known starting affines (n, 3, 3)."""
    fits = options.fit(reference, moving, start)
    return _verdict(fits, torch.full_like(fits.overlap, torch.nan), options, reference.shape)


def _better_start(
    reference: PreparedFrames, moving: PreparedFrames, options: FitOptions, found: Tensor, suggested: Tensor
) -> tuple[Tensor, Tensor]:
    """The suggested motions (n, 3, 3) where a brief fit from them is clearly better, else those found; and where."""
    other = torch.where(torch.isfinite(suggested), suggested.to(found), found)
    fits = [options.fit(reference, moving, start, brief=True) for start in (found, other)]
    score = [fit.correlation * fit.overlap.sqrt() for fit in fits]
    better = score[1] > score[0] + CLEARLY_MORE_ALIKE
    return torch.where(better[:, None, None], fits[1].moving_from_reference, found), better


def _expectation(drift_px: Tensor, scale_px: float | None, period_px: float | None, max_shift_px: float) -> Tensor:
    """Log odds of drifts before the images are asked.

    Where the scale is known, Gaussian. Else short drifts are likelier, with a tail that a few good features overcome:
    on a perfect lattice the short way is taken.
    """
    if scale_px is not None:
        return -(drift_px**2) / (2 * scale_px**2)
    usual = period_px / 2 if period_px else max_shift_px / 3
    return -1.5 * torch.log1p((drift_px / usual) ** 2)


def _merge_equal(odds: Tensor, affines: Tensor, shape: tuple[int, int], distance_px: float) -> Tensor:
    """Candidates that converged to the same registration count once: the later ones get −inf."""
    odds = odds.clone()
    order = odds.argsort(dim=1, descending=True)
    odds_sorted, sorted_affines = (
        odds.gather(1, order),
        affines[torch.arange(len(odds), device=odds.device)[:, None], order],
    )
    for later in range(1, odds.shape[1]):
        apart = geometry.displacement_rms_px(sorted_affines[:, :later], sorted_affines[:, later : later + 1], shape)
        duplicate = ((apart < distance_px) & torch.isfinite(odds_sorted[:, :later])).any(1)
        odds_sorted[duplicate, later] = -torch.inf
    return odds.scatter(1, order, odds_sorted)


def _verdict(fits: PairFit, hops: Tensor, options: FitOptions, shape: tuple[int, int]) -> PairRegistration:
    affine, covariance = fits.moving_from_reference, fits.covariance
    sigma = geometry.displacement_sigma_px(covariance, shape)
    sigma = torch.where(torch.isfinite(sigma), sigma, torch.inf)
    correlation, overlap, converged = fits.correlation, fits.overlap, fits.converged
    independent = overlap * shape[0] * shape[1] / (4 * torch.pi * options.scales.filter_px**2 + 1)
    limit = options.scales.period_px / 4 if options.scales.period_px else max(1.0, 2 * options.scales.filter_px)
    smallest = 2 * usable_margin_px(options.scales) + SMALLEST_FIELD_PX
    reasons = []
    for k in range(len(affine)):
        if min(shape) < smallest:
            reason = f"frames of {shape[0]} × {shape[1]} px are too small: drift needs at least {smallest:.0f} px"
        elif overlap[k] < 0.1:
            reason = f"frames share only {100 * float(overlap[k]):.0f} % of the field"
        elif not correlation[k] * independent[k].sqrt() > MIN_CORRELATION_SIGMAS:
            reason = "no common structure above the noise"
        elif not sigma[k] < limit:
            reason = "too little structure to fix the drift"
        elif not converged[k]:
            reason = f"fit did not converge in {options.max_iterations} steps"
        else:
            reason = ""
        reasons.append(reason)
    valid = torch.tensor([not r for r in reasons], dtype=torch.bool, device=sigma.device)
    return PairRegistration(affine, covariance, sigma, correlation, hops, valid, reasons)
