"""Frames of a series on the device, one at a time or in batches, with a bounded cache of prepared ones."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.errors import ShapeError
from atomdiffuser.estimation.device_faults import free_device_memory, in_smaller_parts
from atomdiffuser.estimation.faults import all_finite, fill_faults, find_faults, touched
from atomdiffuser.estimation.noise import NoiseModel, estimate_noise
from atomdiffuser.estimation.prepare import PreparedFrames, prepare_frames
from atomdiffuser.estimation.side_by_side import side_by_side
from atomdiffuser.estimation.spectrum import ImageScales, lattice_vectors, measure_scales
from atomdiffuser.freed_memory import give_freed_memory_back, keep_freed_memory
from atomdiffuser.memory_limit import room
from atomdiffuser.read_ahead import read_ahead
from atomdiffuser.series import FrameSeries

SAMPLE_FRAMES = 8
FEW_PX = 8  # along each axis, in which most frames show that they are not blank
CPU_BATCH_PX = 16 * 256 * 256  # no faster with more
CPU_TOGETHER_PX = 2 * CPU_BATCH_PX  # of all batches that are worked on at once
SMALLEST_SIDE_PX = 8
HOST_BYTES_PER_PX = 24  # of one pair on its way to a GPU
AS_STORED = [np.dtype(name) for name in ("uint8", "int8", "int16", "uint16", "int32", "float32", "float64")]
"""Kinds of frames that are brought to the device as they are; others become float32 first."""
BYTES_PER_PX = 400  # images of one pair in flight during a fit


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; "cuda" without a GPU raises ValueError."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device is 'cuda', but no CUDA GPU is visible; use 'auto' or 'cpu'")
    return torch.device("cuda" if available and name in ("auto", "cuda") else "cpu")


@dataclass(frozen=True)
class SeriesFacts:
    """What was measured of a whole series: with it, another process works on the same frames without measuring again.

    `unusable` says for each frame that is not used why.
    """

    unusable: Mapping[int, str]
    noise: NoiseModel
    scales: ImageScales


class FrameSource:
    """Hands out frames as float32 counts above the dark level, and remembers what was measured of the whole series."""

    def __init__(
        self, series: FrameSeries, device: torch.device, *, dark_level: float = 0.0, gain_e: float | None = None,
        facts: SeriesFacts | None = None,
    ):  # fmt: skip
        if device.type == "cpu":
            keep_freed_memory()
        self.series, self.device, self.dark_level = series, device, dark_level
        self.n_frames, self.shape = series.n_frames, series.frame_shape
        if min(self.shape) < SMALLEST_SIDE_PX:
            size = " × ".join(map(str, self.shape))
            raise ShapeError(f"frames of {size} pixels are too small, expected {SMALLEST_SIDE_PX} or more a side")
        self.unusable = self._find_unusable() if facts is None else dict(facts.unusable)
        self.usable = [k for k in range(self.n_frames) if k not in self.unusable]
        self._gain_e = gain_e
        self._at_hand: dict[int, Tensor] = {}
        self.noise, self.scales = self._measure(gain_e) if facts is None else (facts.noise, facts.scales)
        self.batch = batch_size(self.shape, device)
        self._cache: OrderedDict[int, Future[PreparedFrames]] = OrderedDict()
        self._cache_lock, self._cached_batches = Lock(), 2

    def facts(self) -> SeriesFacts:
        """What is known of the series by now."""
        return SeriesFacts(dict(self.unusable), self.noise, self.scales)

    def on_processor(self) -> FrameSource:
        """The same frames, with what was measured of them, for when a GPU fails."""
        twin = copy.copy(self)
        twin.device, twin.unusable, twin.usable = torch.device("cpu"), dict(self.unusable), list(self.usable)
        twin._cache, twin._at_hand = OrderedDict(), {}
        twin.batch = batch_size(twin.shape, twin.device)
        keep_freed_memory()
        return twin

    def apart(self) -> FrameSource:
        """The same frames for another thread, with those that are at hand now; what is prepared serves all."""
        return copy.copy(self)

    def for_sample(self) -> FrameSource:
        """The same frames, prepared for fits to the mean of many."""
        scales = self.scales.for_sample()
        if scales == self.scales:
            return self
        twin = copy.copy(self)
        twin.scales, twin._cache, twin._at_hand = scales, OrderedDict(), {}
        return twin

    def each(self, indices: Iterable[int]) -> Iterator[int]:
        """The numbers of frames one after the other, each frame read while the one before is worked on."""
        for (index,) in self.each_of((int(k),) for k in indices):
            yield index

    def each_of(self, groups: Iterable[Sequence[int]]) -> Generator[Sequence[int], None, None]:
        """The same for groups of frames that are needed together; what two groups in turn share is read once."""

        def missing() -> Iterator[tuple[Sequence[int], list[int]]]:
            before: set[int] = set()
            for group in groups:
                yield group, sorted({int(k) for k in group} - before)
                before = {int(k) for k in group}

        reads = read_ahead(lambda item: {k: self._read(k) for k in item[1]}, missing())
        try:
            for (group, _), frames in reads:
                kept = {k: self._at_hand[k] for k in map(int, group) if k in self._at_hand}
                self._at_hand = kept | frames
                yield group
        finally:
            reads.close()
            self._at_hand = {}
            give_freed_memory_back(self.shape[0] * self.shape[1])

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
        return without_gaps(self.counts(index))

    def counts(self, index: int) -> Tensor:
        """Frame (1, Y, X) float32, counts above the dark level, as it is."""
        give_freed_memory_back(self.shape[0] * self.shape[1])
        frame = self._at_hand.get(index)
        frame = self._read(index) if frame is None else frame
        return frame.to(self.device, torch.float32, non_blocking=True)[None] - self.dark_level

    def _read(self, index: int) -> Tensor:
        """A frame (Y, X) as it is stored, in memory that a GPU can copy from while it computes."""
        frame = np.ascontiguousarray(self.series.frames[index])
        kept = frame if frame.dtype in AS_STORED and frame.flags.writeable else frame.astype(np.float32)
        tensor = torch.from_numpy(kept)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def prepared(self, indices: Sequence[int]) -> PreparedFrames:
        """Prepared frames, cached up to two batches' worth for each that is worked on."""
        indices = [int(k) for k in indices]
        kept, new = self._claimed(indices)
        parts: dict[int, PreparedFrames] = {}
        if new:
            try:
                found = self._prepare(new)
            except BaseException:
                for k in new:
                    self._cache.pop(k, None)
                    kept[k].cancel()
                raise
            parts = {k: found.select(slice(m, m + 1)) for m, k in enumerate(new)}
            for k in new:
                kept[k].set_result(parts[k])
            if new == indices:
                return found
        for k in kept:
            if k not in parts:
                try:
                    parts[k] = kept[k].result()
                except CancelledError:  # it failed in another thread, and will here
                    parts[k] = self._prepare([k])
        whole = [parts[k] for k in indices]
        return PreparedFrames.join(whole) if len(whole) > 1 else whole[0]  # one needs no copy

    def _claimed(self, indices: Sequence[int]) -> tuple[dict[int, Future[PreparedFrames]], list[int]]:
        """Where the frames are or will be, and those that are left to the caller: no other thread is at them."""
        new = []
        with self._cache_lock:
            for k in indices:
                if k not in self._cache:
                    self._cache[k] = Future()
                    new.append(k)
                self._cache.move_to_end(k)
            kept = {k: self._cache[k] for k in indices}
            while len(self._cache) > self._cached_batches * self.batch:
                self._cache.popitem(last=False)
        return kept, new

    def in_batches(
        self, pairs: Sequence[tuple[int, int]], run: Callable, batch: int | None = None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list:  # fmt: skip
        """`run(slice_of_pairs, reference frames, moving frames)` for each batch of pairs, in order; several small ones
        at a time. `advance(n)` is called as n pairs are finished.
        """

        def compute(source: FrameSource, part: Sequence[int]) -> Any:
            first, second = ([pairs[m][side] for m in part] for side in (0, 1))
            return run(slice(part[0], part[-1] + 1), source.prepared(first), source.prepared(second))

        results, (threads, size) = [], (1, batch) if batch else shares(self.shape, self.device, self.batch)
        parts = [range(at, min(at + size, len(pairs))) for at in range(0, len(pairs), size)]
        groups = self.each_of([k for m in part for k in pairs[m]] for part in parts)
        with closing(groups):
            if threads > 1 and len(parts) > 1:
                self._cached_batches = 2 * threads
                given = ((self.apart(), part) for part, _ in zip(parts, groups, strict=True))
                for found, count in side_by_side(lambda item: (compute(*item), len(item[1])), given, threads):
                    results.append(found)
                    advance(count)
                return results
            for part, _ in zip(parts, groups, strict=True):
                found, size = in_smaller_parts(lambda some: compute(self, some), part, size, self._make_room)
                results += found
                advance(len(part))
        return results

    def _make_room(self) -> None:
        self._cache.clear()
        free_device_memory()

    def _prepare(self, indices: Sequence[int]) -> PreparedFrames:
        """Frames together, what is faulty in them filled and unknown to the fit."""
        frames = [self.counts(k) for k in indices]
        faults = [find_faults(frame, self.noise) for frame in frames]
        for m, bad in enumerate(faults):
            if bad is not None:
                frames[m] = fill_faults(without_gaps(frames[m]), bad)
        prepared = prepare_frames(torch.cat(frames) if len(frames) > 1 else frames[0], self.scales)
        if all(bad is None for bad in faults):
            return prepared
        share = prepared.noise_share.repeat(1, *self.shape)
        for m, bad in enumerate(faults):
            if bad is not None:
                share[m][touched(bad, self.scales.filter_px)[0]] = torch.inf
        return replace(prepared, noise_share=share)

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


def batch_size(shape: tuple[int, int], device: torch.device) -> int:
    """How many pairs of frames of this shape are worked on at a time."""
    pixels = shape[0] * shape[1]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        host = room() / (HOST_BYTES_PER_PX * pixels)
        return max(1, int(min(0.5 * free / (BYTES_PER_PX * pixels), host)))
    return max(1, int(min(CPU_BATCH_PX, room() / BYTES_PER_PX) // pixels))


def shares(shape: tuple[int, int], device: torch.device, batch: int | None = None) -> tuple[int, int]:
    """How many batches may be worked on side by side, and how many pairs are in one, `batch` at most: as many batches
    as torch may use threads, where frames are small.
    """
    batch = batch or batch_size(shape, device)
    together = int(min(CPU_TOGETHER_PX, room() / BYTES_PER_PX) // (shape[0] * shape[1])) if device.type == "cpu" else 1
    threads = max(1, min(torch.get_num_threads(), together))
    return (1, batch) if threads == 1 else (threads, max(1, min(batch, together // threads)))


def without_gaps(frame: Tensor) -> Tensor:
    """A frame whose not-a-number pixels have become its mean, in place."""
    if not all_finite(frame):
        bad = ~torch.isfinite(frame)
        frame[bad] = frame[~bad].mean() if not bool(bad.all()) else 0.0
    return frame


def _blank(frame: np.ndarray) -> str:
    """Why a frame shows nothing; empty when it does."""
    few = frame[:: max(1, frame.shape[0] // FEW_PX), :: max(1, frame.shape[1] // FEW_PX)]
    if np.unique(few[np.isfinite(few)] if frame.dtype.kind == "f" else few).size > 1:
        return ""
    finite = np.isfinite(frame) if frame.dtype.kind == "f" else None
    if finite is not None and not finite.any():
        return "no finite pixel"
    values = frame if finite is None else frame[finite]
    low, high = values.min(), values.max()
    if low == high:
        return f"blank: every pixel is {low}"
    return ""
