"""Pairs for training, simulated where the network runs; every step's pairs follow from the seed and the step alone.

Nothing carries over from one step to the next, which is what makes a resumed run equal an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.model.config import MAP_STRIDE
from atomdiffuser.simulation.pairs import PairBatch, simulate_pairs
from atomdiffuser.simulation.randomness import Draws, RandomStreams
from atomdiffuser.training.settings import TrainSettings

SEEN_BASE, SEEN_LATTICE = 0.03, 0.02
"""Shares of the peak above which the mean, and the structure's standard deviation, count as something to see."""

SEARCH_ERROR_PX = 1.0
"""Standard deviation of what the search leaves, where it did not fail."""


@dataclass(frozen=True)
class TrainingBatch:
    """One step's pairs.

    Attributes
    ----------
    reference, moving
        (n, y, x) electrons above the dark level.
    moving_from_reference
        (n, 3, 3) truth.
    tau, maps, weight
        (n,) asked time; (n, 2, y/4, x/4) true intensity and contrast at that time, and how much each pixel counts.
    coarse_motion, small_motion
        (n, 3, 3) random errors for stages that start from the truth: of the search, and of a refined drift.
    """

    reference: Tensor
    moving: Tensor
    moving_from_reference: Tensor
    tau: Tensor
    maps: Tensor
    weight: Tensor
    coarse_motion: Tensor
    small_motion: Tensor

    def part(self, index: slice) -> TrainingBatch:
        """Some of the pairs."""
        return TrainingBatch(*(getattr(self, f.name)[index] for f in fields(self)))


class BatchSource:
    """Batches by the number of their step."""

    def __init__(self, settings: TrainSettings, device: torch.device | str) -> None:
        self.settings, self.device = settings, torch.device(device)
        self._chunk: tuple[int, PairBatch, TrainingBatch] | None = None

    def at(self, step: int) -> TrainingBatch:
        """The pairs of a step."""
        s = self.settings
        number, position = divmod(step, s.chunk * s.repeats)
        repeat, part = divmod(position, s.chunk)
        if self._chunk is None or self._chunk[0] != number:
            self._chunk = (number, *self._simulate(number))
        _, pairs, batch = self._chunk
        index = slice(part * s.batch, (part + 1) * s.batch)
        batch = batch.part(index)
        if repeat == 0:
            return batch
        streams = RandomStreams(s.seed).child(f"step {step}")
        reference, moving = (
            _detected_again(pairs, name, index, streams, self.device) for name in ("reference", "moving")
        )
        return TrainingBatch(reference, moving, *(getattr(batch, f.name) for f in fields(batch)[2:]))

    @torch.no_grad()
    def _simulate(self, number: int) -> tuple[PairBatch, TrainingBatch]:
        s = self.settings
        streams = RandomStreams(s.seed, self.device).child(f"chunk {number}")
        n = s.batch * s.chunk
        pairs = simulate_pairs(n, s.shape, streams.child("pairs"), self.device, ranges=s.ranges)
        draws = Draws(n, streams.child("training"))
        asked = torch.where(draws.chance("intermediate", s.intermediate), draws.uniform("tau", 0.05, 1.0), 1.0)
        return pairs, training_batch(pairs, asked.to(self.device), s.unseen_weight, draws, s.start_error_px)


def training_batch(
    pairs: PairBatch, tau: Tensor, unseen_weight: float, draws: Draws, start_error_px: float
) -> TrainingBatch:
    """What a step needs of simulated pairs, with the maps asked at `tau` (n,)."""
    shape = pairs.reference.shape[-2:]
    intensity, contrast = pairs.intensity, pairs.contrast
    if bool((tau < 1).any()):
        _, intensity, contrast = pairs.at(tau * pairs.time)
    overlap = pairs.overlap().float()
    peak = pairs.electrons.float()[:, None, None]
    weights = [
        overlap * torch.where(signal > share * peak, 1.0, unseen_weight)
        for signal, share in ((pairs.base, SEEN_BASE), (pairs.lattice_amplitude, SEEN_LATTICE))
    ]
    pool = lambda first, second: F.avg_pool2d(torch.stack([first, second], 1).float(), MAP_STRIDE)
    size = draws.uniform("small motion size", 0.0, 1.0, 1)
    motion = lambda name, error: geometry.exp_affine(
        (draws.normal(name, 1.0, 6) * _parameter_scale(shape, 1.0) * error).to(tau.device)
    )
    truth = pairs.moving_from_reference
    return TrainingBatch(
        reference=electrons_of(pairs, "reference"), moving=electrons_of(pairs, "moving"), moving_from_reference=truth,
        tau=tau.float(), maps=pool(intensity, contrast),
        weight=pool(*weights), coarse_motion=motion("coarse motion", SEARCH_ERROR_PX),
        small_motion=motion("small motion", size * start_error_px),
    )  # fmt: skip


def electrons_of(pairs: PairBatch, name: str) -> Tensor:
    """Electrons (n, y, x) above the dark level of one of the frames."""
    counts = getattr(pairs, name)
    return (counts - pairs.dark_level.float()[:, None, None]) * pairs.gain_e.float()[:, None, None]


def _parameter_scale(shape: tuple[int, int], displacement_px: float) -> Tensor:
    """Standard deviations of the six numbers of a motion, about equal in what they displace; turns about the corner."""
    linear = displacement_px / max(shape)
    return torch.tensor([linear, linear, displacement_px] * 2, dtype=torch.float64)


def _detected_again(pairs: PairBatch, name: str, index: slice, streams: RandomStreams, device: torch.device) -> Tensor:
    """New shot and readout noise on the same signal, in electrons."""
    expected = getattr(pairs, f"expected_{name}")[index]
    electrons = torch.poisson(expected, generator=streams.generator(f"{name} shots", device))
    readout = torch.randn(expected.shape, generator=streams.generator(f"{name} readout", device), device=device)
    return electrons + readout * pairs.readout_e[index].float()[:, None, None]
