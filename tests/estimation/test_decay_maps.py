"""Decay maps against simulated truth: both witnesses, their σ, where they are unknown, and uneven grids."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from measured_pairs import SHAPE, pairs, rms, series, source

from atomdiffuser import geometry as g
from atomdiffuser.estimation.local_regression import estimate_decay_maps, full_resolution
from atomdiffuser.simulation import simulate_series

WIDE = (128, 160)
WITNESSES = ("intensity", "contrast")
MAPS = (*WITNESSES, "intensity_sigma", "contrast_sigma", "coverage")


def mapped(batch, *, stride: int = 4, **options):
    """Maps with the true drift: what is judged is the regression alone."""
    n = len(batch)
    src = source(np.stack([batch.reference.numpy(), batch.moving.numpy()], 1).reshape(-1, *batch.reference.shape[1:]))
    return estimate_decay_maps(
        src.prepared(range(0, 2 * n, 2)), src.prepared(range(1, 2 * n, 2)), batch.moving_from_reference,
        noise=src.noise, scales=src.scales, stride=stride, **options,
    )  # fmt: skip


def cells(image, stride: int = 4) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(
        torch.as_tensor(image)[:, None].float(), stride, ceil_mode=True, count_include_pad=False
    )[:, 0]


@cache
def uniform():
    return pairs(12, 21)


@pytest.mark.parametrize(("witness", "tolerance"), [("intensity", 0.01), ("contrast", 0.03)])
def test_uniform_loss_is_recovered_everywhere(witness, tolerance) -> None:
    """Half to a fifth is lost; 'nothing happened' errs by 0.2 and more."""
    batch = uniform()
    found, true = getattr(mapped(batch), witness), cells(getattr(batch, witness))
    assert rms(found - true) < tolerance and rms(1 - true) > 0.15
    assert abs(float((found - true)[torch.isfinite(found)].mean())) < tolerance / 3


@pytest.mark.parametrize(
    ("pattern", "intensity", "contrast"), [("holes", 0.04, 0.07), ("perlin", 0.05, 0.08), ("edge", 0.04, 0.06)]
)
def test_loss_that_varies_is_followed(pattern, intensity, contrast) -> None:
    batch = pairs(8, patterns=(pattern,), loss=(0.4, 0.7))
    maps = mapped(batch)
    for witness, tolerance in (("intensity", intensity), ("contrast", contrast)):
        true = cells(getattr(batch, witness))
        error, nothing = rms(getattr(maps, witness) - true), rms(1 - true)
        assert error < tolerance and error < 0.45 * nothing, (witness, error, nothing)


def test_each_witness_sees_its_own() -> None:
    """Amorphisation keeps the mass: κ falls, μ stays; and the other way round."""
    melted = mapped(pairs(6, witness_odds=(0, 1, 0, 0, 0, 0)))
    assert rms(melted.intensity - 1) < 0.01 and rms(melted.contrast - 1) > 0.15
    gone = pairs(6, witness_odds=(0, 0, 1, 0, 0, 0), background=(0.5, 0.8))
    maps = mapped(gone)
    assert rms(maps.intensity - cells(gone.intensity)) < 0.01 and rms(maps.contrast - cells(gone.contrast)) < 0.04
    assert rms(maps.intensity - 1) > 0.15


def test_gain_above_one_is_legal() -> None:
    batch = pairs(4, witness_odds=(0, 0, 0, 0, 0, 1), loss=(0.7, 0.9))
    maps = mapped(batch)
    assert float(cells(batch.intensity).max()) > 1.03
    assert rms(maps.intensity - cells(batch.intensity)) < 0.012 and float(torch.nanmean(maps.intensity)) > 1.02


def test_noise_in_the_reference_does_not_bias_the_contrast_low() -> None:
    """Errors in variables: at few counts an uncorrected slope would fall short by a tenth."""
    batch = pairs(12, electrons=(12.0, 12.0), undamaged=1.0)
    found = mapped(batch, bandwidth_px=24.0).contrast
    assert float(torch.nanmean(found)) == pytest.approx(1, abs=0.03)


def test_sigma_is_calibrated_away_from_the_border() -> None:
    batch = uniform()
    maps = mapped(batch, bandwidth_px=8.0)
    inner = (slice(None), slice(6, -6), slice(6, -6))
    for witness in WITNESSES:
        z = (getattr(maps, witness) - cells(getattr(batch, witness))) / getattr(maps, f"{witness}_sigma")
        assert 0.8 < rms(z[inner]) < 1.25, witness


def test_sigma_is_calibrated_at_the_border() -> None:
    batch = uniform()
    maps = mapped(batch, bandwidth_px=8.0)
    rim = torch.ones_like(maps.coverage[0], dtype=torch.bool)
    rim[3:-3, 3:-3] = False
    for witness in WITNESSES:
        z = (getattr(maps, witness) - cells(getattr(batch, witness))) / getattr(maps, f"{witness}_sigma")
        assert 0.8 < rms(z[:, rim]) < 1.25, witness


def test_sigma_covers_the_bias_where_loss_varies() -> None:
    batch = pairs(8, patterns=("perlin",), loss=(0.4, 0.7))
    maps = mapped(batch)
    z = (maps.intensity - cells(batch.intensity)) / maps.intensity_sigma
    assert rms(z) < 2


def test_sigma_falls_with_the_window_and_the_counts() -> None:
    batch = pairs(4, electrons=(50.0, 50.0))
    narrow, wide = (mapped(batch, bandwidth_px=w) for w in (8.0, 16.0))
    ratio = torch.nanmedian(narrow.intensity_sigma / wide.intensity_sigma)
    assert float(ratio) == pytest.approx(2, rel=0.1)
    bright = mapped(pairs(4, electrons=(200.0, 200.0)), bandwidth_px=8.0)
    assert float(torch.nanmedian(narrow.intensity_sigma) / torch.nanmedian(bright.intensity_sigma)) == pytest.approx(
        2, rel=0.1
    )


def test_smooth_loss_takes_wide_windows_and_ragged_loss_narrow_ones() -> None:
    smooth, ragged = mapped(uniform()), mapped(pairs(8, patterns=("perlin",), loss=(0.4, 0.7)))
    assert float(smooth.intensity_bandwidth_px.median()) > 1.4 * float(ragged.intensity_bandwidth_px.median())


def test_maps_are_nan_where_the_moving_frame_did_not_look() -> None:
    """Moved 24 px down and 16 px left: six rows of cells below and four columns on the left went out of view."""
    s = series(n_frames=2, drift_px_per_frame=(24.0, -16.0), random_walk_px=0)
    src = source(s)
    maps = estimate_decay_maps(
        src.prepared([0]),
        src.prepared([1]),
        torch.as_tensor(s.frame_from_reference[1:]),
        noise=src.noise,
        scales=src.scales,
    )
    for name in MAPS[:4]:
        image = getattr(maps, name)[0]
        assert torch.isnan(image[-6:]).all() and torch.isnan(image[:, :4]).all(), name
        assert torch.isfinite(image[3:-9, 7:-3]).all(), name
    assert float(maps.coverage[0, -6:].max()) == 0 and float(maps.coverage[0, 4:12, 10:20].min()) == 1
    full = full_resolution(maps.contrast, 4, SHAPE)[0]
    assert torch.isnan(full[-24:]).all() and torch.isnan(full[:, :16]).all()


def test_vacuum_has_no_maps() -> None:
    s = series(n_frames=2, edge=True, wedge=0.0, drift_px_per_frame=1.0, damage="none", seed=2)
    src = source(s)
    maps = estimate_decay_maps(
        src.prepared([0]), src.prepared([1]), torch.as_tensor(s.frame_from_reference[1:]), noise=src.noise,
        scales=src.scales, bandwidth_px=8.0,
    )  # fmt: skip
    vacuum = cells(s.expected[:1])[0] < 0.5
    deep = torch.nn.functional.avg_pool2d(vacuum.float()[None], 13, 1, 6)[0] == 1  # three windows from the edge
    sample = cells(s.lattice_amplitude[None])[0] > 5
    assert torch.isnan(maps.contrast[0][vacuum]).float().mean() > 0.5
    assert not deep.any() or torch.isnan(maps.contrast[0][deep]).all()
    assert rms((maps.contrast[0] - 1)[sample]) < 0.1


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_a_stride_that_does_not_divide_the_frame(stride) -> None:
    """131 × 100 pixels: the last cells are partial, and keep their place."""
    shape = (100, 131)
    s = simulate_series("SrTiO3", n_frames=2, shape=shape, pixel_size_nm=0.025, electrons_per_px=150, vacancies=0.1,
                        damage="perlin", witness="both", critical_fluence=4000.0, seed=2)  # fmt: skip
    src = source(s)
    maps = estimate_decay_maps(
        src.prepared([0]), src.prepared([1]), torch.as_tensor(s.frame_from_reference[1:]), noise=src.noise,
        scales=src.scales, stride=stride, bandwidth_px=14.0,
    )  # fmt: skip
    assert maps.intensity.shape == (1, -(-100 // stride), -(-131 // stride))
    full = full_resolution(maps.intensity, stride, shape)[0].numpy()
    assert full.shape == shape
    inner = (slice(12, -12), slice(12, -12))
    true = s.intensity[1][inner]
    assert rms(full[inner] - true) < 0.5 * rms(1 - true) and np.corrcoef(full[inner].ravel(), true.ravel())[0, 1] > 0.8


def test_cells_sit_in_the_middle_of_their_pixels() -> None:
    """A ramp of cell means comes back as the ramp: sample (i, j) at i·stride + (stride − 1)/2."""
    ramp = torch.arange(40.0)[None, :, None].expand(1, 40, 32).contiguous()
    full = full_resolution(cells(ramp), 4, (40, 32))
    assert torch.allclose(full[0, 2:-2], ramp[0, 2:-2], atol=1e-4)


def test_unknown_cells_do_not_spread() -> None:
    image = torch.ones(1, 6, 8)
    image[0, 2, 3] = torch.nan
    full = full_resolution(image, 4, (24, 32))
    lost = torch.isnan(full[0])
    assert lost[9:11, 13:15].all() and lost.sum() <= 25 and torch.allclose(full[0][~lost], torch.ones(()), atol=1e-5)


def test_the_same_frame_twice_is_intact() -> None:
    src = source(series(n_frames=2))
    maps = estimate_decay_maps(src.prepared([0]), src.prepared([0]), g.identity(1), noise=src.noise, scales=src.scales)
    assert rms(maps.intensity - 1) < 1e-3 and float(maps.contrast.nan_to_num(1).min()) > 0.99
