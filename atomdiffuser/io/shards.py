"""Long series in fewer files: some frames that follow each other share one, and each stays a chunk that is read alone.

A file is written once, whole, by whoever writes the store: frames are kept until those of their file are complete.
"""

from __future__ import annotations

import math

import numpy as np
import zarr

MOST_FILES = 1000
"""Frames of an array that are files of their own; beyond, they share files so that there are about as many."""
LARGEST_SHARD_BYTES = 2**26  # of frames before compression: they are kept until their file is written


def frames_a_shard(n_frames: int, frame_bytes: int) -> int:
    """How many frames share a file; 1 where each has its own."""
    if n_frames <= MOST_FILES:
        return 1
    return max(1, min(math.ceil(n_frames / MOST_FILES), LARGEST_SHARD_BYTES // max(frame_bytes, 1)))


def files_of(array: zarr.Array) -> int:
    """Files that a complete (t, y, x) array with whole frames as chunks has."""
    return math.ceil(array.shape[0] / (array.shards or array.chunks)[0])


class ShardWriter:
    """Writes frames into a (t, y, x) array, each of its files once as long as frames come in order."""

    def __init__(self, array: zarr.Array) -> None:
        self.array, self.size = array, (array.shards or array.chunks)[0]
        self._shard = 0
        self._kept: dict[int, np.ndarray] = {}

    def write(self, first: int, frames: np.ndarray) -> None:
        """Frames (n, y, x) from number `first` on; those of an incomplete file are kept until `finish`."""
        if self.size == 1:
            self.array[first : first + len(frames)] = frames
            return
        for k, frame in enumerate(frames, first):
            if k // self.size != self._shard:
                self.finish()
                self._shard = k // self.size
            self._kept[k] = np.array(frame)
            if len(self._kept) == self._length(self._shard):
                self.finish()

    def finish(self) -> None:
        """Write what is kept."""
        if len(self._kept) == self._length(self._shard):
            start = self._shard * self.size
            self.array[start : start + len(self._kept)] = np.stack([self._kept[k] for k in sorted(self._kept)])
        else:  # out of order: Zarr reads the file, changes it and writes it again
            for k, frame in self._kept.items():
                self.array[k] = frame
        self._kept = {}

    def _length(self, shard: int) -> int:
        return min(self.size, self.array.shape[0] - shard * self.size)
