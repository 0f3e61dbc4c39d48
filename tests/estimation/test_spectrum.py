"""Scales read off the power spectrum: the lattice period where there is a lattice, and only there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensor_operations import both_ways

from atomdiffuser.estimation.spectrum import (
    ImageScales,
    lattice_noise_energy,
    lattice_period,
    mean_of_neighbours,
    mean_power,
    mean_powers,
    measure_scales,
)
from atomdiffuser.interpolation import filter_separable, gaussian_kernel
from atomdiffuser.simulation import simulate_series

SHAPE = (144, 160)


def frames(specimen: str, **options) -> tuple[torch.Tensor, float]:
    default = dict(n_frames=3, shape=SHAPE, pixel_size_nm=0.025, electrons_per_px=40, damage="none")
    s = simulate_series(specimen, **{**default, **options})
    vectors = s.lattice_vectors_px
    return torch.as_tensor(s.series.frames.astype(np.float32)), math.nan if vectors is None else float(
        np.linalg.norm(vectors[0])
    )


@pytest.mark.parametrize(("specimen", "relative"), [("SrTiO3", 0.15), ("Si", 0.15), ("graphene", 0.15)])
@pytest.mark.parametrize("view", [{}, {"edge": True}, {"amorphous_border": True}])
def test_the_period_is_found_whatever_else_is_in_view(specimen, relative, view) -> None:
    """Of graphene and silicon the shortest spacing of rows is √3/2 of the lattice vector."""
    image, period = frames(specimen, **view)
    found = lattice_period(image)
    assert found is not None
    rows = period * (math.sqrt(3) / 2 if specimen == "graphene" else 1)
    assert found == pytest.approx(rows, rel=relative)


def test_a_coarser_scan_gives_a_shorter_period() -> None:
    fine, coarse = (lattice_period(frames("SrTiO3", pixel_size_nm=size)[0]) for size in (0.025, 0.035))
    assert fine / coarse == pytest.approx(0.035 / 0.025, rel=0.15)


def test_shot_noise_has_no_lattice(rng) -> None:
    assert lattice_period(torch.as_tensor(rng.poisson(20, (3, *SHAPE)), dtype=torch.float32)) is None


def test_an_edge_alone_is_no_lattice(rng) -> None:
    """Its spectrum is a streak in one direction."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mean = 5 + 40 * (0.6 * y + 0.8 * x > 90)
    assert lattice_period(torch.as_tensor(rng.poisson(mean, (3, *SHAPE)), dtype=torch.float32)) is None


@pytest.mark.parametrize("seed", range(3))
def test_an_amorphous_film_has_no_lattice(seed) -> None:
    assert lattice_period(frames("amorphous", electrons_per_px=60, seed=seed)[0]) is None


@pytest.mark.parametrize("shape", [(94, 131), (130, 160), (250, 250)])
def test_the_period_is_found_in_frames_of_any_size(shape) -> None:
    image, period = frames("SrTiO3", shape=shape)
    assert lattice_period(image) == pytest.approx(period, rel=0.2)


@pytest.mark.parametrize("pixel_size_nm", [0.007, 0.0085])
def test_a_period_larger_than_an_eighth_of_the_frame_is_found(pixel_size_nm) -> None:
    """Windows of half the frame show periods to an eighth of it, 32 px."""
    image, period = frames("SrTiO3", shape=(256, 288), pixel_size_nm=pixel_size_nm)
    assert period > 1.3 * 256 / 8
    assert lattice_period(image) == pytest.approx(period, rel=0.1)


def test_tiny_frames_have_none() -> None:
    assert lattice_period(torch.ones(1, 20, 24)) is None


@pytest.mark.parametrize("n", [1, 8])
def test_the_noise_floor_is_the_noise(rng, n) -> None:
    power, frequency, floor = mean_power(torch.as_tensor(rng.normal(5, 3, (n, 260, 311)), dtype=torch.float32))
    assert floor == pytest.approx(9, rel=0.15 if n == 1 else 0.06)
    assert power.shape == frequency.shape and float(frequency.max()) <= math.hypot(0.5, 0.5)


@pytest.mark.parametrize("shape", [(64, 64), (45, 83)])
def test_spectra_by_loops_are_those_by_tensor_operations(rng, shape) -> None:
    stacks = torch.as_tensor(rng.normal(30, 3, (2, 3, *shape)), dtype=torch.float32)
    ours, theirs = both_ways(lambda: mean_powers(stacks))
    assert torch.allclose(ours[0], theirs[0], rtol=1e-3, atol=1e-4) and torch.allclose(ours[2], theirs[2], rtol=1e-4)
    alone = [mean_power(stack) for stack in stacks]
    assert torch.allclose(ours[0], torch.stack([power for power, _, _ in alone]), rtol=1e-5)
    assert ours[2].tolist() == pytest.approx([floor for _, _, floor in alone])


@pytest.mark.parametrize("shape", [(5, 9), (1, 4), (7, 1), (2, 2)])
def test_the_mean_of_neighbours_counts_those_that_there_are(rng, shape) -> None:
    images = torch.as_tensor(rng.normal(0, 1, (2, *shape)), dtype=torch.float32)
    ours, theirs = both_ways(lambda: mean_of_neighbours(images))
    near = lambda k, n: slice(max(k - 1, 0), min(k + 2, n))
    for y, x in np.ndindex(shape):
        expected = images[:, near(y, shape[0]), near(x, shape[1])].mean((1, 2))
        assert torch.allclose(ours[:, y, x], expected, atol=1e-6)
        if min(shape) > 1:
            assert torch.allclose(theirs[:, y, x], expected, atol=1e-6)


def test_lattice_noise_energy_is_that_of_the_filters(rng) -> None:
    scales = ImageScales(filter_px=1.3, base_px=6.0, period_px=None)
    noise = torch.as_tensor(rng.normal(0, 1, (4, 200, 230)), dtype=torch.float32)
    kernel, wide = gaussian_kernel(1.3), gaussian_kernel(6.0)
    matched = filter_separable(noise, kernel, kernel)
    lattice = matched - filter_separable(matched, wide, wide)
    assert float(lattice.var()) == pytest.approx(lattice_noise_energy(scales), rel=0.03)


def test_scales_are_in_order_and_fit_the_frame() -> None:
    scales = measure_scales(frames("SrTiO3")[0])
    assert 0.8 <= scales.filter_px < scales.base_px < scales.period_px and scales.base_px <= min(SHAPE) / 6


@pytest.mark.parametrize(("specimen", "electrons", "least"), [("nanoparticle", 5.0, 1.3), ("SrTiO3", 5.0, 1.0)])
def test_the_matched_filter_widens_at_low_counts(specimen, electrons, least) -> None:
    """Columns are 2.2 px wide. Noise taken for fine structure would ask for the narrowest filter there is, 0.8 px."""
    view = dict(n_frames=2, shape=(256, 256), pixel_size_nm=0.02)
    faint, _ = frames(specimen, electrons_per_px=electrons, **view)
    bright, _ = frames(specimen, electrons_per_px=2000.0, **view)
    assert least <= measure_scales(faint).filter_px <= 2.5
    assert measure_scales(bright).filter_px <= 0.9


def test_windows_too_small_to_agree_to_a_tenth_still_show_the_lattice() -> None:
    """Windows of 96 px know a period of 19.5 px as 96/4, 96/√18 or 96/5 only."""
    simulated = simulate_series(
        "SrTiO3", n_frames=6, shape=(192, 192), seed=13, electrons_per_px=1.0, dtype="float32", vacancies=0.02,
        drift_px_per_frame=0.3 * 0.3905 / 0.02, random_walk_px=0.5, damage="uniform", witness="contrast",
        critical_fluence=20000.0, fluence_per_frame=1000.0,
    )  # fmt: skip
    counts = np.random.default_rng([13, 20]).poisson(20 * simulated.expected)
    found = measure_scales(torch.as_tensor(counts, dtype=torch.float32)).period_px
    assert found == pytest.approx(0.3905 / 0.02, rel=0.2)


def test_windows_that_take_one_or_the_other_of_two_frequencies_agree() -> None:
    """The period lies between the 6th and the 7th of a window; as many say 21.0 px as 18.1."""
    simulated = simulate_series(
        "SrTiO3", n_frames=6, shape=(256, 256), seed=37, electrons_per_px=1.0, dtype="float32", random_walk_px=0.3,
        drift_px_per_frame=1.5, rotation_deg_per_frame=0.05, damage="holes", witness="both", fluence_per_frame=1000.0,
        critical_fluence=5000 / np.log(2.5), vacancies=0.04,
    )  # fmt: skip
    counts = np.random.default_rng([37, 200]).poisson(200 * simulated.expected[:2])
    found = measure_scales(torch.as_tensor(counts, dtype=torch.float32)).period_px
    assert found == pytest.approx(0.3905 / 0.02, rel=0.1)
