"""Inputs for property tests: affines as registration meets them, and frames of them."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

SHAPES = st.tuples(st.integers(2, 40), st.integers(2, 40))
SHARES = st.floats(0, 1, allow_subnormal=False)


def _finite(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@st.composite
def affines(draw, *, turn_deg: float = 120.0, strain: float = 0.3, shift_px: float = 60.0) -> torch.Tensor:
    """One affine (3, 3): a turn times a symmetric stretch, then a shift."""
    angle = math.radians(draw(_finite(-turn_deg, turn_deg)))
    stretch_y, stretch_x = 1 + draw(_finite(-strain, strain)), 1 + draw(_finite(-strain, strain))
    shear = draw(_finite(-strain / 2, strain / 2))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    linear = turn @ torch.tensor([[stretch_y, shear], [shear, stretch_x]], dtype=torch.float64)
    affine = torch.eye(3, dtype=torch.float64)
    affine[:2, :2] = linear
    affine[:2, 2] = torch.tensor(
        [draw(_finite(-shift_px, shift_px)), draw(_finite(-shift_px, shift_px))], dtype=torch.float64
    )
    return affine


def drifts() -> st.SearchStrategy[torch.Tensor]:
    """Affines of the size that drift has: a few degrees, a few per cent."""
    return affines(turn_deg=6.0, strain=0.04, shift_px=40.0)
