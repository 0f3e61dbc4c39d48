"""The network's part in the estimation: a start for the drift, and the decay maps of aligned pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.device_faults import in_smaller_parts
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.local_regression import LARGEST_SIGMA, DecayMaps
from atomdiffuser.estimation.register import FitOptions, PairRegistration
from atomdiffuser.memory_limit import room
from atomdiffuser.model.affine_fit import motion_covariance
from atomdiffuser.model.checkpoint import load_model
from atomdiffuser.model.frames import pair_frames
from atomdiffuser.model.network import AtomDiffuser
from atomdiffuser.model.prediction import PairPrediction, full_field
from atomdiffuser.model.tiling import WINDOW_PX, plan_tiles

LEAST_PROBABILITY = 0.1  # of the search, around its best turn and shift
LARGEST_SIGMA_PX = 1.0
WHOLE_BYTES_PER_PX, WINDOW_BYTES_PER_PX = 155.0, 60.0
"""Images of a pair that are needed at once, of the whole frames and of the window that the network sees; measured."""
LARGE_PX = 1024  # frames twice that long are seen with pixels added up, …
LEAST_PERIOD_PX, FEW_E = 6.0, 5.0  # … where so much is left of a lattice's period, and not with fewer electrons a pixel
UNTRUSTED = "no common structure that the network could fix the drift by"


@dataclass(frozen=True)
class Predictor:
    """A trained network that looks at the frames of one source."""

    model: AtomDiffuser
    source: FrameSource

    @classmethod
    def of(cls, source: FrameSource, weights: str | None = None) -> Predictor:
        """With shipped weights by their name, or those of a file; StoreError when there are none."""
        return cls(_loaded(weights, str(source.device)), source)

    def register(self, pairs: Sequence[tuple[int, int]]) -> PairRegistration:
        """Drift alone, as the network sees it; pairs whose search it does not trust itself are invalid."""
        return self._in_parts(pairs, 1)

    def _in_parts(self, pairs: Sequence[tuple[int, int]], binning: int) -> PairRegistration:
        look = lambda part: self._look(part, binning)
        parts, _ = in_smaller_parts(look, pairs, max(len(pairs), 1))
        if len(parts) == 1:
            return parts[0]
        tensors = [f.name for f in fields(PairRegistration) if f.name != "reason"]
        joined = {name: torch.cat([getattr(p, name) for p in parts]) for name in tensors}
        return PairRegistration(**joined, reason=[r for p in parts for r in p.reason])

    @cached_property
    def binning(self) -> int:
        """Pixels along each axis that are added up before the network looks: as many as large frames and their lattice
        allow. Not of few electrons, where its σ of the contrast would then be too small.
        """
        mean_e = float(self.source.raw(self.source.usable[0]).mean()) * self._gain_e()
        period_px = self.source.scales.period_px
        if period_px is None or mean_e < FEW_E:
            return 1
        return max(1, min(max(self.source.shape) // LARGE_PX, int(period_px // LEAST_PERIOD_PX)))

    def _look(self, pairs: Sequence[tuple[int, int]], binning: int) -> PairRegistration:
        frames = pair_frames(*self._stacks(pairs, binning), gain_e=self._gain_e())
        with torch.no_grad():
            found = self.model.estimate_drift(frames, tiles=plan_tiles(frames.shape, window_for(frames.shape)))
        covariance = motion_covariance(found.normal_matrices[-1], frames.shape)
        sigma = binning * geometry.displacement_sigma_px(covariance, frames.shape)
        trusted = (found.shift_probability > LEAST_PROBABILITY) & (sigma < LARGEST_SIGMA_PX)
        return PairRegistration(
            geometry.of_finer_pixels(found.moving_from_reference, binning),
            covariance if binning == 1 else torch.full_like(covariance, torch.nan), sigma,
            correlation=torch.full_like(found.shift_probability, torch.nan),
            hop_probability=(1 - found.shift_probability).double(), valid=trusted,
            reason=["" if t else UNTRUSTED for t in trusted.tolist()],
        )  # fmt: skip

    def starts(self, pairs: Sequence[tuple[int, int]], options: FitOptions) -> Tensor:
        """moving_from_reference (n, 3, 3) for the fit; NaN where the network does not trust it or it is too long.

        Pixels are added up as `binning` says: a start needs no more.
        """
        found = self._in_parts(pairs, self.binning)
        length = geometry.drift_at_centre(found.moving_from_reference, self.source.shape).norm(dim=-1)
        good = found.valid & (length <= options.max_shift_px)
        return torch.where(good[:, None, None], found.moving_from_reference, torch.nan)

    def predict(self, pairs: Sequence[tuple[int, int]], drift: Tensor | None = None) -> PairPrediction:
        """Drift and decay of pairs of frame numbers; `drift` (n, 3, 3) where it is known already.

        Where the drift is known, the decay is looked for with pixels added up as `binning` says.
        """
        binning = 1 if drift is None else self.binning
        counts = self._stacks(pairs, binning)
        if binning > 1:
            drift = geometry.of_coarser_pixels(drift, binning)
        window_px = window_for(counts[0].shape[-2:])
        found = self.model.predict(*counts, gain_e=self._gain_e(), drift=drift, window_px=window_px)
        return found if binning == 1 else found.of_finer_pixels(binning, self.source.shape)

    def decay_maps(self, pairs: Sequence[tuple[int, int]], drift: Tensor, *, stride: int = 4) -> DecayMaps:
        """Maps of aligned pairs, `stride` times coarser than the frames (cell means)."""
        return decay_maps(self.predict(pairs, drift), stride)

    def _stacks(self, pairs: Sequence[tuple[int, int]], binning: int = 1) -> tuple[Tensor, Tensor]:
        """Counts above the dark level (n, Y, X) of the references and of the moving frames, `binning` pixels along each
        axis added up; NaN stays.
        """
        first, second = zip(*pairs, strict=True)
        added = lambda frame: frame if binning == 1 else binning**2 * F.avg_pool2d(frame[:, None], binning)[:, 0]
        counts = {k: added(self.source.counts(k)) for k in dict.fromkeys((*first, *second))}
        stack = lambda side: torch.cat([counts[k] for k in side]) if len(side) > 1 else counts[side[0]]
        return stack(first), stack(second)

    def _gain_e(self) -> float:
        """Electrons per count, from the noise; a series whose noise is all readout counts its variance as shots."""
        noise = self.source.noise
        if noise.per_count > 0:
            return 1.0 / noise.per_count
        return float(self.source.raw(self.source.usable[0]).mean().clamp_min(1e-6)) / max(noise.readout, 1e-12)


def window_for(shape: tuple[int, int]) -> int:
    """Side of the windows that the network sees frames of this shape in [px]; smaller where memory is limited."""
    left = room(WHOLE_BYTES_PER_PX * shape[0] * shape[1])
    return WINDOW_PX if math.isinf(left) else min(WINDOW_PX, int(math.sqrt(left / WINDOW_BYTES_PER_PX)))


def decay_maps(prediction: PairPrediction, stride: int) -> DecayMaps:
    """What the network says about decay in the form that local regression has; its windows have no width."""
    p = prediction
    coverage = _cell_means(p.seen.float(), stride)
    values = [_cell_means(full_field(p.rates[:, k], p.shape).exp(), stride) for k in (0, 1)]
    sigmas = [_cell_means(full_field(p.log_sigma[:, k], p.shape).exp(), stride) for k in (0, 1)]
    share = [_cell_means(p.full_known(k).float(), stride) / coverage.clamp_min(1e-6) for k in (0, 1)]
    known = [(coverage > 0) & (k > 0.5) & (s < LARGEST_SIGMA) for k, s in zip(share, sigmas, strict=True)]
    masked = lambda maps: [torch.where(k, m, torch.nan) for k, m in zip(known, maps, strict=True)]
    none = torch.full((len(p),), torch.nan, device=coverage.device)
    return DecayMaps(*masked(values), *masked(sigmas), coverage, none, none)


@lru_cache(maxsize=2)
def _loaded(weights: str | None, device: str) -> AtomDiffuser:
    # convolutions on the CPU are a seventh faster so, and give the same to rounding
    return load_model(weights, device=device).to(memory_format=torch.channels_last)


def _cell_means(images: Tensor, stride: int) -> Tensor:
    return F.avg_pool2d(images[:, None], stride, ceil_mode=True, count_include_pad=False)[:, 0]
