"""The loop in which fits of a pair are compared, compiled for the processor."""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled, inner

F = np.float32


@compiled
def compare(residual, seen, rows_own, columns_own, rows_first, columns_first, mutual, band_y, band_x, sums):
    """Sums (n, k, 5) over cells of residuals (n, k, Y', X') against the first of each pair: cells that count for each
    and for the first, squares of each and of the first, and (each − first)ᵀ V (each − first).

    With `mutual`, cells count that both see; else those that each sees, where its rows (n, k, Y') and columns
    (n, k, X') count too. V is the product of the bands of both axes: `band_y` (Y', 2r + 1) holds columns i − r to i + r
    of row i, and `band_x` (2r + 1, X') the same the other way round.
    """
    n, k, height, width = residual.shape
    difference = np.empty((height, width), F)
    reach_y, reach_x = band_y.shape[1] // 2, band_x.shape[0] // 2
    own_row, first_row, product = np.empty(width, F), np.empty(width, F), np.empty(width, F)
    across = np.zeros(width + 2 * reach_x, F)
    for p in range(n):
        for c in range(1, k):
            own_cells, first_cells, own_square, first_square, form = 0.0, 0.0, 0.0, 0.0, 0.0
            for i in range(height):
                if mutual:
                    for j in range(width):
                        own_row[j] = first_row[j] = seen[p, c, i, j] * seen[p, 0, i, j]
                else:
                    masked(seen[p, c, i], rows_own[p, c, i], columns_own[p, c], own_row)
                    masked(seen[p, 0, i], rows_first[p, c, i], columns_first[p, c], first_row)
                here, there, left_over = residual[p, c, i], residual[p, 0, i], difference[i]
                for j in range(width):
                    left_over[j] = own_row[j] * here[j] - first_row[j] * there[j]
                own_cells += total(own_row)
                first_cells += total(first_row)
                own_square += weighted_square(own_row, here)
                first_square += weighted_square(first_row, there)
            for i in range(height):
                inner = across[reach_x : reach_x + width]
                for j in range(width):
                    inner[j] = product[j] = F(0)
                for m in range(max(0, reach_y - i), min(2 * reach_y + 1, height + reach_y - i)):
                    share, line = band_y[i, m], difference[i + m - reach_y]
                    for j in range(width):
                        inner[j] += share * line[j]
                for m in range(2 * reach_x + 1):
                    shares, line = band_x[m], across[m : m + width]
                    for j in range(width):
                        product[j] += shares[j] * line[j]
                form += dot(product, difference[i])
            sums[p, c, 0], sums[p, c, 1], sums[p, c, 2] = own_cells, first_cells, own_square
            sums[p, c, 3], sums[p, c, 4] = first_square, form


@inner
def masked(line, row, columns, out):
    """A line times the mask of its row and those of its columns."""
    for j in range(len(line)):
        out[j] = line[j] * row * columns[j]


@inner
def total(line):
    """Σ line."""
    found = F(0)
    for j in range(len(line)):
        found += line[j]
    return found


@inner
def weighted_square(weight, line):
    """Σ weight·line²."""
    found = F(0)
    for j in range(len(line)):
        found += weight[j] * line[j] * line[j]
    return found


@inner
def dot(one, other):
    """Σ one·other."""
    found = F(0)
    for j in range(len(one)):
        found += one[j] * other[j]
    return found
