"""Loops of `spectrum`, compiled for the processor."""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled

F = np.float32


@compiled
def windowed(frames, window, out):
    """Frames (k, Y, X) less their mean under a window (Y, X), times it."""
    whole = 0.0
    for i in range(window.shape[0]):
        whole += window[i].sum()
    for k in range(len(frames)):
        total = 0.0
        for i in range(window.shape[0]):
            line, share, of_line = frames[k, i], window[i], F(0)
            for j in range(len(line)):
                of_line += line[j] * share[j]
            total += of_line
        mean = F(total / whole)
        for i in range(window.shape[0]):
            line, share, here = frames[k, i], window[i], out[k, i]
            for j in range(len(line)):
                here[j] = (line[j] - mean) * share[j]


@compiled
def add_power(spectra, power):
    """Add |spectra|² of (m, n, Y, X') complex numbers, given as (m, n, Y, 2X') pairs, to `power` (m, Y, X')."""
    m, n, height, _ = spectra.shape
    for p in range(m):
        for k in range(n):
            for i in range(height):
                line, total = spectra[p, k, i], power[p, i]
                for j in range(len(total)):
                    total[j] += line[2 * j] * line[2 * j] + line[2 * j + 1] * line[2 * j + 1]


@compiled
def neighbours_mean(images, out):
    """Mean of each pixel of (m, Y, X) and those around it that there are."""
    m, height, width = images.shape
    along = np.empty(width, F)
    for p in range(m):
        for i in range(height):
            here, line = images[p, i], out[p, i]
            for j in range(width):
                along[j] = here[j]
            rows = 1
            if i > 0:
                rows += 1
                above = images[p, i - 1]
                for j in range(width):
                    along[j] += above[j]
            if i < height - 1:
                rows += 1
                below = images[p, i + 1]
                for j in range(width):
                    along[j] += below[j]
            share = F(1 / (3 * rows))
            inner, left, middle, right = line[1:], along, along[1:], along[2:]
            for j in range(width - 2):
                inner[j] = (left[j] + middle[j] + right[j]) * share
            if width > 1:
                edge = F(1 / (2 * rows))
                line[0], line[width - 1] = (along[0] + along[1]) * edge, (along[width - 2] + along[width - 1]) * edge
            else:
                line[0] = along[0] / rows
