from __future__ import annotations

import struct

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomdiffuser.errors import AtomDiffuserError, MetadataError, NotATimeSeries, ReadError, SettingsError
from atomdiffuser.io._raw_signal import clean_unit, frame_times, length_nm
from atomdiffuser.io.raw_writers import write_dm4, write_velox_emd
from atomdiffuser.io.readers import inspect, read_series

CALIBRATION = dict(
    frame_time_s=1.5, pixel_size_nm=(0.02, 0.03), beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=2e-6
)


@pytest.fixture
def stack(rng):
    return rng.integers(0, 4000, (4, 20, 30)).astype("u2")


def check(series, stack, *, times=None, pixel=(0.02, 0.03)):
    assert series.frames.dtype == stack.dtype.newbyteorder("=")
    assert series.frames.chunks == ((1,) * len(stack), (stack.shape[1],), (stack.shape[2],))
    np.testing.assert_array_equal(series.frames.compute(), stack)
    np.testing.assert_array_equal(series.frame(1), stack[1])
    if times is None:
        assert series.times_s is None
    else:
        np.testing.assert_allclose(series.times_s, times, rtol=1e-6)
    assert series.acquisition.pixel_size_nm == (pixel if pixel is None else pytest.approx(pixel))


def write_mrc(path, stack, *, pixel_A=0.2, mode=None, order="<", version=20140):
    modes = {"int8": 0, "uint8": 0, "int16": 1, "float32": 2, "uint16": 6, "complex64": 4}
    words = np.zeros(256, f"{order}i4")
    nz, ny, nx = stack.shape
    words[:4] = nx, ny, nz, modes[stack.dtype.name] if mode is None else mode
    words[7:10] = nx, ny, nz
    words[10:13] = np.array([nx * pixel_A, ny * pixel_A, 0], f"{order}f4").view(f"{order}i4")
    words[16:19], words[27] = (1, 2, 3), version
    header = bytearray(words.tobytes())
    header[208:216] = b"MAP " + (b"DD\0\0" if order == "<" else b"\x11\x11\0\0")
    path.write_bytes(bytes(header) + stack.astype(stack.dtype.newbyteorder(order)).tobytes())


def write_ser(path, stack, *, seconds, pixel_m=2e-11, kind=0x4122):
    n, ny, nx = stack.shape
    head = struct.pack("<hhhiiii", 0x4949, 0x0197, 0x0210, kind, 0x4152, n, n)
    dimension = struct.pack("<iddii", n, 0.0, 1.0, 0, 6) + b"Number" + struct.pack("<i", 0)
    array_offset = len(head) + 8 + len(dimension)
    element = 50 + ny * nx * 2
    first = array_offset + 8 * n
    offsets = [first + k * (element + 8) for k in range(n)]
    data = head + struct.pack("<ii", array_offset, 1) + dimension
    data += struct.pack(f"<{n}i", *offsets) + struct.pack(f"<{n}i", *(o + element for o in offsets))
    for frame, second in zip(stack, seconds, strict=True):
        data += struct.pack("<ddiddihii", 0, pixel_m, 0, 0, pixel_m, 0, 2, nx, ny)
        data += frame[::-1].astype("<u2").tobytes() + struct.pack("<hhi", 0x4152, 0, second)
    path.write_bytes(data)


def write_ncem(path, data, dims, *, version=(0, 2)):
    with h5py.File(path, "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = version
        group = file.create_group("data/stack")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=data)
        for k, (name, unit, values) in enumerate(dims, start=1):
            dimension = group.create_dataset(f"dim{k}", data=np.asarray(values, float))
            dimension.attrs["name"], dimension.attrs["units"] = name, unit


# ---------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "u4", "f4"])
def test_dm4(tmp_path, stack, dtype):
    write_dm4(tmp_path / "a.dm4", stack.astype(dtype), acquired_at="2026-01-02T03:04:05", **CALIBRATION)
    series = read_series(tmp_path / "a.dm4")
    check(series, stack.astype(dtype), times=np.arange(4) * 1.5)
    a = series.acquisition
    assert (a.dwell_s, a.probe_current_pA, a.beam_energy_kV) == pytest.approx((2e-6, 30.0, 200.0))
    assert a.acquired_at == "2026-01-02T03:04:05"
    assert set(a.sources.values()) == {"file"}
    assert series.name == "a"


def test_dm4_without_calibration_stays_unknown(tmp_path, stack):
    write_dm4(tmp_path / "a.dm4", stack, **dict.fromkeys(CALIBRATION))
    series = read_series(tmp_path / "a.dm4")
    check(series, stack, pixel=None)
    assert series.acquisition.missing_for_fluence() == ["probe_current_pA", "dwell_s", "pixel_size_nm"]
    assert "probe_current_pA" not in series.acquisition.sources


def test_a_probe_current_of_zero_is_unknown(tmp_path, stack):
    write_dm4(tmp_path / "a.dm4", stack, **{**CALIBRATION, "probe_current_pA": 0.0})
    assert read_series(tmp_path / "a.dm4").acquisition.probe_current_pA is None


@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", "u1"])
def test_velox(tmp_path, stack, dtype):
    write_velox_emd(tmp_path / "a.emd", stack.astype(dtype), **CALIBRATION)
    series = read_series(tmp_path / "a.emd")
    check(series, stack.astype(dtype), times=np.arange(4) * 1.5)
    a = series.acquisition
    assert (a.dwell_s, a.probe_current_pA, a.beam_energy_kV) == pytest.approx((2e-6, 30.0, 200.0))
    assert a.detector == "HAADF"


@pytest.mark.parametrize(
    ("starts", "times"),
    [
        ([0, 40, 80, 125], [0, 40, 80, 125]),  # pauses between the scans
        ([0, 1.5, 3, 4.5], [0, 1.5, 3, 4.5]),  # whole seconds hide what the frame time knows
        ([0, 0, 0, 0], [0, 1.5, 3, 4.5]),
        ([0, 7, 7, 20], [0, 7, 7.5, 20]),
    ],
)
def test_velox_start_times_win_where_they_contradict_the_frame_time(tmp_path, stack, starts, times):
    write_velox_emd(tmp_path / "a.emd", stack, starts_s=starts, **CALIBRATION)
    check(read_series(tmp_path / "a.emd"), stack, times=times)


def test_several_detectors_must_be_chosen_from(tmp_path, stack):
    write_velox_emd(tmp_path / "a.emd", {"HAADF": stack, "BF": stack + 1}, **CALIBRATION)
    with pytest.raises(NotATimeSeries, match=r"holds 2 time series \('.*', '.*'\); choose one with `signal`"):
        read_series(tmp_path / "a.emd")
    series = read_series(tmp_path / "a.emd", signal="BF")
    check(series, stack + 1, times=np.arange(4) * 1.5)
    assert series.name == "a BF"
    (index,) = (i.index for i in inspect(tmp_path / "a.emd") if i.detector == "HAADF")
    check(read_series(tmp_path / "a.emd", signal=index), stack, times=np.arange(4) * 1.5)
    for wrong in (2, -1, "ADF"):
        with pytest.raises(NotATimeSeries, match=f"has no signal {wrong!r}; choose one of 0"):
            read_series(tmp_path / "a.emd", signal=wrong)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", "i1"])
def test_mrc(tmp_path, stack, dtype, order):
    stack = (stack // 40).astype(dtype)
    write_mrc(tmp_path / "a.mrc", stack, order=order)
    check(read_series(tmp_path / "a.mrc"), stack, pixel=(0.02, 0.02))


def test_bytes_of_old_mrc_files_are_unsigned(tmp_path, stack):
    stack = (stack % 256).astype("u1")
    write_mrc(tmp_path / "a.mrc", stack, version=0)
    check(read_series(tmp_path / "a.mrc"), stack, pixel=(0.02, 0.02))


def test_ser_without_emi(tmp_path, stack):
    write_ser(tmp_path / "a_1.ser", stack, seconds=[100, 110, 125, 127])
    series = read_series(tmp_path / "a_1.ser")
    check(series, stack, times=[0, 10, 25, 27], pixel=(0.02, 0.02))
    write_ser(tmp_path / "a_1.ser", stack, seconds=[100, 100, 101, 101])
    check(read_series(tmp_path / "a_1.ser"), stack, times=None, pixel=(0.02, 0.02))  # the clock is too coarse
    write_ser(tmp_path / "a_1.ser", stack, seconds=[0, 1, 2, 3], kind=0x4120)
    with pytest.raises(NotATimeSeries, match="1-D data"):
        read_series(tmp_path / "a_1.ser")


def test_emi_without_ser(tmp_path):
    (tmp_path / "a.emi").write_bytes(b"JK\x00\x02" + bytes(100))
    with pytest.raises(ReadError, match=r"its data files \(a_1\.ser, …\) are missing"):
        read_series(tmp_path / "a.emi")


@pytest.mark.parametrize("unit", ["nm", "micron", "\\u00B5m", "pm"])
def test_imagej_tiff_keeps_pixel_size_and_frame_interval(tmp_path, stack, unit):
    size = 0.02 / length_nm(clean_unit(unit.encode().decode("unicode_escape")))
    tifffile.imwrite(
        tmp_path / "a.tif", stack, imagej=True, resolution=(1 / size, 1 / size),
        metadata={"axes": "TYX", "unit": unit, "finterval": 0.7},
    )  # fmt: skip
    check(read_series(tmp_path / "a.tif"), stack, times=np.arange(4) * 0.7, pixel=(0.02, 0.02))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["u2", ">u2", "f4", "i2", "u1"])
def test_plain_multi_page_tiff_has_frames_and_no_more(tmp_path, stack, dtype, compression):
    stack = (stack % 200).astype(dtype)
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=">" if dtype == ">u2" else "<") as writer:
        for frame in stack:
            writer.write(frame, compression=compression, contiguous=False, metadata=None)
    check(read_series(tmp_path / "a.tif"), stack, pixel=None)


def test_tiff_that_is_no_series(tmp_path, stack, rng):
    tifffile.imwrite(tmp_path / "rgb.tif", rng.integers(0, 255, (20, 30, 3)).astype("u1"), photometric="rgb")
    tifffile.imwrite(tmp_path / "one.tif", stack[0])
    tifffile.imwrite(tmp_path / "c.tif", stack, imagej=True, metadata={"axes": "CYX"})
    for name, reason in (("rgb", "a colour picture"), ("one", "a single image"), ("c", "several channels")):
        with pytest.raises(NotATimeSeries, match=reason):
            read_series(tmp_path / f"{name}.tif")


@pytest.mark.parametrize("time_first", [True, False])
def test_ncem_emd_finds_its_time_axis(tmp_path, stack, time_first):
    t, y, x = (
        ("time", "[s]", np.arange(4) * 0.5),
        ("y", "[n_m]", np.arange(20) * 0.02),
        ("x", "[n_m]", np.arange(30) * 0.03),
    )
    if time_first:
        write_ncem(tmp_path / "a.emd", stack, [t, y, x])
    else:
        write_ncem(tmp_path / "a.emd", stack.transpose(2, 1, 0), [x, y, t])
    check(read_series(tmp_path / "a.emd"), stack, times=np.arange(4) * 0.5)


def test_hyperspy_files(tmp_path, stack):
    import hyperspy.api as hs

    signal = hs.signals.Signal2D(stack)
    for axis, (name, unit, scale) in zip(
        signal.axes_manager._axes, (("time", "ms", 500.0), ("y", "nm", 0.02), ("x", "pm", 30.0)), strict=True
    ):
        axis.name, axis.units, axis.scale = name, unit, scale
    signal.metadata.set_item("Acquisition_instrument.TEM.beam_energy", 80.0)
    signal.metadata.set_item("Acquisition_instrument.TEM.beam_current", 0.05)
    signal.metadata.set_item("Acquisition_instrument.TEM.dwell_time", 4e-6)
    signal.save(tmp_path / "a.hspy")
    series = read_series(tmp_path / "a.hspy")
    check(series, stack, times=np.arange(4) * 0.5)
    a = series.acquisition
    assert (a.beam_energy_kV, a.probe_current_pA, a.dwell_s) == pytest.approx((80.0, 50.0, 4e-6))


def test_stores_of_this_package_and_their_zspy_links(tmp_path, stack):
    from atomdiffuser.config import ConvertSettings
    from atomdiffuser.stages.convert import convert

    write_dm4(tmp_path / "a.dm4", stack, **CALIBRATION)
    convert([tmp_path / "a.dm4"], tmp_path / "frames.ome.zarr", ConvertSettings(), series_id="a", name="A")
    for name in ("frames.ome.zarr", "frames.zspy"):
        check(read_series(tmp_path / name), stack, times=np.arange(4) * 1.5)


# ---------------------------------------------------------------------------------------- folders of single frames


def write_frames(folder, stack, minutes):
    for k, (frame, minute) in enumerate(zip(stack, minutes, strict=True)):
        write_dm4(folder / f"f{k}.dm4", frame, acquired_at=f"2026-01-01T12:{minute:02d}:00", **CALIBRATION)


def test_single_frames_are_ordered_by_acquisition(tmp_path, stack):
    write_frames(tmp_path / "run", stack, [3, 1, 2, 9])
    expected = stack[[1, 2, 0, 3]]
    series = read_series(tmp_path / "run")
    check(series, expected, times=[0, 60, 120, 480])
    assert series.name == "run"
    assert series.acquisition.acquired_at == "2026-01-01T12:01:00"
    listed = read_series([tmp_path / "run" / f"f{k}.dm4" for k in range(4)])
    np.testing.assert_array_equal(listed.frames.compute(), expected)


def test_frames_of_another_shape_are_named(tmp_path, stack):
    write_frames(tmp_path / "run", stack, range(4))
    write_dm4(tmp_path / "run" / "odd.dm4", stack[0][:, :9], **CALIBRATION)
    with pytest.raises(ReadError, match=r"odd\.dm4: is \(20, 9\) uint16, but f\d\.dm4 is \(20, 30\) uint16"):
        read_series(tmp_path / "run")


def test_folders_that_are_no_series(tmp_path, stack):
    write_frames(tmp_path / "run", stack[:2], range(2))
    write_dm4(tmp_path / "run" / "stack.dm4", stack, **CALIBRATION)
    with pytest.raises(NotATimeSeries, match=r"stack\.dm4: holds several frames, expected one"):
        read_series(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="a folder without microscope files"):
        read_series(tmp_path / "empty")
    with pytest.raises(ReadError, match="no files given"):
        read_series([])


# --------------------------------------------------------------------------------------------------- overrides


def test_overrides_replace_what_the_file_says_and_are_marked(tmp_path, stack):
    write_dm4(tmp_path / "a.dm4", stack, **CALIBRATION)
    series = read_series(
        tmp_path / "a.dm4", pixel_size_nm=0.05, frame_time_s=3, probe_current_pA=None, excluded_frames=[2, 0, 2]
    )
    check(series, stack, times=np.arange(4) * 3, pixel=(0.05, 0.05))
    assert series.excluded == (0, 2)
    assert series.acquisition.probe_current_pA == pytest.approx(30)
    assert series.acquisition.sources["pixel_size_nm"] == "argument"
    assert series.acquisition.sources["dwell_s"] == "file"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"probe_curent_pA": 1}, SettingsError, "probe_curent_pA: unknown override; did you mean 'probe_current_pA'"),
        ({"dwell_s": -1}, MetadataError, "dwell_s is -1"),
        ({"pixel_size_nm": [1, 2, 3]}, MetadataError, "expected one number or"),
        ({"excluded_frames": [4]}, MetadataError, r"excluded_frames \[4\] of 'a' are outside 0…3"),
    ],
)
def test_wrong_overrides(tmp_path, stack, overrides, error, message):
    write_dm4(tmp_path / "a.dm4", stack, **CALIBRATION)
    with pytest.raises(error, match=message):
        read_series(tmp_path / "a.dm4", **overrides)


# ------------------------------------------------------------------------------------------------------ faults


def write_any(path, stack):
    if path.suffix == ".dm4":
        write_dm4(path, stack, **CALIBRATION)
    elif path.suffix == ".emd":
        write_velox_emd(path, stack, **CALIBRATION)
    elif path.suffix == ".mrc":
        write_mrc(path, stack)
    elif path.suffix == ".ser":
        write_ser(path, stack, seconds=[0, 10, 20, 30])
    else:
        tifffile.imwrite(path, stack, imagej=True)


@pytest.mark.parametrize("suffix", [".dm4", ".emd", ".mrc", ".ser", ".tif"])
@pytest.mark.parametrize("kept", [0.99, 0.7, 0.3, 0.02, 0.0])
def test_truncated_files_are_said_to_be(tmp_path, stack, suffix, kept):
    path = tmp_path / f"a_1{suffix}"
    write_any(path, stack)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ReadError, match=r"copy it again|truncated|damaged|too short"):
        read_series(path)


@pytest.mark.parametrize("suffix", [".dm4", ".mrc", ".ser", ".tif", ".emd"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positions=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path, suffix, positions):
    path = tmp_path / f"a_1{suffix}"
    if not (tmp_path / suffix).exists():
        write_any(path, np.arange(4 * 20 * 30, dtype="u2").reshape(4, 20, 30))
        (tmp_path / suffix).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / suffix).read_bytes())
    for position, value in positions:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        read_series(path)
    except AtomDiffuserError as error:
        assert str(path) in str(error) or "set " in str(error)


def test_files_of_no_known_format(tmp_path):
    for name, text in (("a.txt", "no known microscope format"), ("a.dm4", "named like Digital Micrograph")):
        (tmp_path / name).write_text("hello")
        with pytest.raises(ReadError, match=text):
            read_series(tmp_path / name)
    with pytest.raises(ReadError, match=r"gone\.dm4: cannot be opened \(No such file"):
        read_series(tmp_path / "gone.dm4")


# ------------------------------------------------------------------------------------------------------- times


def test_frame_times_of_a_coarse_clock():
    assert frame_times(3, None) is None
    np.testing.assert_array_equal(frame_times(3, 0.5), [0, 0.5, 1])
    np.testing.assert_array_equal(frame_times(3, 0.5, np.array([5.0, 4.0, 6.0])), [0, 0.5, 1])  # runs backwards
    np.testing.assert_array_equal(frame_times(4, None, np.array([0.0, 5, 5, 20])), [0, 5, 5.5, 20])
    assert frame_times(4, None, np.array([0.0, 1, 1, 2])) is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.floats(0.01, 3) | st.none())
def test_frame_times_always_increase(steps, nominal):
    times = frame_times(len(steps) + 1, nominal, np.cumsum([0, *steps]).astype(float))
    if times is not None:
        assert times[0] == 0
        assert np.all(np.diff(times) > 0)


@pytest.mark.parametrize(
    ("unit", "nm"), [("[n_m]", 1), ("μm", 1000), ("µm", 1000), ("\u212b", 0.1), (b"nm", 1), ("m", 1e9), ("s", None)]
)
def test_units_in_every_spelling(unit, nm):
    assert length_nm(clean_unit(unit)) == nm
