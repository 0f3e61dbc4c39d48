"""Frames of a few pixels: no drift can be measured, and that is said."""

from __future__ import annotations

import pytest

from atomdiffuser import estimate_pairs, estimate_series
from atomdiffuser.errors import ShapeError


@pytest.mark.parametrize("shape", [(2, 16), (64, 7)])
def test_too_small_frames_are_refused_in_one_sentence(shape, rng):
    frames = rng.poisson(20, (3, *shape))
    with pytest.raises(ShapeError, match=f"frames of {shape[0]} × {shape[1]} pixels are too small, expected 8"):
        estimate_series(frames)
    with pytest.raises(ShapeError, match="too small"):
        estimate_pairs(frames[0], frames[1])
