"""Regions of the frame by known numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomdiffuser.damage.regions import grid_regions


def test_a_grid_counts_rows_then_columns() -> None:
    found = grid_regions((6, 9), (2, 3))
    assert [r.name for r in found.regions] == ["whole", *(f"grid_{r}_{c}" for r in (0, 1) for c in (0, 1, 2))]
    assert [r.region_id for r in found.regions] == list(range(7))
    assert found.regions[0].bounds_px == (0, 0, 6, 9) and found.regions[6].bounds_px == (3, 6, 6, 9)
    assert found.atoms[0, 8] == 2 and found.atoms[5, 0] == 3  # row 0 column 2, row 1 column 0
    assert found.sizes_px().tolist() == [54, *[9] * 6]


@given(st.tuples(st.integers(4, 60), st.integers(4, 60)), st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_the_grid_tiles_the_frame(shape, grid) -> None:
    found = grid_regions(shape, grid)
    sizes = found.sizes_px()
    assert sizes[0] == shape[0] * shape[1] == sizes[1:].sum() and sizes.min() > 0
    for region, row in zip(found.regions, found.membership, strict=True):
        y0, x0, y1, x1 = region.bounds_px
        inside = row[found.atoms]
        assert inside[y0:y1, x0:x1].all() and inside.sum() == (y1 - y0) * (x1 - x0)


def test_pixels_outside_all_regions_are_not_counted() -> None:
    import dataclasses

    found = grid_regions((6, 9), (1, 1))
    atoms = found.atoms.copy()
    atoms[0] = -1
    assert dataclasses.replace(found, atoms=atoms).sizes_px().tolist() == [45, 45]


@pytest.mark.parametrize("grid", [(1, 1), (3, 3)])
def test_membership_is_boolean_and_complete(grid) -> None:
    found = grid_regions((30, 40), grid)
    assert found.membership.dtype == bool and found.membership[0].all()
    assert np.array_equal(found.membership[1:], np.eye(grid[0] * grid[1], dtype=bool))
