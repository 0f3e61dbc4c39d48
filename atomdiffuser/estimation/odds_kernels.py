"""Loops in which several fits of a pair are compared, over float32 arrays; see `alternatives`."""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled, inner

F = np.float32
ONE = F(1)


@compiled
def seen_part(residual, weight, masked, seen):
    """`masked` residuals, zero where the weight is; and where it is not, `seen` 1. Whether that is everywhere."""
    every = True
    own, inverse, out, mask = residual.reshape(-1), weight.reshape(-1), masked.reshape(-1), seen.reshape(-1)
    for j in range(len(own)):
        mask[j] = ONE if inverse[j] > F(0) else F(0)
    for j in range(len(own)):
        out[j] = own[j] * mask[j]
    for j in range(len(own)):
        every = every and mask[j] > F(0)
    return every


@compiled
def free_of_mean(residual, weight, mean, share, least, out):
    """Residuals (n, Y', X') less their local mean, which is `mean` over `share` (at `least`; empty: 1), in units of the
    noise."""
    own, inverse, near, free = residual.reshape(-1), weight.reshape(-1), mean.reshape(-1), out.reshape(-1)
    if share.size:
        part = share.reshape(-1)
        for j in range(len(own)):
            free[j] = (own[j] - near[j] / max(part[j], least)) * np.sqrt(inverse[j])
    else:
        for j in range(len(own)):
            free[j] = (own[j] - near[j]) * np.sqrt(inverse[j])


@compiled
def compare(residual, weight, rows, columns, away, band_y, band_x, sums):
    """`sums` (2, 5, n, k) of fits (n, k, Y', X') and the first of each pair: of their squares, of the cells that count
    for each, and of the square of their difference, correlated as the noise is. The first time on the cells that both
    see, the second time on the part of the moving frame that both look at, `away` (n, k, 2) px from each other.
    """
    n, k, height, width = residual.shape
    difference, across = np.empty((height, width), F), np.zeros(width + band_x.shape[0] - 1, F)
    line = np.empty(width, F)
    own, first = np.empty((height, width), F), np.empty((height, width), F)
    for p in range(n):
        for c in range(1, k):
            for way in range(2):
                for i in range(height):
                    mask(weight[p, c, i], own[i])
                    mask(weight[p, 0, i], first[i])
                    if way == 0:
                        for j in range(width):
                            own[i, j] *= first[i, j]
                        for j in range(width):
                            first[i, j] = own[i, j]
                    else:
                        look(own[i], rows, i, away[p, c, 0], columns, away[p, c, 1])
                        look(first[i], rows, i, -away[p, c, 0], columns, -away[p, c, 1])
                for i in range(height):
                    found = differ(residual[p, c, i], own[i], residual[p, 0, i], first[i], difference[i])
                    for s in range(4):
                        sums[way, s, p, c] += found[s]
                sums[way, 4, p, c] = correlated_square(difference, band_y, band_x, across, line)


@inner
def mask(weight, out):
    """1 where a line's weight is above zero."""
    for j in range(len(out)):
        out[j] = ONE if weight[j] > F(0) else F(0)


@inner
def look(mask, rows, i, down, columns, along):
    """Zero in a line's mask where a cell, `down` and `along` px from where it is, is not in the reference frame."""
    if not (rows[0] - 1 <= rows[i] + down <= rows[-1] + 1):
        mask[:] = F(0)
    low, high = columns[0] - 1, columns[-1] + 1
    for j in range(len(mask)):
        mask[j] *= ONE if columns[j] + along >= low and columns[j] + along <= high else F(0)


@inner
def differ(own, own_mask, first, first_mask, difference):
    """The difference of two lines where they count, sums of their squares, and how many cells count."""
    own_square, first_square, own_count, first_count = F(0), F(0), F(0), F(0)
    for j in range(len(own)):
        one, other = own_mask[j] * own[j], first_mask[j] * first[j]
        difference[j] = one - other
        own_square += one * own[j]
        first_square += other * first[j]
        own_count += own_mask[j]
        first_count += first_mask[j]
    return own_square, first_square, own_count, first_count


@inner
def correlated_square(image, band_y, band_x, across, line):
    """Σ image·V·image, V a matrix along either axis: see `interpolation_kernels.banded_product` for the bands."""
    height, width = image.shape
    reach_y, reach_x = band_y.shape[1] // 2, band_x.shape[0] // 2
    middle, total = across[reach_x : reach_x + width], 0.0
    for i in range(height):
        for j in range(width):
            middle[j] = line[j] = F(0)
        for m in range(max(0, reach_y - i), min(2 * reach_y + 1, height + reach_y - i)):
            share, row = band_y[i, m], image[i + m - reach_y]
            for j in range(width):
                middle[j] += share * row[j]
        for m in range(2 * reach_x + 1):
            shares, shifted = band_x[m], across[m : m + width]
            for j in range(width):
                line[j] += shares[j] * shifted[j]
        here, of_row = image[i], F(0)
        for j in range(width):
            of_row += here[j] * line[j]
        total += of_row
    return total
