"""Measures the frames of a series one after the other, and judges each among the others, before any drift is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from atomdiffuser.config import RegisterSettings
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.quality.counts import CountFacts, count_facts, repeated_rows, saturated_fraction
from atomdiffuser.quality.flags import FrameFlags, flag_counts, flag_transfer
from atomdiffuser.quality.sharpness import FrameSpectra, frame_power, measure_transfer

BLANK = "blank"
EMPTY_FLOOR = 0.05  # of the usual noise: without a beam there is no shot noise
EMPTY_STRUCTURE = 4.0  # standard deviations of noise below which a frame shows nothing


@dataclass(frozen=True)
class FrameQuality:
    """Quality of t frames.

    Attributes
    ----------
    flags
        Words and reasons of each frame.
    sharpness, sharpness_sigma
        (t,) amplitude that the transfer leaves at the structure's typical frequency, over that of the frames around.
    blur_px
        (t,) σ of the Gaussian that would blur the frames around as much, along the worse direction; 0 where sharper.
    saturated_fraction, missing_rows_fraction
        (t,) shares of pixels and of rows.
    """

    flags: FrameFlags
    sharpness: np.ndarray
    sharpness_sigma: np.ndarray
    blur_px: np.ndarray
    saturated_fraction: np.ndarray
    missing_rows_fraction: np.ndarray

    def excluded(self, settings: RegisterSettings) -> dict[int, str]:
        """Frames that the settings leave out, and why."""
        return self.flags.excluded(settings.excluded_flags)


def measure_quality(
    source: FrameSource, settings: RegisterSettings, progress: Callable[[], None] | None = None
) -> FrameQuality:
    """Look at every frame of a series once, and twice where one is saturated."""
    t = source.n_frames
    flags = FrameFlags.none(t)
    facts: list[CountFacts] = []
    for k in range(t):
        facts.append(count_facts(np.asarray(source.series.frames[k])))
        if progress:
            progress()
    empty = [k for k, f in enumerate(facts) if f.constant_rows.all()]
    top = min(f.top for f in facts)
    saturated = np.zeros(t)
    if np.isfinite(top):
        saturated = np.array([saturated_fraction(np.asarray(source.series.frames[k]), top) for k in range(t)])
    saturated[empty] = 0.0
    for k in empty:
        flags.add(k, BLANK, source.unusable.get(k) or "blank: every row is constant")
    missing = np.array([0.0 if k in empty else f.missing_rows.mean() for k, f in enumerate(facts)])
    repeated = np.array([0.0] + [repeated_rows(now, before) for before, now in itertools.pairwise(facts)])
    flag_counts(flags, [f.digest for f in facts], missing, repeated, saturated, top, settings)

    measured = [k for k in range(t) if not flags.words[k] or flags.words[k] == ["saturated"]]
    sharp, sigma, blur = (np.full(t, np.nan) for _ in range(3))
    if measured:
        spectra = _spectra(source, measured)
        mean = np.array([facts[k].mean - source.dark_level for k in measured])
        transfer = measure_transfer(spectra, source.scales)
        nothing = _shows_nothing(mean, spectra.floor.numpy(), transfer.structure, settings)
        for k, share in nothing.items():
            flags.add(measured[k], BLANK, f"blank: {100 * share:.1f} % of the usual signal and no structure")
        judged = [m for m in range(len(measured)) if m not in nothing and measured[m] not in source.unusable]
        index = [measured[m] for m in judged]
        sharp[index], sigma[index], blur[index] = flag_transfer(
            flags, index, transfer.broadening_px2[judged], transfer.log_sigma[judged], transfer.typical_frequency,
            settings,
        )  # fmt: skip
    return FrameQuality(flags, sharp, sigma, blur, saturated, np.maximum(missing, repeated))


def _spectra(source: FrameSource, frames: list[int]) -> FrameSpectra:
    found = [frame_power(source.raw(k)) for k in frames]
    return FrameSpectra(
        torch.stack([power for power, *_ in found]),
        torch.tensor([floor for _, floor, *_ in found], dtype=torch.float64),
        found[0][2],
        found[0][3],
    )


def _shows_nothing(
    mean: np.ndarray, floor: np.ndarray, structure: np.ndarray, settings: RegisterSettings
) -> dict[int, float]:
    """Frames without structure whose signal, or noise where the dark level is not known, is next to nothing."""
    if not np.median(floor) > 0:  # frames of a few pixels have no spectrum to speak of
        return {}
    signal = mean / max(float(np.median(mean)), 1e-12)
    noise = floor / max(float(np.median(floor)), 1e-12)
    dark = (signal < settings.blank_signal) | (noise < EMPTY_FLOOR)
    return {int(k): float(max(signal[k], 0.0)) for k in np.flatnonzero(dark & (structure < EMPTY_STRUCTURE))}
