"""Filters against plain convolutions, spline sampling exact on the pixels and accurate between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from tensor_operations import both_ways

from atomdiffuser import interpolation as ip
from atomdiffuser.geometry import translation

SHAPE = (37, 52)


@pytest.fixture
def image(rng) -> torch.Tensor:
    return torch.as_tensor(rng.normal(0, 1, (2, *SHAPE)), dtype=torch.float32)


def coefficients(images: torch.Tensor) -> torch.Tensor:
    kernel = ip.spline_prefilter_kernel()
    return ip.filter_separable(images, kernel, kernel)


def moved(shape, dy: float, dx: float) -> tuple[torch.Tensor, torch.Tensor]:
    return ip.affine_coordinates(translation(torch.tensor([[dy, dx]], dtype=torch.float64)), shape)


def rms(error: torch.Tensor) -> float:
    return float(error.double().square().mean().sqrt())


# --- filters --------------------------------------------------------------------------------------


def test_filtering_is_convolution_along_the_axis_it_says() -> None:
    image = torch.zeros(1, 7, 9)
    image[0, 3, 4] = 1
    ahead = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)  # as a convolution, moves everything one pixel on
    assert ip.filter_separable(image, ahead, torch.ones(1))[0, 4, 4] == 1
    assert ip.filter_separable(image, torch.ones(1), ahead)[0, 3, 5] == 1


def test_filters_and_mirrored_edges_match_scipy(image, rng) -> None:
    ky, kx = rng.normal(0, 1, 9), rng.normal(0, 1, 5)
    ours = ip.filter_separable(image, torch.as_tensor(ky), torch.as_tensor(kx))
    plain = image.double().numpy()
    for kernel, axis in ((ky, 1), (kx, 2)):
        plain = scipy.ndimage.convolve1d(plain, kernel, axis=axis, mode="reflect")
    assert np.allclose(ours, plain, atol=2e-5)


def test_a_kernel_longer_than_the_frame_folds_back(image) -> None:
    wide = ip.gaussian_kernel(20.0)
    assert torch.allclose(ip.filter_separable(torch.ones(1, 7, 9), wide, wide), torch.ones(1, 7, 9), atol=1e-5)


def test_a_gaussian_has_unit_sum_and_its_width() -> None:
    for sigma in (0.8, 1.6, 5.0):
        kernel = ip.gaussian_kernel(sigma)
        x = torch.arange(len(kernel)) - len(kernel) // 2
        assert float(kernel.sum()) == pytest.approx(1) and float((kernel * x**2).sum()) == pytest.approx(
            sigma**2, rel=0.01
        )


@pytest.mark.parametrize("sigma", [0, 0.7, 2.0])
def test_derivatives_of_a_rising_ramp_are_one(sigma) -> None:
    ramp = torch.arange(60.0)[None, :, None].expand(1, 60, 8)
    slope = ip.filter_separable(ramp.contiguous(), ip.gaussian_kernel(sigma, derivative=True), torch.ones(1))
    assert torch.allclose(slope[0, 20:40], torch.ones(20, 8), atol=1e-5)


def test_chained_kernels_do_both(image) -> None:
    a, b = ip.gaussian_kernel(1.2), ip.gaussian_kernel(0.8, derivative=True)
    one, two = ip.chain_kernels(a, b), ip.filter_separable(ip.filter_separable(image, a, a), b, b)
    inner = slice(12, -12)
    assert torch.allclose(ip.filter_separable(image, one, one)[:, inner, inner], two[:, inner, inner], atol=1e-5)


@pytest.mark.parametrize(("sigma", "tolerance"), [(1.0, 1e-3), (4.0, 1e-3), (11.0, 1e-3), (14.0, 1e-3), (21.0, 1e-3)])
def test_smoothing_matches_a_plain_convolution(rng, sigma, tolerance) -> None:
    """Wide blurs take the coarse grid. Doing nothing is off threefold and more."""
    image = rng.normal(0, 1, (2, 190, 230))
    plain = scipy.ndimage.gaussian_filter(image, (0, sigma, sigma), mode="reflect", truncate=5)
    error = ip.smooth(torch.as_tensor(image, dtype=torch.float32), sigma).numpy() - plain
    assert np.sqrt((error**2).mean()) < tolerance * plain.std()
    assert np.sqrt(((image - plain) ** 2).mean()) > 3 * plain.std()


def test_smoothing_keeps_the_mean_level_of_odd_frames() -> None:
    assert torch.allclose(ip.smooth(torch.full((1, 131, 157), 7.0), 15.0), torch.full((1, 131, 157), 7.0), atol=1e-4)


def test_smoothing_a_small_grid_is_as_wide_as_asked(rng) -> None:
    image = rng.normal(0, 1, (1, 24, 32))  # the cells of a 96 × 128 frame
    plain = scipy.ndimage.gaussian_filter(image, (0, 8, 8), mode="reflect", truncate=5)
    error = ip.smooth(torch.as_tensor(image, dtype=torch.float32), 8.0).numpy() - plain
    assert np.sqrt((error**2).mean()) < 2e-3 * plain.std()


# --- sampling -------------------------------------------------------------------------------------


def test_coordinates_say_where_an_affine_puts_each_pixel() -> None:
    a = torch.tensor([[[1.5, 0.25, 3], [0.5, 2, -1], [0, 0, 1]]], dtype=torch.float64)
    y, x = ip.affine_coordinates(a, (4, 5))
    assert (
        y.shape == (1, 4, 5)
        and float(y[0, 2, 3]) == 1.5 * 2 + 0.25 * 3 + 3
        and float(x[0, 2, 3]) == 0.5 * 2 + 2 * 3 - 1
    )


def test_coordinates_stay_exact_at_the_far_corner_of_a_large_frame() -> None:
    a = torch.tensor([[[1.0001, 0.0003, 2.125], [-0.0002, 0.9999, -7.5], [0, 0, 1]]], dtype=torch.float64)
    y, x = ip.affine_coordinates(a, (4096, 4096))
    exact = a[0, :2] @ torch.tensor([4095.0, 4095.0, 1.0], dtype=torch.float64)
    assert abs(float(y[0, -1, -1]) - float(exact[0])) < 1e-3 and abs(float(x[0, -1, -1]) - float(exact[1])) < 1e-3


@pytest.mark.parametrize("sample", [ip.sample_linear, ip.sample_nearest])
def test_one_bright_pixel_is_found_one_pixel_on(sample) -> None:
    """Sampling at q + (1, 0) shows at q what lies one row below."""
    image = torch.zeros(1, *SHAPE)
    image[0, 10, 20] = 1
    assert sample(image, *moved(SHAPE, 1.0, 0.0))[0, 9, 20] == pytest.approx(1, abs=1e-5)
    assert sample(image, *moved(SHAPE, 0.0, 1.0))[0, 10, 19] == pytest.approx(1, abs=1e-5)


def test_splines_are_exact_on_the_pixels(image) -> None:
    sampled = ip.sample_spline(coefficients(image), *(c.expand(2, -1, -1) for c in moved(SHAPE, 0.0, 0.0)))
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(sampled[inner], image[inner], atol=3e-5)
    shifted = ip.sample_spline(coefficients(image), *(c.expand(2, -1, -1) for c in moved(SHAPE, 3.0, -2.0)))
    assert torch.allclose(shifted[:, 2:-5, 4:-2], image[:, 5:-2, 2:-4], atol=3e-5)


@pytest.mark.parametrize("shift", [(0.5, 0.5), (0.3, -0.7), (-0.25, 0.1)])
def test_splines_are_accurate_between_the_pixels(shift) -> None:
    """On waves of eight pixels: below a thousandth of the amplitude, where linear interpolation errs by 5 to 15 %."""
    wave = lambda y, x: torch.sin(2 * math.pi * (y / 8.3 + 0.2)) * torch.cos(2 * math.pi * x / 9.1)
    grid = [c.float() for c in torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")]
    image = wave(*grid)[None]
    y, x = moved(image.shape[-2:], *shift)
    inner = (slice(None), slice(16, -16), slice(16, -16))
    truth = wave(y, x)[inner]
    spline = rms(ip.sample_spline(coefficients(image), y, x)[inner] - truth)
    linear, nothing = rms(ip.sample_linear(image, y, x)[inner] - truth), rms(image[inner] - truth)
    assert spline < 1.5e-3 and linear > 0.01 and nothing > 0.04


def test_splines_have_no_amplitude_error_at_half_a_pixel() -> None:
    wave = torch.cos(2 * math.pi * torch.arange(80.0) / 6)[None, None].expand(1, 40, 80).contiguous()
    y, x = moved((40, 80), 0.0, 0.5)
    sampled = ip.sample_spline(coefficients(wave), y, x)[0, 20, 20:60]
    # An amplitude from two quadratures; the local cubic kernel of a = −1/2 would be at 0.95.
    phase = 2 * math.pi * (torch.arange(20.0, 60.0) + 0.5) / 6
    amplitude = float((sampled * phase.cos())[:36].sum() / (phase.cos() ** 2)[:36].sum())
    assert amplitude == pytest.approx(1, abs=0.006)


def test_outside_is_zero(image) -> None:
    assert torch.all(ip.sample_linear(image, *(c.expand(2, -1, -1) for c in moved(SHAPE, 100.0, 0.0))) == 0)


def test_a_batch_gives_what_each_image_gives(image) -> None:
    y, x = (c.expand(2, -1, -1) for c in moved(SHAPE, 0.4, 0.9))
    together = ip.sample_spline(coefficients(image), y, x)
    alone = torch.cat([ip.sample_spline(coefficients(image[k : k + 1]), y[:1], x[:1]) for k in (0, 1)])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("rows", [300, 77, 411])
def test_a_banded_matrix_gives_the_whole_product(rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    line = torch.arange(rows)[:, None] * 300 // rows
    distance = (line - torch.arange(300)).abs()
    matrix = torch.where(distance <= 17, torch.rand(rows, 300, generator=generator), 0.0).double()
    images = torch.rand(2, 3, 300, 41, generator=generator).double()
    banded = ip.BandedMatrix.of(matrix)
    assert banded.reach == 17
    assert torch.allclose(banded @ images, matrix @ images, rtol=1e-12)
    assert not torch.allclose(ip.BandedMatrix(matrix, 3) @ images, matrix @ images, rtol=1e-3)  # it does leave out


def test_wide_blurs_are_those_of_the_kernel() -> None:
    image = torch.rand(1, 300, 411, generator=torch.Generator().manual_seed(4))
    kernel = ip.gaussian_kernel(9.0)
    assert (ip.smooth(image, 9.0) - ip.filter_separable(image, kernel, kernel)).abs().max() < 5e-4 * image.std()


def test_near_reaches_as_far_along_rows_as_along_columns() -> None:
    mask = torch.zeros(1, 9, 12, dtype=torch.bool)
    mask[0, 4, 5] = True
    expected = torch.zeros_like(mask)
    expected[0, 2:7, 3:8] = True
    assert torch.equal(ip.near(mask, 2), expected)


@pytest.mark.parametrize(("shape", "sigma"), [((64, 64), 9.0), ((131, 300), 15.0), ((300, 70), 21.0)])
def test_a_wide_blur_by_loops_is_that_by_tensor_operations(rng, shape, sigma) -> None:
    images = torch.as_tensor(rng.normal(3, 1, (2, *shape)), dtype=torch.float32)
    ours, theirs = both_ways(lambda: ip.smooth(images, sigma))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-5


def test_a_band_ends_where_rounding_leaves_nothing() -> None:
    whole = torch.tensor([[0.0, 1.0, 1e-9, 0.5, 0.0], [0.0] * 5, [1e-3, 0.0, 0.0, 0.0, 1e-12]])
    assert ip.BandedMatrix.of(whole).extent.tolist() == [[1, 4], [0, 0], [0, 1]]
