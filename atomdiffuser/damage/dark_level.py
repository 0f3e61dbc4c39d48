"""The detector's level without beam, where neither session.yaml nor the file states it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch

from atomdiffuser.damage.segmentation import SMALLEST_SHARE
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.noise import PATCH_PX, SECOND_DIFFERENCE
from atomdiffuser.estimation.prepare import EMPTY_SHARE, prepare_frames
from atomdiffuser.interpolation import filter_separable
from atomdiffuser.series import Acquisition

SURE = 3.0  # standard deviations of a level estimated from noise
FRAMES = 8
AGREES = 0.5  # vacuum and noise may differ by this share of the specimen's signal


@dataclass(frozen=True)
class DarkLevel:
    """A level [counts] and where it comes from: session.yaml, file, vacuum, estimated or assumed."""

    value: float
    source: str


def find_dark_level(source: FrameSource, acquisition: Acquisition, reference_frame: int, *, search: bool) -> DarkLevel:
    """The dark level to take off.

    Vacuum in the frame shows it. Otherwise noise may: where shot noise rules, the variance falls to nothing at the dark
    level, so the line of variance against mean meets zero there. Readout noise moves that point down, so what is found
    this way is a lower bound of the true level, and is taken only when it stands clear of zero.
    """
    if acquisition.dark_level is not None:
        return DarkLevel(float(acquisition.dark_level), str(acquisition.sources.get("dark_level", "file")))
    if not search or not source.usable:
        return DarkLevel(0.0, "assumed")
    from_noise = _from_noise(source)
    frame = source.raw(reference_frame) + source.dark_level
    prepared = prepare_frames(frame - from_noise, source.scales)
    typical = torch.quantile(prepared.base.flatten()[::7], 0.75)
    vacuum = prepared.base < EMPTY_SHARE * typical
    if float(vacuum.float().mean()) >= SMALLEST_SHARE:
        shown = vacuum.cpu().numpy()
        deep = scipy.ndimage.binary_erosion(shown[0], iterations=round(source.scales.base_px), border_value=1)[None]
        shown = deep if deep.mean() >= SMALLEST_SHARE / 4 else shown  # the tail of the specimen reaches beyond its edge
        level = float(np.mean(_middle(frame.cpu().numpy()[shown])))
        if abs(level - from_noise) < AGREES * float(typical):
            return DarkLevel(level, "vacuum")
    return DarkLevel(from_noise, "estimated") if from_noise > 0 else DarkLevel(0.0, "assumed")


def with_dark_level(source: FrameSource, dark: DarkLevel, gain_e: float | None) -> FrameSource:
    """The source with this level taken off; itself when that changes nothing."""
    if dark.value == source.dark_level:
        return source
    return FrameSource(source.series, source.device, dark_level=dark.value, gain_e=gain_e)


def _from_noise(source: FrameSource) -> float:
    """Where the variance of single frames falls to nothing [counts]; 0 unless it is surely above.

    Patches by patches: variance from the response to second differences, which oversampled structure hardly reaches;
    per class of mean the lower quartile, since structure only adds.
    """
    levels = [_meeting_point(source.raw(k) + source.dark_level) for k in source.usable[:FRAMES]]
    levels = [v for v in levels if np.isfinite(v)]
    if len(levels) < 3:
        return 0.0
    mean, error = float(np.mean(levels)), float(np.std(levels, ddof=1) / np.sqrt(len(levels)))
    return mean if mean > SURE * error and mean > 0 else 0.0


def _meeting_point(raw: torch.Tensor) -> float:
    if min(raw.shape[-2:]) < 2 * PATCH_PX:
        return np.nan  # too narrow for patches
    response = filter_separable(raw, SECOND_DIFFERENCE, SECOND_DIFFERENCE) / 6
    pool = lambda image: torch.nn.functional.avg_pool2d(image[:, None], PATCH_PX)[:, 0].flatten().double().numpy()
    mean, variance = pool(raw), pool(response**2)
    if np.ptp(mean) < 0.3 * np.std(raw.numpy()):
        return np.nan  # one level of brightness draws no line
    classes = np.array_split(np.argsort(mean), max(2, len(mean) // 24))
    x, y = (np.array([f(values[c]) for c in classes]) for f, values in ((np.mean, mean), (_lower, variance)))
    slope, intercept = np.polyfit(x, y, 1)
    return float(-intercept / slope) if slope > 0 else np.nan


def _lower(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.25))


def _middle(values: np.ndarray) -> np.ndarray:
    """The middle of a distribution: without tails of the specimen on one side and dead pixels on the other."""
    low, high = np.quantile(values, (0.05, 0.95))
    return values[(values >= low) & (values <= high)]
