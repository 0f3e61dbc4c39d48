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


def test_narrow_frames_say_nothing_of_the_dark_level(rng):
    import torch

    from atomdiffuser.damage.dark_level import DarkLevel, find_dark_level
    from atomdiffuser.estimation.frame_source import FrameSource
    from atomdiffuser.series import Acquisition, FrameSeries

    source = FrameSource(FrameSeries(rng.poisson(50, (4, 50, 10))), torch.device("cpu"))
    assert find_dark_level(source, Acquisition(), 0, search=True) == DarkLevel(0.0, "assumed")
