"""HyperSpy in and out: calibration goes both ways, sign and place of what comes out agree with the truth."""

from __future__ import annotations

from pathlib import Path

import hyperspy.api as hs
import numpy as np
import pytest

from atomdiffuser import estimate_series, read_series
from atomdiffuser.errors import NotATimeSeries, SettingsError, ShapeError
from atomdiffuser.interop import (
    align_signal,
    as_frame_series,
    map_signal,
    series_from_signal,
    signal_from_series,
    trajectory_signal,
)
from atomdiffuser.io.map_store import MAP_NAMES, create_maps, read_still_maps, write_still_maps
from atomdiffuser.io.store import create_frames
from atomdiffuser.series import Acquisition, FrameSeries
from atomdiffuser.simulation.series import simulate_series

ACQUISITION = Acquisition(
    pixel_size_nm=(0.03, 0.04), frame_time_s=2.0, dwell_s=2e-6, probe_current_pA=30.0, beam_energy_kV=200.0
)


@pytest.fixture(scope="module")
def simulated():
    return simulate_series(
        "SrTiO3", n_frames=4, shape=(96, 112), electrons_per_px=300, drift_px_per_frame=1.5, random_walk_px=0.2,
        frame_time_s=2.0, pixel_size_nm=0.03, seed=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def signal(simulated):
    return signal_from_series(simulated.series)


@pytest.fixture(scope="module")
def estimate(signal):
    return estimate_series(signal, predict=False)


def test_a_series_survives_the_way_through_hyperspy(rng):
    frames = rng.integers(0, 500, (3, 20, 24)).astype(np.uint16)
    series = FrameSeries(frames, times_s=np.array([0.0, 2.0, 4.0]), acquisition=ACQUISITION, name="mine")
    back = series_from_signal(signal_from_series(series))
    np.testing.assert_array_equal(np.asarray(back.frames), frames)
    np.testing.assert_allclose(back.times_s, series.times_s)
    for name in ("pixel_size_nm", "frame_time_s", "dwell_s", "probe_current_pA", "beam_energy_kV"):
        assert getattr(back.acquisition, name) == pytest.approx(getattr(ACQUISITION, name)), name
    assert back.name == "mine"


def test_units_of_other_signals_are_converted_and_lazy_ones_stay_lazy():
    signal = hs.signals.Signal2D(np.ones((3, 20, 24))).as_lazy()
    signal.axes_manager[0].scale, signal.axes_manager[0].units = 500.0, "ms"
    for axis, scale in zip(signal.axes_manager.signal_axes, (20.0, 30.0), strict=True):  # x, y
        axis.scale, axis.units = scale, "pm"
    signal.metadata.set_item("Acquisition_instrument.TEM.beam_current", 0.05)  # nA
    series = series_from_signal(signal, dwell_s=1e-6)
    assert series.acquisition.pixel_size_nm == pytest.approx((0.03, 0.02))
    assert series.acquisition.probe_current_pA == pytest.approx(50.0)
    np.testing.assert_allclose(series.times_s, [0.0, 0.5, 1.0])
    assert hasattr(series.frames, "dask")
    assert series.acquisition.sources["dwell_s"] == "argument"


def test_frames_at_uneven_times_keep_them():
    times = np.array([0.0, 1.0, 5.0])
    axes = [
        {"axis": times, "name": "time", "units": "s", "navigate": True},
        {"size": 20, "name": "y", "navigate": False},
        {"size": 24, "name": "x", "navigate": False},
    ]
    signal = hs.signals.Signal2D(np.ones((3, 20, 24)), axes=axes)
    np.testing.assert_allclose(series_from_signal(signal).times_s, times)


@pytest.mark.parametrize(
    ("signal", "says"),
    [
        (hs.signals.Signal2D(np.ones((20, 24))), "a single image"),
        (hs.signals.Signal2D(np.ones((2, 3, 20, 24))), "4-D data"),
        (hs.signals.Signal1D(np.ones(20)), "1-D data"),
    ],
)
def test_what_is_no_series_is_refused_with_the_reason(signal, says):
    with pytest.raises(NotATimeSeries, match=says):
        series_from_signal(signal)


def test_a_signal_gives_the_drift_that_its_array_gives(simulated, estimate):
    truth = simulated.frame_from_reference
    nothing = np.abs(truth[-1, :2, 2]).max()
    error = np.abs(estimate.frame_from_reference[:, :2, 2] - truth[:, :2, 2]).max()
    assert nothing > 2.0 > 0.15 > error
    np.testing.assert_allclose(estimate.pairs["dt_s"], 2.0 * estimate.pairs["lag"])


def test_times_given_twice_and_shapes_that_do_not_fit_are_refused(signal, simulated, estimate):
    with pytest.raises(SettingsError, match="times are given twice"):
        estimate_series(signal, times=[0, 1, 2, 3])
    with pytest.raises(SettingsError, match="times are given twice"):
        as_frame_series(simulated.series, times=[0, 1, 2, 3])
    with pytest.raises(ShapeError, match="of another series"):
        map_signal(estimate, "contrast", np.ones((4, 20, 20)))
    with pytest.raises(ShapeError, match=r"expected \(t, 3, 3\)"):
        align_signal(np.ones((3, 20, 20)), estimate)
    with pytest.raises(ValueError, match="expected 'intensity' or 'contrast'"):
        map_signal(estimate, "damage")


def test_trajectory_is_a_signal_over_time(signal, estimate, simulated):
    found = trajectory_signal(estimate, signal)
    assert found.data.shape == (4, 6)
    time = found.axes_manager[0]
    assert (time.name, time.units, time.scale) == ("time", "s", 2.0)
    columns = found.metadata.AtomDiffuser.columns
    centre = np.array([95 / 2, 111 / 2, 1.0])
    drift = (simulated.frame_from_reference @ centre)[:, :2] - centre[:2]
    for number, name in enumerate(("drift_y_px", "drift_x_px")):
        assert columns[number] == name
        np.testing.assert_allclose(found.data[:, number], drift[:, number], atol=0.15)


def test_maps_and_aligned_frames_keep_axes_and_metadata(signal, estimate, simulated):
    signal.metadata.set_item("Sample.description", "lamella 3")
    contrast = map_signal(estimate, "contrast", signal)
    aligned = align_signal(signal, estimate)
    for found in (contrast, aligned):
        assert [(a.name, a.units) for a in found.axes_manager._axes] == [("time", "s"), ("y", "nm"), ("x", "nm")]
        assert [a.scale for a in found.axes_manager._axes] == pytest.approx([2.0, 0.03, 0.03])
    assert (contrast.data[0][np.isfinite(contrast.data[0])] == 1).all()
    assert aligned.metadata.Sample.description == "lamella 3"
    assert aligned.metadata.General.title.endswith("(aligned)")
    assert aligned.metadata.AtomDiffuser.version
    raw, seen = np.asarray(signal.data, float), np.isfinite(aligned.data[-1])
    before = np.corrcoef(raw[0][seen], raw[-1][seen])[0, 1]
    after = np.corrcoef(raw[0][seen], aligned.data[-1][seen])[0, 1]
    assert after > 0.5 > before


def test_an_aligned_signal_with_all_frames_says_where_it_lies(rng):
    affines = np.tile(np.eye(3), (2, 1, 1))
    affines[1, :2, 2] = 3, -2  # the sample moved down and left, so the second frame saw more above and on the right
    series = FrameSeries(rng.random((2, 20, 24)), acquisition=ACQUISITION)
    union = align_signal(series, affines, extent="union")
    assert union.data.shape == (2, 23, 26)
    y, x = union.axes_manager._axes[1:]
    assert (y.offset, x.offset) == pytest.approx((-3 * 0.03, 0.0))
    np.testing.assert_allclose(union.data[1, :20, 2:], series.frames[1], atol=1e-5)


def test_hyperspy_loads_every_store(tmp_path: Path, rng):
    frames = rng.integers(0, 500, (3, 32, 40)).astype(np.uint16)
    with create_frames(
        tmp_path / "frames.ome.zarr", n_frames=3, frame_shape=(32, 40), dtype=np.uint16,
        times_s=np.array([0.0, 2.0, 4.0]), acquisition=ACQUISITION, name="mine",
    ) as writer:  # fmt: skip
        for k in range(3):
            writer.write(k, frames[k])
    maps = {name: rng.random((8, 10), dtype=np.float32) for name in MAP_NAMES}
    with create_maps(
        tmp_path / "decay.zarr", n_frames=2, map_shape=(8, 10), stride=4, times_s=np.array([0.0, 2.0]),
        pixel_size_nm=(0.03, 0.04),
    ) as writer:  # fmt: skip
        for k in range(2):
            writer.write(k, **{name: m + k for name, m in maps.items()})
    still = {"rate": rng.random((8, 10), dtype=np.float32), "onset": np.zeros((8, 10), np.float32)}
    write_still_maps(tmp_path / "damage_maps.zarr", still, stride=4, pixel_size_nm=None)

    loaded = hs.load(str(tmp_path / "frames.zspy"))
    np.testing.assert_array_equal(loaded.data, frames)

    signals = {s.metadata.General.title: s for s in hs.load(str(tmp_path / "decay.zspy"), lazy=True)}
    assert set(signals) == set(MAP_NAMES)
    contrast = signals["contrast"]
    np.testing.assert_array_equal(np.asarray(contrast.data), np.stack([maps["contrast"], maps["contrast"] + 1]))
    assert [(a.name, a.units) for a in contrast.axes_manager._axes] == [("time", "s"), ("y", "nm"), ("x", "nm")]
    assert [a.scale for a in contrast.axes_manager._axes] == pytest.approx([2.0, 0.12, 0.16])
    assert [a.offset for a in contrast.axes_manager._axes] == pytest.approx([0.0, 0.045, 0.06])

    of_series = {s.metadata.General.title: s for s in hs.load(str(tmp_path / "damage_maps.zspy"))}
    np.testing.assert_array_equal(of_series["rate"].data, still["rate"])
    assert of_series["rate"].axes_manager[0].units == "px"
    assert set(read_still_maps(tmp_path / "damage_maps.zarr")[0]) == {"rate", "onset"}


def test_what_hyperspy_saved_can_be_read_as_a_series(tmp_path: Path, signal):
    signal.save(str(tmp_path / "mine.hspy"))
    series = read_series(tmp_path / "mine.hspy")
    np.testing.assert_array_equal(np.asarray(series.frames), np.asarray(signal.data))
    assert series.acquisition.pixel_size_nm == pytest.approx((0.03, 0.03))
