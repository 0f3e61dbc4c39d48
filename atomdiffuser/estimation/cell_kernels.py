"""Loops of `cells`, compiled for the processor."""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled, inner

F = np.float32


@compiled
def values_and_slopes(first, last, coefficients, base, top, left, stride, value, slope, mean, slopes, structure):
    """Cells' rows `first` to `last`: `slopes` (n, 2, Y', X') along y and x of the splines of `coefficients` (n, Y, X),
    and `structure` (n, 2, Y', X'), local mean and the rest.

    `value`, `slope` and `mean` are taps: of a cell, the first are at `top` and `left`, and `stride` further for each.
    """
    width = coefficients.shape[2]
    values, steep, means = np.empty(width, F), np.empty(width, F), np.empty(width, F)
    for p in range(len(coefficients)):
        for i in range(first, last):
            row = top + i * stride
            weighted_lines(coefficients[p, row : row + len(value)], value, values)
            weighted_lines(coefficients[p, row : row + len(slope)], slope, steep)
            weighted_lines(base[p, row : row + len(mean)], mean, means)
            along(steep[left:], stride, value, slopes[p, 0, i])
            along(values[left:], stride, slope, slopes[p, 1, i])
            along(means[left:], stride, mean, structure[p, 0, i])
            along(values[left:], stride, value, structure[p, 1, i])
            fine, local = structure[p, 1, i], structure[p, 0, i]
            for j in range(len(fine)):
                fine[j] -= local[j]


@inner
def weighted_lines(lines, taps, out):
    """Σ taps·lines."""
    for j in range(len(out)):
        out[j] = taps[0] * lines[0, j]
    for k in range(1, len(taps)):
        line, tap = lines[k], taps[k]
        for j in range(len(out)):
            out[j] += tap * line[j]


@inner
def along(line, stride, taps, out):
    """Σ taps·line at places `stride` apart."""
    for j in range(len(out)):
        at = np.uint64(j * stride)
        total = F(0)
        for k in range(len(taps)):
            total += taps[k] * line[at + np.uint64(k)]
        out[j] = total
