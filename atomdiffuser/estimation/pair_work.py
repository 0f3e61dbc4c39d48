"""What is done with pairs of frames, each pair on its own: here with all, or elsewhere with some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.predict import Predictor
from atomdiffuser.estimation.register import FitOptions, PairRegistration, register_from, register_unknown

TENSORS = tuple(f.name for f in fields(PairRegistration) if f.name != "reason")
Pairs = Sequence[tuple[int, int]]
Advance = Callable[[int], None]
R = TypeVar("R")


class PairWork(Protocol[R]):
    """Work whose results, in the order of the pairs and on the CPU, can be joined from those of parts of the pairs.

    It is pickled to go elsewhere. `advance(n)` is called as n pairs are finished.
    """

    def __call__(self, source: FrameSource, pairs: Pairs, advance: Advance) -> R: ...

    def of(self, part: slice) -> PairWork[R]:
        """The work of some of its pairs."""
        ...

    def join(self, parts: Sequence[R]) -> R:
        """One result from those of parts."""
        ...


class PairRunner(Protocol):
    """Who does the work of pairs, on this machine or on others."""

    def __call__(self, work: PairWork[R], pairs: Pairs, advance: Advance) -> R: ...


def on_this_machine(source: FrameSource) -> PairRunner:
    """All pairs one batch after the other, by this process."""
    return lambda work, pairs, advance: work(source, pairs, advance)


@dataclass(frozen=True)
class Suggest:
    """moving_from_reference (m, 3, 3) as the network sees it; NaN where it does not trust itself or the way is long."""

    weights: str
    options: FitOptions

    def __call__(self, source: FrameSource, pairs: Pairs, advance: Advance) -> Tensor:
        predictor = Predictor.of(source, self.weights)
        parts = [pairs[at : at + source.batch] for at in range(0, len(pairs), source.batch)]
        return self.join([predictor.starts(part, self.options) for part in parts])

    def of(self, part: slice) -> Suggest:
        return self

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.cpu() for part in parts]) if parts else geometry.identity(0)


@dataclass(frozen=True)
class FitUnknown:
    """`register_unknown` of pairs, from `starts` (m, 3, 3) too where another source suggests some."""

    options: FitOptions
    drift_scale_px: float | None = None
    starts: Tensor | None = None

    def __call__(self, source: FrameSource, pairs: Pairs, advance: Advance) -> PairRegistration:
        def fit(part: slice, reference, moving) -> PairRegistration:
            starts = None if self.starts is None else self.starts[part].to(source.device)
            return register_unknown(
                reference, moving, self.options, drift_scale_px=self.drift_scale_px, starts=starts
            )  # fmt: skip

        return self.join(source.in_batches(pairs, fit, advance=advance))

    def of(self, part: slice) -> FitUnknown:
        return replace(self, starts=None if self.starts is None else self.starts[part])

    def join(self, parts: Sequence[PairRegistration]) -> PairRegistration:
        return joined(parts)


@dataclass(frozen=True)
class FitFrom:
    """`register_from` of pairs from `start` (m, 3, 3), but `register_unknown` where that is `lost` (m,) bool."""

    options: FitOptions
    start: Tensor
    lost: np.ndarray

    def __call__(self, source: FrameSource, pairs: Pairs, advance: Advance) -> PairRegistration:
        def fit(part: slice, reference, moving) -> PairRegistration:
            found = register_from(reference, moving, self.start[part].to(source.device), self.options)
            lost = np.flatnonzero(self.lost[part])
            if len(lost):
                some = lost.tolist()
                found = replaced(
                    found, lost, register_unknown(reference.select(some), moving.select(some), self.options)
                )  # fmt: skip
            return found

        return self.join(source.in_batches(pairs, fit, advance=advance))

    def of(self, part: slice) -> FitFrom:
        return replace(self, start=self.start[part], lost=self.lost[part])

    def join(self, parts: Sequence[PairRegistration]) -> PairRegistration:
        return joined(parts)


def joined(parts: Sequence[PairRegistration]) -> PairRegistration:
    """The pairs of all parts in turn, on the CPU."""
    parts = [p for p in parts if len(p.reason)]
    if not parts:
        empty = torch.zeros(0, dtype=torch.float64)
        return PairRegistration(geometry.identity(0), empty.reshape(0, 6, 6), empty, empty, empty, empty.bool(), [])
    tensors = {f: torch.cat([getattr(p, f) for p in parts]).cpu() for f in TENSORS}
    return PairRegistration(**tensors, reason=[r for p in parts for r in p.reason])


def replaced(first: PairRegistration, at: np.ndarray, second: PairRegistration) -> PairRegistration:
    """The first, with its pairs numbered `at` taken from the second."""
    both = joined([first, second])
    order = np.arange(len(first.reason))
    order[at] = len(first.reason) + np.arange(len(at))
    index = torch.as_tensor(order)
    return PairRegistration(**{f: getattr(both, f)[index] for f in TENSORS}, reason=[both.reason[k] for k in order])
