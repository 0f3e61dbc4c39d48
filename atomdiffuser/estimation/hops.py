"""Lattice hops of a series: links between neighbours that two frames leave open are decided by many.

A link between two neighbouring frames is in doubt when the images alone give a registration a lattice vector away a
noticeable probability. All that follows in the series would share its hop, so that no loop of pairs shows it. The
frames before the link and those after it are each aligned among themselves, however, as far as the next doubtful
link: their means have far less noise than two frames, and show the aperiodic features that decide. A link is decided
only where its means leave no doubt; it then joins its two sides, which helps to decide the next. The clearest come
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.noise import NoiseModel
from atomdiffuser.estimation.prepare import PreparedFrames
from atomdiffuser.estimation.register import FitOptions, PairRegistration, register_unknown
from atomdiffuser.estimation.template import TemplateSum, sum_template

CLEAR_HOP_PROBABILITY = 1e-4
DECIDED = 0.02  # among six candidates that differ in length, some of which show little of each other
FRAMES_A_SIDE = 8
MANY_CANDIDATES = 24  # where there is doubt, the right one must be among them
ROUNDS = 3


@dataclass(frozen=True)
class Links:
    """Links between neighbouring usable frames, in order.

    Attributes
    ----------
    frames
        (m) pairs of frame numbers.
    moving_from_reference
        (m, 3, 3) float64.
    hop_probability
        (m,) that a link is off by a lattice vector.
    holds
        (m,) bool: whether the two frames are linked at all.
    """

    frames: Sequence[tuple[int, int]]
    moving_from_reference: Tensor
    hop_probability: np.ndarray
    holds: np.ndarray

    def chain(self, n_frames: int) -> Tensor:
        """Frame from first usable frame, (t, 3, 3), by composing; a link that does not hold counts as no motion."""
        frames = geometry.identity(n_frames)
        for m, (i, j) in enumerate(self.frames):
            frames[j] = self.moving_from_reference[m] @ frames[i] if self.holds[m] else frames[i]
        return frames

    def unbroken(self, i: int, j: int) -> bool:
        """Whether links lead from one frame to the other."""
        low, high = min(i, j), max(i, j)
        return all(self.holds[m] for m, (a, b) in enumerate(self.frames) if low <= a and b <= high)

    def hop_between(self, i: int, j: int) -> float:
        """Probability that frames i and j are a lattice vector off against each other: that some link between is."""
        low, high = min(i, j), max(i, j)
        between = [m for m, (a, b) in enumerate(self.frames) if low <= a and b <= high and self.holds[m]]
        return float(1 - np.prod(1 - self.hop_probability[between]))


def settle_links(source: FrameSource, links: Links, options: FitOptions) -> tuple[Links, list[int]]:
    """Decide doubtful links by the means of both their sides; also the numbers of those whose affine has changed."""
    doubt, affine = np.nan_to_num(links.hop_probability).copy(), links.moving_from_reference.clone()
    period = options.scales.period_px or 4 * options.scales.base_px
    changed: set[int] = set()
    for _ in range(ROUNDS):
        waiting = [m for m in range(len(doubt)) if links.holds[m] and doubt[m] > CLEAR_HOP_PROBABILITY]
        apart, decided = set(waiting), 0
        for m in sorted(waiting, key=lambda m: doubt[m]):
            before, after = _sides(links, m, apart)
            if len(before) + len(after) <= 2:
                continue
            found = _compare_sides(source, replace(links, moving_from_reference=affine), m, before, after, options)
            if not bool(found.valid[0]) or float(found.hop_probability[0]) > min(DECIDED, doubt[m]):
                continue
            new = found.moving_from_reference[0].cpu()
            if float(geometry.displacement_rms_px(new, affine[m], source.shape)) > period / 4:
                affine[m] = new
                changed.add(m)
            doubt[m] = float(found.hop_probability[0])
            apart.discard(m)
            decided += 1
        if not decided:
            break
    return replace(links, moving_from_reference=affine, hop_probability=doubt), sorted(changed)


def _sides(links: Links, m: int, apart: set[int]) -> tuple[list[int], list[int]]:
    """Frames before and after link m that undoubted links tie to it, nearest first."""
    follow = lambda k: 0 <= k < len(links.frames) and links.holds[k] and k not in apart
    before, k = [links.frames[m][0]], m - 1
    while follow(k) and len(before) < FRAMES_A_SIDE:
        before.append(links.frames[k][0])
        k -= 1
    after, k = [links.frames[m][1]], m + 1
    while follow(k) and len(after) < FRAMES_A_SIDE:
        after.append(links.frames[k][1])
        k += 1
    return before, after


def _compare_sides(
    source: FrameSource, links: Links, m: int, before: list[int], after: list[int], options: FitOptions
) -> PairRegistration:
    """Register the mean of the frames after link m with the mean of those before it, each on its nearest frame's
    grid.
    """
    i, j = links.frames[m]
    chain = links.chain(source.n_frames)
    first = sum_template(source, chain @ geometry.invert(chain[i]), before)
    second = sum_template(source, chain @ geometry.invert(chain[j]), after)
    frames = float(second.count[second.count > 0.5].median())
    # The fit takes the moving frame for a single one: let that be one frame of so much less noise.
    noise = NoiseModel(options.noise.readout / frames, options.noise.per_count / frames)
    return register_unknown(
        _with_noise_of(first, frames), second.mean(), replace(options, noise=noise, candidates=MANY_CANDIDATES)
    )


def _with_noise_of(template: TemplateSum, frames: float) -> PreparedFrames:
    """The template as a reference frame, its noise as a share of that of a mean of `frames` frames."""
    mean = template.mean()
    return replace(
        mean, noise_share=torch.where(torch.isfinite(mean.noise_share), mean.noise_share * frames, torch.inf)
    )
