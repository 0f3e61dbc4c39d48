"""One compiled look over a frame: most have no faults, and show it in a few numbers."""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled


@compiled
def first_look(frame):
    """Of a frame (Y, X): its sum (no finite number where a pixel is none), its largest value, how many pixels have it,
    and whether some row or column has one value throughout.
    """
    height, width = frame.shape
    total, largest, flat = 0.0, frame[0, 0], False
    same = np.ones(width, np.bool_)  # columns that have shown one value
    left = width
    for i in range(height):
        line = frame[i]
        top = line[0]
        for j in range(width):
            total += line[j]
            top = max(top, line[j])
        largest = max(largest, top)
        j = 0
        while j < width and line[j] == line[0]:
            j += 1
        flat = flat or j == width
        if left and i:
            left = 0
            for j in range(width):
                same[j] = same[j] and line[j] == frame[0, j]
                left += same[j]
    count = 0
    for i in range(height):
        line = frame[i]
        for j in range(width):
            count += line[j] == largest
    return total, largest, count, flat or left > 0
