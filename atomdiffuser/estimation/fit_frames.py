"""Frames made ready for the drift fit: lightly filtered, sampled as coarsely as their spectrum allows, denoised.

A STEM image is oversampled: beyond some frequency there is noise alone. A light Gaussian keeps what carries the drift
and lets every `stride`-th pixel say as much as all of them did, in a quarter of the time (or a sixteenth).

Each frame comes twice. The lightly filtered one is compared, pixel by pixel. The denoised one only says which way a
small motion would change the picture: its lattice is passed through W = 1 − 2N/P, P the frame's own power spectrum and
N that of its noise, which keeps Bragg peaks and drops the frequencies that hold noise alone. The filter has no phase,
so it may follow the noise of the frame without moving anything, and it may blur across the rim without harm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import noise_of
from atomdiffuser.estimation.spectrum import ImageScales
from atomdiffuser.interpolation import filter_separable, mirror_pad, smooth, spline_prefilter_kernel

LIGHT_FILTER = 0.55  # σ of the light filter over the stride: what is left beyond the new Nyquist frequency is 20 %
LIGHT_FILTER_UNSTRIDED_PX = 0.7
NOISE_TAKEN_OUT = 2.0
SHARPEN = 4.0  # the light filter is undone in the denoised lattice, up to this factor, where nothing is aliased
SPLINE_REACH = 8  # |pole|**8 < 3e-5: far below shot noise
SMALLEST_TAP = 2e-3
PADDING = 8  # the frame is padded by its side over this before it is denoised
SMALLEST_SIDE = 48  # of a strided frame


@dataclass(frozen=True)
class FitGrid:
    """Where the samples of a strided frame lie: sample i at pixel i·stride + (stride − 1)/2.

    Lengths named `_px` are in pixels of the full frame; `filter_width` and `margin` in samples.
    """

    shape: tuple[int, int]  # of the full frame
    stride: int
    filter_px: float

    base_px: float

    @classmethod
    def of(cls, shape: tuple[int, int], scales: ImageScales, *, coarse: bool = False) -> FitGrid:
        """The grid of the final fit, or the coarser one on which starts are found and compared."""
        stride = scales.stride if coarse else max(1, scales.stride // 2)
        while stride > 1 and min(shape) // stride < SMALLEST_SIDE:
            stride //= 2
        light = LIGHT_FILTER * stride if stride > 1 else LIGHT_FILTER_UNSTRIDED_PX
        return cls(tuple(shape), stride, light, max(scales.base_px, 2 * light))

    @property
    def samples(self) -> tuple[int, int]:
        return self.shape[0] // self.stride, self.shape[1] // self.stride

    @property
    def filter_width(self) -> float:
        return self.filter_px / self.stride

    @property
    def margin(self) -> float:
        """Rim that mirrored edges spoil: there the light filter takes more than 1 % from beyond the edge."""
        return max(1.0, (2.2 * self.filter_px - 0.5) / self.stride)

    def noise(self, noise: NoiseModel) -> NoiseModel:
        """The noise that samples show through a filter of `filter_width`, as if they were raw pixels."""
        return NoiseModel(noise.readout / self.stride**2, noise.per_count / self.stride**2)

    def to_samples(self, affine: Tensor) -> Tensor:
        """An affine (..., 3, 3) of pixel points as one of samples."""
        return self._pixel_from_sample(affine, inverse=True) @ affine.double() @ self._pixel_from_sample(affine)

    def to_pixels(self, affine: Tensor) -> Tensor:
        """An affine (..., 3, 3) of samples as one of pixel points."""
        return self._pixel_from_sample(affine) @ affine @ self._pixel_from_sample(affine, inverse=True)

    def covariance_to_pixels(self, covariance: Tensor) -> Tensor:
        """(n, 6, 6) of a motion's six numbers, from samples to pixels."""
        s, o = self.stride, (self.stride - 1) / 2
        # (L, t) in samples is (L, s·t + o − L·o) in pixels: the linear part's error also moves the origin.
        block = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [-o, -o, s]], dtype=covariance.dtype, device=covariance.device)
        change = torch.block_diag(block, block)
        return change @ covariance @ change.mT

    def _pixel_from_sample(self, like: Tensor, inverse: bool = False) -> Tensor:
        s, o = float(self.stride), (self.stride - 1) / 2
        scale, shift = (1 / s, -o / s) if inverse else (s, o)
        return torch.tensor([[scale, 0, shift], [0, scale, shift], [0, 0, 1]], dtype=torch.float64, device=like.device)


@dataclass(frozen=True)
class FitFrames:
    """A batch of n frames on their fit grid, each field (n, Y, X) float32, counts above the dark level.

    Attributes
    ----------
    coefficients
        Cubic B-spline coefficients of the lightly filtered frame.
    base
        Local mean.
    lattice
        Lightly filtered frame less `base`.
    clean
        Denoised lattice.
    noise_share
        Noise variance as a share of a single frame's: 1 for a frame, 1/count for a mean of frames, inf where nothing is
        known; (n, 1, 1) or (n, Y, X).
    good
        Share of each sample that faulty pixels leave alone: 1 or 0; (n, 1, 1) where the whole frame is sound.
    """

    coefficients: Tensor
    base: Tensor
    lattice: Tensor
    clean: Tensor
    noise_share: Tensor
    good: Tensor

    def __len__(self) -> int:
        return self.base.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape[-2], self.base.shape[-1]

    def select(self, index: Tensor | list[int]) -> FitFrames:
        """Frames at `index`, repeated as listed."""
        index = torch.as_tensor(index, device=self.base.device)
        return FitFrames(*(getattr(self, f)[index] for f in FIELDS))

    @staticmethod
    def join(parts: list[FitFrames]) -> FitFrames:
        """Concatenate batches."""
        if len(parts) == 1:
            return parts[0]
        return FitFrames(*(_concatenate([getattr(p, f) for p in parts]) for f in FIELDS))


FIELDS = tuple(f.name for f in fields(FitFrames))


@dataclass(frozen=True)
class FitPairs:
    """n pairs of frames on the grid of the final fit and on the coarse one."""

    reference: FitFrames
    moving: FitFrames
    coarse_reference: FitFrames
    coarse_moving: FitFrames

    def __len__(self) -> int:
        return len(self.reference)

    def select(self, index: Tensor | list[int]) -> FitPairs:
        """Pairs at `index`."""
        return FitPairs(*(getattr(self, f.name).select(index) for f in fields(self)))


def prepare_fit_frames(frames: Tensor, grid: FitGrid, noise: NoiseModel, good: Tensor | None = None) -> FitFrames:
    """Prepare raw frames (n, Y, X) float32 [counts above the dark level]; `good` (n, Y, X) is False where faulty."""
    light = decimate(frames, grid)
    base = smooth(light, (grid.base_px**2 - grid.filter_px**2) ** 0.5 / grid.stride)
    prefilter = spline_prefilter_kernel(SPLINE_REACH)
    lattice = light - base
    whole = torch.ones(len(frames), 1, 1, device=frames.device)
    return FitFrames(
        coefficients=filter_separable(light, prefilter, prefilter),
        base=base,
        lattice=lattice,
        clean=denoise(
            lattice, noise_of(base, grid.noise(noise)).mean((-2, -1)), grid.filter_width, sharpen=grid.stride == 1
        ),
        noise_share=whole,
        good=whole if good is None else _samples_untouched(good, grid),
    )


def decimate(frames: Tensor, grid: FitGrid) -> Tensor:
    """Light filter and every stride-th sample of frames (n, Y, X)."""
    kernel = light_kernel(grid)
    out = frames
    for axis, count in ((-1, grid.samples[1]), (-2, grid.samples[0])):
        left = (len(kernel) - grid.stride) // 2 if grid.stride > 1 else len(kernel) // 2
        padded = mirror_pad(out, left, axis, len(kernel))
        total = None
        for k, tap in enumerate(kernel.tolist()):
            picked = torch.narrow(padded, axis, k, (count - 1) * grid.stride + 1)
            picked = picked[..., :: grid.stride] if axis == -1 else picked[..., :: grid.stride, :]
            total = picked * tap if total is None else total.add_(picked, alpha=tap)
        out = total
    return out


def light_kernel(grid: FitGrid) -> Tensor:
    """Taps of the light filter; of even length for an even stride, whose samples lie between pixels."""
    reach = int(4 * grid.filter_px) + 1
    offset = 0.0 if grid.stride % 2 else 0.5
    x = torch.arange(-reach, reach + (1 if offset == 0 else 0), dtype=torch.float64) + offset
    taps = torch.exp(-0.5 * (x / grid.filter_px) ** 2)
    return taps / taps.sum()


@lru_cache
def noise_kernel(grid: FitGrid) -> Tensor:
    """Symmetric taps h whose convolution of white noise, per sample, has the covariance of the filtered samples.

    In units of `FitGrid.noise`, the noise of a sample taken as a raw pixel.
    """
    taps = light_kernel(grid)
    own = torch.nn.functional.conv1d(taps[None, None], taps[None, None], padding=len(taps) - 1)[0, 0]
    centre = len(own) // 2
    lags = own[centre % grid.stride :: grid.stride] * grid.stride
    size = 64
    half = len(lags) // 2
    ring = torch.zeros(size, dtype=torch.float64)
    for k in range(-half, half + 1):
        ring[k % size] += lags[half + k]
    root = torch.fft.ifft(torch.fft.fft(ring).real.clamp_min(0).sqrt()).real
    reach = max(k for k in range(size // 2) if k == 0 or abs(float(root[k])) > SMALLEST_TAP * float(root[0]))
    return torch.cat([root[-reach:], root[: reach + 1]]) if reach else root[:1]


def denoise(lattice: Tensor, variance: Tensor, filter_width: float, *, sharpen: bool = False) -> Tensor:
    """Lattice (n, Y, X) with what its own spectrum shows to be noise taken out; `variance` (n,) of one raw sample.

    Sharpened, it undoes the light filter twice, once for itself and once for the residual that it will be held against:
    together they then weigh every frequency as white noise asks for.
    """
    shape = lattice.shape[-2:]
    size = [_fast_length(s + s // PADDING) for s in shape]
    spectrum = torch.fft.rfft2(lattice, s=size)
    power = spectrum.real.square().add_(spectrum.imag.square())
    power = _ring_smooth(power)
    fy = torch.fft.fftfreq(size[0], device=lattice.device)[:, None]
    fx = torch.fft.rfftfreq(size[1], device=lattice.device)[None, :]
    light = torch.exp(-((2 * torch.pi * filter_width) ** 2) * (fy**2 + fx**2))
    floor = (NOISE_TAKEN_OUT * shape[0] * shape[1] * variance)[:, None, None] * light.clamp_min(1e-3)
    passed = (1 - floor / power.clamp_min(1e-30)).clamp_min_(0)
    if sharpen:
        passed = passed * (1 / light**2).clamp_max(SHARPEN)
    return torch.fft.irfft2(spectrum * passed, s=size)[:, : shape[0], : shape[1]].contiguous()


def _ring_smooth(power: Tensor) -> Tensor:
    """Mean over 3×3 bins of a half spectrum (n, Y, X/2 + 1); rows wrap, columns end."""
    rows = power + power.roll(1, -2) + power.roll(-1, -2)
    padded = F.pad(rows, (1, 1))
    return (padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]) / 9


def _samples_untouched(good: Tensor, grid: FitGrid) -> Tensor:
    """(n, Y', X') float: 1 where the light filter meets no faulty pixel within 2 σ."""
    bad = (~good).float()[:, None]
    reach = max(1, round(2 * grid.filter_px))
    spread = F.max_pool2d(bad, 2 * reach + 1, 1, reach)[:, 0]
    rows, columns = (torch.arange(n, device=bad.device) * grid.stride + (grid.stride - 1) // 2 for n in grid.samples)
    touched = spread[:, rows][:, :, columns]
    if grid.stride % 2 == 0:
        touched = torch.maximum(touched, spread[:, rows + 1][:, :, columns + 1])
    return 1 - touched


def _concatenate(parts: list[Tensor]) -> Tensor:
    """Along the batch, after bringing (n, 1, 1) parts to the size of the others."""
    shape = max((p.shape[-2:] for p in parts), key=lambda s: s[0] * s[1])
    return torch.cat([p if p.shape[-2:] == shape else p.expand(-1, *shape) for p in parts])


def _fast_length(n: int) -> int:
    import scipy.fft

    return scipy.fft.next_fast_len(n, real=True)
