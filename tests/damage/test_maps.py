"""Maps of rate, critical fluence and onset from decay maps of known decay; their correlation length."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage

from atomdiffuser.damage import maps
from atomdiffuser.damage.maps import correlation_length_px, edge_against_interior, map_damage
from atomdiffuser.damage.signals import PER_1000
from atomdiffuser.errors import StoreError
from atomdiffuser.io.map_store import DecayMaps, read_still_maps, write_still_maps

SHAPE, N, X = (24, 30), 12, 2000.0 * np.arange(1, 13)


def decay_maps(noise: float = 0.02, gain: float = 1.0) -> tuple[DecayMaps, np.ndarray]:
    """The left third decays with F_c 20,000, the middle not at all, the right is unknown."""
    rate = np.zeros(SHAPE)
    rate[:, :10] = 1 / 20000
    contrast = np.exp(-rate * (X[:, None, None] - X[0])) * gain
    contrast = contrast + np.random.default_rng(1).normal(0, noise, contrast.shape)
    contrast[0], sigma = 1.0, np.full(contrast.shape, noise)
    sigma[0] = 0.0
    contrast[:, :, 20:] = np.nan
    arrays = dict.fromkeys(("intensity", "contrast", "coverage"), contrast)
    return DecayMaps(**arrays, intensity_sigma=sigma, contrast_sigma=sigma, stride=4), rate


def test_rates_and_critical_fluences_are_recovered_where_they_can_be() -> None:
    made, rate = decay_maps()
    found = map_damage(made, np.ones(N, bool), X, 0, min_span_of_critical=0.3)
    left, middle = np.s_[:, :10], np.s_[:, 10:20]
    assert np.nanmedian(found.rate[left]) == pytest.approx(PER_1000 / 20000, rel=0.03)
    z = (found.rate - PER_1000 * rate)[:, :20] / found.rate_sigma[:, :20]
    assert 0.7 < np.std(z) < 1.4
    assert np.nanmedian(found.critical_fluence[left]) == pytest.approx(20000, rel=0.03)
    assert np.isnan(found.critical_fluence[middle]).mean() > 0.9
    assert np.isnan(found.rate[:, 20:]).all() and np.isnan(found.onset[:, 20:]).all()
    assert np.nanmedian(found.onset[left]) in (1, 2) and np.isnan(found.onset[middle]).mean() > 0.9


def test_maps_are_fitted_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = decay_maps()
    whole = map_damage(made, np.ones(N, bool), X, 0, min_span_of_critical=0.3)
    monkeypatch.setattr(maps, "READ_AT_ONCE", 5 * N * SHAPE[1])
    monkeypatch.setattr(maps, "FITTED_AT_ONCE", 37 * N)
    blocks = map_damage(made, np.ones(N, bool), X, 0, min_span_of_critical=0.3)
    for name in ("rate", "rate_sigma", "critical_fluence", "onset"):
        np.testing.assert_allclose(getattr(blocks, name), getattr(whole, name), rtol=1e-6)


def test_what_is_read_at_once_does_not_grow_with_the_frames() -> None:
    for frames in (4, 500, 100_000):
        blocks = maps._row_blocks((512, 512), frames)
        assert sum(b.stop - b.start for b in blocks[:-1]) + 512 - blocks[-1].start == 512
        assert all((b.stop - b.start) * 512 * frames <= max(maps.READ_AT_ONCE, 512 * frames) for b in blocks[:-1])
    assert len(maps._row_blocks((512, 512), 500)) == 16


@pytest.mark.parametrize("frames", [3, 12, 5000])
def test_what_is_fitted_at_once_does_not_grow_with_frames_or_cells(frames, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, fit = [], maps._fit_rates
    monkeypatch.setattr(maps, "_fit_rates", lambda u, y, weight: (seen.append(y.shape), fit(u, y, weight))[1])
    monkeypatch.setattr(maps, "FITTED_AT_ONCE", 10_000)
    contrast = np.ones((frames, 20, 21), np.float32)
    arrays = dict.fromkeys(("intensity", "contrast", "coverage", "intensity_sigma", "contrast_sigma"), contrast)
    made = DecayMaps(**arrays, stride=4)
    map_damage(made, np.ones(frames, bool), np.arange(frames) * 100.0, 0, min_span_of_critical=0.3)
    assert sum(cells for cells, _ in seen) == 20 * 21
    assert max(cells * max(t, len(maps.RATES)) for cells, t in seen) <= 10_000


def test_a_cell_without_a_sigma_has_no_rate_and_spoils_no_other() -> None:
    made, _ = decay_maps()
    made.contrast_sigma[:, :, 3] = 0.0
    found = map_damage(made, np.ones(N, bool), X, 0, min_span_of_critical=0.3)
    assert np.isnan(found.rate[:, 3]).all() and np.isfinite(found.rate[:, :3]).mean() > 0.95


def test_noise_of_the_reference_frame_is_no_rate() -> None:
    """All later frames 10 % brighter than the reference: a free amplitude takes it, the rate does not."""
    made, _ = decay_maps(gain=1.1)
    found = map_damage(made, np.ones(N, bool), X, 0, min_span_of_critical=0.3)
    assert abs(np.nanmean(found.rate[:, 10:20])) < 0.25 * PER_1000 / 20000


def test_too_few_frames_give_no_map() -> None:
    made, _ = decay_maps()
    found = map_damage(made, np.r_[True, True, np.zeros(N - 2, bool)], X, 0, min_span_of_critical=0.3)
    assert np.isnan(found.rate).all()


@pytest.mark.parametrize("width", [2.0, 4.0])
def test_correlation_length_of_a_smooth_field(width) -> None:
    """White noise through a Gaussian of σ is correlated as exp(−r²/4σ²): 1/e at 2σ."""
    field = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(320, 380)), width)
    field[:, 320:] = np.nan
    assert correlation_length_px(field, 4) == pytest.approx(4 * 2 * width, rel=0.15)
    assert np.isnan(correlation_length_px(np.full((20, 20), np.nan), 4))
    assert np.isnan(correlation_length_px(np.ones((20, 20)), 4))


def test_edge_against_interior() -> None:
    row = lambda name, rate: {
        "region": name, "witness": "contrast", "rate_percent_per_1000": rate,
        "rate_lo95": rate - 0.2, "rate_hi95": rate + 0.2,
    }  # fmt: skip
    table = pd.DataFrame([row("edge_0_2_nm", 4.0), row("edge_2_4_nm", 3.0), row("interior_4_nm", 2.0)])
    found = edge_against_interior(table, 2.0)
    assert (
        found["ratio"] == pytest.approx(2.0) and found["p_value"] < 1e-6 and found["interior_region"] == "interior_4_nm"
    )
    assert edge_against_interior(table.iloc[2:], 2.0) is None


def test_still_maps_come_back(tmp_path) -> None:
    path, values = tmp_path / "damage_maps.zarr", np.arange(12, dtype=np.float32).reshape(3, 4)
    write_still_maps(path, {"rate": values}, stride=4, pixel_size_nm=(0.02, 0.03), attributes={"unit": "s"})
    maps, attributes = read_still_maps(path)
    assert np.array_equal(maps["rate"], values) and attributes["unit"] == "s" and attributes["map_stride"] == 4
    import zarr

    image = zarr.open_group(path / "rate", mode="r").attrs["ome"]["multiscales"][0]
    assert [a["name"] for a in image["axes"]] == ["y", "x"]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == pytest.approx([0.08, 0.12])
    with pytest.raises(StoreError, match="run the damage stage first"):
        read_still_maps(tmp_path / "elsewhere" / "damage_maps.zarr")
