"""Aligned series through stored files: grid, units, time axis, counts, what the store says of itself, scan lines."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from faulty_frames import simulated

from atomdiffuser import geometry
from atomdiffuser.config import AlignSettings
from atomdiffuser.io.store import create_frames, read_array, read_attributes, read_frames
from atomdiffuser.io.tables import write_table
from atomdiffuser.series import FrameSeries
from atomdiffuser.stages.align import align

MOVES = dict(drift_px_per_frame=(2.0, -3.0), electrons_per_px=200.0, damage="none", n_frames=5)


def stored(folder, series: FrameSeries, affines: np.ndarray, valid=None):
    """Frames and a trajectory as the stages before leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    with create_frames(
        folder / "frames.ome.zarr", n_frames=series.n_frames, frame_shape=series.frame_shape, dtype=series.frames.dtype,
        times_s=series.times_s, acquisition=series.acquisition, name="sample",
    ) as writer:  # fmt: skip
        for k in range(series.n_frames):
            writer.write(k, series.frame(k))
    numbers = affines[:, :2, :].reshape(len(affines), 6)
    table = pd.DataFrame(
        {"frame": np.arange(len(affines)), **dict(zip(geometry.PARAMETER_NAMES, numbers.T, strict=True))}
    )
    table["valid"] = True if valid is None else valid
    write_table(table, folder / "trajectory.parquet", "trajectory", reference_frame=0)
    return folder


def aligned(folder, **settings):
    store = folder / "aligned.ome.zarr"
    align(folder / "frames.ome.zarr", folder / "trajectory.parquet", store, AlignSettings(**settings))
    return store


@pytest.fixture(scope="module")
def truth():
    return simulated(**MOVES)


@pytest.fixture(scope="module")
def folder(truth, tmp_path_factory):
    return stored(tmp_path_factory.mktemp("align"), truth.series, truth.frame_from_reference)


def test_units_and_times_stay_and_counts_neither_ring_nor_go_negative(folder, truth) -> None:
    store = aligned(folder)
    series = read_frames(store)
    assert series.acquisition == truth.series.acquisition and np.array_equal(series.times_s, truth.series.times_s)
    frames, raw = np.asarray(series.frames), truth.series.frames
    assert frames.dtype == np.float32 and np.nanmin(frames) >= raw.min() and np.nanmax(frames) <= raw.max()
    said = read_attributes(store)
    assert (said["interpolation"], said["resamplings"], said["extent"], said["line_jitter"]) == (
        "linear", 1, "reference", "kept",
    )  # fmt: skip
    assert read_attributes(aligned(folder, interpolation="cubic"))["interpolation"] == "cubic"


def test_mean_and_count_on_the_union_and_where_it_lies(folder, truth) -> None:
    store = aligned(folder, extent="union")
    frames, mean, count = np.asarray(read_frames(store).frames), read_array(store, "mean"), read_array(store, "count")
    assert frames.shape[1] > 128 + 6 and frames.shape[2] > 160 + 8
    assert np.array_equal(count, np.isfinite(frames).sum(0)) and count.max() == 5 and count.min() == 0
    assert np.isnan(mean[count == 0]).all() and np.allclose(
        mean[count > 0], np.nanmean(frames[:, count > 0], 0), rtol=1e-5
    )
    origin = read_attributes(store)["origin_px"]
    top = slice(-origin[0], -origin[0] + 128), slice(-origin[1], -origin[1] + 160)
    assert np.allclose(
        frames[0][top], truth.series.frames[0], atol=0.02
    )  # the reference frame lies where the store says
    ome = json.loads((store / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    assert ome["coordinateTransformations"][1]["translation"] == [0.0, origin[0] * 0.02, origin[1] * 0.02]


def test_hyperspy_sees_the_place_too(folder) -> None:
    hs = pytest.importorskip("hyperspy.api")
    store = aligned(folder, extent="union")
    origin = read_attributes(store)["origin_px"]
    axes = hs.load(store.with_name("aligned.zspy"), lazy=True).axes_manager
    assert [a.offset for a in axes.signal_axes] == pytest.approx([origin[1] * 0.02, origin[0] * 0.02])
    assert axes.navigation_axes[0].units == "s" and axes.navigation_axes[0].scale == 1.0


def test_the_intersection_has_no_gap(folder) -> None:
    store = aligned(folder, extent="intersection")
    assert np.isfinite(np.asarray(read_frames(store).frames)).all() and (read_array(store, "count") == 5).all()


def test_an_empty_intersection_is_said(truth, tmp_path, caplog) -> None:
    affines = np.tile(np.eye(3), (5, 1, 1))
    affines[3, 0, 2] = 500.0
    folder = stored(tmp_path, truth.series, affines)
    with caplog.at_level(logging.WARNING):
        store = aligned(folder, extent="intersection")
    assert "sample: no part of the sample is in all frames" in caplog.text
    assert read_attributes(store)["extent"] == "reference"


def test_frames_without_a_place_are_nan_and_in_no_mean(truth, tmp_path) -> None:
    valid = np.array([True, True, False, True, True])
    store = aligned(stored(tmp_path, truth.series, truth.frame_from_reference, valid))
    frames = np.asarray(read_frames(store).frames)
    assert np.isnan(frames[2]).all() and read_array(store, "count").max() == 4


def test_corrected_lines_bring_frames_closer_to_each_other_and_the_mean_to_the_sample(tmp_path) -> None:
    """Jitter of 0.7 px along x. What stays: a third of it along y, and the lines' mean offset over the frames."""
    bright = {**MOVES, "drift_px_per_frame": (0.3, -0.2), "electrons_per_px": 5000.0}
    jittery, still = simulated(**bright, scan_jitter_px=0.7), simulated(**bright)
    folder = stored(tmp_path, jittery.series, jittery.frame_from_reference)
    apart, error = {}, {}
    for way in ("kept", "corrected"):
        store = aligned(folder, line_jitter=way, interpolation="cubic")
        assert read_attributes(store)["line_jitter"] == way
        frames, mean = np.asarray(read_frames(store).frames), read_array(store, "mean")
        inner = np.isfinite(frames).all(axis=0)
        apart[way] = np.std((frames[1] - frames[3])[inner])
        error[way] = np.std((mean - still.expected[0])[inner])
    assert apart["corrected"] < 0.6 * apart["kept"] and error["corrected"] < 0.8 * error["kept"], (apart, error)
