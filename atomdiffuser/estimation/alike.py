"""Which of many pairs show the same structure, so that what is measured of one serves the others too.

Filters, local mean and lattice come from the power spectra of many frames together, which helps at few counts. In a sum
over other specimens, or other orientations of one, the spots of each are lost among those of the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.estimation.frame_source import without_gaps
from atomdiffuser.estimation.side_by_side import MOST_THREADS, side_by_side
from atomdiffuser.estimation.spectrum import (
    LOWEST_BIN,
    TOGETHER_PX,
    clear_signal,
    mean_of_neighbours,
    mean_powers,
)

SQUARE_PX = 256
"""Largest side of the square about the centre that is looked at."""
ALIKE = 0.5
"""Correlation of two spectra: above 0.9 for pairs of one specimen, also where it decays or turns by 2°, from
1 electron a pixel on; below 0.2 for other specimens, or one that lies otherwise."""
CAUTIOUS = 1  # frame, as which two are judged, so that noise alone shows nothing
SMALLEST_PX = 4 * LOWEST_BIN


def alike(reference: np.ndarray, moving: np.ndarray) -> list[np.ndarray]:
    """Numbers of the pairs (n, Y, X) in groups that show the same structure, each in order.

    Pairs that show nothing clear of the noise go to the first group.
    """
    if len(reference) == 1:
        return [np.zeros(1, dtype=int)]
    groups: list[list[int]] = []
    leaders: list[Tensor] = []
    quiet = []
    size = min(SQUARE_PX, *reference.shape[-2:]) // 2 * 2
    if size < SMALLEST_PX:
        return [np.arange(len(reference))]
    together = max(1, TOGETHER_PX // (2 * size**2))
    parts = [range(at, min(at + together, len(reference))) for at in range(0, len(reference), together)]
    look = lambda part: _spots(reference, moving, part, size)
    found = side_by_side(look, parts, min(torch.get_num_threads(), MOST_THREADS))
    for k, spots in enumerate(itertools.chain.from_iterable(found)):
        if spots is None:
            quiet.append(k)
            continue
        likeness = [float((spots * leader).sum()) for leader in leaders]
        if likeness and max(likeness) > ALIKE:
            groups[int(np.argmax(likeness))].append(k)
        else:
            groups.append([k])
            leaders.append(spots)
    first, *others = groups or [[]]
    return [np.array(group, dtype=int) for group in (sorted(first + quiet), *others) if group]


def _spots(reference: np.ndarray, moving: np.ndarray, part: Sequence[int], size: int) -> list[Tensor | None]:
    """Power of some pairs, in the square about the centre, that stands clear of the noise, over its norm; None for
    those without any.
    """
    corner = [(s - size) // 2 for s in reference.shape[-2:]]
    window = np.s_[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    squares = torch.empty(len(part), 2, size, size)
    for m, k in enumerate(part):
        for side, frames in enumerate((reference, moving)):
            squares[m, side] = without_gaps(torch.from_numpy(np.array(frames[k][window], dtype=np.float32)))
    power, frequency, floor = mean_powers(squares)
    found = torch.where(frequency >= LOWEST_BIN / size, clear_signal(power, floor[:, None, None], CAUTIOUS), 0.0)
    found = mean_of_neighbours(found.clamp_min_(0).sqrt_())
    norm = found.flatten(1).norm(dim=1)
    return [one / of if float(of) > 0 else None for one, of in zip(found, norm, strict=True)]
