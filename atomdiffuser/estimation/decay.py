"""Decay maps of aligned frames of a source, by the network or by local regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Protocol

import torch
from torch import Tensor

from atomdiffuser.config import DecaySettings
from atomdiffuser.estimation.device_faults import (
    free_device_memory,
    in_smaller_parts,
    is_device_fault,
    warn_of_processor,
)
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.local_regression import DecayMaps, estimate_decay_maps
from atomdiffuser.estimation.predict import Predictor


class DecayEstimator(Protocol):
    """Maps of pairs (reference, moving) of frame numbers whose drift (n, 3, 3) is known."""

    def __call__(self, pairs: Sequence[tuple[int, int]], moving_from_reference: Tensor) -> DecayMaps: ...


def decay_estimator(source: FrameSource, settings: DecaySettings) -> DecayEstimator:
    """What the settings ask for; weights that cannot be had raise StoreError.

    Where the device's memory is short, fewer pairs are computed at a time; where that does not help, or a GPU fails,
    the processor does the rest, with a warning.
    """
    estimate, size, in_reserve = _estimator(source, settings), 2**30, False

    def steadily(pairs: Sequence[tuple[int, int]], moving_from_reference: Tensor) -> DecayMaps:
        nonlocal estimate, size, in_reserve
        numbered = range(len(pairs))
        compute = lambda part: estimate([pairs[m] for m in part], moving_from_reference[part[0] : part[-1] + 1])
        try:
            parts, size = in_smaller_parts(compute, numbered, size)
            return _joined(parts)
        except Exception as error:
            if in_reserve or not is_device_fault(error):
                raise
            warn_of_processor(error)
        free_device_memory()
        estimate, size, in_reserve = _estimator(source.on_processor(), settings), 1, True
        return steadily(pairs, moving_from_reference)

    return steadily


def _joined(parts: Sequence[DecayMaps]) -> DecayMaps:
    if len(parts) == 1:
        return parts[0]
    return DecayMaps(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(DecayMaps)))


def _estimator(source: FrameSource, settings: DecaySettings) -> DecayEstimator:
    stride = settings.map_stride
    if settings.method == "network":
        predictor = Predictor.of(source, settings.weights)
        return lambda pairs, drift: predictor.decay_maps(pairs, drift, stride=stride)
    width = None if settings.bandwidth_px == "auto" else float(settings.bandwidth_px)

    def regress(pairs: Sequence[tuple[int, int]], drift: Tensor) -> DecayMaps:
        reference, moving = (source.prepared(side) for side in zip(*pairs, strict=True))
        return estimate_decay_maps(
            reference, moving, drift.to(source.device), noise=source.noise, scales=source.scales, stride=stride,
            bandwidth_px=width,
        )  # fmt: skip

    return regress
