"""Detection: expected electrons to counts, with shot noise, readout noise, gain, dark level and quantisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.errors import SettingsError
from atomdiffuser.simulation.randomness import Draws, RandomStreams


@dataclass(frozen=True)
class Detector:
    """counts = dark_level + (electrons + readout noise) / gain_e, rounded and clipped when `dtype` is an integer's.

    Attributes
    ----------
    gain_e
        Electrons per count.
    dark_level
        Counts without beam. Readout noise below zero is clipped away unless the dark level leaves room for it.
    readout_e
        Standard deviation of the readout noise, in electrons.
    """

    gain_e: float = 1.0
    dark_level: float = 0.0
    readout_e: float = 0.0
    dtype: str = "uint16"

    DTYPES = ("uint8", "uint16", "int16", "int32", "uint32", "float32")

    def __post_init__(self) -> None:
        if self.dtype not in self.DTYPES:
            raise SettingsError(f"dtype {self.dtype!r} is not a detector's; known are {', '.join(self.DTYPES)}")
        if not self.gain_e > 0:
            raise SettingsError(f"gain_e is {self.gain_e}, expected electrons per count above 0")

    def detect(self, expected: Tensor, streams: RandomStreams) -> np.ndarray:
        """Counts of this detector's dtype from expected electrons of any shape."""
        counts = detect(expected, streams, gain_e=self.gain_e, dark_level=self.dark_level, readout_e=self.readout_e)
        if np.issubdtype(np.dtype(self.dtype), np.integer):
            info = np.iinfo(self.dtype)
            return counts.double().round().clamp(info.min, info.max).cpu().numpy().astype(self.dtype)
        return counts.float().cpu().numpy()


def detect(
    expected: Tensor,
    streams: RandomStreams,
    *,
    gain_e: Tensor | float = 1.0,
    dark_level: Tensor | float = 0.0,
    readout_e: Tensor | float = 0.0,
) -> Tensor:
    """Counts before quantisation; the settings broadcast over `expected` [e⁻]. Negative expectations count as none."""
    device = expected.device
    electrons = torch.poisson(expected.clamp_min(0), generator=streams.generator("shot noise", device))
    if isinstance(readout_e, Tensor) or readout_e:
        noise = torch.randn(
            expected.shape, generator=streams.generator("readout", device), device=device, dtype=expected.dtype
        )
        electrons = electrons + noise * readout_e
    return dark_level + electrons / gain_e


def quantise(counts: Tensor, full_scale: Tensor) -> Tensor:
    """Counts rounded and clipped to 0 … full_scale; a full scale of infinity leaves them as they are."""
    rounded = torch.minimum(counts.round().clamp_min(0), full_scale)
    return torch.where(torch.isinf(full_scale), counts, rounded)


def gain_drift(n_frames: int, relative: float, streams: RandomStreams) -> Tensor:
    """Global gain of each frame (t,): a random walk of `relative` a frame, 1 at frame 0, never below 0.1."""
    walk = Draws(n_frames, streams).normal("gain", relative).cumsum(0)
    return torch.exp(walk - walk[0]).clamp_min(0.1)
