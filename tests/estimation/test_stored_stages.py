"""Drift, maps, damage and aligned frames through stored files, in physical units, against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from measured_pairs import error_px, rms

from atomdiffuser.config import AlignSettings, DamageSettings, DecaySettings, RegisterSettings
from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.io.map_store import read_maps
from atomdiffuser.io.store import create_frames, read_array, read_frames
from atomdiffuser.io.tables import read_table
from atomdiffuser.series import FrameSeries
from atomdiffuser.simulation import simulate_series
from atomdiffuser.stages.align import align
from atomdiffuser.stages.damage import damage
from atomdiffuser.stages.decay import decay
from atomdiffuser.stages.register import register

SHAPE = (100, 131)
N = 5
STORES = {"decay.zarr": "network", "regression.zarr": "regression"}


def store(series: FrameSeries, path) -> None:
    with create_frames(
        path, n_frames=series.n_frames, frame_shape=series.frame_shape, dtype=series.frames.dtype,
        times_s=series.times_s, acquisition=series.acquisition, name=series.name, excluded=series.excluded,
    ) as writer:  # fmt: skip
        for k in range(series.n_frames):
            writer.write(k, series.frame(k))


@pytest.fixture(scope="module")
def simulated():
    return simulate_series(
        "SrTiO3", n_frames=N, shape=SHAPE, pixel_size_nm=(0.025, 0.024), electrons_per_px=80, vacancies=0.1, seed=4,
        drift_px_per_frame=(1.5, -2.0), critical_fluence=15000.0, dark_level=50.0, gain_e=0.5, frame_time_s=2.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(simulated, tmp_path_factory):
    """All stages with a stride of 7, which does not divide the frame; frame 0 excluded, frame 3 blank."""
    folder = tmp_path_factory.mktemp("results")
    frames = simulated.series.frames.copy()
    frames[3] = 50
    s = simulated.series
    store(FrameSeries(frames, s.times_s, s.acquisition, "sample", (0,)), folder / "frames.ome.zarr")
    register(folder / "frames.ome.zarr", folder / "pairs.parquet", folder / "trajectory.parquet", RegisterSettings())
    for name, method in STORES.items():
        decay(folder / "frames.ome.zarr", folder / "trajectory.parquet", folder / name, DecaySettings(7, method))
    damage(
        folder / "frames.ome.zarr", folder / "trajectory.parquet", folder / "decay.zarr", folder / "damage.parquet",
        folder / "critical_fluence.csv", DamageSettings(grid=(2, 2)),
    )  # fmt: skip
    align(folder / "frames.ome.zarr", folder / "trajectory.parquet", folder / "aligned.ome.zarr", AlignSettings())
    return folder


@pytest.fixture(scope="module")
def true(simulated) -> np.ndarray:
    """frame_from_reference against frame 1, the first that is used."""
    return simulated.frame_from_reference @ np.linalg.inv(simulated.frame_from_reference[1])


def test_drift_in_nanometres(results, simulated, true) -> None:
    table = read_table(results / "trajectory.parquet")
    assert table.attrs["reference_frame"] == 1 and table["valid"].tolist() == [False, True, True, False, True]
    assert table["reason"].tolist() == ["excluded in session.yaml", "", "", "blank: every pixel is 50", ""]
    centre = np.append((np.array(SHAPE) - 1) / 2, 1)
    moved = ((true @ centre)[:, :2] - centre[:2]) * (0.025, 0.024)
    got = table[["drift_y_nm", "drift_x_nm"]].to_numpy()
    assert np.allclose(got[[2, 4]], moved[[2, 4]], atol=0.005) and np.abs(moved[4]).min() > 0.08
    assert np.abs(got[1]).max() < 1e-9 and np.isnan(got[[0, 3]]).all()
    assert table["time_s"].tolist() == [0, 2, 4, 6, 8] and table["fluence_e_per_A2"].to_numpy() == pytest.approx(
        2000 * np.arange(1, 6)
    )


@pytest.mark.parametrize("name", STORES)
def test_decay_maps_on_their_grid(results, simulated, name) -> None:
    maps = read_maps(results / name)
    assert ("weights" in maps.attributes) == (name == "decay.zarr")
    assert maps.stride == 7 and np.asarray(maps.contrast[1]).shape == (15, 19)
    assert np.nanmin(maps.contrast[1]) == np.nanmax(maps.contrast[1]) == 1 and np.nanmax(maps.contrast_sigma[1]) == 0
    for k in (0, 3):
        assert np.isnan(maps.intensity[k]).all() and np.isnan(maps.contrast[k]).all() and np.max(maps.coverage[k]) == 0
    ratio = float((simulated.contrast[4] / simulated.contrast[1]).mean())
    last = np.asarray(maps.contrast[4])
    assert rms(last - ratio) < 0.04 and rms(1 - ratio) > 0.3 and rms(np.asarray(maps.intensity[4]) - 1) < 0.02
    assert np.isfinite(last[3:-3, 3:-3]).all() and np.isnan(last[np.asarray(maps.coverage[4]) == 0]).all()


def test_damage_and_critical_fluence(results, simulated) -> None:
    table = read_table(results / "damage.parquet")
    whole = table[table["region"] == "whole"].set_index("frame")
    ratio = float((simulated.contrast[4] / simulated.contrast[1]).mean())
    assert whole.loc[4, "contrast"] == pytest.approx(ratio, abs=0.05) and whole.loc[1, "contrast"] == 1
    assert whole.loc[4, "intensity"] == pytest.approx(1, abs=0.02) and not whole.loc[[0, 3], "valid"].any()
    assert whole["fluence_e_per_A2"].to_numpy() == pytest.approx(2000 * np.arange(1, 6)) and len(table) == N * 5
    fits = read_table(results / "critical_fluence.csv")
    row = fits[(fits["region"] == "whole") & (fits["witness"] == "contrast")].iloc[0]
    assert row["unit"] == "e_per_A2" and row["n_frames"] == 3
    if row["lower_bound"]:
        assert row["critical_fluence"] <= 15000
    else:
        assert row["critical_fluence_lo95"] <= 15000 <= row["critical_fluence_hi95"]


def test_aligned_frames_lie_on_each_other(results, simulated) -> None:
    aligned = read_frames(results / "aligned.ome.zarr")
    frames = np.asarray(aligned.frames)
    assert frames.dtype == np.float32 and np.isnan(frames[[0, 3]]).all()
    raw = simulated.series.frames.astype(float)
    known = np.isfinite(frames[4]) & np.isfinite(frames[1])
    likeness = lambda a, b: np.corrcoef(a[known], b[known])[0, 1]
    assert likeness(frames[4], frames[1]) > likeness(raw[4], raw[1]) + 0.2
    count, mean = (read_array(results / "aligned.ome.zarr", name) for name in ("count", "mean"))
    assert count.max() == 3 and np.array_equal(count, np.isfinite(frames).sum(0))
    assert np.allclose(
        mean, np.where(count > 0, np.nansum(frames, axis=0) / np.maximum(count, 1), np.nan), rtol=1e-5, equal_nan=True
    )


def test_pairs_know_their_fluence(results, true) -> None:
    table = read_table(results / "pairs.parquet").set_index(["reference", "moving"])
    assert table.loc[(1, 2), "fluence_e_per_A2"] == pytest.approx(2000) and table.loc[(2, 4), "dt_s"] == 4
    row = table.loc[(1, 2)]
    affine = np.eye(3)
    affine[:2] = row[["a_yy", "a_yx", "a_y", "a_xy", "a_xx", "a_x"]].to_numpy(float).reshape(2, 3)
    assert error_px(affine[None], true[2:3], SHAPE)[0] < 4 * row["displacement_sigma_px"]


def test_a_series_without_two_frames_is_refused(simulated, tmp_path) -> None:
    frames = np.full((3, *SHAPE), 50, np.uint16)
    frames[1] = simulated.series.frames[1]
    store(FrameSeries(frames, name="empty one"), tmp_path / "frames.ome.zarr")
    with pytest.raises(
        AtomDiffuserError,
        match=r"empty one: drift needs two frames with an image, found 1 \(blank: every pixel is 50\)",
    ):
        register(
            tmp_path / "frames.ome.zarr",
            tmp_path / "pairs.parquet",
            tmp_path / "trajectory.parquet",
            RegisterSettings(),
        )
