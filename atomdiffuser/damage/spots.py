"""Fourier spots fading, shell by shell: how crystallinity goes at each spacing of planes.

The spots are those of the template, all aligned frames together. Passing the template through narrow windows around the
spots of one spacing gives that part of the lattice in real space, without the background between the spots; its
amplitude in a region of a raw frame is a linear regression, unbiased at any count, with the noise of the counts. The
region is the window of the spectrum, and moves with the sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.fft
import scipy.ndimage
import torch

from atomdiffuser.damage.analysis import Measurement
from atomdiffuser.damage.atom_sums import atom_image, atoms_of_pixels, fit_images, fit_sums, strips, sum_by_atom
from atomdiffuser.damage.kinetics import fit_exponential
from atomdiffuser.damage.observables import LEAST_CONTRAST
from atomdiffuser.damage.regions import RegionSet
from atomdiffuser.damage.signals import Z95
from atomdiffuser.damage.template import Template, TemplateOnFrame
from atomdiffuser.damage.verdicts import holm
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.interpolation import filter_separable, sample_spline, spline_coefficients

PEAK_OVER_SURROUNDINGS = 12.0
SHARE_OF_STRONGEST = 0.003
MOST_SPOTS = 500
SAME_SHELL = 0.045  # relative difference of spacings
WINDOW_PERIODS = 1.2  # what a spot's window resolves in real space, in lattice periods
NEGLIGIBLE = 1e-18  # of a spot's window: rounding, next to what it passes
LARGEST_SIGMA = 0.5  # of an amplitude, above which it is not given
SPOT_COLUMNS = ("region", "region_id", "shell", "d_nm", "d_px", "n_spots")


@dataclass(frozen=True)
class Shell:
    """Spots of one spacing: `frequency` (spots, 2) along (y, x) [1/px], one of each opposite pair, and their power."""

    d_px: float
    frequency: np.ndarray
    power: float


@dataclass(frozen=True)
class SpotAmplitudes:
    """(t, regions, shells) amplitudes over the intact lattice's, with 1 σ; NaN where too uncertain."""

    shells: tuple[Shell, ...]
    amplitude: np.ndarray
    sigma: np.ndarray


def intact_lattice(template: Template) -> np.ndarray:
    """(Y, X) the template's lattice before damage; 0 where structure cannot be lattice."""
    mean, base = (sampled(c) for c in (template.mean_coefficients, template.base_coefficients))
    contrast = (template.contrast / template.total.count.clamp_min(1e-6)).clamp_min(LEAST_CONTRAST)
    return torch.where(template.crystal, (mean - base) / contrast, 0.0)[0].cpu().numpy()


def find_shells(lattice: np.ndarray, period_px: float | None, limit: int) -> tuple[Shell, ...]:
    """The strongest shells of spots in an image (Y, X) of the lattice, the widest spacing first."""
    if period_px is None or limit < 1 or not lattice.any():
        return ()
    power = _power(lattice)
    frequency = _frequencies(lattice.shape)
    length = np.hypot(*frequency)
    half = (frequency[1] > 0) | ((frequency[1] == 0) & (frequency[0] > 0))
    top = (scipy.ndimage.maximum_filter(power, size=5, mode="wrap") == power) & half
    top &= (length > 0.6 / period_px) & (length < 0.45)
    rows, columns = np.nonzero(top)
    strongest = np.argsort(-power[rows, columns])[:MOST_SPOTS]
    rows, columns = rows[strongest], columns[strongest]
    clear = power[rows, columns] > PEAK_OVER_SURROUNDINGS * _median_around(power, rows, columns)
    rows, columns = rows[clear], columns[clear]
    strength = power[rows, columns]
    strong = strength > SHARE_OF_STRONGEST * strength.max(initial=0.0)
    rows, columns, strength = rows[strong], columns[strong], strength[strong]
    order = np.argsort(length[rows, columns])
    groups: list[list[int]] = []
    for i in order:
        q = length[rows[i], columns[i]]
        last = length[rows[groups[-1][-1]], columns[groups[-1][-1]]] if groups else 0.0
        if groups and q - last < max(SAME_SHELL * q, 1.5 / min(lattice.shape)):
            groups[-1].append(i)
        else:
            groups.append([i])
    shells = [
        Shell(
            d_px=float(strength[g].sum() / (strength[g] * length[rows[g], columns[g]]).sum()),
            frequency=np.stack([frequency[0][rows[g], 0], frequency[1][0, columns[g]]], 1),
            power=float(strength[g].sum()),
        )
        for g in groups
    ]
    strongest = sorted(shells, key=lambda s: -s.power)[:limit]
    return tuple(sorted(strongest, key=lambda s: -s.d_px))


def through_windows(lattice: np.ndarray, shells: tuple[Shell, ...], period_px: float) -> np.ndarray:
    """(shells, Y, X): the image as each shell's spots alone make it."""
    spectrum, images = np.fft.fft2(lattice), np.empty((len(shells), *lattice.shape), lattice.dtype)
    for image, shell in zip(images, shells, strict=True):
        passed = spectrum * spot_window(lattice.shape, shell, period_px)
        image[:] = scipy.fft.ifft2(passed, overwrite_x=True).real
    return images


def spot_window(shape: tuple[int, int], shell: Shell, period_px: float) -> np.ndarray:
    """(Y, X) 0…1 in Fourier space: Gaussians around the spots of a shell, as wide as WINDOW_PERIODS allow."""
    width = 1 / (2 * np.pi * WINDOW_PERIODS * period_px)
    window = np.zeros(shape)
    for spot in np.concatenate([shell.frequency, -shell.frequency]):
        fy, fx = (np.exp(-((f - q) ** 2) / (2 * width**2)) for f, q in zip(_frequencies(shape), spot, strict=True))
        rows, columns = (np.flatnonzero(f > NEGLIGIBLE) for f in (fy.ravel(), fx.ravel()))
        near = np.ix_(rows, columns)
        window[near] = np.maximum(window[near], fy[rows] * fx[:, columns])
    return window


def measure_spots(
    source: FrameSource,
    frame_from_reference: np.ndarray,
    measured: Measurement,
    limit: int,
    advance: Callable[[], None] | None = None,
) -> SpotAmplitudes:
    """Amplitude of each shell in each region and frame."""
    fits = SpotFits(source, limit)
    fits.begin(measured.template, measured.regions)
    for k in source.each(np.flatnonzero(measured.accepted.any(1))) if fits.shells else ():
        affine = torch.as_tensor(frame_from_reference[k])
        fits.look(int(k), measured.template.on_frame(source, int(k), affine))
        if advance:
            advance()
    return fits.amplitudes(measured)


class SpotFits:
    """Fits the spots frame by frame: as `measure_regions` comes to them, which saves seeing every frame once more."""

    def __init__(self, source: FrameSource, limit: int) -> None:
        self.source, self.limit = source, limit
        self.shells: tuple[Shell, ...] = ()
        self._found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def begin(self, template: Template, regions: RegionSet) -> None:
        """Find the spots."""
        if self.limit < 1:
            return
        period = self.source.scales.period_px
        lattice = intact_lattice(template)
        self.shells = find_shells(lattice, period, self.limit)
        if self.shells and period is not None:
            self._coefficients = _coefficients(through_windows(lattice, self.shells, period), self.source)
            self._regions, self._atoms = regions, atom_image(regions, self._coefficients.device)

    def look(self, index: int, seen: TemplateOnFrame) -> None:
        """Fit them in raw frame `index`."""
        if self.shells:
            self._found[index] = _amplitudes(self.source, index, seen, self._regions, self._atoms, self._coefficients)

    def amplitudes(self, measured: Measurement) -> SpotAmplitudes:
        """What the frames have shown, where they are accepted."""
        shape = (*measured.accepted.shape, len(self.shells))
        amplitude, sigma = np.full(shape, np.nan), np.full(shape, np.nan)
        for k, found in self._found.items():
            amplitude[k], sigma[k] = found
        good = measured.accepted[:, :, None] & (sigma < LARGEST_SIGMA)
        return SpotAmplitudes(self.shells, np.where(good, amplitude, np.nan), np.where(good, sigma, np.nan))


def _amplitudes(
    source: FrameSource, index: int, seen: TemplateOnFrame, regions: RegionSet, atoms: torch.Tensor,
    coefficients: torch.Tensor,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Amplitudes of the shells in the regions of one frame, and 1 σ."""
    raw, p, n_atoms = source.raw(index), 1 + len(coefficients), regions.membership.shape[1]
    sums = np.zeros((p + p * (p + 1), n_atoms))
    for rows in strips(raw):
        here = seen.rows(rows)
        label = atoms_of_pixels(here.y, here.x, here.usable & here.crystal, atoms, n_atoms)
        parts = [here.base, *(sample_spline(c[None], here.y, here.x) for c in coefficients)]
        variance = source.noise.variance(here.mean.clamp_min(0))
        sums += sum_by_atom(fit_images(raw[:, rows], parts, variance), label, n_atoms)
    return _solve(*fit_sums(sums @ regions.membership.astype(float).T, p))


def spot_tables(
    found: SpotAmplitudes,
    measured: Measurement,
    x: np.ndarray,
    fluence: np.ndarray,
    unit: str,
    pixel_size_nm: tuple[float, float] | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """spots.parquet and spot_fluence.csv; x and fluence are (t, regions)."""
    rows, fits = [], []
    reference = measured.reference_frame
    step = float(np.mean(pixel_size_nm)) if pixel_size_nm else np.nan
    for r, region in enumerate(measured.regions.regions):
        of_region = []
        for s, shell in enumerate(found.shells):
            head = {
                "region": region.name, "region_id": region.region_id, "shell": s, "d_nm": shell.d_px * step,
                "d_px": shell.d_px, "n_spots": 2 * len(shell.frequency),
            }  # fmt: skip
            y, sigma = found.amplitude[:, r, s], found.sigma[:, r, s]
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(y[reference] > 0, y / y[reference], np.nan)
                spread = np.hypot(sigma, ratio * sigma[reference]) / y[reference]
            spread[reference] = 0.0 if np.isfinite(ratio[reference]) else np.nan
            rows.append(
                pd.DataFrame(
                    {
                        **head,
                        "frame": np.arange(len(y)),
                        "fluence_e_per_A2": fluence[:, r],
                        "amplitude": y,
                        "amplitude_sigma": sigma,
                        "ratio": ratio,
                        "ratio_lo95": ratio - Z95 * spread,
                        "ratio_hi95": ratio + Z95 * spread,
                        "valid": np.isfinite(y),
                    }
                )
            )
            of_region.append(head | _fit(x[:, r], y, sigma, unit))
        for row, p in zip(of_region, holm([row["p_value"] for row in of_region]), strict=True):
            fits.append(row | {"p_corrected": p})
    curves = ["frame", "fluence_e_per_A2", "amplitude", "amplitude_sigma", "ratio", "ratio_lo95", "ratio_hi95", "valid"]
    empty = pd.DataFrame(columns=[*SPOT_COLUMNS, *curves])
    return (pd.concat(rows, ignore_index=True) if rows else empty), pd.DataFrame(
        fits, columns=[*SPOT_COLUMNS, *FIT_COLUMNS, "p_corrected"]
    )


FIT_COLUMNS = (
    "model", "unit", "critical_fluence", "critical_fluence_lo95", "critical_fluence_hi95", "lower_bound",
    "loss_percent", "loss_lo95", "loss_hi95", "p_value",
)  # fmt: skip


def _fit(x: np.ndarray, y: np.ndarray, sigma: np.ndarray, unit: str) -> dict:
    fit = fit_exponential(x, y, sigma)
    lost = lambda rate: 100 * (1 - np.exp(-np.clip(rate * fit.span, -50, 50)))
    return {
        "model": fit.model, "unit": unit, "critical_fluence": fit.critical_fluence,
        "critical_fluence_lo95": fit.critical_fluence_lo95, "critical_fluence_hi95": fit.critical_fluence_hi95,
        "lower_bound": fit.lower_bound, "loss_percent": lost(fit.rate), "loss_lo95": lost(fit.rate_lo95),
        "loss_hi95": lost(fit.rate_hi95), "p_value": fit.p_value,
    }  # fmt: skip


def _solve(normal: np.ndarray, spread: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of the shells and 1 σ, (regions, shells): least squares with the base beside them."""
    scale = np.sqrt(np.maximum(np.einsum("rii->ri", normal), 1e-300))
    unit = normal / scale[:, :, None] / scale[:, None, :]
    empty = np.einsum("rii->ri", normal).min(1) <= 0
    unit[empty] = np.eye(unit.shape[1])
    inverse = np.linalg.pinv(unit, rcond=1e-6, hermitian=True) / scale[:, :, None] / scale[:, None, :]
    found = np.einsum("rij,rj->ri", inverse, right)
    sigma = np.sqrt(np.maximum(np.einsum("rij,rjk,rki->ri", inverse, spread, inverse), 0))
    found[empty] = sigma[empty] = np.nan
    return found[:, 1:], sigma[:, 1:]


def _coefficients(images: np.ndarray, source: FrameSource) -> torch.Tensor:
    found = torch.as_tensor(images, dtype=torch.float32, device=source.device)
    for k in range(len(found)):  # large frames one by one
        found[k] = spline_coefficients(found[k : k + 1])[0]
    return found


def sampled(coefficients: torch.Tensor) -> torch.Tensor:
    """Values of a spline at its own pixels."""
    kernel = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    return filter_separable(coefficients, kernel, kernel)


def _power(image: np.ndarray) -> np.ndarray:
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])
    spectrum = scipy.fft.fft2(np.multiply(image, window, out=window))
    power = np.square(spectrum.real, out=window)
    power += np.square(spectrum.imag)
    return power


def _median_around(power: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Median of the 13 × 13 values around each place; the spectrum repeats."""
    reach = np.arange(-6, 7)
    at_rows = (rows[:, None, None] + reach[:, None]) % power.shape[0]
    at_columns = (columns[:, None, None] + reach[None, :]) % power.shape[1]
    return np.median(power[at_rows, at_columns].reshape(len(rows), len(reach) ** 2), axis=1)


def _frequencies(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies along y (Y, 1) and x (1, X) [1/px]."""
    return np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None]
