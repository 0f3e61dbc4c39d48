"""Frames of a series on the device, one at a time or in batches, with a bounded cache of prepared ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.errors import ShapeError
from atomdiffuser.estimation.faults import all_finite, fill_faults, find_faults, touched
from atomdiffuser.estimation.noise import NoiseModel, estimate_noise
from atomdiffuser.estimation.prepare import PreparedFrames, prepare_frames
from atomdiffuser.estimation.spectrum import ImageScales, lattice_vectors, measure_scales
from atomdiffuser.freed_memory import give_freed_memory_back, keep_freed_memory
from atomdiffuser.memory_limit import room
from atomdiffuser.series import FrameSeries

SAMPLE_FRAMES = 8
CPU_BATCH_PX = 8 * 256 * 256  # no faster with more
SMALLEST_SIDE_PX = 8
HOST_BYTES_PER_PX = 24  # of one pair on its way to a GPU
BYTES_PER_PX = 400  # images of one pair in flight during a fit


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; "cuda" without a GPU raises ValueError."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device is 'cuda', but no CUDA GPU is visible; use 'auto' or 'cpu'")
    return torch.device("cuda" if available and name in ("auto", "cuda") else "cpu")


class FrameSource:
    """Hands out frames as float32 counts above the dark level, and remembers what was measured of the whole series."""

    def __init__(
        self, series: FrameSeries, device: torch.device, *, dark_level: float = 0.0, gain_e: float | None = None
    ):
        if device.type == "cpu":
            keep_freed_memory()
        self.series, self.device, self.dark_level = series, device, dark_level
        self.n_frames, self.shape = series.n_frames, series.frame_shape
        if min(self.shape) < SMALLEST_SIDE_PX:
            size = " × ".join(map(str, self.shape))
            raise ShapeError(f"frames of {size} pixels are too small, expected {SMALLEST_SIDE_PX} or more a side")
        self.unusable = self._find_unusable()
        self.usable = [k for k in range(self.n_frames) if k not in self.unusable]
        self._gain_e = gain_e
        self.noise, self.scales = self._measure(gain_e)
        self.batch = self._batch_size()
        self._cache: OrderedDict[int, PreparedFrames] = OrderedDict()

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Use some more frames no longer, each for its reason; noise and scales are measured again without them."""
        new = {k: reason for k, reason in reasons.items() if k not in self.unusable}
        if new:
            self.unusable |= new
            self.usable = [k for k in self.usable if k not in new]
            self.noise, self.scales = self._measure(self._gain_e)
            self._cache.clear()
            self.__dict__.pop("lattice_vectors_px", None)

    def raw(self, index: int) -> Tensor:
        """Frame (1, Y, X) float32, counts above the dark level; not-a-number pixels become the frame's mean."""
        frame = self._counts(index)
        if not all_finite(frame):
            bad = ~torch.isfinite(frame)
            frame[bad] = frame[~bad].mean() if not bool(bad.all()) else 0.0
        return frame

    def _counts(self, index: int) -> Tensor:
        give_freed_memory_back(self.shape[0] * self.shape[1])
        frame = np.asarray(self.series.frames[index], dtype=np.float32) - np.float32(self.dark_level)
        return torch.from_numpy(np.ascontiguousarray(frame))[None].to(self.device)

    def prepared(self, indices: Sequence[int]) -> PreparedFrames:
        """Prepared frames, cached up to two batches' worth."""
        parts = []
        for k in indices:
            if k not in self._cache:
                self._cache[k] = self._prepare(k)
                while len(self._cache) > 2 * self.batch:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(k)
            parts.append(self._cache[k])
        return PreparedFrames.join(parts) if len(parts) > 1 else parts[0]  # one needs no copy

    def in_batches(self, pairs: Sequence[tuple[int, int]], run: Callable, batch: int | None = None) -> list:
        """`run(slice_of_pairs, reference frames, moving frames)` for each batch of pairs, in order."""
        size = batch or self.batch
        results = []
        for at in range(0, len(pairs), size):
            part = pairs[at : at + size]
            results.append(
                run(slice(at, at + len(part)), self.prepared([i for i, _ in part]), self.prepared([j for _, j in part]))
            )
        return results

    def _prepare(self, index: int) -> PreparedFrames:
        """One frame, what is faulty in it filled and unknown to the fit."""
        bad = find_faults(self._counts(index), self.noise)
        if bad is None:
            return prepare_frames(self.raw(index), self.scales)
        prepared = prepare_frames(fill_faults(self.raw(index), bad), self.scales)
        unknown = touched(bad, self.scales.filter_px)
        return replace(prepared, noise_share=torch.where(unknown, torch.inf, prepared.noise_share))

    def _find_unusable(self) -> dict[int, str]:
        reasons = {k: "excluded in session.yaml" for k in self.series.excluded}
        for k in range(self.n_frames):
            if k not in reasons and (reason := _blank(np.asarray(self.series.frames[k]))):
                reasons[k] = reason
        return reasons

    def _measure(self, gain_e: float | None) -> tuple[NoiseModel, ImageScales]:
        if not self.usable:
            return NoiseModel.poisson(1.0), ImageScales(1.0, 4.0, None)
        frames = self._sampled_frames()
        noise = NoiseModel.poisson(gain_e) if gain_e else estimate_noise(frames)
        faulty = False
        for k in range(len(frames)):
            if (bad := find_faults(frames[k : k + 1], noise)) is not None:
                frames[k] = fill_faults(frames[k : k + 1], bad)[0]
                faulty = True
        if faulty and not gain_e:
            noise = estimate_noise(frames)
        return noise, measure_scales(frames)

    @cached_property
    def lattice_vectors_px(self) -> np.ndarray | None:
        """The two shortest lattice vectors (2, 2), rows (y, x) [px]; None without a lattice."""
        if self.scales.period_px is None:
            return None
        found = lattice_vectors(self._sampled_frames())
        return None if found is None else found.cpu().numpy()

    def _sampled_frames(self) -> Tensor:
        """The frames of `_sample` (n, Y, X), in one piece from the start."""
        sample = self._sample()
        frames = torch.empty(len(sample), *self.shape, device=self.device)
        for place, k in enumerate(sample):
            frames[place] = self.raw(k)[0]
        return frames

    def _sample(self) -> list[int]:
        """A few usable frames, spread over the series."""
        count = min(SAMPLE_FRAMES, len(self.usable))
        return sorted({self.usable[round(i * (len(self.usable) - 1) / max(count - 1, 1))] for i in range(count)})

    def _batch_size(self) -> int:
        pixels = self.shape[0] * self.shape[1]
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            host = room() / (HOST_BYTES_PER_PX * pixels)
            return max(1, int(min(0.5 * free / (BYTES_PER_PX * pixels), host)))
        return max(1, int(min(CPU_BATCH_PX, room() / BYTES_PER_PX) // pixels))


def _blank(frame: np.ndarray) -> str:
    """Why a frame shows nothing; empty when it does."""
    finite = np.isfinite(frame) if frame.dtype.kind == "f" else None
    if finite is not None and not finite.any():
        return "no finite pixel"
    values = frame if finite is None else frame[finite]
    low, high = values.min(), values.max()
    if low == high:
        return f"blank: every pixel is {low}"
    return ""
