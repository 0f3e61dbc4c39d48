"""The noise of a detector, measured from its own frames: variance = readout + signal / electrons per count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomdiffuser.interpolation import filter_separable

PATCH_PX = 16
OUTLYING_RATIO = 0.6  # four standard deviations of a patch's variance
SECOND_DIFFERENCE = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)


@dataclass(frozen=True)
class NoiseModel:
    """Variance of one raw pixel, `readout + per_count·signal`, with signal in counts above the dark level."""

    readout: float
    per_count: float

    def variance(self, signal: Tensor) -> Tensor:
        """Variance [counts²] where the noise-free signal above the dark level is `signal` [counts]."""
        return (self.readout + self.per_count * signal).clamp_min(self.floor)

    @property
    def floor(self) -> float:
        return max(self.readout, 1e-3 * self.per_count, 1e-12)

    @classmethod
    def poisson(cls, gain_e: float, readout: float = 0.0) -> NoiseModel:
        """Pure shot noise of a detector that gives 1/gain_e counts per electron."""
        return cls(readout, 1.0 / gain_e)


def estimate_noise(frames: Tensor) -> NoiseModel:
    """Fit the noise model to frames (n, Y, X) whose dark level has been subtracted.

    The response to the second difference along both axes (Immerkær, Comput. Vis. Image Underst. 64, 1996) sees only the
    corners of the spectrum, where oversampled STEM images hold noise alone. Its mean square per patch is regressed on
    the patch mean; patches with more structure than noise lie above the line and are left out.
    """
    size = min(PATCH_PX, *frames.shape[-2:])
    mean = _patch_means(frames, size).double().flatten()
    variance = torch.cat([_response_energy(frame, size) for frame in frames.split(1)]).double().flatten()
    weight = torch.ones_like(mean)
    readout = slope = 0.0
    for _ in range(8):
        scale = (
            (readout + slope * mean).clamp_min(1e-6 * float(variance.mean()) + 1e-30)
            if slope or readout
            else variance.mean()
        )
        w = weight / scale**2
        readout, slope = _nonnegative_line(mean, variance, w)
        ratio = variance / (readout + slope * mean).clamp_min(1e-12 * float(variance.mean()) + 1e-30)
        weight = (ratio < 1 + OUTLYING_RATIO).double()
    level = (variance * weight).sum() / ((readout + slope * mean) * weight).sum().clamp_min(1e-30)
    return NoiseModel(float(level * readout), float(level * slope))


def _response_energy(frames: Tensor, size: int) -> Tensor:
    """Mean square of the response to the second difference in patches of `size`."""
    response = filter_separable(frames, SECOND_DIFFERENCE, SECOND_DIFFERENCE).div_(6)
    return _patch_means(response.square_(), size)


def _patch_means(images: Tensor, size: int) -> Tensor:
    return torch.nn.functional.avg_pool2d(images[:, None], size)[:, 0]


def _nonnegative_line(x: Tensor, y: Tensor, w: Tensor) -> tuple[float, float]:
    sw, sx, sy = w.sum(), (w * x).sum(), (w * y).sum()
    sxx, sxy = (w * x * x).sum(), (w * x * y).sum()
    determinant = sw * sxx - sx * sx
    if determinant > 1e-9 * sw * sxx:
        slope = (sw * sxy - sx * sy) / determinant
        readout = (sy - slope * sx) / sw
        if slope >= 0 and readout >= 0:
            return float(readout), float(slope)
    through_origin = float((sxy / sxx).clamp_min(0)) if sxx > 0 else 0.0
    constant = float((sy / sw).clamp_min(0))
    error = lambda a, b: float((w * (y - a - b * x) ** 2).sum())
    return min([(0.0, through_origin), (constant, 0.0)], key=lambda line: error(*line))
