"""Registration of pairs: coarse start, lattice alternatives, joint fit, verdict."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.alternatives import hop_probability, log_odds
from atomdiffuser.estimation.coarse import Peaks, correlation_peaks
from atomdiffuser.estimation.fit_frames import FitFrames, FitGrid, FitPairs
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.joint_fit import PairFit, fit_nearby, fit_pairs
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import noise_of
from atomdiffuser.estimation.spectrum import ImageScales
from atomdiffuser.interpolation import affine_coordinates, sample_linear

CANDIDATES = 8
BRIEF_ITERATIONS = 3
COARSE_TOLERANCE_PX = 0.03
CORRELATION_SLACK = 0.25  # a peak this much lower than the best is not a lattice alternative
CLEARLY_BEHIND_SIGMAS = 6.0  # a peak that stands this far behind, and not by a hair, needs no fit of its own
HAIR = 0.03
CONTESTED_AT_ONCE = 8  # pairs
ROTATIONS_DEG = (-1.0, 1.0, -2.0, 2.0, -3.5, 3.5, -5.0, 5.0)  # tried where no shift alone leads anywhere
MIN_CORRELATION_SIGMAS = 5.0
SMALLEST_FIELD_PX = 24


@dataclass(frozen=True)
class FitOptions:
    """What a fit needs besides the frames; see RegisterSettings for the meaning of each."""

    grid: FitGrid
    coarse_grid: FitGrid
    noise: NoiseModel
    scales: ImageScales
    field_nodes: int = 8
    max_iterations: int = 30
    tolerance_px: float = 1e-3
    max_shift_px: float = 64.0

    @classmethod
    def of(cls, source: FrameSource, **settings) -> FitOptions:
        """For the frames of a source."""
        return cls(source.grid(), source.grid(coarse=True), source.noise, source.scales, **settings)

    def fit(self, reference: FitFrames, moving: FitFrames, start: Tensor, fields: Tensor | None = None) -> PairFit:
        """The final fit from `start` (n, 3, 3)."""
        return fit_pairs(
            reference,
            moving,
            start,
            grid=self.grid,
            noise=self.noise,
            nodes=self.field_nodes,
            max_iterations=self.max_iterations,
            tolerance_px=self.tolerance_px,
            start_fields=fields,
        )

    def fit_briefly(self, reference: FitFrames, moving: FitFrames, start: Tensor) -> PairFit:
        """A few steps on the coarse grid, without covariance."""
        return fit_pairs(
            reference,
            moving,
            start,
            grid=self.coarse_grid,
            noise=self.noise,
            nodes=self.field_nodes,
            max_iterations=BRIEF_ITERATIONS,
            tolerance_px=COARSE_TOLERANCE_PX,
            covariance=False,
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

    def select(self, index: list[int]) -> PairRegistration:
        """Pairs at `index`."""
        at = torch.as_tensor(index, dtype=torch.long, device=self.valid.device)
        return PairRegistration(**{f: getattr(self, f)[at] for f in TENSORS}, reason=[self.reason[k] for k in index])

    def replaced(self, index: list[int], new: PairRegistration) -> PairRegistration:
        """With the pairs at `index` taken from `new`."""
        at = torch.as_tensor(index, dtype=torch.long, device=self.valid.device)
        reason = list(self.reason)
        for m, k in enumerate(index):
            reason[k] = new.reason[m]
        put = lambda f: getattr(self, f).index_copy(0, at, getattr(new, f).to(getattr(self, f)))
        return PairRegistration(**{f: put(f) for f in TENSORS}, reason=reason)

    def affine_covariance(self) -> Tensor:
        """(n, 6, 6) of the six numbers of moving_from_reference."""
        linear = self.moving_from_reference[:, :2, :2].contiguous()
        lift = torch.stack([torch.kron(a, torch.eye(3, dtype=a.dtype, device=a.device)) for a in linear])
        return lift @ self.motion_covariance @ lift.mT


TENSORS = tuple(f.name for f in dataclasses.fields(PairRegistration) if f.name != "reason")


def register_unknown(
    pairs: FitPairs, options: FitOptions, *, drift_scale_px: float | None = None, starts: Tensor | None = None
) -> PairRegistration:
    """Register pairs of which nothing is known: correlation peaks, a fit from each that stands out, the likeliest wins.

    Parameters
    ----------
    drift_scale_px
        The typical drift between the frames where it is known; among fits that the images cannot tell apart the shorter
        drift is favoured (see `_expectation`).
    starts
        (n, 3, 3) moving_from_reference that another source suggests, NaN where it has none; they compete with
        the peaks.
    """
    chosen = choose_start(
        pairs.coarse_reference, pairs.coarse_moving, options, drift_scale_px=drift_scale_px, starts=starts
    )
    final = options.fit(pairs.reference, pairs.moving, chosen.affine, chosen.fields)
    found = _verdict(final, chosen.hop_probability, options, options.grid.shape)
    lost = [k for k, reason in enumerate(found.reason) if reason and min(options.grid.shape) >= _smallest(options)]
    if lost:
        turned = _register_turned(pairs.select(lost), options)
        better = [m for m in range(len(lost)) if turned.valid[m]]
        if better:
            found = found.replaced([lost[m] for m in better], turned.select(better))
    return found


def register_from(reference: FitFrames, moving: FitFrames, start: Tensor, options: FitOptions) -> PairRegistration:
    """Register pairs from known starting affines (n, 3, 3)."""
    fits = options.fit(reference, moving, start)
    return _verdict(fits, torch.full_like(fits.overlap, torch.nan), options, options.grid.shape)


@dataclass(frozen=True)
class Start:
    """The likeliest of several registrations on the coarse grid: affine (n, 3, 3), fields (n, 2, G, G), and the
    probability (n,) that another one is right.
    """

    affine: Tensor
    fields: Tensor
    hop_probability: Tensor


def choose_start(
    reference: FitFrames,
    moving: FitFrames,
    options: FitOptions,
    *,
    drift_scale_px: float | None = None,
    starts: Tensor | None = None,
) -> Start:
    """Weigh the registrations that coarse frames offer against each other."""
    grid, period = options.coarse_grid, options.scales.period_px or 4 * options.scales.base_px
    peaks = _peaks(reference, moving, options)
    shifts, behind = peaks.shifts * grid.stride, peaks.behind
    plausible = torch.isfinite(peaks.correlation) & (peaks.correlation > peaks.correlation[:, :1] - CORRELATION_SLACK)
    plausible[:, 0] = True
    hair = peaks.correlation > (1 - HAIR) * peaks.correlation[:, :1]
    length = shifts.norm(dim=-1)
    shorter = length < length[:, :1] + 0.5 * period  # less overlap, so a correlation that scatters more, may have won
    rivals = plausible & ((behind < CLEARLY_BEHIND_SIGMAS) | hair | shorter)
    # The highest peak's fit knows rotation and strain; the others start from it, a lattice vector away.
    first = options.fit_briefly(reference, moving, geometry.translation(shifts[:, 0]))
    if starts is not None:
        given = torch.where(torch.isfinite(starts), starts.to(first.moving_from_reference), first.moving_from_reference)
        other = options.fit_briefly(reference, moving, given)
        score = lambda f: f.correlation * f.overlap.sqrt()
        better = (score(other) > score(first))[:, None, None]
        first = options.fit_briefly(
            reference, moving, torch.where(better, other.moving_from_reference, first.moving_from_reference)
        )
        known = geometry.drift_at_centre(first.moving_from_reference, options.grid.shape)
        shifts = torch.cat([known[:, None], shifts], dim=1)
        rivals = torch.cat([torch.ones_like(rivals[:, :1]), plausible], dim=1)
    affine, fields = first.moving_from_reference.clone(), first.fields.clone()
    hops = torch.zeros(len(reference), dtype=torch.float64, device=affine.device)
    for index in torch.nonzero(rivals[:, 1:].any(1))[:, 0].split(CONTESTED_AT_ONCE):
        if index.numel() == 0:
            break
        keep = rivals[index].any(0)
        keep[0] = True
        away = torch.where(rivals[index][:, keep, None], (shifts - shifts[:, :1])[index][:, keep], 0.0)
        fits = fit_nearby(first.at(index), geometry.translation(away) @ affine[index, None])
        odds = torch.where(rivals[index][:, keep], log_odds(fits, grid, options.scales), -torch.inf)
        odds[:, 0] = 0.0
        drift = geometry.drift_at_centre(fits.moving_from_reference, options.grid.shape).norm(dim=-1)
        odds = odds + _expectation(drift, drift_scale_px, options.scales.period_px, options.max_shift_px)
        distinct = _merge_equal(odds, fits.moving_from_reference, options.grid.shape, 0.25 * period)
        best, rows = distinct.argmax(1), torch.arange(len(index), device=affine.device)
        hops[index] = hop_probability(distinct, best)
        affine[index], fields[index] = fits.moving_from_reference[rows, best], fits.fields[rows, best]
    return Start(affine, fields, hops)


def _peaks(reference: FitFrames, moving: FitFrames, options: FitOptions) -> Peaks:
    grid, period = options.coarse_grid, options.scales.period_px or 4 * options.scales.base_px
    noise = grid.noise(options.noise)
    level = lambda f: (noise_of(f.base, noise) * torch.where(torch.isfinite(f.noise_share), f.noise_share, 0.0)).mean(
        (-2, -1)
    )
    sound = lambda f: f.lattice * f.good
    return correlation_peaks(
        sound(reference),
        sound(moving),
        max_shift=options.max_shift_px / grid.stride,
        count=CANDIDATES,
        separation=max(3.0, 0.4 * period / grid.stride),
        noise_power=(level(reference), level(moving)),
        noise_width=(grid.filter_width, grid.base_px / grid.stride),
    )


def _register_turned(pairs: FitPairs, options: FitOptions) -> PairRegistration:
    """Register pairs between which the field may have turned: the turn of the highest correlation peak is the start."""
    reference, moving = pairs.coarse_reference, pairs.coarse_moving
    best = torch.full((len(pairs),), -torch.inf, device=reference.base.device)
    start = geometry.identity(len(pairs), device=reference.base.device)
    centre = torch.tensor([(n - 1) / 2 for n in options.grid.shape], dtype=torch.float64, device=start.device)
    for angle in ROTATIONS_DEG:
        turn = geometry.exp_affine(math.radians(angle) * torch.tensor([0.0, -1, 0, 1, 0, 0], dtype=torch.float64)).to(
            start
        )
        turn = geometry.translation(centre) @ turn @ geometry.translation(-centre)
        y, x = affine_coordinates(
            options.coarse_grid.to_samples(turn).expand(len(pairs), 3, 3), reference.shape
        )
        turned = dataclasses.replace(
            moving, lattice=sample_linear(moving.lattice, y, x), good=moving.good.amin((1, 2), True)
        )
        peaks = _peaks(reference, turned, options)
        better = peaks.correlation[:, 0] > best
        best = torch.where(better, peaks.correlation[:, 0], best)
        affine = turn @ geometry.translation(peaks.shifts[:, 0] * options.coarse_grid.stride)
        start = torch.where(better[:, None, None], affine, start)
    fits = options.fit_briefly(reference, moving, start)
    final = options.fit(pairs.reference, pairs.moving, fits.moving_from_reference, fits.fields)
    return _verdict(final, torch.full_like(final.overlap, torch.nan), options, options.grid.shape)


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
    independent = overlap * shape[0] * shape[1] / (4 * torch.pi * options.grid.filter_px**2 + 1)
    limit = options.scales.period_px / 4 if options.scales.period_px else max(1.0, 2 * options.scales.filter_px)
    smallest = _smallest(options)
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


def _smallest(options: FitOptions) -> float:
    """Shorter side of the smallest frame that can be registered [px]."""
    return 2 * options.grid.margin * options.grid.stride + 2 * options.grid.base_px + SMALLEST_FIELD_PX
