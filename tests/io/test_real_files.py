"""Every real microscope file turns into a series with the right numbers, or is skipped for the right reason."""

from __future__ import annotations

import numpy as np
import pytest

from atomdiffuser.config import ConvertSettings
from atomdiffuser.errors import NotATimeSeries
from atomdiffuser.io.discovery import discover
from atomdiffuser.io.readers import read_series
from atomdiffuser.io.store import read_attributes, read_frames
from atomdiffuser.stages.convert import convert

SERIES = {
    "03_Scanning Preview.emi": dict(
        shape=(5, 128, 128), dtype="uint16", times=[0, 0.23593, 0.47186, 0.70779, 0.94372], pixel=0.38435249,
        dwell_s=12e-6, beam_energy_kV=200, probe_current_pA=None,
    ),
    "ROI_Random_Scan_movie.mrc": dict(shape=(348, 16, 16), dtype="uint16", times=None, pixel=None),
    "fei_SI_SuperX-HAADF_10frames_10x50.emd": dict(
        shape=(10, 50, 10), dtype="uint16", times=list(np.arange(10) * 0.768), pixel=1.23400963,
        dwell_s=1.28e-3, probe_current_pA=727.908375, beam_energy_kV=200, detector="HAADF",
    ),
    # its start times, whole seconds, contradict the nominal frame time of 41.6 ms by a factor of 30
    "fei_emd_si.emd": dict(
        shape=(5, 16, 16), dtype="uint16", times=[0, 1, 2, 4, 5], pixel=5.30241484,
        dwell_s=50e-6, probe_current_pA=245.335855, frame_time_s=1.0,
    ),
    "fei_example_tem_stack.emd": dict(
        shape=(2, 3, 3), dtype="int16", times=[0, 0.799976], pixel=0.00817288, dwell_s=None, beam_energy_kV=300,
    ),
    # frames were added by hand: the stack builder's ticks say when
    "test_stackbuilder_imagestack.dm3": dict(
        shape=(3, 2, 16), dtype="uint32", times=[0, 2.137, 4.275], pixel=59.9829033, probe_current_pA=None,
        dwell_s=0.03000005, acquired_at="2015-05-17T17:00:16", instrument="JEM-ARM200F",
    ),
}  # fmt: skip

SKIPPED = {
    "BF_single_frames": r"a tilt series \(the stage tilts from -72\.0° to -66\.0°\)",
    "EELS_SI.dm4": "a spectrum image",
    "HAADF.dm3": r"a tilt series \(its stack axis is in deg\)",
    "HAADFscan.mrc": "a single image",
    "dmTest_3D_int16_64,65,66.dm4": r"a stack along a length, .*\(its stack axis is in um\)",
    "example_Se_implanted_MoS2.dm3": "a single image",
    "example_image.emd": "a single image",
    "fei_emd_image.emd": "a single image",
    "multi_signal.dm3": "'HAADF' is a single image; 'Plot' is 1-D data",
    "test_loading_image_saved_with_imageJ_stack.tif": r"a z stack \(ImageJ states slices 2\.5 micron apart\)",
}


@pytest.mark.parametrize("name", SERIES)
def test_series_are_converted(real_data, tmp_path, name):
    expected = dict(SERIES[name])
    output = tmp_path / "frames.ome.zarr"
    convert([real_data / name], output, ConvertSettings(), series_id="a", name=name)
    series, raw = read_frames(output), read_series(real_data / name)
    assert series.frames.shape == expected.pop("shape")
    assert series.frames.dtype == expected.pop("dtype")
    assert series.frames.chunks[0] == raw.frames.chunks[0] == (1,) * series.n_frames
    np.testing.assert_array_equal(series.frames.compute(), raw.frames.compute())
    times, pixel = expected.pop("times"), expected.pop("pixel")
    if times is None:
        assert series.times_s is None
    else:
        np.testing.assert_allclose(series.times_s, times, atol=1e-6)
    assert series.acquisition == raw.acquisition
    if pixel is None:
        assert series.acquisition.pixel_size_nm is None
    else:
        assert series.acquisition.pixel_size_nm == pytest.approx((pixel, pixel), rel=1e-6)
    for field, value in expected.items():
        found = getattr(series.acquisition, field)
        assert found == (pytest.approx(value, rel=1e-6) if isinstance(value, float | int) else value), field
        assert (field in series.acquisition.sources) == (value is not None)


@pytest.mark.parametrize("name", SKIPPED)
def test_everything_else_says_what_it_is(real_data, name):
    with pytest.raises(NotATimeSeries, match=SKIPPED[name]):
        read_series(real_data / name)


def test_the_folder_as_a_session(real_data, tmp_path):
    entries = discover(real_data, results=tmp_path)
    names = {(e.sources[0] if len(e.sources) != 3 else "BF_single_frames"): e for e in entries}
    assert {n for n, e in names.items() if e.state == "series"} == set(SERIES)
    assert {n for n, e in names.items() if e.state == "skipped"} == set(SKIPPED)
    # acquired from the last name to the first
    assert [s[-7:-4] for s in names["BF_single_frames"].sources] == ["003", "002", "001"]


def test_emi_and_ser_count_once_and_convert_together(real_data, tmp_path):
    (entry,) = (e for e in discover(real_data, results=tmp_path) if e.series_id.startswith("03"))
    assert entry.sources == ("03_Scanning Preview.emi", "03_Scanning Preview_1.ser")
    sources = [real_data / s for s in entry.sources]
    convert(sources, tmp_path / "frames.ome.zarr", ConvertSettings(), series_id="a", name="a", signal=entry.signal)
    assert read_attributes(tmp_path / "frames.ome.zarr")["fingerprint"] == entry.fingerprint
    assert read_frames(tmp_path / "frames.ome.zarr").n_frames == 5


def test_ser_frames_equal_those_of_rosettasciio(real_data):
    from rsciio.tia import file_reader

    path = real_data / "03_Scanning Preview_1.ser"
    series = read_series(path)
    np.testing.assert_array_equal(series.frames.compute(), file_reader(str(path))[0]["data"])
    assert series.acquisition.frame_time_s == 0.23593  # from the EMI file beside it


@pytest.mark.parametrize("name", ["HAADF.dm3", "dmTest_3D_int16_64,65,66.dm4", "BF_single_frames"])
def test_the_user_may_know_better(real_data, name):
    series = read_series(real_data / name, time_series=True, frame_time_s=2.0)
    assert series.acquisition.sources["frame_time_s"] == "argument"
    np.testing.assert_allclose(np.diff(series.times_s), 2.0)
