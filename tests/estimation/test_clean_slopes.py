"""Slopes freed of noise: closer to the truth, as noisy as said, and no cause of drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_pairs import series, source

from atomdiffuser.estimation.cells import reference_cells
from atomdiffuser.estimation.prepare import prepare_frames
from atomdiffuser.estimation.register import FitOptions

SHAPE = (128, 129)


@pytest.fixture(scope="module")
def noisy_and_true():
    """Cells of 16 frames of a lattice at 8 e⁻/px, and of the same frames without noise."""
    s = series("SrTiO3", n_frames=2, shape=SHAPE, electrons_per_px=8.0, damage="none", seed=1)
    expected = torch.as_tensor(s.expected[:1], dtype=torch.float32)
    counts = torch.poisson(expected.expand(16, -1, -1), generator=torch.Generator().manual_seed(0))
    options = FitOptions(source(s).noise, source(s).scales)
    cells = lambda frames: options.cells(prepare_frames(frames, options.scales))
    return cells(counts), cells(expected), options


def test_clean_slopes_are_closer_to_the_truth(noisy_and_true) -> None:
    noisy, true, _ = noisy_and_true
    error = lambda slopes: float((slopes - true.slopes).square().mean())
    assert error(noisy.clean_slopes) < 0.5 * error(noisy.slopes)
    assert error(true.clean_slopes) < 0.2 * float(true.slopes.square().mean())  # lost: what such noise would hide


def test_the_noise_left_is_as_told(noisy_and_true) -> None:
    """Products of clean and given slopes have the noise-free energy of clean slopes, and so much of the noise's."""
    noisy, true, options = noisy_and_true
    product = (noisy.clean_slopes * noisy.slopes).sum((1, -2, -1))
    with_truth = (noisy.clean_slopes * true.slopes).sum((1, -2, -1))
    per_cell = 2 * noisy.grid.noise(options.scales.filter_px).slope_energy * float(true.base.mean())
    told = noisy.noise_left[:, 0] * per_cell * noisy.base[0].numel()
    assert float((product - with_truth).mean()) == pytest.approx(float(told.mean()), rel=0.25)


def test_noise_does_not_meet_its_own_slope(noisy_and_true) -> None:
    """The sum of clean slope times noise is zero on average: the mean over frames within its error."""
    noisy, true, _ = noisy_and_true
    noise = (noisy.lattice + noisy.base) - (true.lattice + true.base)
    sums = (noisy.clean_slopes * noise[:, None]).sum((-2, -1)).numpy()
    assert (np.abs(sums.mean(0)) < 3.5 * sums.std(0, ddof=1) / len(sums) ** 0.5).all()


def test_of_noise_alone_little_is_left() -> None:
    noise = torch.poisson(torch.full((8, *SHAPE), 20.0), generator=torch.Generator().manual_seed(1))
    s = series("SrTiO3", n_frames=2, shape=SHAPE, electrons_per_px=20.0, damage="none", seed=1)
    src = source(s)
    cells = reference_cells(prepare_frames(noise, src.scales), src.noise, src.scales.filter_px, 2, 2.0)
    assert float(cells.clean_slopes.square().mean() / cells.slopes.square().mean()) < 0.1
