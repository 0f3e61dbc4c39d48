"""First guesses of a shift: peaks of the normalised cross-correlation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensor_operations import both_ways

from atomdiffuser.estimation.coarse import correlation_peaks

SHAPE = (60, 83)


def blob_at(y: float, x: float) -> torch.Tensor:
    grid_y, grid_x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return torch.as_tensor(np.exp(-((grid_y - y) ** 2 + (grid_x - x) ** 2) / 8), dtype=torch.float32)[None]


def peaks(reference, moving, **options):
    return correlation_peaks(reference, moving, **{"max_shift_px": 25.0, "count": 4, "separation_px": 5.0, **options})


@pytest.mark.parametrize("shift", [(7, 0), (0, -12), (-5, 9), (0, 0)])
def test_a_shift_is_where_a_reference_point_lies_in_the_moving_frame(rng, shift) -> None:
    structure = torch.as_tensor(rng.normal(0, 1, (1, 120, 160)), dtype=torch.float32)
    structure = F.avg_pool2d(structure[:, None], 3, 1, 1)[:, 0]
    cut = lambda dy, dx: structure[:, 30 - dy : 30 - dy + SHAPE[0], 40 - dx : 40 - dx + SHAPE[1]]
    shifts, correlation = peaks(cut(0, 0), cut(*shift))
    assert shifts[0, 0].tolist() == pytest.approx(list(shift), abs=0.1)
    assert float(correlation[0, 0]) == pytest.approx(1, abs=0.02) and float(correlation[0, 1]) < 0.6


def test_a_blob_that_moves_down_and_right() -> None:
    shifts, _ = peaks(blob_at(25, 35), blob_at(31.4, 38.7))
    assert shifts[0, 0].tolist() == pytest.approx([6.4, 3.7], abs=0.15)


def test_shifts_beyond_the_limit_are_not_offered() -> None:
    shifts, correlation = peaks(blob_at(25, 25), blob_at(25, 45), max_shift_px=15.0)
    assert torch.all(shifts.norm(dim=-1)[torch.isfinite(correlation)] <= 15.8)


def test_peaks_of_a_lattice_lie_a_vector_apart_and_the_shortest_are_among_them() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    lattice = lambda dy, dx: torch.as_tensor(
        np.cos(2 * np.pi * (y - dy) / 12) + np.cos(2 * np.pi * (x - dx) / 15), dtype=torch.float32
    )[None]
    shifts, correlation = peaks(lattice(0, 0), lattice(3, -4), count=6)
    kept = shifts[0][torch.isfinite(correlation[0])].numpy()
    off = (kept - [3, -4]) / [12, 15]
    assert np.allclose(off, np.round(off), atol=0.05) and len(kept) == 6
    assert np.abs(kept - [3, -4]).max(1).min() < 0.3
    apart = np.linalg.norm(kept[:, None] - kept[None], axis=-1) + 99 * np.eye(6)
    assert apart.min() > 5
    ranked = correlation[0][torch.isfinite(correlation[0])]
    assert torch.all(ranked.diff() <= 0)


def test_each_pair_of_a_batch_is_its_own() -> None:
    reference = torch.cat([blob_at(30, 40), blob_at(30, 40)])
    moving = torch.cat([blob_at(33, 40), blob_at(30, 30)])
    shifts, _ = peaks(reference, moving)
    assert shifts[0, 0].tolist() == pytest.approx([3, 0], abs=0.1) and shifts[1, 0].tolist() == pytest.approx(
        [0, -10], abs=0.1
    )


@pytest.mark.parametrize("shape", [(60, 83), (41, 24)])
def test_loops_and_tensor_operations_find_the_same(rng, shape) -> None:
    first, second = (torch.as_tensor(rng.normal(0, 1, (3, *shape)), dtype=torch.float32) for _ in range(2))
    second[1, :, 10:] = 0  # lags at which nothing is in view
    ours, theirs = both_ways(lambda: peaks(first, second, max_shift_px=30.0, count=8))
    finite = torch.isfinite(theirs[1])
    assert torch.equal(torch.isfinite(ours[1]), finite) and finite.any()
    assert torch.allclose(ours[1], theirs[1], atol=1e-4) and torch.allclose(
        ours[0][finite], theirs[0][finite], atol=0.02
    )
