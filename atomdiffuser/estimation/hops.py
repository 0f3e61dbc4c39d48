"""Lattice hops of a series: links between neighbours that two frames leave open are decided by many.

A link between two neighbouring frames is in doubt when the images alone give a registration a lattice vector away a
noticeable probability. Everything later in the series would share its hop, so no loop of pairs would show it. The
frames before the link and the frames after it are each aligned among themselves, however; their means have far less
noise than two frames, and show the aperiodic features that decide. Links are decided one after the other, the clearest
first, so that the means grow; then once more, with all that is known by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from atomdiffuser import geometry
from atomdiffuser.estimation.fit_template import sum_fit_template
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.estimation.register import FitOptions, choose_start

CLEAR_HOP_PROBABILITY = 1e-4
FRAMES_A_SIDE = 12
ROUNDS = 2


@dataclass(frozen=True)
class Links:
    """Links between neighbouring usable frames: affines (m, 3, 3) moving_from_reference, the probability (m,) that each
    is off by a lattice vector, and which hold at all (m,).
    """

    frames: list[tuple[int, int]]
    moving_from_reference: Tensor
    hop_probability: np.ndarray
    holds: np.ndarray

    def chain(self, n_frames: int) -> Tensor:
        """Frame from first frame, (t, 3, 3), by composing links; one that does not hold counts as no motion."""
        frames = geometry.identity(n_frames)
        for m, (i, j) in enumerate(self.frames):
            frames[j] = self.moving_from_reference[m] @ frames[i] if self.holds[m] else frames[i]
        return frames

    def unbroken(self, i: int, j: int) -> bool:
        """Whether the links between two frames all hold."""
        return all(self.holds[m] for m, (a, b) in enumerate(self.frames) if min(i, j) <= a and b <= max(i, j))

    def hop_between(self, i: int, j: int) -> float:
        """Probability that frames i and j are a lattice vector off against each other."""
        between = [m for m, (a, b) in enumerate(self.frames) if min(i, j) <= a and b <= max(i, j)]
        return float(1 - np.prod(1 - self.hop_probability[between]))


def settle_links(
    source: FrameSource, links: Links, options: FitOptions, advance: Callable[[], None] | None = None
) -> tuple[Links, list[int]]:
    """Decide the doubtful links, and name those whose affine has changed."""
    doubt = np.nan_to_num(links.hop_probability, nan=0.0).copy()
    open_links = [m for m in range(len(doubt)) if links.holds[m] and doubt[m] > CLEAR_HOP_PROBABILITY]
    affine, changed = links.moving_from_reference.clone(), set()
    period = options.scales.period_px or 4 * options.scales.base_px
    for last in [False] * (ROUNDS - 1) + [True]:
        apart = set(open_links) if not last else set()
        for m in sorted(open_links, key=lambda m: doubt[m]):
            apart.discard(m)
            current = Links(links.frames, affine, doubt, links.holds)
            before, after = _sides(current, m, apart)
            if len(before) + len(after) <= 2:
                continue
            found, probability = _decide(source, current, m, before, after, options)
            if float(geometry.displacement_rms_px(found, affine[m], source.shape)) > 0.25 * period:
                affine[m] = found
                changed.add(m)
            doubt[m] = probability
            if advance:
                advance()
        open_links = [m for m in open_links if doubt[m] > CLEAR_HOP_PROBABILITY]
    return Links(links.frames, affine, doubt, links.holds), sorted(changed)


def _sides(links: Links, m: int, apart: set[int]) -> tuple[list[int], list[int]]:
    """Frames before and after link m that clear or decided links tie to it, nearest first."""
    before, k = [links.frames[m][0]], m - 1
    while k >= 0 and links.holds[k] and k not in apart and len(before) < FRAMES_A_SIDE:
        before.append(links.frames[k][0])
        k -= 1
    after, k = [links.frames[m][1]], m + 1
    while k < len(links.frames) and links.holds[k] and k not in apart and len(after) < FRAMES_A_SIDE:
        after.append(links.frames[k][1])
        k += 1
    return before, after


def _decide(
    source: FrameSource, links: Links, m: int, before: list[int], after: list[int], options: FitOptions
) -> tuple[Tensor, float]:
    """The link's likeliest affine by the means of both sides, and the probability that another one is right."""
    i, j = links.frames[m]
    chain = links.chain(source.n_frames)
    from_i = chain @ geometry.invert(chain[i])
    from_j = chain @ geometry.invert(chain[j])
    first = sum_fit_template(source, from_i, before, coarse=True).mean()
    second = sum_fit_template(source, from_j, after, coarse=True).mean(as_moving=True)
    start = choose_start(first, second, options, starts=links.moving_from_reference[m][None].to(source.device))
    return start.affine[0].cpu(), float(start.hop_probability[0])
