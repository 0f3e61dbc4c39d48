"""Local regressions over an aligned pair at five scales: what the maps can be known from before anything is learned.

In a Gaussian window around each cell of 4 × 4 pixels, with the pair's `LatticeTemplate` T and the noise that reached it
taken out,

    intensity  μ = Σ moving / Σ reference
    contrast   κ = Σ moving·T / Σ reference·T

And both frames pass through the same band-pass filters w_b (Laplacians of Gaussians, two widths at three octaves). With
the filters' noise N_b taken out and m_b modes in a band,

    octaves    κ_b = C_b / S_b,    C_b = Σ f_b(moving)·f_b(reference),  S_b = Σ f_b(reference)² − N_b
    energy     ε = (Σ_b m_b·S'_b / Σ_b m_b·S_b)^½,  S' of the moving frame: blind to what is left of the drift

κ_b are slopes of prewhitened frames, corrected for the noise in the reference, which would bias them low (errors in
variables; Fuller, Measurement Error Models, 1987, eq. 1.2.3): coarse and fine details may fade differently. All come
with the standard error that shot noise gives them. Narrow windows are noisy, wide ones blurred: the decoder blends them
place by place and corrects the blend. What it needs for that is given too: how much more two neighbouring widths differ
than noise explains (Lepski 1991, doi:10.1137/1135065), averaged around each place. And where contrast follows
intensity, as it does when one damage takes both, the intensity's finer windows say where: κ of the widest window,
changed by ρ times what log μ differs from its own widest, with ρ the local regression of one difference on the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomdiffuser.interpolation import BandedMatrix
from atomdiffuser.model.config import MAP_STRIDE
from atomdiffuser.model.lattice_template import LatticeTemplate, lattice_template, without_mean
from atomdiffuser.model.layers import full_precision

FILTER_PX = 9
FILTER_WIDTHS_PX = (1.0, 1.4)
OCTAVES = (1, 2, 4)
WINDOW_CELLS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the windows [cells]."""
BEYOND_CELLS = 32.0  # of one that only the second look at intensity has
ROUGHNESS_CELLS = (4.0, 16.0)
"""Standard deviations of the windows over which differences between widths are averaged [cells]."""
ROUGHNESS_CHANNELS = 2 * (len(WINDOW_CELLS) - 1) * len(ROUGHNESS_CELLS)
DIFFERENCE_SHARE = 0.45  # variance of the difference to a window twice as wide, over the narrow window's own
WIDEST, PROBED = len(WINDOW_CELLS) - 1, 2
"""Indices of the window that contrast is followed from, and of the one that the regression on intensity is made in."""
FOLLOWING = (1, 2, 3)
"""Indices of the windows of log μ that contrast is made to follow."""
FAR_DIFFERENCE_SHARE = 0.83  # as DIFFERENCE_SHARE, to a window four times as wide
STEEPEST = 15.0  # of contrast on log intensity
INDEPENDENT_PROBES = 32.0  # windows of the probed width in one of the widest
DOUBTFUL = 0.3  # standard error from which a place counts little in that average
JUDGED_CELLS, NEAR_CELLS = 4.0, 1.0
"""The window in which it is judged whether there is something to see, and the one that must not be vacuum."""
VACUUM_SHARE = 0.03  # of the frame's mean signal
MEDIAN_OF_SQUARES = 0.455  # of a standard normal number
LARGEST_SQUARE = 100.0  # in variances
LARGEST_LOG, LARGEST_SLOPE = 2.5, 2.5
LEAST_VARIANCE, LARGEST_VARIANCE = 1e-6, 10.0  # that a standard error is told apart by
LEAST_PASSED = 0.003  # of the noise, that T is taken to hold: where it is empty nothing is known


@dataclass(frozen=True)
class Evidence:
    """What the windows say, narrow to wide, float32.

    Attributes
    ----------
    channels
        (n, PairStatistics.channels, y/4, x/4): all of it on scales near 1, as the decoder reads it.
    log_intensity, contrast
        (n, windows, y/4, x/4): log μ and κ; 0 and 1 where nothing is seen.
    following
        (n, len(FOLLOWING), y/4, x/4): κ as it would be if it followed log μ, through windows of those widths.
    roughness
        (n, ROUGHNESS_CHANNELS + len(ROUGHNESS_CELLS), y/4, x/4): logarithms of how much more neighbouring widths differ
        than noise explains; last the widest against a window twice as wide.
    beyond, beyond_sigma
        (n, y/4, x/4): log μ in that window, and its standard error.
    log_doubt
        (n, 2, y/4, x/4): logarithms of the standard errors of log μ and κ in the middle window; large in vacuum, and
        that of κ where there is no lattice.
    """

    channels: Tensor
    log_intensity: Tensor
    contrast: Tensor
    following: Tensor
    roughness: Tensor
    beyond: Tensor
    beyond_sigma: Tensor
    log_doubt: Tensor


class PairStatistics(nn.Module):
    """Evidence from an aligned pair of values over the mean; nothing in it is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", band_passes(FILTER_WIDTHS_PX), persistent=False)
        octaves = len(OCTAVES)
        self.channels = len(WINDOW_CELLS) * (5 + 2 * octaves) + 3 + ROUGHNESS_CHANNELS + len(FOLLOWING) + 2

    def forward(
        self, reference: Tensor, moving: Tensor, mask: Tensor, level: Tensor, readout: Tensor,
        template: LatticeTemplate | None = None,
    ) -> Evidence:  # fmt: skip
        """Images (n, y, x), 0 where `mask` is 0.

        Parameters
        ----------
        level
            (n,) electrons that a value of 1 stands for.
        readout
            (n, 2) variance [electrons²] that pixels of either frame have beside their shot noise.
        template
            Of the pair, cut as the images are; where the images are the whole frames it is found here.
        """
        template = template or lattice_template(reference, moving, mask, level, readout)
        with full_precision(reference.device):
            both = mask[:, None]
            images = torch.stack([reference, moving], 1) * both  # (n, 2, y, x)
            cells = F.avg_pool2d(torch.cat([images, both], 1), MAP_STRIDE)
            bands = [self._octave(images, both, octave, level, readout) for octave in OCTAVES]
            projections = _projections(images, mask, level, readout, template)
            return self._evidence(cells, torch.stack(bands, 1), projections, level, readout)

    def _octave(self, images: Tensor, mask: Tensor, octave: int, level: Tensor, readout: Tensor) -> Tensor:
        """(n, 4, y/4, x/4): C, S, S', each over the noise of its frame's mean, and the share that has a value."""
        binned, covered = F.avg_pool2d(images, octave), F.avg_pool2d(mask, octave)
        inside = _whole(covered)
        n, _, height, width = binned.shape
        filtered = F.conv2d(binned.reshape(2 * n, 1, height, width), self.filters, padding=FILTER_PX // 2)
        first, second = filtered.unflatten(0, (n, 2)).unbind(1)  # (n, k, y, x)
        pool = lambda x: F.avg_pool2d(x, MAP_STRIDE // octave)
        products = ((first, second), (first, first), (second, second))
        energies = torch.cat([pool((a * b).sum(1, keepdim=True) * inside) for a, b in products], 1)
        # Noise of one filtered value is that of a pixel over octave²: the filters have unit energy.
        scale = (octave**2 * level)[:, None, None, None]
        excess = readout[:, :, None, None] / level[:, None, None, None]
        noise = self.filters.shape[0] * (binned.clamp_min(0) + excess).clamp_min(0) * inside
        energies = energies * scale
        energies = energies - F.pad(pool(noise), (0, 0, 0, 0, 1, 0))
        return torch.cat([energies, pool(inside)], 1)

    def _evidence(self, cells: Tensor, bands: Tensor, projections: Tensor, level: Tensor, readout: Tensor) -> Evidence:
        excess = (readout / level[:, None])[:, :, None, None]
        channels, logs, slopes, log_variances, slope_variances = [], [], [], [], []
        modes = torch.tensor([1.0 / o**2 for o in OCTAVES], device=cells.device)[:, None, None]  # what a band counts
        for width in WINDOW_CELLS:
            log_ratio, log_variance, mean, noise, pixels = _log_ratio(cells, width, level, excess[:, 0])
            cross, square, other, seen = _window(bands.flatten(1, 2), width).unflatten(1, bands.shape[1:3]).unbind(2)
            slope, error = _slope(cross, square, noise[:, None] * seen, pixels[:, None], OCTAVES)
            total = lambda x: (x * modes).sum(1, keepdim=True)
            all_slope, all_error = _contrast(_window(projections, width), noise / level[:, None, None], pixels)
            _, band_error = _slope(total(cross), total(square), noise[:, None] * total(seen), pixels[:, None])
            floor = (total(square).clamp_min(0) * band_error).clamp_min(1e-6)
            energy = ((total(other).clamp_min(0) + floor) / (total(square).clamp_min(0) + floor)).sqrt()
            channels += [
                log_ratio[:, None], log_doubt(log_variance)[:, None], all_slope - 1,
                energy.clamp(0, LARGEST_SLOPE) - 1, log_doubt(all_error.square()), slope - 1,
                log_doubt(error.square()),
            ]  # fmt: skip
            if width == JUDGED_CELLS:
                judged = torch.stack([log_variance.sqrt(), all_error[:, 0]], 1).clamp(1e-4, 1e4).log()
            if width == NEAR_CELLS:
                vacuum = mean < VACUUM_SHARE
            logs.append(log_ratio)
            slopes.append(all_slope[:, 0])
            log_variances.append(log_variance)
            slope_variances.append(all_error[:, 0].square())
        local = cells[:, :1] / cells[:, 2:].clamp_min(1e-3)
        energy = bands[:, :, 1].sum(1, keepdim=True).clamp_min(0).log1p() / 3
        channels += [cells[:, 2:], local.clamp(0, 4) - 1, energy]
        log_ratios, contrasts = torch.stack(logs, 1), torch.stack(slopes, 1)
        log_variance, slope_variance = torch.stack(log_variances, 1), torch.stack(slope_variances, 1)
        roughness = _roughness(log_ratios, log_variance) + _roughness(contrasts, slope_variance)
        channels += roughness
        following, ratio, certainty = _following(log_ratios, contrasts, log_variance, slope_variance)
        channels += [following - 1, ratio, certainty]
        doubts = judged + 20.0 * vacuum[:, None]
        beyond, beyond_variance, *_ = _log_ratio(cells, BEYOND_CELLS, level, excess[:, 0])
        last = lambda values, further: torch.stack([values[:, WIDEST], further], 1)
        roughness = roughness + _roughness(last(log_ratios, beyond), last(log_variance, beyond_variance))
        return Evidence(
            torch.cat(channels, 1), log_ratios, contrasts, following, torch.cat(roughness, 1), beyond,
            beyond_variance.clamp(LEAST_VARIANCE, LARGEST_VARIANCE).sqrt(), doubts,
        )  # fmt: skip


WINDOW_REACH = 6.0  # of its widths
ENOUGH_PX, STRIP_ROWS = 2**20, 32  # pixels that a variance is well known from


def readout_variance(electrons: Tensor, valid: Tensor) -> Tensor:
    """(n,) variance per pixel [electrons²] beyond shot noise: readout, quantisation, or a wrong gain (then negative).

    Taken from the highest frequencies, where a probe leaves no structure: the response to [1, −2, 1] ⊗ [1, −2, 1].

    Parameters
    ----------
    electrons, valid
        (n, y, x) above the dark level, and 1 where a pixel holds a number.

    References
    ----------
    Immerkær 1996, doi:10.1006/cviu.1996.0060.
    """
    electrons, valid = (_strips(images) for images in (electrons, valid))
    step = torch.tensor([1.0, -2.0, 1.0], device=electrons.device)
    kernel = (step[:, None] * step)[None, None] / 6.0
    together = lambda images: images.flatten(0, 1)[:, None]
    known = F.avg_pool2d(together(valid), 3, stride=1) > 0.999
    response = F.conv2d(together(electrons * valid), kernel)
    squares = torch.where(known, response.square(), torch.nan).reshape(len(electrons), -1)
    # Hot pixels are cut where no shot noise reaches, also not that of bright columns.
    ceiling = LARGEST_SQUARE * torch.nan_to_num(squares.nanmedian(1, keepdim=True).values / MEDIAN_OF_SQUARES)
    variance = torch.nan_to_num(torch.minimum(squares, ceiling).nanmean(1))
    mean = (electrons * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp_min(1)
    return torch.maximum(variance - mean.clamp_min(0), -0.5 * mean.clamp_min(0))


def _strips(images: Tensor) -> Tensor:
    """(n, k, y, x) strips of rows of (n, y, x) that stand for all of them where there are very many."""
    height = images.shape[1]
    every = height * images.shape[2] // ENOUGH_PX
    if every < 2 or height < 2 * every * STRIP_ROWS:
        return images[:, None]
    return images[:, : height // STRIP_ROWS * STRIP_ROWS].unflatten(1, (-1, STRIP_ROWS))[:, ::every]


def band_passes(widths_px: tuple[float, ...]) -> Tensor:
    """(k, 1, 9, 9): Laplacians of Gaussians of unit energy and without mean."""
    x = torch.arange(FILTER_PX) - FILTER_PX // 2
    squared = (x[:, None] ** 2 + x[None, :] ** 2).double()
    filters = []
    for width in widths_px:
        g = (1 - squared / (2 * width**2)) * torch.exp(-squared / (2 * width**2))
        g = g - g.mean()
        filters.append(g / g.norm())
    return torch.stack(filters)[:, None].float()


def _projections(images: Tensor, mask: Tensor, level: Tensor, readout: Tensor, template: LatticeTemplate) -> Tensor:
    """(n, 3, y/4, x/4): reference·T and moving·T without the noise that reached T, and T²."""
    structure = template.structure
    sums = []
    for k, image in enumerate(images.unbind(1)):
        variance = (image.clamp_min(0) + (readout[:, k] / level)[:, None, None]) / level[:, None, None] * mask
        sums.append(without_mean(image, mask, template.edges) * structure - variance * template.passed)
    return F.avg_pool2d(torch.stack([*sums, structure.square() + LEAST_PASSED * variance], 1), MAP_STRIDE)


def _contrast(sums: Tensor, variance: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """κ (n, 1, y, x) from windowed projections (n, 3, y, x), drawn to 1 where its standard error, beside it, is large.

    `variance` (n, y, x) is that of a pixel's value, `pixels` (n, y, x) how many count.
    """
    reference, moving, square = sums.unbind(1)
    signal = reference.clamp_min(0)
    spread = 2 * variance * square.clamp_min(0) / pixels.clamp_min(1e-3) + 1e-14
    error = spread.sqrt() / (signal + 1e-6)
    doubt = (error * signal).square()
    slope = (moving * signal + doubt) / (signal.square() + doubt + 1e-14)
    return slope.clamp(-0.5, LARGEST_SLOPE)[:, None], error[:, None]


def _slope(
    cross: Tensor, square: Tensor, noise: Tensor, pixels: Tensor, octaves: tuple[int, ...] = (1,)
) -> tuple[Tensor, Tensor]:
    """κ and its standard error, drawn to 1 where the error is large; (n, k, …)."""
    per_cell = torch.tensor([1.0 / o**2 for o in octaves], device=cross.device)[None, :, None, None]
    signal = square.clamp_min(0)
    independent = (0.2 * pixels * per_cell).clamp_min(1e-3)
    error = ((2 * signal * noise + 2 * noise.square()) / independent + 1e-12).sqrt() / (signal + 1e-6)
    doubt = (error * signal).square()
    slope = (cross * signal + doubt) / (signal.square() + doubt + 1e-12)
    return slope.clamp(-0.5, LARGEST_SLOPE), error


def _log_ratio(
    cells: Tensor, width: float, level: Tensor, excess: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log μ in a window and its variance, the reference's mean and the variance of its pixels, over the level, and the
    pixels that count in the window, each (n, y, x)."""
    reference, moving, coverage = _window(cells, width).unbind(1)
    pixels = coverage * 4 * math.pi * (width * MAP_STRIDE) ** 2  # were all weights equal
    electrons = pixels * level[:, None, None]
    ratio = (moving * electrons + coverage).clamp_min(0.02) / (reference * electrons + coverage).clamp_min(0.02)
    mean = (reference / coverage.clamp_min(1e-3)).clamp_min(0)
    noise = (mean + excess).clamp_min(1e-3)
    variance = 2 * noise / (mean.square() * electrons).clamp_min(1e-3)
    return ratio.log().clamp(-LARGEST_LOG, LARGEST_LOG), variance, mean, noise, pixels


def _roughness(values: Tensor, variances: Tensor) -> list[Tensor]:
    """log of the mean squared difference between neighbouring widths over what noise explains; 0 for noise alone."""
    expected = DIFFERENCE_SHARE * variances[:, :-1].clamp(1e-8, 1e4)
    excess = (values[:, :-1] - values[:, 1:]).square() / expected
    trust = 1 / (1 + expected / DOUBTFUL**2)
    channels = []
    for width in ROUGHNESS_CELLS:
        around = _window(torch.cat([excess.clamp_max(1e3) * trust, trust], 1), width)
        found, weight = around.chunk(2, dim=1)
        channels.append(((found + 1e-3) / (weight + 1e-3)).log() / 2)
    return channels


def _following(
    log_ratios: Tensor, contrasts: Tensor, log_variances: Tensor, slope_variances: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Contrast that follows intensity, ρ, and how many of its own standard errors ρ is (signed, compressed)."""
    far = lambda x, k: x[:, k] - x[:, WIDEST]
    intensity, contrast = far(log_ratios, PROBED), far(contrasts, PROBED)
    noise = FAR_DIFFERENCE_SHARE * log_variances[:, PROBED].clamp(1e-8, 1.0)
    weight = 1 / (FAR_DIFFERENCE_SHARE * slope_variances[:, PROBED].clamp(1e-8, 1e4) + 1e-4)
    sums = torch.stack([contrast * intensity, intensity.square(), noise], 1) * weight[:, None]
    cross, square, expected = _window(sums, WINDOW_CELLS[WIDEST]).unbind(1)
    signal = (square - expected).clamp_min(0)
    doubt = (expected * (2 / INDEPENDENT_PROBES) ** 0.5).square() + 1e-12
    ratio = (cross * signal / (signal.square() + doubt)).clamp(-STEEPEST, STEEPEST)
    certainty = cross * (INDEPENDENT_PROBES / (square + 1e-9)).sqrt()
    finer = log_ratios[:, list(FOLLOWING)] - log_ratios[:, WIDEST, None]
    middle, change = contrasts[:, WIDEST, None], ratio[:, None] * finer
    # Losses that go together are powers of each other; where one grows as the other falls, they are nearly linear.
    power = middle * (change / middle.clamp_min(0.1)).clamp(-3, 1).exp()
    following = torch.where(ratio[:, None] > 0, power, middle + change).clamp(-0.5, LARGEST_SLOPE)
    return following, torch.asinh(ratio)[:, None] / 2, (torch.sign(certainty) * certainty.abs().log1p() / 3)[:, None]


def log_doubt(variance: Tensor) -> Tensor:
    """Standard errors from 0.001 to 3 become about 2 to −0.3."""
    return -(0.5 * variance.clamp(LEAST_VARIANCE, LARGEST_VARIANCE).log() + 1.0) / 3


def _window(cells: Tensor, width: float) -> Tensor:
    """Gaussian-weighted means of (n, k, y, x) around each cell; nothing lies beyond the frame."""
    rows, columns = (_weights(size, width, cells.device) for size in cells.shape[-2:])
    return (columns @ (rows @ cells).mT).mT


def _whole(covered: Tensor) -> Tensor:
    """1 where every pixel under a filter holds a number, else 0."""
    reach = FILTER_PX // 2
    along = F.avg_pool2d(covered, (1, FILTER_PX), stride=1, padding=(0, reach))
    return (F.avg_pool2d(along, (FILTER_PX, 1), stride=1, padding=(reach, 0)) > 0.999).float()


@lru_cache(maxsize=64)
def _weights(size: int, width: float, device: torch.device) -> BandedMatrix:
    """(size, size): weight of each cell (column) in the window around another (row), along one axis."""
    at = torch.arange(size, dtype=torch.float64)
    square = ((at[:, None] - at) / width).square()
    weight = torch.where(square < WINDOW_REACH**2, torch.exp(-0.5 * square), 0.0)  # denormal numbers are slow
    return BandedMatrix.of((weight / (math.sqrt(2 * math.pi) * width)).float().to(device))
