"""Loops of `coarse`, compiled for the processor."""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled, inner

F = np.float32
TINY = F(1e-6)  # of the largest energy in view, below which nothing is divided by it


@compiled
def normalised(cross, reference, moving, max_shift, least_overlap, correlation):
    """`correlation` (n, 2r + 1, 2r' + 1), at lags −r to r and −r' to r', of frames (n, Y, X) over their overlap, from
    the circular `cross` correlation; −inf beyond `max_shift` or where frames share less than `least_overlap`.
    """
    n, height, width = reference.shape
    reach_y, reach_x = correlation.shape[1] // 2, correlation.shape[2] // 2
    of_reference, of_moving = np.zeros((height + 1, width + 1)), np.zeros((height + 1, width + 1))
    for p in range(n):
        sum_squares(reference[p], of_reference)
        sum_squares(moving[p], of_moving)
        largest, out = F(0), correlation[p]
        for a in range(2 * reach_y + 1):
            dy = a - reach_y
            top, bottom = max(0, -dy), height - max(0, dy)  # what of the reference frame lies in the moving one
            other_top, other_bottom = max(0, dy), height - max(0, -dy)
            for b in range(2 * reach_x + 1):
                dx = b - reach_x
                left, right = max(0, -dx), width - max(0, dx)
                one = within(of_reference, top, bottom, left, right)
                other = within(of_moving, other_top, other_bottom, max(0, dx), width - max(0, -dx))
                out[a, b] = F(np.sqrt(max(one * other, 0.0)))
                largest = max(largest, out[a, b])
        least = TINY * largest + F(1e-30)
        for a in range(2 * reach_y + 1):
            dy = a - reach_y
            line, share = cross[p, dy % cross.shape[1]], 1 - abs(dy) / height
            for b in range(2 * reach_x + 1):
                dx = b - reach_x
                known = share * (1 - abs(dx) / width) >= least_overlap and dy * dy + dx * dx <= max_shift * max_shift
                out[a, b] = line[dx % cross.shape[2]] / max(out[a, b], least) if known else F(-np.inf)


@inner
def sum_squares(image, total):
    """`total` (Y + 1, X + 1): sums of squares of all above and to the left."""
    for i in range(image.shape[0]):
        above, here, so_far = total[i], total[i + 1], 0.0
        for j in range(image.shape[1]):
            so_far += np.float64(image[i, j]) * image[i, j]
            here[j + 1] = above[j + 1] + so_far


@inner
def within(total, top, bottom, left, right):
    """Sum over a rectangle."""
    return (total[bottom, right] - total[top, right]) - (total[bottom, left] - total[top, left])
