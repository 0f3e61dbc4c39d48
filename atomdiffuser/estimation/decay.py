"""Decay maps of aligned frames of a source, by the network or by local regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from atomdiffuser.config import DecaySettings
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.local_regression import DecayMaps, estimate_decay_maps
from atomdiffuser.estimation.predict import Predictor


class DecayEstimator(Protocol):
    """Maps of pairs (reference, moving) of frame numbers whose drift (n, 3, 3) is known."""

    def __call__(self, pairs: Sequence[tuple[int, int]], moving_from_reference: Tensor) -> DecayMaps: ...


def decay_estimator(source: FrameSource, settings: DecaySettings) -> DecayEstimator:
    """What the settings ask for; weights that cannot be had raise StoreError."""
    stride = settings.map_stride
    if settings.method == "network":
        predictor = Predictor.of(source, settings.weights)
        return lambda pairs, drift: predictor.decay_maps(pairs, drift, stride=stride)
    width = None if settings.bandwidth_px == "auto" else float(settings.bandwidth_px)

    def regress(pairs: Sequence[tuple[int, int]], drift: Tensor) -> DecayMaps:
        reference, moving = (source.prepared(side) for side in zip(*pairs, strict=True))
        return estimate_decay_maps(
            reference, moving, drift, noise=source.noise, scales=source.scales, stride=stride, bandwidth_px=width
        )

    return regress
