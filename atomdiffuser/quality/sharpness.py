"""How sharp each frame is, from the shape of its power spectrum, whatever is left of the lattice.

Frame k shows, in the band of the structure, the power

    P_k(q) = c_k · S(q) · exp(−4π² qᵀ Δ_k q) + N_k

S the series' mean power without noise, N_k the frame's own noise floor, c_k what gain and damage leave of the power. A
blur by a Gaussian of covariance Δ_k [px²] makes the spectrum steeper; damage that melts the lattice lowers c_k and
leaves the shape as it is; drift changes neither (a B-factor per frame, as in Scheres, eLife 3:e03665, 2014). c_k and
Δ_k are fitted with the variance of a periodogram as weights. All spectra are smoothed a little first: small turns and
strains move the reflections by less.

Assumes that damage takes all of the structure's wavelengths alike within a few frames; slow changes of shape are
followed, see `flags`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.estimation.spectrum import ImageScales, mean_power

WINDOW_PX = 256
WINDOWS_PER_AXIS = 5
LOWEST_IN_PERIODS = 0.6  # of the lattice: below are thickness, holes and edges
HIGHEST_FREQUENCY = 0.45  # cycles a pixel; beyond, the sampling grid shows
SIGNIFICANT = 5.0  # standard deviations of the mean spectrum's noise that a bin stands out by
LEAST_STRUCTURE = 8.0  # standard deviations of a frame's noise
HANN_CORRELATION = 3.8  # sum of squared correlations of a bin with its neighbours under a Hann window, both axes
SMOOTHED_BINS = 9
NEWTON_STEPS = 60
LARGEST_STEP = 0.5  # change of an exponent at the typical frequency, per step
LARGEST_EXPONENT = 4.0
LEAST_LOG_SIGMA = 0.02  # the content of the field changes a little from frame to frame


@dataclass(frozen=True)
class FrameSpectra:
    """Power of t frames: `power` (t, u, v) with `floor` (t,), `windows` averaged, over `frequency` (u, v, 2) [1/px]."""

    power: Tensor
    floor: Tensor
    windows: int
    frequency: Tensor


@dataclass(frozen=True)
class Transfer:
    """How the transfer of t frames differs from the series' mean.

    Attributes
    ----------
    broadening_px2
        (t, 2, 2) covariance Δ of the Gaussian that blurs the mean frame into this one; negative where sharper; NaN
        where too little structure is left to tell.
    log_sigma
        (t,) 1 σ of the logarithm of the amplitude at the typical frequency.
    typical_frequency
        Root mean square frequency of the structure [1/px].
    structure
        (t,) power of the structure over its own noise [σ]; NaN for frames that were not measured.
    """

    broadening_px2: np.ndarray
    log_sigma: np.ndarray
    typical_frequency: float
    structure: np.ndarray


def frame_power(frame: Tensor) -> tuple[Tensor, float, int, Tensor]:
    """Mean power of a frame (1, Y, X) over Hann windows, its noise floor, number of windows, frequencies (u, v, 2)."""
    size = min(WINDOW_PX, min(frame.shape[-2:])) // 2 * 2
    starts = [_starts(extent, size) for extent in frame.shape[-2:]]
    windows = torch.cat([frame[:, y : y + size, x : x + size] for y in starts[0] for x in starts[1]])
    power, _, floor = mean_power(windows)
    fy, fx = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    frequency = torch.stack(torch.meshgrid(fy, fx, indexing="ij"), dim=-1).double()
    return power.double().cpu(), floor, len(windows), frequency


def measure_transfer(spectra: FrameSpectra, scales: ImageScales) -> Transfer:
    """Compare the shapes of the spectra."""
    t = len(spectra.power)
    signal = _smoothed(spectra.power - spectra.floor[:, None, None])
    mean, floor = signal.mean(0), float(spectra.floor.mean())
    length = spectra.frequency.norm(dim=-1)
    lowest = LOWEST_IN_PERIODS / scales.period_px if scales.period_px else 1 / (2 * scales.base_px)
    noise = floor * math.sqrt(HANN_CORRELATION / (SMOOTHED_BINS * spectra.windows * t))
    band = (length > lowest) & (length < HIGHEST_FREQUENCY) & (mean > SIGNIFICANT * noise)
    broadening, sigma, structure = np.full((t, 2, 2), np.nan), np.full(t, np.nan), np.zeros(t)
    if int(band.sum()) < 8:
        return Transfer(broadening, sigma, math.nan, structure)
    q, shape = spectra.frequency[band], mean[band]
    typical = float(((shape * (q**2).sum(-1)).sum() / shape.sum()).sqrt())
    # exponent: e_yy·y² + e_xx·x² + 2·e_yx·y·x, frequencies in units of the typical one
    products = torch.stack([q[:, 0] ** 2, q[:, 1] ** 2, 2 * q[:, 0] * q[:, 1]], dim=-1) / typical**2
    for k in range(t):
        own, own_floor = signal[k][band], float(spectra.floor[k])
        variance = (2 * shape * own_floor + own_floor**2) * (HANN_CORRELATION / spectra.windows)
        structure[k] = float((shape * own / variance).sum() / (shape**2 / variance).sum().sqrt())
        if not structure[k] > LEAST_STRUCTURE:
            continue
        fitted = _fit_exponent(shape, products, own, own_floor, spectra.windows)
        if fitted is None:
            continue
        exponent, covariance = fitted
        a, b, c = (exponent / (2 * math.pi**2 * typical**2)).tolist()
        broadening[k] = [[a, c], [c, b]]
        y, x = np.linalg.eigh(broadening[k])[1][:, 1]
        along = torch.tensor([y * y, x * x, 2 * y * x], dtype=torch.float64)
        sigma[k] = math.hypot(LEAST_LOG_SIGMA, float((along @ covariance @ along).clamp_min(0).sqrt()))
    return Transfer(broadening, sigma, typical, structure)


def log_amplitude(broadening_px2: np.ndarray, typical_frequency: float) -> np.ndarray:
    """Log of what a broadening (t, 2, 2) leaves of the amplitude at the typical frequency, worse direction, (t,)."""
    known = np.isfinite(broadening_px2).all((1, 2))
    worst = np.full(len(broadening_px2), np.nan)
    worst[known] = np.linalg.eigvalsh(broadening_px2[known])[:, 1]
    return -2 * np.pi**2 * typical_frequency**2 * worst


def _fit_exponent(
    shape: Tensor, products: Tensor, own: Tensor, floor: float, windows: int
) -> tuple[Tensor, Tensor] | None:
    """Exponents e (3,) and their covariance of own ≈ c·shape·exp(−2·products·e); None where the fit runs away.

    Weighted least squares, c as log c beside e. Misfit beyond the noise (other content, turned lattice) widens σ.
    """
    numbers = torch.zeros(4, dtype=torch.float64)
    numbers[0] = torch.log((own.sum() / shape.sum()).clamp_min(1e-6))
    design = torch.cat([torch.ones(len(products), 1, dtype=torch.float64), -2 * products], dim=1)
    normal = misfit = None
    for _ in range(NEWTON_STEPS):
        model = shape * torch.exp(design @ numbers)
        weight = windows / (HANN_CORRELATION * (2 * model * floor + floor**2))
        jacobian = design * model[:, None]
        normal = jacobian.T @ (jacobian * weight[:, None])
        misfit = own - model
        ridge = 1e-6 * normal.diagonal().mean() * torch.eye(4, dtype=torch.float64)
        step = torch.linalg.solve(normal + ridge, jacobian.T @ (weight * misfit))
        step = step * min(1.0, LARGEST_STEP / max(float(step.abs().max()), 1e-12))
        numbers = numbers + step
        if float(numbers[1:].abs().max()) > LARGEST_EXPONENT:
            return None
        if float(step.abs().max()) < 1e-6:
            break
    else:
        return None
    excess = float((weight * misfit**2).mean()) * SMOOTHED_BINS
    return numbers[1:], torch.linalg.pinv(normal, hermitian=True)[1:, 1:] * max(1.0, excess)


def _smoothed(power: Tensor) -> Tensor:
    """Mean over 3 × 3 bins of half-plane spectra (t, u, v), periodic along u."""
    image = torch.nn.functional.pad(power[:, None], (0, 0, 1, 1), mode="circular")
    image = torch.nn.functional.pad(image, (1, 1, 0, 0), mode="replicate")
    return torch.nn.functional.avg_pool2d(image, 3, stride=1)[:, 0]


def _starts(extent: int, size: int) -> list[int]:
    count = min(WINDOWS_PER_AXIS, max(1, 2 * (extent // size) - 1))
    return [round(i * (extent - size) / max(count - 1, 1)) for i in range(count)]
