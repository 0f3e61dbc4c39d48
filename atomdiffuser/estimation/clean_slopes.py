"""Slopes of a noisy frame freed of most of its noise: what a fit should look for in the other frame.

A lattice's slopes stand in a few places of the spectrum and the noise's everywhere. Wiener's filter, 1 − noise/power,
is made from the frame's own power, a mean over neighbouring frequencies. It is even, so that what noise it lets
through is still uncorrelated with the frame at the same place, and shifts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor


@dataclass(frozen=True)
class SlopeNoise:
    """Power of white noise of variance 1 a pixel at the frequencies of `rfft2` over cells, float32.

    Zeros fill these up to `size`, whose transform is quick.

    Attributes
    ----------
    slope
        Of both slopes together.
    value
        Of the filtered frame.
    copies
        How often each frequency counts in the whole spectrum.
    """

    slope: Tensor
    value: Tensor
    copies: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, int], stride: int, value: Tensor, slope: Tensor) -> SlopeNoise:
        """From the correlations along an axis, (2r + 1,) lag by lag [px], of values and of slopes at cells `stride`
        apart.
        """
        size = (next_fast_len(shape[0]), next_fast_len(shape[1], real=True))
        (value_y, slope_y), (value_x, slope_x) = (
            [_power(correlation, n, stride) for correlation in (value, slope)] for n in size
        )
        half = size[1] // 2 + 1
        both = slope_y[:, None] * value_x + value_y[:, None] * slope_x
        copies = torch.full((half,), 2.0)
        copies[0] = 1.0
        copies[size[1] - half + 1 :] = 1.0  # the highest one of an even number
        return cls(both[:, :half].float(), (value_y[:, None] * value_x)[:, :half].float(), copies, size)

    def to(self, device: torch.device) -> SlopeNoise:
        """On another device."""
        return SlopeNoise(self.slope.to(device), self.value.to(device), self.copies.to(device), self.size)


def clean_slopes(slopes: Tensor, variance: Tensor, noise: SlopeNoise) -> tuple[Tensor, Tensor]:
    """Slopes (n, 2, Y', X') after Wiener's filter, and what noise is left.

    Parameters
    ----------
    variance
        (n,) of a raw pixel.

    Returns
    -------
    (n, 2, Y', X') and (n, 2) shares of the noise's energy: in products of clean and given slopes, and of clean slopes
    squared as far as the frame itself correlates with noise of its kind.
    """
    height, width = slopes.shape[-2:]
    spectrum = torch.fft.rfft2(slopes, s=noise.size)
    power = torch.view_as_real(spectrum).square().sum((1, -1)) / (height * width)
    around = F.pad(power[:, None], (0, 0, 1, 1), mode="circular")
    around = F.pad(around, (1, 1, 0, 0), mode="replicate")
    power = F.avg_pool2d(around, 3, 1)[:, 0]
    passed = (1 - variance.to(power)[:, None, None] * noise.slope / power.clamp_min(1e-30)).clamp_min(0)
    clean = torch.fft.irfft2(spectrum.mul_(passed[:, None]), s=noise.size)[..., :height, :width].contiguous()
    total = lambda image: (image * noise.copies).sum((-2, -1))
    once = total(passed * noise.slope) / total(noise.slope)
    twice = total(passed**2 * noise.slope * noise.value) / total(noise.slope * noise.value)
    return clean, torch.stack([once, twice], dim=1).double()


def _power(correlation: Tensor, count: int, stride: int) -> Tensor:
    """(count,) power at the frequencies of a transform over cells, from the correlation at all lags [px]."""
    reach = len(correlation) // 2
    lag = torch.arange(-(reach // stride), reach // stride + 1)
    frequency = torch.fft.fftfreq(count, dtype=torch.float64)
    phase = 2 * torch.pi * frequency[:, None] * lag
    return (correlation[reach + stride * lag] * torch.cos(phase)).sum(1).clamp_min(0)
