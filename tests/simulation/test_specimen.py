import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atomdiffuser.errors import SettingsError, ShapeError
from atomdiffuser.geometry import apply_affine, identity, invert, pixel_grid, translation
from atomdiffuser.simulation.crystals import crystals_in_pixels
from atomdiffuser.simulation.drift import centred_affine
from atomdiffuser.simulation.randomness import RandomStreams
from atomdiffuser.simulation.scenes import SPECIMENS, named_specimen
from atomdiffuser.simulation.specimen import ScanGrid, Specimen, crystal_waves

SHAPE = (72, 90)
PIXEL_NM = (0.025, 0.025)


def specimen(name: str = "SrTiO3", *, seed: int = 1, shape=SHAPE, **options) -> Specimen:
    return named_specimen(name, shape, PIXEL_NM, RandomStreams(seed), **options)


def frame(item: Specimen, frame_from_specimen: torch.Tensor, shape=SHAPE, **grid) -> torch.Tensor:
    """Expected signal of one frame, (y, x) float64."""
    seen = item.render(ScanGrid(invert(frame_from_specimen), shape, **grid), dtype=torch.float64)
    return (seen.base + seen.lattice)[0]


def motion(shift=(3.2, -4.7), rotation_deg=3.0, strain=(0.01, -0.02), shear=0.01, shape=SHAPE) -> torch.Tensor:
    tensor = lambda *v: torch.tensor([v], dtype=torch.float64)
    return centred_affine(
        shape, tensor(*shift), tensor(rotation_deg)[0], tensor(*strain), torch.tensor([shear], dtype=torch.float64)
    )


def test_fourier_series_is_the_sum_of_gaussian_columns():
    crystal = crystals_in_pixels(["Si"], torch.full((1, 2), 0.025, dtype=torch.float64))
    waves, mean = crystal_waves(crystal, negligible=1e-9)
    points = torch.rand(1, 200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30
    cells = torch.cartesian_prod(torch.arange(-8, 9), torch.arange(-8, 9)).double()
    cells = cells + torch.floor(points.mean((0, 1)) @ torch.linalg.inv(crystal.cell[0]))
    columns = (cells @ crystal.cell[0])[:, None] + crystal.columns[0]  # (cells, c, 2)
    squared = ((points[0, :, None, None] - columns) ** 2).sum(-1)
    direct = (crystal.weights[0] * torch.exp(-squared / (2 * crystal.widths[0] ** 2))).sum((1, 2))
    assert torch.allclose(waves.at(points)[0] + mean, direct, atol=1e-6)


@pytest.mark.parametrize("name", SPECIMENS)
def test_lattice_has_no_mean_over_a_cell(name):
    item = specimen(name, vacancies=0, wedge=0)
    cell = item.lattice_vectors[0]
    steps = torch.arange(64, dtype=torch.float64) / 64
    inside = torch.cartesian_prod(steps, steps) @ cell
    structure = item.grains[0].at(inside[None])
    assert structure.mean().abs() < 1e-9
    assert structure.std() > 0.02


@pytest.mark.parametrize("name", SPECIMENS)
@pytest.mark.parametrize("lines", [False, True], ids=["even lines", "jittered lines"])
def test_fast_rendering_agrees_with_evaluating_every_point(name, lines):
    options = dict(edge=True, grain_boundary=True) if name == "SrTiO3" else {}
    item = specimen(name, vacancies=0.05, **options)
    offset = None
    if lines:
        offset = torch.randn(1, SHAPE[0], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = ScanGrid(invert(motion()), SHAPE, offset)
    seen, points = item.render(grid), grid.points()
    assert torch.allclose(seen.base.double(), item.base(points), atol=1e-5)
    assert torch.allclose(seen.lattice.double(), item.lattice(points), atol=1e-5)
    assert torch.allclose(seen.amplitude.double(), item.lattice_amplitude(points), atol=1e-5)


def test_points_of_a_scan_with_uneven_lines_and_distortion():
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(1, SHAPE[0], 2, generator=generator, dtype=torch.float64)
    warp = torch.randn(1, *SHAPE, 2, generator=generator, dtype=torch.float64)
    grid = ScanGrid(invert(motion()), SHAPE, lines, warp)
    pixels = pixel_grid(SHAPE)[None] + lines[:, :, None] + warp
    assert torch.allclose(grid.points(), apply_affine(invert(motion())[:, None, None], pixels), atol=1e-9)
    item = specimen(vacancies=0.05)
    seen = item.render(grid, dtype=torch.float64)
    assert torch.allclose(seen.lattice, item.lattice(grid.points()), atol=1e-9)


def test_a_whole_pixel_shift_moves_the_picture_down_and_left():
    item = specimen(vacancies=0.05, edge=True)
    still, moved = (
        frame(item, a) for a in (identity(1), translation(torch.tensor([[3.0, -5.0]], dtype=torch.float64)))
    )
    assert torch.allclose(moved[3:, :-5], still[:-3, 5:], atol=1e-6)
    assert (moved - still).abs().max() > 0.3  # doing nothing
    assert (moved[:-3, 5:] - still[3:, :-5]).abs().max() > 0.3  # the wrong way round


def test_a_quarter_turn_takes_the_bottom_row_to_the_right():
    """y towards x: what points down comes to point right, so the frame turns as `rot90` does."""
    square = (64, 64)
    item = specimen(shape=square, vacancies=0.05, edge=True, wedge=0.3)
    still = frame(item, identity(1), square)
    turned = frame(item, motion((0, 0), 90.0, (0, 0), 0.0, square), square)
    assert torch.allclose(turned, torch.rot90(still, 1), atol=1e-6)
    assert (turned - torch.rot90(still, -1)).abs().max() > 0.3


def test_accuracy_does_not_fade_far_from_the_origin():
    item = specimen("graphene", vacancies=0)
    far = ScanGrid(translation(torch.tensor([[4000.0, 4000.0]], dtype=torch.float64)), (32, 32))
    seen = item.render(far)
    assert torch.allclose(seen.lattice.double(), item.lattice(far.points()), atol=2e-5)


def test_a_vacancy_is_dark_and_keeps_base_and_lattice_apart():
    item = specimen(vacancies=0.15, wedge=0)
    perfect = dataclasses.replace(item, defects=item.defects[:, :0])
    difference = frame(item, identity(1)) - frame(perfect, identity(1))
    inside = [d for d in item.defects[0] if 3 < d[0] < SHAPE[0] - 4 and 3 < d[1] < SHAPE[1] - 4 and abs(d[2]) > 0.02]
    assert inside
    for y, x, height, _ in inside:
        assert difference[round(float(y)), round(float(x))] == pytest.approx(float(height), rel=0.2, abs=0.02)
    points = pixel_grid((220, 240))[None] - 70.0
    structure = item.lattice(points) - perfect.lattice(points)
    mass = item.base(points) - perfect.base(points)
    assert structure.sum().abs() < 0.02 * mass.sum().abs()  # what is missing is missing from the mean


def test_no_crystal_is_negative_anywhere_and_the_brightest_point_is_about_one():
    for name in SPECIMENS:
        signal = frame(specimen(name, vacancies=0), identity(1))
        assert signal.min() > 0 and 0.75 < signal.max() < 1.35, name


@pytest.mark.parametrize("name", SPECIMENS)
def test_structure_as_strong_as_the_headroom_allows_is_not_negative(name):
    item = specimen(name, vacancies=0.2)
    points = pixel_grid((100, 100))[None]
    base, lattice = item.base(points), item.lattice(points)
    left = (base + item.headroom * lattice).min() / base.max()
    assert -2e-3 < left < 0.3


def test_vacuum_is_empty_and_the_edge_is_monotonous():
    item = specimen("graphene", edge=True, vacancies=0, wedge=0)
    ny, nx, offset, _ = item.edges[0, 0]
    along = torch.linspace(-40, 40, 81, dtype=torch.float64)
    points = (torch.stack([ny, nx]) * (offset + along[:, None]))[None, None]
    base = item.base(points)[0, 0]
    assert torch.all(base.diff() <= 0) and base[-1] < 1e-3 and base[0] > 0.3
    assert item.lattice(points)[0, 0, -1].abs() < 1e-3


def test_grains_differ_across_their_boundary_only():
    item = specimen(grain_boundary=True, vacancies=0)
    one = dataclasses.replace(item, grains=item.grains[:1])
    ny, nx, offset, _ = item.boundary[0]
    points = pixel_grid(SHAPE)[None]
    distance = points @ torch.stack([ny, nx]) - offset
    difference = (item.lattice(points) - one.lattice(points)).abs()
    assert difference[distance < -30].max() < 1e-3 < 0.1 < difference[distance > 30].max()


def test_lattice_amplitude_is_the_local_standard_deviation():
    item = specimen("Si", vacancies=0, wedge=0)
    points = pixel_grid((150, 150))[None]
    assert item.lattice(points).std() == pytest.approx(float(item.lattice_amplitude(points).mean()), rel=0.03)
    assert torch.all(specimen("amorphous").lattice_amplitude(points) == 0)


def test_amorphous_speckle_is_as_strong_as_asked():
    item = specimen("amorphous", wedge=0)
    wide = item.lattice(pixel_grid((300, 300))[None])
    assert wide.std() == pytest.approx(0.16 * 0.6, rel=0.15)
    assert wide.mean().abs() < 0.01


def test_unknown_specimens_and_wrong_numbers_of_scans_are_refused():
    with pytest.raises(SettingsError, match="'cheese' is not known; known are SrTiO3"):
        specimen("cheese")
    with pytest.raises(ShapeError, match="2 scans for 1 specimens"):
        specimen().render(ScanGrid(identity(2), SHAPE))


def test_taking_some_of_a_batch():
    from atomdiffuser.simulation.pairs import simulate_pairs

    both = simulate_pairs(3, (40, 48), 0).specimen
    points = pixel_grid((40, 48)).expand(3, -1, -1, -1)
    assert torch.allclose(both.base(points)[1:2], both[1:2].base(points[:1]))


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-60, 60), st.floats(-60, 60), st.floats(-180, 180), st.floats(-0.1, 0.1), st.sampled_from(SPECIMENS)
)  # fmt: skip
def test_any_motion_renders_the_moved_points(dy, dx, turn, strain, name):
    item, affine = specimen(name, vacancies=0.05), motion((dy, dx), turn, (strain, 0.0), strain / 2, (24, 31))
    grid = ScanGrid(invert(affine), (24, 31))
    seen = item.render(grid, dtype=torch.float64)
    moved = apply_affine(invert(affine)[:, None, None], pixel_grid((24, 31))[None])
    # A defect's tail is cut at 1e-4 of its height; rounding may move the cut.
    assert np.allclose(seen.lattice + seen.base, item.lattice(moved) + item.base(moved), atol=2e-3)
