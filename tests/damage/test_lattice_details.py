"""Fourier spots and atomic columns of a simulated series against its truth; columns that hop and vanish."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from measured_pairs import CPU, series, source

from atomdiffuser import geometry
from atomdiffuser.config import DamageSettings
from atomdiffuser.damage import columns
from atomdiffuser.damage.analysis import measure_regions
from atomdiffuser.damage.columns import TABLE, column_table, columns_per_region, msd_map, track_columns
from atomdiffuser.damage.regions import grid_regions
from atomdiffuser.damage.spots import find_shells, measure_spots, spot_tables, through_windows
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.series import FrameSeries

SHAPE, N = (112, 150), 7
REGIONS = grid_regions(SHAPE, (1, 2))
X = np.repeat(2000.0 * np.arange(1, N + 1)[:, None], 3, 1)


@cache
def fading():
    s = series(n_frames=N, shape=SHAPE, critical_fluence=10000.0, electrons_per_px=100.0, vacancies=0.02)
    src = source(s)
    return s, src, measure_regions(src, s.frame_from_reference, np.ones(N, bool), 0, REGIONS, DamageSettings())


def test_shells_are_those_of_the_lattice() -> None:
    s, src, measured = fading()
    found = measure_spots(src, s.frame_from_reference, measured, 3)
    lengths = np.linalg.norm(np.linalg.inv(s.lattice_vectors_px).T, axis=1)  # reciprocal vectors [1/px]
    assert len(found.shells) == 3 and found.shells[0].d_px > found.shells[-1].d_px
    square = [1 / (shell.d_px * lengths.mean()) ** 2 for shell in found.shells]  # h² + k²
    assert np.round(square).tolist() == [1, 2, 4] and np.allclose(square, np.round(square), rtol=0.07)  # half a bin


def test_every_shell_fades_as_the_contrast_does() -> None:
    s, src, measured = fading()
    found = measure_spots(src, s.frame_from_reference, measured, 3)
    ratio = found.amplitude / found.amplitude[0]
    true = s.contrast.mean((1, 2))
    z = (ratio - true[:, None, None])[1:] / np.hypot(found.sigma, found.sigma[0])[1:]
    assert np.abs(ratio - true[:, None, None])[:, 0].max() < 0.06 and true[-1] < 0.35
    assert 0.5 < np.sqrt(np.nanmean(z**2)) < 1.6
    rows, fits = spot_tables(found, measured, X, X, "e_per_A2", (0.025, 0.025))
    assert (
        len(rows) == 3 * 3 * N
        and len(fits) == 9
        and rows["d_nm"].iloc[0] == pytest.approx(found.shells[0].d_px * 0.025)
    )
    whole = fits[fits["region"] == "whole"]
    assert (
        whole["critical_fluence"].to_numpy() == pytest.approx(10000, rel=0.15) and (whole["p_corrected"] < 1e-3).all()
    )


def test_without_a_lattice_there_are_no_spots() -> None:
    noise = np.random.default_rng(0).normal(0, 1, SHAPE)
    assert find_shells(noise, None, 3) == () and find_shells(noise, 15.0, 0) == ()
    assert through_windows(noise, (), 15.0).shape == (0, *SHAPE)


# --- columns: a square lattice of Gaussians whose every atom is known ---------------------------------

PERIOD, WIDTH = 14.0, 2.6
PLACES = np.stack(np.meshgrid(np.arange(12, 105, PERIOD), np.arange(12, 145, PERIOD), indexing="ij"), -1).reshape(-1, 2)
HOPPING, LOST, SHAKEN, LOST_EARLY = 24, 37, 45, 58


def frame(places: np.ndarray, height: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.full(SHAPE, 20.0)
    for (py, px), h in zip(places, height, strict=True):
        image += h * np.exp(-((y - py) ** 2 + (x - px) ** 2) / (2 * WIDTH**2))
    return image


@cache
def moving():
    """12 frames: one column hops by 3.5 px half-way, one vanishes then, one after two frames, one shakes by 1 px, all
    drift 1 px a frame."""
    random, frames, n = np.random.default_rng(8), [], 12
    for k in range(n):
        places, height = PLACES + np.array([0.0, 0.5 * k]), np.full(len(PLACES), 60.0)
        places[HOPPING] += [3.5, 0.0] if k >= n // 2 else [0.0, 0.0]
        places[SHAKEN] += random.normal(0, 1.0, 2)
        height[LOST] = 60.0 if k < n // 2 else 0.0
        height[LOST_EARLY] = 60.0 if k < 2 else 0.0
        frames.append(random.poisson(frame(places, height)))
    src = FrameSource(FrameSeries(np.array(frames, np.uint16)), CPU, gain_e=1.0)
    affines = geometry.translation(torch.tensor([[0.0, 0.5 * k] for k in range(n)], dtype=torch.float64)).numpy()
    measured = measure_regions(src, affines, np.ones(n, bool), 0, REGIONS, DamageSettings())
    return measured, track_columns(src, affines, measured)


def at(tracks, number: int) -> int:
    return int(np.linalg.norm(tracks.position_px - PLACES[number], axis=1).argmin())


def test_columns_are_found_where_they_are() -> None:
    _, tracks = moving()
    distance = np.linalg.norm(tracks.position_px[:, None] - PLACES[None], axis=2).min(1)
    assert len(tracks.position_px) > 0.7 * len(PLACES) and np.median(distance) < 0.3
    assert tracks.spacing_px == pytest.approx(PERIOD, abs=0.5)


def test_quiet_columns_do_not_move_and_their_error_is_known() -> None:
    _, tracks = moving()
    odd = PLACES[[HOPPING, LOST, SHAKEN, LOST_EARLY]]  # their neighbours see them come and go
    quiet = np.flatnonzero(np.linalg.norm(tracks.position_px[:, None] - odd, axis=2).min(1) > 1.6 * PERIOD)
    z = tracks.displacement_px[:, quiet] / tracks.displacement_sigma_px[:, quiet, None]
    assert 0.75 < np.nanstd(z) < 1.3 and np.nanmedian(tracks.displacement_sigma_px) < 0.25
    msd, sigma = tracks.msd()
    assert abs(np.nanmean(msd[quiet])) < 0.03 and np.nanmean(np.abs(msd[quiet]) < 3 * sigma[quiet]) > 0.9


def test_what_hops_vanishes_and_shakes_is_told() -> None:
    measured, tracks = moving()
    table = column_table(tracks, measured, (0.02, 0.02))
    assert list(table) == list(TABLE)
    assert table.loc[at(tracks, HOPPING), "state"] == "hopped" and table.loc[at(tracks, LOST), "state"] == "lost"
    early = table.loc[at(tracks, LOST_EARLY)]  # the mean of all frames hardly shows it
    assert np.hypot(*(early[["y_px", "x_px"]] - PLACES[LOST_EARLY])) < 1 and early["state"] == "lost"
    others = table.drop([at(tracks, k) for k in (HOPPING, LOST, LOST_EARLY)])["state"]
    assert (others == "kept").mean() > 0.85 and not (others == "lost").any() and not (others == "hopped").any()
    assert table.loc[at(tracks, HOPPING), "displacement_y_px"] > 2  # the linear fit falls short of 3.5, never over
    shaken = table.loc[at(tracks, SHAKEN)]
    assert 0.8 < shaken["msd_px2"] < 4 and shaken["msd_px2"] > 5 * shaken["msd_sigma_px2"] / np.sqrt(11)
    assert shaken["msd_nm2"] == pytest.approx(shaken["msd_px2"] * 4e-4)
    spread = msd_map(tracks, SHAPE, 4)
    row, column = (int(v // 4) for v in PLACES[SHAKEN])
    assert spread[row, column] > np.nanmedian(spread) + 0.1


def test_regions_count_their_columns() -> None:
    measured, tracks = moving()
    found = columns_per_region(tracks, measured)
    assert found["n_columns"][0, 0] >= found["n_columns"][0, 1] + found["n_columns"][0, 2] - 1
    assert np.nanmedian(np.abs(found["column_msd_px2"][:, 1])) < 0.5 and found["column_intensity"][0, 0] > 20
    n, low, high = (found[f"n_columns{end}"][:, 0] for end in ("", "_lo95", "_hi95"))
    assert (
        n[0] - n[-1] in (2, 3) and ((low <= n) & (n <= high)).all()
    )  # two of them vanish, and drift hides one at most
    middle, low, high = (found[f"column_intensity{end}"][:, 0] for end in ("", "_lo95", "_hi95"))
    shot = np.sqrt(middle / (n * np.pi * (0.45 * PERIOD) ** 2))
    assert np.allclose((high - low) / 2 / 1.96, shot, rtol=0.15) and np.allclose((high + low) / 2, middle)
    low, high = (found[f"column_msd_px2{end}"][:, 0] for end in ("_lo95", "_hi95"))
    assert ((low <= 0.1) & (high > -0.1)).mean() > 0.8 and (high > low).all()


def test_more_columns_than_memory_is_meant_for_are_not_followed_and_it_says_so(monkeypatch, caplog) -> None:
    _, tracks = moving()
    t, n = tracks.amplitude.shape
    monkeypatch.setattr(columns, "MOST_FOLLOWED", t * n)
    assert len(moving.__wrapped__()[1].position_px) == n and not caplog.records
    monkeypatch.setattr(columns, "MOST_FOLLOWED", t * n - 1)
    measured, none = moving.__wrapped__()
    assert f"{n} atomic columns in {t} frames are too many" in caplog.text
    assert len(none.position_px) == 0 and column_table(none, measured, None).empty
    assert np.isnan(columns_per_region(none, measured)["n_columns"]).all()


def test_without_a_lattice_no_column_is_followed() -> None:
    noise = np.random.default_rng(0).poisson(20, (4, *SHAPE)).astype(np.uint16)
    src = FrameSource(FrameSeries(noise), CPU, gain_e=1.0)
    affines = np.repeat(np.eye(3)[None], 4, 0)
    measured = measure_regions(src, affines, np.ones(4, bool), 0, REGIONS, DamageSettings())
    tracks = track_columns(src, affines, measured)
    assert len(tracks.position_px) == 0 and column_table(tracks, measured, None).empty
    assert (
        np.isnan(msd_map(tracks, SHAPE, 4)).all() and np.isnan(columns_per_region(tracks, measured)["n_columns"]).all()
    )
