from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.codecs import ZstdCodec

from atomdiffuser.errors import ShapeError, StoreError
from atomdiffuser.io.store import (
    block_mean,
    compressors,
    create_frames,
    read_array,
    read_attributes,
    read_frames,
    replacing_folder,
    to_json,
)
from atomdiffuser.series import Acquisition

KNOWN = Acquisition(
    pixel_size_nm=(0.02, 0.03),
    frame_time_s=1.5,
    dwell_s=2e-6,
    probe_current_pA=30.0,
    beam_energy_kV=200.0,
    detector="HAADF",
    acquired_at="2026-01-02T03:04:05",
    instrument="Titan",
    sources={"dwell_s": "file", "probe_current_pA": "session.yaml"},
)


def write(path, stack, *, times=None, acquisition=KNOWN, **kwargs):
    with create_frames(
        path,
        n_frames=len(stack),
        frame_shape=stack.shape[1:],
        dtype=stack.dtype,
        times_s=times,
        acquisition=acquisition,
        name=kwargs.pop("name", "LLZO A/1 é"),
        **kwargs,
    ) as writer:
        for k, frame in enumerate(stack):
            writer.write(k, frame)
    return path


@pytest.fixture
def stack(rng):
    return rng.integers(0, 60000, (4, 70, 90)).astype("u2")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stack=st.sampled_from(["u1", "<u2", ">u2", "<i2", "<i4", "<f4", ">f4", "<f8"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    ),
    excluded=st.sets(st.integers(0, 4)),
)
def test_frames_come_back_bit_by_bit_in_native_byte_order(tmp_path, stack, excluded):
    excluded = tuple(sorted(k for k in excluded if k < len(stack)))
    series = read_frames(write(tmp_path / "frames.ome.zarr", stack, excluded=excluded))
    assert series.frames.dtype == stack.dtype.newbyteorder("=")
    np.testing.assert_array_equal(series.frames.compute(), stack)
    assert series.excluded == excluded


def test_acquisition_times_and_metadata_come_back(tmp_path, stack):
    times = np.array([0.0, 1.5, 3.1, 99.7])
    metadata = {"a": {"b": [1, {"c": np.float32(2.5)}], "bytes": b"x"}, "nan": float("nan"), "long": np.zeros(10**5)}
    path = write(tmp_path / "frames.ome.zarr", stack, times=times, original_metadata=metadata, attributes={"q": (1, 2)})
    series = read_frames(path)
    assert series.acquisition == KNOWN
    np.testing.assert_array_equal(series.times_s, times)
    assert series.name == "LLZO A/1 é"
    assert series.original_metadata["a"] == {"b": [1, {"c": 2.5}], "bytes": "x"}
    assert series.original_metadata["long"] == "<array float64 (100000,)>"
    attributes = read_attributes(path)
    assert attributes["q"] == [1, 2]
    assert attributes["kind"] == "frames"
    json.loads((path / "zarr.json").read_text(), parse_constant=pytest.fail)  # no NaN literals


def test_reading_is_lazy_one_chunk_a_frame(tmp_path, stack):
    path = write(tmp_path / "frames.ome.zarr", stack)
    series = read_frames(path)
    assert series.frames.chunks == ((1,) * 4, (70,), (90,))
    (path / "Experiments/frames/data/c/2/0/0").write_bytes(b"damaged")
    np.testing.assert_array_equal(series.frame(1), stack[1])


@pytest.mark.parametrize("lazy", [False, True])
def test_hyperspy_opens_it_with_axes_and_metadata(tmp_path, stack, lazy):
    import hyperspy.api as hs

    write(tmp_path / "frames.ome.zarr", stack, times=np.arange(4) * 1.5)
    signal = hs.load(tmp_path / "frames.zspy", lazy=lazy)
    np.testing.assert_array_equal(np.asarray(signal.data), stack)
    time, x, y = (signal.axes_manager[n] for n in ("time", "x", "y"))
    assert (time.scale, time.units, time.size, time.navigate) == (1.5, "s", 4, True)
    assert (y.scale, y.units, y.size) == (0.02, "nm", 70)
    assert (x.scale, x.units, x.size) == (0.03, "nm", 90)
    tem = signal.metadata.Acquisition_instrument.TEM
    assert (tem.beam_energy, tem.beam_current, tem.dwell_time) == (200.0, 0.03, 2e-6)
    assert signal.metadata.General.title == "LLZO A/1 é"
    assert signal.metadata.General.date == "2026-01-02"


@pytest.mark.parametrize(
    ("acquisition", "times", "unit", "scale"),
    [(KNOWN, np.array([0.0, 1.0, 9.0, 12.0]), "nanometer", [4.0, 0.02, 0.03]), (Acquisition(), None, None, [1, 1, 1])],
    ids=["calibrated", "unknown"],
)
def test_ome_zarr_models_validate_it(tmp_path, stack, acquisition, times, unit, scale):
    from ome_zarr_models.v05 import Image

    path = write(tmp_path / "frames.ome.zarr", stack, acquisition=acquisition, times=times, pyramid_levels=3)
    image = Image.from_zarr(zarr.open_group(path, mode="r"))
    (multiscale,) = image.attributes.ome.multiscales
    assert [a.name for a in multiscale.axes] == ["t", "y", "x"]
    assert multiscale.axes[1].unit == unit
    first, second = multiscale.datasets[:2]
    assert list(first.coordinateTransformations[0].scale) == pytest.approx(scale)
    assert list(second.coordinateTransformations[1].translation) == pytest.approx([0, scale[1] / 2, scale[2] / 2])
    assert len(multiscale.datasets) == 2  # a third level would be 17 × 22 pixels


def test_pyramid_levels_are_rounded_block_means_without_the_incomplete_rest(tmp_path):
    stack = np.arange(2 * 67 * 71, dtype="u2").reshape(2, 67, 71)
    path = write(tmp_path / "frames.ome.zarr", stack)
    level = zarr.open_array(path / "Experiments/frames/pyramid/1", mode="r")
    expected = np.rint(stack[:, :66, :70].reshape(2, 33, 2, 35, 2).mean((2, 4)))
    np.testing.assert_array_equal(level[...], expected)


def test_nan_pixels_survive(tmp_path, rng):
    stack = rng.random((2, 80, 80), dtype=np.float32)
    stack[1, :10] = np.nan
    series = read_frames(write(tmp_path / "aligned.ome.zarr", stack))
    np.testing.assert_array_equal(series.frames.compute(), stack)
    assert np.isnan(block_mean(stack[1], 2)[:5]).all()


def test_all_zero_frames_are_kept_apart_from_missing_ones(tmp_path):
    path = write(tmp_path / "frames.ome.zarr", np.zeros((3, 8, 9), "u2"))
    assert read_frames(path).n_frames == 3
    shutil.rmtree(path / "Experiments/frames/data/c/1")
    with pytest.raises(StoreError, match=r"holds 2 of 3 frames; run the convert stage again"):
        read_frames(path)


def test_further_arrays(tmp_path, stack):
    path = tmp_path / "aligned.ome.zarr"
    with create_frames(
        path, n_frames=1, frame_shape=(70, 90), dtype="f4", times_s=None, acquisition=KNOWN, name="a"
    ) as writer:
        writer.write(0, stack[0].astype("f4"))
        writer.write_array("mean", stack.mean(0))
        with pytest.raises(StoreError, match="cannot be called 'Experiments'"):
            writer.write_array("Experiments", stack[0])
    np.testing.assert_array_equal(read_array(path, "mean"), stack.mean(0))
    with pytest.raises(StoreError, match="has no array 'count'; run the align stage again"):
        read_array(path, "count")


def test_a_failing_writer_leaves_the_old_store_and_nothing_else(tmp_path, stack):
    path = write(tmp_path / "frames.ome.zarr", stack)
    with pytest.raises(RuntimeError, match="stop"):
        with create_frames(
            path, n_frames=4, frame_shape=(70, 90), dtype="u2", times_s=None, acquisition=KNOWN, name="new"
        ) as writer:
            writer.write(0, stack[0])
            raise RuntimeError("stop")
    assert read_frames(path).name == "LLZO A/1 é"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames.ome.zarr", "frames.zspy"]


def test_a_store_whose_writer_was_killed_between_its_two_renames_is_not_lost(tmp_path, stack):
    path = write(tmp_path / "frames.ome.zarr", stack)
    path.rename(tmp_path / ".frames.ome.zarr.old")
    (tmp_path / ".frames.ome.zarr.partial").mkdir()
    with pytest.raises(OSError, match="no room"), replacing_folder(path):
        np.testing.assert_array_equal(read_frames(path).frames.compute(), stack)
        raise OSError("no room")
    np.testing.assert_array_equal(read_frames(path).frames.compute(), stack)
    assert not list(tmp_path.glob(".frames.ome.zarr.*"))


def test_a_store_is_replaced_and_leftovers_of_a_killed_writer_are_cleared(tmp_path, stack):
    path = write(tmp_path / "frames.ome.zarr", stack)
    (tmp_path / ".frames.ome.zarr.partial").mkdir()
    (path / "stray").write_text("old")
    write(path, stack[:2], name="new")
    assert read_frames(path).n_frames == 2
    assert not (path / "stray").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames.ome.zarr", "frames.zspy"]
    assert (tmp_path / "frames.zspy").resolve() == path.resolve()


def test_frames_that_were_never_written_are_an_error(tmp_path, stack):
    with pytest.raises(StoreError, match=r"frames \[1, 2, 3\] of 4 were never written"):
        with create_frames(
            tmp_path / "frames.ome.zarr",
            n_frames=4,
            frame_shape=(70, 90),
            dtype="u2",
            times_s=None,
            acquisition=KNOWN,
            name="a",
        ) as writer:
            writer.write(0, stack[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frame", "index", "message"),
    [
        (np.zeros((70, 91), "u2"), 0, r"frame 0 has shape \(70, 91\), expected \(70, 90\)"),
        (np.zeros((70, 90), "u2"), 4, "frame 4 is outside 0…3"),
        (np.zeros((70, 90), "f4"), 0, "frame 0 is float32, the store holds uint16"),
    ],
)
def test_frames_that_do_not_fit_are_refused(tmp_path, frame, index, message):
    with pytest.raises(ShapeError, match=message):
        with create_frames(
            tmp_path / "f.ome.zarr",
            n_frames=4,
            frame_shape=(70, 90),
            dtype="u2",
            times_s=None,
            acquisition=KNOWN,
            name="a",
        ) as writer:
            writer.write(index, frame)


def test_what_is_no_grey_value_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="dtype complex64 cannot be stored"):
        write(tmp_path / "f.ome.zarr", np.zeros((1, 4, 4), "c8"))
    with pytest.raises(ShapeError, match=r"4 frames but times of shape \(3,\)"):
        write(tmp_path / "f.ome.zarr", np.zeros((4, 4, 4), "u2"), times=np.arange(3))


def test_missing_damaged_and_foreign_stores_name_the_stage(tmp_path, stack):
    with pytest.raises(StoreError, match="no such store; run the convert stage first"):
        read_frames(tmp_path / "frames.ome.zarr")
    with pytest.raises(StoreError, match="no such store; run the align stage first"):
        read_frames(tmp_path / "aligned.ome.zarr")
    with pytest.raises(StoreError, match="no such store; run the decay stage first"):
        read_attributes(tmp_path / "decay.zarr")
    path = write(tmp_path / "frames.ome.zarr", stack)
    with pytest.raises(StoreError, match="holds 'frames', expected 'maps'"):
        read_attributes(path, kind="maps")
    shutil.rmtree(path / "Experiments/frames/original_metadata")
    with pytest.raises(StoreError, match="incomplete frame store"):
        read_frames(path)
    (path / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="not a readable Zarr store"):
        read_frames(path)
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(StoreError, match="not written by atomdiffuser"):
        read_frames(tmp_path / "other.zarr")


def test_zero_compression_stores_raw_pixels(tmp_path, stack):
    path = write(tmp_path / "frames.ome.zarr", stack, compression_level=0)
    assert (path / "Experiments/frames/data/c/0/0/0").stat().st_size == stack[0].nbytes


def test_importing_the_store_does_not_import_hyperspy():
    code = "import sys, atomdiffuser.io.store; assert 'hyperspy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    st.recursive(
        st.none() | st.floats() | st.text() | st.binary(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
@settings(max_examples=50, deadline=None)
def test_any_metadata_becomes_strict_json(tree):
    json.dumps(to_json(tree), allow_nan=False)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64", "float32"])
def test_block_means_are_those_of_numpy_to_the_last_count(dtype):
    """Also where sums are large, and rounded to even at one half."""
    rng = np.random.default_rng(1)
    top = 2**40 if np.dtype(dtype).kind != "f" and np.dtype(dtype).itemsize == 8 else None
    largest = 1e6 if dtype == "float32" else top or np.iinfo(dtype).max
    frame = (rng.random((37, 29)) * largest).astype(dtype)
    frame[:2, :2] = [[1, 2], [0, 3]]  # 1.5, to 2
    for factor in (2, 4, 16):
        y, x = 37 // factor, 29 // factor
        blocks = frame[: y * factor, : x * factor].reshape(y, factor, x, factor).astype(np.float64)
        mean = blocks.mean((1, 3))
        expected = mean if dtype == "float32" else np.rint(mean)
        np.testing.assert_allclose(block_mean(frame, factor), expected, rtol=1e-12 if dtype == "float32" else 0)
    if dtype != "float32":
        assert block_mean(frame, 2)[0, 0] == 2


def test_a_batch_is_stored_like_its_frames_one_by_one(tmp_path):
    stack = np.random.default_rng(0).integers(0, 60000, (5, 70, 66)).astype(np.uint16)
    known = dict(n_frames=5, frame_shape=(70, 66), dtype=np.uint16, times_s=None, acquisition=Acquisition(), name="a")
    with create_frames(tmp_path / "a.ome.zarr", **known) as writer:
        writer.write_batch(0, stack[:3])
        writer.write_batch(3, stack[3:])
    with create_frames(tmp_path / "b.ome.zarr", **known) as writer:
        for k, frame in enumerate(stack):
            writer.write(k, frame)
    for name in ("data", "pyramid/1"):
        a, b = (zarr.open_array(tmp_path / f"{s}.ome.zarr" / "Experiments/frames" / name)[...] for s in "ab")
        np.testing.assert_array_equal(a, b)
    assert np.array_equal(zarr.open_array(tmp_path / "a.ome.zarr/Experiments/frames/data")[...], stack)


def test_a_batch_beyond_the_last_frame_is_refused(tmp_path):
    known = dict(n_frames=3, frame_shape=(40, 40), dtype=np.uint16, times_s=None, acquisition=Acquisition(), name="a")
    with pytest.raises(ShapeError, match="frame 3 is outside 0…2"), create_frames(tmp_path / "a", **known) as writer:
        writer.write_batch(2, np.zeros((2, 40, 40), np.uint16))


def test_noisy_counts_are_stored_in_less_than_zstandard_alone_takes(tmp_path):
    """Why the bytes are shuffled first: the upper bytes of counts are alike."""
    counts = np.random.default_rng(0).poisson(300, (1, 256, 256)).astype(np.uint16)
    sizes = []
    for codecs in (compressors(1, counts.dtype), [ZstdCodec(level=3)]):
        store = tmp_path / str(len(sizes))
        zarr.create_array(store, data=counts, chunks=counts.shape, compressors=codecs)
        sizes.append(sum(p.stat().st_size for p in store.rglob("c/**/*") if p.is_file()))
    assert sizes[0] < 0.97 * sizes[1] < 0.97 * counts.nbytes
    assert compressors(0, counts.dtype) is None
