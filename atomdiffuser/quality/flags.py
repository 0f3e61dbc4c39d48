"""Flags of frames: words, a sentence for each, and the rules that set them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atomdiffuser.config import RegisterSettings
from atomdiffuser.quality.sharpness import log_amplitude

AROUND = 3  # frames that say how sharp the next one should be
AROUND_AT_START = 5
SURE_SIGMAS = 4.0
REFERENCE_VARIANCE = 0.45  # of a median of three, as a share of one frame's
DIRECTIONAL = 3.0  # broadening along one axis over that along the other, from which on it is a blur and not defocus
JUMP_SPREADS = 8.0  # robust standard deviations of the steps between frames
SPREAD_OF_MEDIAN_DEVIATION = 1.4826


@dataclass(frozen=True)
class FrameFlags:
    """Words and sentences of each frame, in the order in which they were found."""

    words: list[list[str]]
    reasons: list[list[str]]

    @staticmethod
    def none(n_frames: int) -> FrameFlags:
        """No flags."""
        return FrameFlags([[] for _ in range(n_frames)], [[] for _ in range(n_frames)])

    def add(self, frame: int, word: str, reason: str) -> None:
        """Set a flag once."""
        if word not in self.words[frame]:
            self.words[frame].append(word)
            self.reasons[frame].append(reason)

    def excluded(self, words: Sequence[str]) -> dict[int, str]:
        """Frames with any of these flags, with the sentence of the first."""
        found = {}
        for k, (own, reasons) in enumerate(zip(self.words, self.reasons, strict=True)):
            for word, reason in zip(own, reasons, strict=True):
                if word in words:
                    found.setdefault(k, reason)
        return found


def flag_counts(
    flags: FrameFlags,
    digests: Sequence[bytes],
    missing: np.ndarray,
    repeated: np.ndarray,
    saturated: np.ndarray,
    top: float,
    settings: RegisterSettings,
) -> None:
    """Set `duplicate`, `missing_rows` and `saturated`.

    Parameters
    ----------
    missing, repeated
        (t,) share of rows without contents, and of rows that are those of the frame before.
    saturated, top
        (t,) share of pixels at the value [counts] at which the series is clipped.
    """
    seen: dict[bytes, int] = {}
    for k, digest in enumerate(digests):
        if "blank" in flags.words[k]:
            continue
        if digest in seen:
            flags.add(k, "duplicate", f"duplicate: the same pixels as frame {seen[digest]}")
        elif repeated[k] > settings.duplicate_rows:
            flags.add(k, "duplicate", f"duplicate: {100 * repeated[k]:.0f} % of the rows are those of frame {k - 1}")
        elif repeated[k] > settings.missing_rows:
            text = f"missing rows: {100 * repeated[k]:.0f} % of them are still those of frame {k - 1}"
            flags.add(k, "missing_rows", text)
        seen.setdefault(digest, k)
        # rows of vacuum may be constant too, but then those of the frames around are
        around = [missing[n] for n in (k - 1, k + 1) if 0 <= n < len(missing)]
        if missing[k] - max(around, default=0.0) > settings.missing_rows:
            flags.add(k, "missing_rows", f"missing rows: {100 * missing[k]:.0f} % of them have no contents")
        if saturated[k] > settings.saturated_fraction:
            share = f"{100 * saturated[k]:.1f} % of the pixels"
            flags.add(k, "saturated", f"saturated: {share} are at {top:g} counts, where the series is clipped")


def flag_transfer(
    flags: FrameFlags,
    frames: Sequence[int],
    broadening_px2: np.ndarray,
    log_sigma: np.ndarray,
    typical_frequency: float,
    settings: RegisterSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Set `blur` and `defocus`; returns sharpness, its σ and `blur_px`, each (n,) for the n given frames.

    A frame is compared with the last sharp ones before it and with the first sharp ones after it, so that slow changes
    are followed and a sudden one counts from either side: lenses and stages fail suddenly, damage does not heal.
    """
    before = _against_the_last(broadening_px2, log_sigma, typical_frequency, settings)
    after = _against_the_last(broadening_px2[::-1], log_sigma[::-1], typical_frequency, settings)[::-1]
    worse = log_amplitude(after, typical_frequency) < log_amplitude(before, typical_frequency)
    relative = np.where(worse[:, None, None], after, before)
    log = log_amplitude(relative, typical_frequency)
    sharpness, blur = np.exp(log), np.full(len(log), np.nan)
    for m, k in enumerate(frames):
        if not np.isfinite(log[m]):
            continue
        least, most = np.linalg.eigvalsh(relative[m])
        blur[m] = np.sqrt(max(most, 0.0))
        if not _is_dull(log[m], log_sigma[m], settings):
            continue
        word = "blur" if most > DIRECTIONAL * max(least, 0.0) else "defocus"
        how = "along one direction" if word == "blur" else "in all directions"
        text = f"{word}: sharpness {sharpness[m]:.2f} of the frames around it, as if blurred by {blur[m]:.1f} px {how}"
        flags.add(k, word, text)
    return sharpness, sharpness * log_sigma, blur


def find_jumps(
    drift_px: np.ndarray, sigma_px: np.ndarray, shape: tuple[int, int], settings: RegisterSettings
) -> dict[int, str]:
    """Frames before or during which the sample moved much more than usual, with a sentence each.

    Parameters
    ----------
    drift_px, sigma_px
        (t, 2) drift of the centre and (t,) its 1 σ [px]; NaN for frames without a place.

    A step from one frame to the next counts against the median step and its robust spread; steps over frames without a
    place are divided by their number. A frame from which the sample comes back is the only one that jumped.
    """
    known = np.flatnonzero(np.isfinite(drift_px).all(axis=1))
    if len(known) < 3:
        return {}
    gaps = np.diff(known)
    steps = np.diff(drift_px[known], axis=0) / gaps[:, None]
    usual = np.median(steps, axis=0)
    away = np.linalg.norm(steps - usual, axis=1) * gaps
    spread = SPREAD_OF_MEDIAN_DEVIATION * float(np.median(np.linalg.norm(steps - usual, axis=1)))
    noise = np.hypot(np.nan_to_num(sigma_px[known[1:]]), np.nan_to_num(sigma_px[known[:-1]]))
    limit = np.maximum(JUMP_SPREADS * spread, settings.jump_fraction * min(shape)) + SURE_SIGMAS * noise
    found: dict[int, str] = {}
    came_back = -1
    for m in np.flatnonzero(away > limit):
        frame, before = int(known[m + 1]), int(known[m])
        if before == came_back and np.linalg.norm(steps[m] + steps[m - 1] - 2 * usual) < limit[m]:
            came_back = -1
            continue
        came_back = frame
        length = np.linalg.norm(steps[m] * gaps[m])
        found[frame] = f"jump: moved by {length:.1f} px since frame {before}, usually {np.linalg.norm(usual):.1f} px"
    return found


def _against_the_last(
    broadening_px2: np.ndarray, log_sigma: np.ndarray, typical_frequency: float, settings: RegisterSettings
) -> np.ndarray:
    """Broadening (n, 2, 2) less that of the last frames that were not dull."""
    known = np.isfinite(broadening_px2).all(axis=(1, 2))
    relative = np.full_like(broadening_px2, np.nan)
    sharp: list[np.ndarray] = []
    at_start = broadening_px2[known][:AROUND_AT_START]
    for k in np.flatnonzero(known):
        around = sharp[-AROUND:] if len(sharp) >= AROUND else at_start
        relative[k] = broadening_px2[k] - np.median(around, axis=0)
        log = log_amplitude(relative[k : k + 1], typical_frequency)[0]
        if not _is_dull(log, log_sigma[k], settings):
            sharp.append(broadening_px2[k])
    return relative


def _is_dull(log: float, log_sigma: float, settings: RegisterSettings) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return bool(
            log < np.log(settings.least_sharpness) and log < -SURE_SIGMAS * log_sigma * np.sqrt(1 + REFERENCE_VARIANCE)
        )
